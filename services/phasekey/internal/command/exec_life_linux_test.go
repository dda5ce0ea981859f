package command_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/loopbacktest"
	"phasekey.dev/pkg/runner/runnertest"
)

// restless is a child that asks for a token all the time, until the end of input, and then says how it went: how many
// requests failed, and how many different tokens it got, of how many versions of the credential.
func restless() int {
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	tokens, versions, failed := map[string]bool{}, map[string]bool{}, 0
	fmt.Println("started")
	for again := time.NewTicker(10 * time.Millisecond); ; {
		if askMachine() != 200 {
			failed++
		}
		status, token := askToken()
		if status != 200 {
			failed++
		}
		version, _, _ := strings.Cut(strings.TrimPrefix(token, tokenCanary), ".")
		tokens[token], versions[version] = true, true
		select {
		case <-again.C:
		case <-over:
			fmt.Printf("failed %d, tokens %d, versions %d\n", failed, len(tokens), len(versions))
			return 0
		}
	}
}

// busyVault feeds every stream with credentials that live for seconds only, at an address that stays while its servers come
// and go.
type busyVault struct {
	*setting
	life  time.Duration
	every time.Duration

	mu         sync.Mutex
	generation int64
	version    int64
	streams    int
	instances  map[string]bool
	overlaps   int // streams that were opened while another lived
	open       int

	cert   func(net.Listener) *grpc.Server
	server *grpc.Server
}

func newBusyVault(t *testing.T, life, every time.Duration) *busyVault {
	t.Helper()
	b := &busyVault{
		setting: &setting{t: t, vault: runnertest.New(grantCanary), grant: filepath.Join(t.TempDir(), "grant")},
		life:    life, every: every, version: 1, instances: map[string]bool{},
	}
	if err := os.WriteFile(b.grant, []byte(grantCanary), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, _ := runnertest.Certificate(t)
	b.ca = runnertest.CAFile(t, cert)
	// It is listened at anew, and elsewhere somebody might have taken the port, if only to connect from it.
	ln := b.listen(net.JoinHostPort(loopbacktest.Host(), "0"))
	b.addr = ln.Addr().String()
	b.cert = func(ln net.Listener) *grpc.Server { return b.vault.Serve(t, ln, cert) }
	b.server = b.cert(ln)
	stop := make(chan struct{})
	var feeding sync.WaitGroup
	feeding.Go(func() {
		for {
			select {
			case s := <-b.vault.Streams():
				b.opened(s)
				feeding.Go(func() { b.feed(s) })
			case <-stop:
				return
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		b.server.Stop()
		feeding.Wait()
	})
	return b
}

func (b *busyVault) listen(addr string) net.Listener {
	b.t.Helper()
	ln, err := new(net.ListenConfig).Listen(b.t.Context(), "tcp4", addr)
	if err != nil {
		b.t.Fatal(err)
	}
	return ln
}

func (b *busyVault) opened(s *runnertest.Stream) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.streams++
	b.instances[s.Request.GetInstanceId()] = true
	if b.open++; b.open > 1 {
		b.overlaps++
	}
}

func (b *busyVault) next() *vaultv1.Credential {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.generation++
	now := time.Now()
	c := credential()
	c.Generation, c.CredentialVersion, c.Reason = b.generation, b.version, vaultv1.Credential_REASON_REFRESH
	c.RefreshTime, c.ExpireTime = timestamppb.New(now.Add(b.every)), timestamppb.New(now.Add(b.life))
	c.GetAccessToken().Token = fmt.Sprintf("%s%d.%d", tokenCanary, b.version, b.generation)
	return c
}

func (b *busyVault) feed(s *runnertest.Stream) {
	for again := time.NewTicker(b.every); ; {
		s.Send(b.next())
		select {
		case <-again.C:
		case <-s.Done:
			b.mu.Lock()
			defer b.mu.Unlock()
			b.open--
			return
		}
	}
}

// await waits until a condition of the vault holds.
func (b *busyVault) await(what string, holds func() bool) {
	b.t.Helper()
	timeout := time.After(40 * time.Second)
	for again := time.NewTicker(10 * time.Millisecond); ; {
		b.mu.Lock()
		ok := holds()
		b.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-again.C:
		case <-timeout:
			b.t.Fatalf("not within 40 s: %s", what)
		}
	}
}

// pass lets so many more credentials be made.
func (b *busyVault) pass(n int64) {
	b.t.Helper()
	b.mu.Lock()
	until := b.generation + n
	b.mu.Unlock()
	b.await("more credentials", func() bool { return b.generation >= until })
}

// A child outlives many tokens, a rotation, a vault that is killed, one that drains, and a network that is gone for nearly as long as a
// token lives, and notices nothing but that tokens change.
func TestExec_NoticesNothing(t *testing.T) {
	t.Parallel()
	const life, every = 6 * time.Second, 250 * time.Millisecond
	b := newBusyVault(t, life, every)
	r := start(t, nil, nil, append(b.flags(), "--", self(t), "restless")...)
	r.out.waitFor(t, "started")
	b.pass(30) // more than a token lives

	b.mu.Lock()
	b.version = 2
	b.mu.Unlock()
	b.pass(4)

	b.server.Stop()
	b.server = b.cert(b.listen(b.addr))
	b.pass(4)

	// A replica that drains: its listener is another's from now on.
	b.mu.Lock()
	before, overlaps := b.streams, b.overlaps
	b.mu.Unlock()
	drained := make(chan struct{})
	leaving := b.server
	go func() { leaving.GracefulStop(); close(drained) }()
	b.server = b.cert(b.reopen())
	b.await("a stream to the other replica", func() bool { return b.streams > before })
	<-drained
	b.mu.Lock()
	if b.overlaps == overlaps {
		t.Error("the old stream was let go of before there was a new one")
	}
	b.mu.Unlock()
	b.pass(4)

	b.server.Stop()
	gone := time.NewTimer(life - 2*time.Second)
	<-gone.C
	b.server = b.cert(b.listen(b.addr))
	b.pass(4)

	_ = r.in.Close()
	r.end(0)
	var failed, tokens, versions int
	if _, err := fmt.Sscanf(r.out.String(), "started\nfailed %d, tokens %d, versions %d", &failed, &tokens, &versions); err != nil {
		t.Fatalf("%v: %q", err, &r.out)
	}
	if failed != 0 || tokens < 30 || versions != 2 {
		t.Errorf("failed %d, tokens %d, versions %d\n%s", failed, tokens, versions, &r.err)
	}
	if len(b.instances) != 1 || len(b.vault.Closes()) != 1 {
		t.Errorf("%d instances, %d leases closed", len(b.instances), len(b.vault.Closes()))
	}
}

// reopen listens at the address as soon as the server that drains has given it back.
func (b *busyVault) reopen() net.Listener {
	b.t.Helper()
	for timeout := time.After(10 * time.Second); ; {
		ln, err := new(net.ListenConfig).Listen(b.t.Context(), "tcp4", b.addr)
		if err == nil {
			return ln
		}
		select {
		case <-timeout:
			b.t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestExec_EndsAsTheCommandEnded(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	for _, sig := range []syscall.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGPIPE, syscall.SIGTERM, syscall.SIGUSR1,
	} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			r := start(t, nil, nil, append(s.flags(), "--", "sh", "-c", fmt.Sprintf("ulimit -c 0; kill -%d $$", sig))...)
			r.endBy(sig)
			if strings.Contains(r.err.String(), "goroutine") {
				t.Errorf("it left a trace:\n%s", &r.err)
			}
		})
	}
	t.Run("the lease is closed before", func(t *testing.T) {
		before := len(s.vault.Closes())
		r := start(t, nil, nil, append(s.flags(), "--", "sh", "-c", "kill -TERM $$")...)
		r.endBy(syscall.SIGTERM)
		if n := len(s.vault.Closes()); n != before+1 {
			t.Errorf("%d leases closed", n-before)
		}
	})
}

// state is a process's, as ps has it.
func state(t *testing.T, pid int) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return rest[:1]
}

func awaitState(t *testing.T, pid int, want ...string) {
	t.Helper()
	for timeout := time.After(10 * time.Second); ; {
		got := state(t, pid)
		if slices.Contains(want, got) {
			return
		}
		select {
		case <-timeout:
			t.Fatalf("process %d is in state %s, want %v", pid, got, want)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestExec_IsStoppedAndContinuedByKill(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	r := start(t, nil, nil, append(s.flags(), "--", self(t), "until")...)
	ask := func(answers int) {
		t.Helper()
		_, _ = io.WriteString(r.in, "x")
		r.out.waitFor(t, strings.Repeat("200\n", answers))
	}
	ask(1)
	child := onlyChild(t, r.Process.Pid)
	for n := range 2 {
		_ = r.Process.Signal(syscall.SIGTSTP)
		awaitState(t, child, "T")
		awaitState(t, r.Process.Pid, "T")
		_ = r.Process.Signal(syscall.SIGCONT)
		awaitState(t, r.Process.Pid, "S", "R")
		awaitState(t, child, "S", "R")
		ask(n + 2)
	}
	_ = r.in.Close()
	r.end(7)
}

func TestExec_PassesDescriptorsOn(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	from := grantPipe(t)
	other, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	r := start(t, nil, []*os.File{from, other}, "exec", "--vault", s.addr, "--vault-id", runnertest.ID, "--ca", s.ca,
		"--grant-fd", "3", "--", "sh", "-c", "for fd in 3 4 5; do test -e /proc/$$/fd/$fd; echo $fd $?; done")
	r.end(0)
	if got := r.out.String(); got != "3 1\n4 0\n5 1\n" {
		t.Errorf("of the grant's, another, and one that is not there it has:\n%s", got)
	}
}

func TestExec_AnAudienceFirstAskedForAtRunTime(t *testing.T) {
	s := newSetting(t)
	s.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
		c := credential()
		c.Generation = 2
		c.Material = &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: req.GetAudience(), Token: tokenCanary + "other"}}
		return c, nil
	})
	r := start(t, nil, nil, append(s.flags(), "--", self(t), "audience", "https://vault.azure.net")...)
	stream := s.vault.Accept(t)
	stream.Send(credential())
	r.end(0)
	if got := r.out.String(); got != "200 other\n" {
		t.Errorf("got %q", got)
	}
	if f := s.vault.Fetches(); len(f) != 1 || f[0].GetInstanceId() != stream.Request.GetInstanceId() {
		t.Errorf("fetched %v, the stream is of %s", f, stream.Request.GetInstanceId())
	}
}

func TestExec_WritesNothingToDisk(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	for _, material := range []string{"access-token", "client-secret"} {
		if material == "client-secret" {
			s.vault.Always(secretCredential(1, 1))
		}
		empty := t.TempDir()
		r := startIn(t, empty, []string{"HOME=" + empty, "TMPDIR=" + empty, "XDG_RUNTIME_DIR=" + empty, "XDG_CACHE_HOME=" + empty},
			append(s.flags(), "--material", material, "--", self(t), "exit", "0")...)
		r.end(0)
		if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
			t.Errorf("with %s it left %v (%v)", material, left, err)
		}
	}
}

func TestExec_EnvOnly(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	r := start(t, nil, nil, append(s.flags(), "--env-only", "--", self(t), "names")...)
	r.end(0)
	names := strings.Fields(r.out.String())
	for _, name := range []string{"IDENTITY_ENDPOINT", "MSI_ENDPOINT", "ARM_MSI_ENDPOINT", "IDENTITY_HEADER", "ARM_CLIENT_SECRET"} {
		if slices.Contains(names, name) {
			t.Errorf("%s is in its environment", name)
		}
	}
	script := `test "$AZURE_ACCESS_TOKEN" = ` + tokenCanary + ` && test "$AZURE_ACCESS_TOKEN_EXPIRES_ON" -gt $(date +%s) && test "$ARM_USE_MSI" = false`
	r = start(t, nil, nil, append(s.flags(), "--env-only", "--", "sh", "-c", script)...)
	r.end(0)

	t.Run("says when the token has expired", func(t *testing.T) {
		soon := credential()
		soon.ExpireTime = timestamppb.New(time.Now().Add(2 * time.Second))
		s.vault.Always(soon)
		r := start(t, []string{"PHASEKEY_ENV_ONLY=true"}, nil, append(s.flags(), "--", self(t), "copy")...)
		r.err.waitFor(t, "without --env-only it would be renewed")
		_ = r.in.Close()
		r.end(0)
	})
}

// ordinary runs phasekey as a user without any rights, and returns what the child of these arguments said.
func ordinary(t *testing.T, args ...string) string {
	t.Helper()
	s := newSetting(t)
	s.vault.Always(credential())
	from := grantPipe(t)

	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	image, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.ca)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{program: image, filepath.Join(dir, "ca.pem"): ca} {
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), program, append([]string{"exec", "--vault", s.addr, "--vault-id", runnertest.ID, "--ca", filepath.Join(dir, "ca.pem"),
		"--grant-fd", "3", "--", program}, args...)...)
	cmd.Env = append(os.Environ(), asPhasekey+"=1", asChild+"=1")
	cmd.ExtraFiles = []*os.File{from}
	cmd.Dir = "/"
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// The kernel tells even a process that hides its memory who asks it.
func TestExec_AsAnOrdinaryUser(t *testing.T) {
	if got := ordinary(t, "machine"); got != "200" {
		t.Errorf("it got %s", got)
	}
}

// Its memory has the grant, and the credentials: not even a process of the same user may look into it.
func TestExec_HidesItsMemory(t *testing.T) {
	if got := ordinary(t, "peek"); got != "neither its memory nor its environment" {
		t.Errorf("the child sees %s", got)
	}
}
