package conformance

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/devca"
)

const (
	// VaultID is the SPIFFE ID of the vault that is played.
	VaultID = "spiffe://phasekey.dev/vault"

	resourceManager = "https://management.azure.com"
	keyVault        = "https://vault.azure.net"

	// soon is how long anything may take that a runner does at once; it is generous, for machines that are busy.
	soon = 10 * time.Second
	// backWithin is how long a runner may take to come back: the longest back-off, and a connection's own.
	backWithin = 45 * time.Second
	// interval is how often a probe is asked while something must stay as it is.
	interval = 100 * time.Millisecond
	// stopWithin is how long a runner may take to end when it is told to.
	stopWithin = 15 * time.Second
	// maxOutput bounds what is kept of a runner's output, in bytes.
	maxOutput = 4 << 20
)

// What a runner may be told to ask for, and the vault's names for it. Nothing said means access tokens.
const (
	federatedToken = "federated-token"
	clientSecret   = "client-secret"
)

var materials = map[string][]typev1.Material{
	"":             {typev1.Material_MATERIAL_UNSPECIFIED, typev1.Material_MATERIAL_ACCESS_TOKEN},
	federatedToken: {typev1.Material_MATERIAL_FEDERATED_TOKEN},
	clientSecret:   {typev1.Material_MATERIAL_CLIENT_SECRET},
}

// unavailable is how a vault, or what is before it, is away.
var unavailable = status.Error(codes.Unavailable, "as scripted: away")

// instancePattern is what instance IDs look like.
var instancePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{8,64}$`)

// session is one situation while it is played. Its steps do nothing any more once one has found something wrong, so that a script
// reads as the list of what happens.
type session struct {
	ctx    context.Context
	config Config
	// material is what the runner is told to ask for, in the words of its flag; empty for access tokens.
	material string
	dir      string
	vault    *vault
	ca       string
	probes   chan *probe
	dials    net.Listener
	canary   string
	now      func() time.Time

	runners []*process
	under   *probe // the first runner's command, once that has come
	streams []*stream
	err     error // what is wrong
}

// wrong notes what the runner did wrong. Only the first is kept: the rest follows from it.
func (s *session) wrong(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf(format, args...)
	}
}

// process is one process of the command that is judged.
type process struct {
	command *exec.Cmd
	out     *output
	ended   chan struct{}
}

// output keeps what is written, up to a bound.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p[:min(len(p), max(0, maxOutput-o.text.Len()))])
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// open prepares a situation: a vault with its identity, of the CA that the runner is told of unless it is to be a stranger.
func open(ctx context.Context, config Config, now func() time.Time, sit situation) (*session, error) {
	dir, err := os.MkdirTemp("", "phasekey-conformance-")
	if err != nil {
		return nil, err
	}
	s := &session{ctx: ctx, config: config, material: sit.material, dir: dir, canary: "pk_conformance_" + rand.Text(), probes: make(chan *probe, 16), now: now}
	fail := func(err error) (*session, error) { return nil, errors.Join(err, os.RemoveAll(dir)) }
	known, err := devca.Open(filepath.Join(dir, "tls"), now())
	if err != nil {
		return fail(err)
	}
	s.ca = known.CAFile()
	issuer := known
	if sit.stranger {
		if issuer, err = devca.Open(filepath.Join(dir, "other"), now()); err != nil {
			return fail(err)
		}
	}
	files, err := issuer.Issue(now(), "vault", devca.Leaf{ID: cmp.Or(sit.id, VaultID), DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		return fail(err)
	}
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return fail(err)
	}
	if s.dials, err = listenForProbes(ctx, filepath.Join(dir, "probe")); err != nil {
		return fail(err)
	}
	if s.vault, err = newVault(ctx, s.canary+"_grant", cert); err != nil {
		return fail(errors.Join(err, s.dials.Close()))
	}
	go func() {
		for {
			conn, err := s.dials.Accept()
			if err != nil {
				return
			}
			s.probes <- &probe{conn: conn, in: bufio.NewReader(conn)}
		}
	}()
	return s, nil
}

// close ends what still runs.
func (s *session) close() error {
	if s.under != nil {
		_ = s.under.conn.Close()
	}
	err := s.dials.Close()
	for _, r := range s.runners {
		r.end()
	}
	s.vault.stop()
	return errors.Join(err, os.RemoveAll(s.dir))
}

// end has a runner end, by force in the end, with all that it started.
func (r *process) end() {
	_ = r.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(stopWithin):
	}
	_ = syscall.Kill(-r.command.Process.Pid, syscall.SIGKILL)
	<-r.ended
}

// start runs the runner, told of vault, CA and grant as `phasekey exec` is.
func (s *session) start() {
	reader, writer, err := os.Pipe()
	if err != nil {
		s.wrong("start the runner: %w", err)
		return
	}
	defer func() { _ = reader.Close() }()
	_, err = writer.WriteString(s.vault.grant)
	if err = errors.Join(err, writer.Close()); err != nil {
		s.wrong("start the runner: %w", err)
		return
	}
	args := append(slices.Clone(s.config.Runner[1:]), "--vault", s.vault.address(), "--vault-id", VaultID, "--ca", s.ca, "--grant-fd", "3")
	if s.material != "" {
		args = append(args, "--material", s.material)
	}
	args = slices.Concat(args, []string{"--"}, s.config.Probe, []string{filepath.Join(s.dir, "probe")})
	r := &process{out: &output{}, ended: make(chan struct{})}
	r.command = exec.CommandContext(s.ctx, s.config.Runner[0], args...) //nolint:gosec // what it is told to judge
	r.command.Env = slices.DeleteFunc(slices.Clone(s.config.Env), func(e string) bool { return strings.HasPrefix(e, "PHASEKEY_") })
	r.command.Stdout, r.command.Stderr = r.out, r.out
	r.command.ExtraFiles = []*os.File{reader}
	r.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.command.WaitDelay = time.Second
	if err := r.command.Start(); err != nil {
		s.wrong("start the runner: %w", err)
		return
	}
	go func() {
		_ = r.command.Wait()
		close(r.ended)
	}()
	s.runners = append(s.runners, r)
}

// credential is what the vault delivers as generation n: a token for Resource Manager that lives for an hour, or what else the runner was told to
// ask for.
func (s *session) credential(n int64, change ...func(*vaultv1.Credential)) *vaultv1.Credential {
	now := s.now()
	c := &vaultv1.Credential{
		Lease: "conformance", Generation: n, CredentialVersion: 1,
		Phase: typev1.Phase_PHASE_PLANNING, Access: typev1.Access_ACCESS_READ, Reason: vaultv1.Credential_REASON_REFRESH,
		IssueTime: timestamppb.New(now), RefreshTime: timestamppb.New(now.Add(45 * time.Minute)),
		ExpireTime: timestamppb.New(now.Add(time.Hour)), GrantExpireTime: timestamppb.New(now.Add(4 * time.Hour)),
		Cloud:    "public",
		TenantId: "11111111-1111-4111-8111-111111111111", ClientId: "22222222-2222-4222-8222-222222222222",
		SubscriptionId: "33333333-3333-4333-8333-333333333333",
		Material:       &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: resourceManager, Token: s.token(n)}},
		Environment:    map[string]string{"ARM_RESOURCE_PROVIDER_REGISTRATIONS": "none"},
	}
	switch s.material {
	case federatedToken:
		c.Material = &vaultv1.Credential_FederatedToken{FederatedToken: &vaultv1.FederatedToken{Token: s.token(n)}}
	case clientSecret:
		c.Material = &vaultv1.Credential_ClientSecret{ClientSecret: &vaultv1.ClientSecret{Secret: s.token(n)}}
		c.RefreshTime, c.ExpireTime = c.GetGrantExpireTime(), c.GetGrantExpireTime()
	}
	for _, do := range change {
		do(c)
	}
	return c
}

func (s *session) token(n int64) string { return fmt.Sprintf("%s_token.%d", s.canary, n) }

// life makes a credential live for so long, and be renewed at half of that.
func (s *session) life(d time.Duration) func(*vaultv1.Credential) {
	return func(c *vaultv1.Credential) {
		c.RefreshTime, c.ExpireTime = timestamppb.New(s.now().Add(d/2)), timestamppb.New(s.now().Add(d))
	}
}

// next waits for the next stream.
func (s *session) next(within time.Duration) *stream {
	if s.err != nil {
		return nil
	}
	select {
	case c := <-s.vault.calls:
		s.opened(c)
		return c
	case <-time.After(within):
		s.wrong("no stream was opened within %s", within)
	case <-s.ctx.Done():
		s.wrong("it was broken off: %w", context.Cause(s.ctx))
	}
	return nil
}

// opened looks at a stream's request.
func (s *session) opened(c *stream) {
	switch {
	case !instancePattern.MatchString(c.instance):
		s.wrong("instance_id %q is not 8 to 64 of A-Za-z0-9_-", c.instance)
	case !slices.Contains(materials[s.material], c.request.GetMaterial()):
		s.wrong("it asked for %s, and was told to ask for %s", c.request.GetMaterial(), cmp.Or(s.material, "nothing else than tokens"))
	case len(s.runners) == 1 && len(s.streams) > 0 && s.streams[0].instance != c.instance:
		s.wrong("it came back as another instance: %s was %s, which takes another lease of the grant's four", c.instance, s.streams[0].instance)
	}
	s.streams = append(s.streams, c)
}

// begin starts the runner, has it delivered generation 1, and waits until its command has that.
func (s *session) begin(change ...func(*vaultv1.Credential)) *stream {
	s.start()
	c := s.next(soon)
	s.send(c, s.credential(1, change...))
	if s.material == clientSecret {
		s.hasSecret(1)
	} else {
		s.holds(1)
	}
	return c
}

// hasSecret checks that the command was started with secret n.
func (s *session) hasSecret(n int64) {
	a := s.ask(question{})
	for _, name := range []string{"ARM_CLIENT_SECRET", "AZURE_CLIENT_SECRET"} {
		if s.err == nil && !slices.Contains(a.Environment, name+"="+s.token(n)) {
			s.wrong("the command does not have secret %d in %s", n, name)
		}
	}
}

func (s *session) send(c *stream, credential *vaultv1.Credential) {
	if s.err == nil {
		c.do(order{credential: credential})
	}
}

// leave asks the runner to open another stream within a time.
func (s *session) leave(c *stream, within time.Duration) {
	if s.err == nil {
		c.do(order{leave: durationpb.New(within)})
	}
}

// letsGo checks that the runner lets go of a stream once another one has delivered.
func (s *session) letsGo(c *stream) {
	if s.err != nil {
		return
	}
	select {
	case <-c.done:
	case <-time.After(soon):
		s.wrong("it did not let go of the old stream within %s of the new one's delivery", soon)
	}
}

// stillHas checks that the runner has not let go of a stream before another one has delivered.
func (s *session) stillHas(c *stream) {
	if s.err == nil && !c.lives() {
		s.wrong("it let go of the old stream before the new one had delivered")
	}
}

func (s *session) end(c *stream, err error) {
	if s.err == nil {
		c.do(order{end: true, err: err})
	}
}

// come waits for the command below the runner.
func (s *session) come() {
	if s.err != nil || s.under != nil {
		return
	}
	select {
	case s.under = <-s.probes:
	case <-s.runners[0].ended:
		s.wrong("the runner ended (%s) and had not started its command", s.runners[0].command.ProcessState)
	case <-time.After(soon):
		s.wrong("the command was not started within %s of the first delivery", soon)
	}
}

// own is how the command asks for what the runner holds.
func (s *session) own() question {
	if s.material == federatedToken {
		return question{Assertion: true}
	}
	return question{Audience: resourceManager}
}

// ask asks the command something.
func (s *session) ask(q question) answer {
	s.come()
	if s.err != nil {
		return answer{}
	}
	a, err := s.under.ask(q)
	if err != nil {
		s.wrong("the command below the runner has ended, or does not answer: %w", err)
	}
	return a
}

// said describes an answer without the token.
func (s *session) said(a answer) string {
	switch n, ours := strings.CutPrefix(a.Token, s.canary+"_token."); {
	case a.Problem != "":
		return a.Problem
	case ours:
		return fmt.Sprintf("%d with token %s", a.Status, n)
	default:
		return fmt.Sprintf("%d", a.Status)
	}
}

func (s *session) has(a answer, n int64) bool { return a.Status == 200 && a.Token == s.token(n) }

// holds waits until the command gets token n.
func (s *session) holds(n int64) {
	var last answer
	for until := s.now().Add(soon); s.err == nil; s.pause(interval) {
		if last = s.ask(s.own()); s.has(last, n) {
			return
		}
		if s.now().After(until) {
			s.wrong("the command did not get token %d within %s; the last answer was: %s", n, soon, s.said(last))
		}
	}
}

// keeps checks for a while that the command gets token n all the time.
func (s *session) keeps(n int64, d time.Duration) {
	for until := s.now().Add(d); s.err == nil && s.now().Before(until); s.pause(interval) {
		if a := s.ask(s.own()); s.err == nil && !s.has(a, n) {
			s.wrong("the command did not get token %d, which was still good, but: %s", n, s.said(a))
		}
	}
}

// hasNone checks that the command gets no token, from so long after now on, for two seconds.
func (s *session) hasNone(after time.Duration) {
	for until, from := s.now().Add(after+2*time.Second), s.now().Add(after); s.err == nil && s.now().Before(until); s.pause(interval) {
		asked := s.now()
		if a := s.ask(s.own()); s.err == nil && a.Status == 200 && asked.After(from) {
			s.wrong("the command got what it must not get any more: %s", s.said(a))
		}
	}
}

// quiet checks that no stream is opened for a while, while the command does what it does.
func (s *session) quiet(d time.Duration, during ...func()) {
	stop, over := make(chan struct{}), make(chan int, 1)
	go func() {
		opened := 0
		defer func() { over <- opened }()
		for end := time.After(d); ; {
			select {
			case c := <-s.vault.calls:
				opened++
				c.do(order{end: true, err: unavailable})
			case <-end:
				return
			case <-stop:
				return
			}
		}
	}()
	if s.err != nil {
		close(stop)
	}
	for _, do := range during {
		do()
	}
	if opened := <-over; opened > 0 {
		s.wrong("it opened %d streams in %s, and ought to open none", opened, d)
	}
}

// during answers every stream for a while by do, in the order of their coming, and returns them; what must stay so meanwhile does.
func (s *session) during(d time.Duration, do func(*stream), meanwhile func()) (came []*stream) {
	if s.err != nil {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for end := time.After(d); ; {
			select {
			case c := <-s.vault.calls:
				came = append(came, c)
				do(c)
			case <-end:
				return
			}
		}
	}()
	meanwhile()
	<-done
	for _, c := range came {
		s.opened(c)
	}
	return came
}

// notMore checks how many streams came.
func (s *session) notMore(came []*stream, most int, d time.Duration) {
	if s.err == nil && len(came) > most {
		s.wrong("it opened %d streams in %s; with back-off they are fewer than %d", len(came), d, most)
	}
}

// pause waits a little, less if all is over.
func (s *session) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
		s.wrong("it was broken off: %w", context.Cause(s.ctx))
	}
}

// finish lets the command go and looks how the runner ends.
func (s *session) finish() {
	s.come()
	if s.err != nil {
		return
	}
	r := s.runners[0]
	if n := len(s.vault.closed()); n > 0 {
		s.wrong("it closed %d leases while its command ran", n)
		return
	}
	_ = s.under.conn.Close()
	select {
	case <-r.ended:
	case <-time.After(stopWithin):
		s.wrong("its command ended, and it did not within %s", stopWithin)
		return
	}
	if code := r.command.ProcessState.ExitCode(); code != ProbeExit {
		s.wrong("its command ended with exit code %d, and it with %d", ProbeExit, code)
	}
	s.closedItsLease()
}

// closedItsLease checks that the lease was closed, by the instance that had it.
func (s *session) closedItsLease() {
	if s.err != nil {
		return
	}
	if closed := s.vault.closed(); len(closed) != 1 || closed[0] != s.streams[0].instance {
		s.wrong("it closed the leases of the instances %q; its own is %q", closed, s.streams[0].instance)
	}
}

// silent checks what the runners wrote, and that no call was strange.
func (s *session) silent() {
	if _, strange := s.vault.seen(); len(strange) > 0 {
		s.wrong("%s", strange[0])
	}
	for _, r := range s.runners {
		if strings.Contains(r.out.String(), s.canary) {
			s.wrong("the grant or a token is in its output")
		}
	}
}
