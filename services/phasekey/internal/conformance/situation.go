package conformance

import (
	"math"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/runner"
)

// situation is one thing that happens to runners, and what they have to make of it.
type situation struct {
	name  string
	about string
	// id is the vault's identity, VaultID if empty; stranger has its certificate be of a CA that the runner was not told of.
	id       string
	stranger bool
	// material is what the runner is told to ask for; empty for access tokens, of which it is told nothing.
	material string
	play     func(*session)
}

// situations are all of them, in the order of the documentation.
func situations() []situation {
	all := []situation{
		{name: "first-delivery", about: "one stream, shown the grant; the command is started with the first delivery, and its end ends the lease", play: firstDelivery},
		{name: "not-ready", about: "UNAVAILABLE before the first delivery is waited out", play: notReady},
		{name: "refresh", about: "what is pushed is used at once, on the same stream", play: refresh},
		{name: "rotation", about: "a new version replaces the old, for other audiences too", play: rotation},
		{name: "newest", about: "a hundred deliveries at once, and generations that are left out: the newest counts", play: newest},
		{name: "order", about: "the first message of a new stream may be older than what is held", play: orderOfGenerations},
		{name: "drain", about: "DRAINING: back at once, as the same instance, and nothing is missing meanwhile", play: drain},
		{name: "going-away", about: "GOAWAY: a new stream before the old one is let go of", play: goingAway},
		{name: "leave", about: "asked to leave: a new stream within the time, and the old one is let go of when that has delivered", play: leave},
		{name: "leave-in-turn", about: "asked to leave within some seconds, four runners do not all come back at once", play: leaveInTurn},
		{name: "unavailable", about: "an outage of eight seconds is not noticed, and the vault not hammered", play: outage},
		{name: "jitter", about: "two runners that lost the same vault do not come back in step", play: jitter},
		{name: "network-gone", about: "no connection for a while is not noticed", play: networkGone},
		{name: "proxy-403", about: "a proxy's 403 decides nothing", play: proxyForbids},
		{name: "not-final", about: "errors that only resemble final ones decide nothing", play: notFinal},
		{name: "retry-after", about: "RetryInfo is obeyed", play: retryAfter},
		{name: "storm-of-ends", about: "streams that end as soon as they have delivered are not opened without pause", play: stormOfEnds},
		{name: "storm-of-goaways", about: "connections that are sent away as soon as they have delivered are not made without pause", play: stormOfGoAways},
		{name: "expiry", about: "what has expired is not used; what comes later is", play: expiry},
		{name: "overdue", about: "a vault that is a minute past the refresh time is asked on another stream", play: overdue},
		{name: "unknown-fields", about: "fields and values that are not known yet are passed over", play: unknownFields},
		{name: "unknown-material", about: "a message with a material that is not known yet replaces nothing", play: unknownMaterial},
		{name: "other-audience", about: "an audience first asked for at run time is fetched under the same lease, once", play: otherAudience},
		{name: "refused-audience", about: "AUDIENCE_NOT_ALLOWED is that audience's affair alone", play: refusedAudience},
		{name: "new-instance", about: "two processes are two instances", play: newInstance},
		{name: "environment", about: "the command sees neither the grant nor how the runner was called", play: environment},
		{name: "terminated", about: "SIGTERM ends the command, then the lease", play: terminated},
		{name: "assertion", about: "told federated-token, it asks for that, and gives each assertion as it comes, of a rotated key too", material: federatedToken, play: assertion},
		{name: "assertion-expiry", about: "an assertion that has expired is not given; what comes later is", material: federatedToken, play: expiry},
		{name: "other-material", about: "an access token replaces no assertion", material: federatedToken, play: otherMaterial},
		{name: "secret", about: "told client-secret, it asks for that, and starts the command with it", material: clientSecret, play: secretDelivery},
		{name: "secret-rotation", about: "a newer secret is not acknowledged while a command lives that has the older one", material: clientSecret, play: secretRotation},
		{name: "wrong-identity", about: "a vault with another SPIFFE ID is not shown the grant", id: "spiffe://phasekey.dev/registry", play: notTrusted},
		{name: "wrong-ca", about: "a vault of another CA is not shown the grant", stranger: true, play: notTrusted},
	}
	for reason, code := range runner.FinalReasons() {
		all = append(all, situation{
			name:  "final-" + strings.ReplaceAll(strings.ToLower(reason), "_", "-"),
			about: code.String() + " with " + reason + " is final: nothing is used or asked for any more",
			play:  func(s *session) { final(s, code, reason) },
		})
	}
	slices.SortStableFunc(all, func(a, b situation) int {
		if !strings.HasPrefix(a.name, "final-") || !strings.HasPrefix(b.name, "final-") {
			return 0
		}
		return strings.Compare(a.name, b.name)
	})
	return all
}

func firstDelivery(s *session) {
	s.start()
	c := s.next(soon)
	s.pause(500 * time.Millisecond)
	select {
	case <-s.probes:
		s.wrong("the command was started before there was a credential")
	default:
	}
	s.send(c, s.credential(1))
	s.holds(1)
	s.finish()
}

func notReady(s *session) {
	s.start()
	for range 3 {
		s.end(s.next(backWithin), refusal(codes.Unavailable, "CREDENTIAL_NOT_READY"))
	}
	s.send(s.next(backWithin), s.credential(1))
	s.holds(1)
}

func refresh(s *session) {
	c := s.begin()
	s.quiet(3*time.Second, func() {
		s.send(c, s.credential(2))
		s.holds(2)
		s.send(c, s.credential(3))
		s.holds(3)
		s.keeps(3, time.Second)
	})
}

func rotation(s *session) {
	s.vault.onFetch(func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
		return s.other(int64(100 + len(s.vault.fetched()))), nil
	})
	c := s.begin()
	s.getsOther(101)
	s.send(c, s.credential(2, rotated))
	s.holds(2)
	s.getsOther(102)
}

// other is what is fetched for another audience.
func (s *session) other(n int64) *vaultv1.Credential {
	return s.credential(n, func(m *vaultv1.Credential) { m.GetAccessToken().Audience = keyVault })
}

// getsOther checks what the command gets for another audience.
func (s *session) getsOther(n int64) {
	if a := s.ask(question{Audience: keyVault}); s.err == nil && !s.has(a, n) {
		s.wrong("asked for %s, the command did not get token %d, but: %s", keyVault, n, s.said(a))
	}
}

func newest(s *session) {
	c := s.begin()
	for n := range int64(100) {
		s.send(c, s.credential(n+2))
	}
	s.holds(101)
	s.send(c, s.credential(500))
	s.holds(500)
}

func orderOfGenerations(s *session) {
	s.start()
	c := s.next(soon)
	s.send(c, s.credential(5))
	s.holds(5)
	s.end(c, unavailable)
	c = s.next(backWithin)
	s.send(c, s.credential(4))
	s.keeps(5, time.Second)
	s.send(c, s.credential(6))
	s.holds(6)
}

func drain(s *session) {
	c := s.begin()
	s.end(c, refusal(codes.Unavailable, rpcerr.ReasonDraining))
	// The connection is the one to the replica that goes, which sends it away after the last stream.
	s.end(s.next(3*time.Second), refusal(codes.Unavailable, rpcerr.ReasonDraining))
	c = s.next(soon)
	s.keeps(1, time.Second)
	s.send(c, s.credential(2))
	s.holds(2)
	s.finish()
}

func goingAway(s *session) {
	c := s.begin()
	s.vault.goAway()
	later := s.next(soon)
	s.stillHas(c)
	s.keeps(1, 500*time.Millisecond)
	s.send(later, s.credential(2))
	s.holds(2)
	s.letsGo(c)
}

func leave(s *session) {
	const within = 2 * time.Second
	c := s.begin()
	s.leave(c, within)
	// It comes by the same connection, be it that the one to the replica that goes has not been sent away yet.
	refused := s.next(within + soon)
	s.stillHas(c)
	s.end(refused, refusal(codes.Unavailable, rpcerr.ReasonDraining))
	s.keeps(1, 500*time.Millisecond)
	s.vault.goAway()
	later := s.next(soon)
	s.stillHas(c)
	s.keeps(1, 500*time.Millisecond)
	s.send(later, s.credential(2))
	s.holds(2)
	s.letsGo(c)
	s.finish()
}

func leaveInTurn(s *session) {
	const (
		runners = 4
		within  = 6 * time.Second
	)
	for range runners {
		s.start()
	}
	var first []*stream
	for range runners {
		c := s.next(soon)
		s.send(c, s.credential(1))
		first = append(first, c)
	}
	s.holds(1)
	asked := s.now()
	for _, c := range first {
		s.leave(c, within)
	}
	s.vault.goAway()
	var after []time.Duration
	for range runners {
		c := s.next(within + soon)
		if s.err != nil {
			return
		}
		after = append(after, c.at.Sub(asked).Round(time.Millisecond))
		s.send(c, s.credential(2))
	}
	// Whoever draws evenly has all four come so soon, or so close together, once in many thousand times.
	if latest := slices.Max(after); latest < within/20 || latest-slices.Min(after) < within/50 {
		s.wrong("asked to leave within %s, four runners came back after %s: all at once", within, after)
	}
}

// attempts is how many streams a runner may open in eight seconds that all come to nothing. One that starts with a fifth of a second and
// doubles that opens about eight.
const attempts = 25

func outage(s *session) {
	const d = 8 * time.Second
	c := s.begin()
	s.end(c, unavailable)
	came := s.during(d, func(c *stream) { c.do(order{end: true, err: unavailable}) }, func() { s.keeps(1, d) })
	s.notMore(came, attempts, d)
	c = s.next(backWithin)
	s.send(c, s.credential(2))
	s.holds(2)
}

func jitter(s *session) {
	const d = 8 * time.Second
	s.start()
	s.start()
	first, second := s.next(soon), s.next(soon)
	s.send(first, s.credential(1))
	s.send(second, s.credential(1))
	s.holds(1)
	if s.err != nil {
		return
	}
	// Both lose it at one moment.
	var both sync.WaitGroup
	lost := s.now()
	both.Go(func() { s.end(first, unavailable) })
	both.Go(func() { s.end(second, unavailable) })
	both.Wait()
	waits := map[string][]float64{}
	last := map[string]time.Time{first.instance: lost, second.instance: lost}
	s.during(d, func(c *stream) {
		waits[c.instance] = append(waits[c.instance], c.at.Sub(last[c.instance]).Seconds())
		last[c.instance] = c.at
		c.do(order{end: true, err: unavailable})
	}, func() { s.pause(d) })
	a, b := waits[first.instance], waits[second.instance]
	apart := 0
	for i := range min(len(a), len(b)) {
		// Two clocks of one machine tell alike waits apart by some milliseconds.
		if math.Abs(a[i]-b[i]) > 0.02+0.05*math.Max(a[i], b[i]) {
			apart++
		}
	}
	if n := min(len(a), len(b)); s.err == nil && (n == 0 || apart*4 < n) {
		s.wrong("two runners came back in step: after %.2f s and after %.2f s", a, b)
	}
}

func networkGone(s *session) {
	s.begin()
	s.vault.gone()
	s.keeps(1, 5*time.Second)
	s.vault.serve()
	s.send(s.next(backWithin), s.credential(2))
	s.holds(2)
}

func proxyForbids(s *session) {
	s.begin()
	s.vault.forbid()
	s.keeps(1, 5*time.Second)
	s.vault.serve()
	s.vault.mu.Lock()
	s.vault.cut()
	s.vault.mu.Unlock()
	s.send(s.next(backWithin), s.credential(2))
	s.holds(2)
}

func notFinal(s *session) {
	elsewhere, err := status.New(codes.PermissionDenied, "as scripted").WithDetails(&errdetails.ErrorInfo{Reason: "GRANT_REVOKED", Domain: "example.com"})
	if err != nil {
		s.wrong("%w", err)
	}
	c := s.begin()
	for n, lookalike := range []error{
		refusal(codes.Unavailable, "GRANT_REVOKED"),
		elsewhere.Err(),
		status.Error(codes.PermissionDenied, "GRANT_REVOKED"),
		status.Error(codes.Unauthenticated, "as scripted"),
		refusal(codes.PermissionDenied, "NOT_KNOWN_YET"),
	} {
		held := int64(n + 1)
		s.end(c, lookalike)
		s.keeps(held, 500*time.Millisecond)
		c = s.next(backWithin)
		s.send(c, s.credential(held+1))
		s.holds(held + 1)
		if s.err != nil {
			s.err = &afterError{lookalike, s.err}
			return
		}
	}
}

func retryAfter(s *session) {
	const d = 5 * time.Second
	c := s.begin()
	s.end(c, rpcerr.New(codes.ResourceExhausted, rpcerr.ReasonRateLimited, "as scripted", rpcerr.Retry(d)))
	s.quiet(d-200*time.Millisecond, func() { s.keeps(1, d-time.Second) })
	s.send(s.next(backWithin), s.credential(2))
	s.holds(2)
}

func stormOfEnds(s *session) {
	const d = 8 * time.Second
	c := s.begin()
	s.end(c, unavailable)
	n := int64(1)
	came := s.during(d, func(c *stream) {
		n++
		c.do(order{credential: s.credential(n)})
		c.do(order{end: true, err: unavailable})
	}, func() { s.pause(d) })
	s.notMore(came, attempts, d)
	s.holds(n)
}

func stormOfGoAways(s *session) {
	const d = 8 * time.Second
	s.begin()
	s.vault.goAway()
	n := int64(1)
	came := s.during(d, func(c *stream) {
		n++
		c.do(order{credential: s.credential(n)})
		s.vault.goAway()
	}, func() { s.pause(d) })
	s.notMore(came, attempts, d)
	s.holds(n)
}

func expiry(s *session) {
	const life = 6 * time.Second
	s.start()
	c := s.next(soon)
	began := s.now()
	s.send(c, s.credential(1, s.life(life)))
	s.holds(1)
	s.vault.gone()
	s.keeps(1, life-time.Second-s.now().Sub(began))
	s.hasNone(life + 200*time.Millisecond - s.now().Sub(began))
	s.vault.serve()
	s.send(s.next(backWithin), s.credential(2))
	s.holds(2)
}

func overdue(s *session) {
	c := s.begin(func(m *vaultv1.Credential) { m.RefreshTime = timestamppb.New(s.now().Add(time.Second)) })
	later := s.next(time.Minute)
	s.stillHas(c)
	s.keeps(1, 500*time.Millisecond)
	s.send(later, s.credential(2))
	s.holds(2)
}

// unknownField is a field that no release knows, with some bytes.
func unknownField(number protowire.Number) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), []byte("not known yet"))
}

func unknownFields(s *session) {
	c := s.begin(func(m *vaultv1.Credential) {
		m.ProtoReflect().SetUnknown(unknownField(9999))
		m.GetAccessToken().ProtoReflect().SetUnknown(unknownField(9998))
		m.Reason, m.Phase, m.Access = 99, 99, 99
		m.Environment["ARM_NOT_KNOWN_YET"] = "x"
	})
	s.send(c, s.credential(2))
	s.holds(2)
}

func unknownMaterial(s *session) {
	useless(s, func(m *vaultv1.Credential) {
		m.Material = nil
		// Beside its siblings in the oneof.
		m.ProtoReflect().SetUnknown(unknownField(29))
	})
}

func otherMaterial(s *session) {
	useless(s, func(m *vaultv1.Credential) {
		m.Material = &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: resourceManager, Token: s.token(2)}}
	})
}

// useless delivers something that replaces nothing.
func useless(s *session, change func(*vaultv1.Credential)) {
	c := s.begin()
	s.send(c, s.credential(2, change))
	came := s.during(2*time.Second, func(*stream) {}, func() { s.keeps(1, 2*time.Second) })
	if len(came) > 0 {
		c = came[len(came)-1]
	}
	if s.err == nil && !c.lives() {
		c = s.next(backWithin)
	}
	s.send(c, s.credential(3))
	s.holds(3)
}

func rotated(m *vaultv1.Credential) {
	m.CredentialVersion, m.Reason = 2, vaultv1.Credential_REASON_ROTATED
}

func assertion(s *session) {
	c := s.begin()
	s.quiet(3*time.Second, func() {
		s.send(c, s.credential(2))
		s.holds(2)
		s.send(c, s.credential(3, rotated))
		s.holds(3)
		s.keeps(3, time.Second)
	})
	s.finish()
}

func secretDelivery(s *session) {
	s.begin()
	s.finish()
}

// A runner may start its command anew with the newer secret, and acknowledge that.
func secretRotation(s *session) {
	c := s.begin()
	s.quiet(3*time.Second, func() { s.send(c, s.credential(2, rotated)) })
	if s.err != nil {
		return
	}
	acknowledged := slices.ContainsFunc(s.vault.acknowledged(), func(n int64) bool { return n > 1 })
	switch _, gone := s.under.ask(question{}); {
	case gone == nil && acknowledged:
		s.wrong("it acknowledged the newer secret while a command lived that had been started with the older one")
	case gone == nil:
		s.hasSecret(1)
	default:
		s.under = nil
		s.hasSecret(2)
	}
	s.finish()
}

func otherAudience(s *session) {
	s.vault.onFetch(func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) { return s.other(100), nil })
	c := s.begin()
	for range 20 {
		s.getsOther(100)
	}
	s.keeps(1, 0)
	if s.err != nil {
		return
	}
	fetched := s.vault.fetched()
	switch {
	case len(fetched) > 2:
		s.wrong("it fetched the same token %d times", len(fetched))
	case len(fetched) == 0:
		s.wrong("it did not fetch it by FetchCredential")
	case fetched[0].GetInstanceId() != c.instance:
		s.wrong("it fetched it as instance %q, and streams as %q: that is another lease", fetched[0].GetInstanceId(), c.instance)
	case strings.TrimSuffix(fetched[0].GetAudience(), "/") != keyVault:
		s.wrong("it fetched a token for %q", fetched[0].GetAudience())
	}
}

func refusedAudience(s *session) {
	c := s.begin()
	if a := s.ask(question{Audience: keyVault}); s.err == nil && a.Status < 400 {
		s.wrong("for a refused audience the command got: %s", s.said(a))
	}
	s.keeps(1, time.Second)
	s.send(c, s.credential(2))
	s.holds(2)
}

func newInstance(s *session) {
	s.start()
	s.start()
	first, second := s.next(soon), s.next(soon)
	if s.err == nil && first.instance == second.instance {
		s.wrong("two processes called themselves %q: they would end each other's lease", first.instance)
	}
}

func environment(s *session) {
	s.begin()
	a, err := s.under.askIf(s.err, question{})
	if s.err != nil || err != nil {
		s.wrong("the command below the runner does not answer: %w", err)
		return
	}
	for _, entry := range a.Environment {
		name, _, _ := strings.Cut(entry, "=")
		switch {
		case strings.Contains(entry, s.vault.grant):
			s.wrong("the grant is in the command's environment, in %s", name)
		case strings.HasPrefix(name, "PHASEKEY_"):
			s.wrong("%s is in the command's environment", name)
		}
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		if !slices.ContainsFunc(a.Environment, func(e string) bool {
			return strings.HasPrefix(e, name+"=") && (strings.Contains(e, "127.0.0.1") || strings.HasSuffix(e, "=*"))
		}) {
			s.wrong("%s does not name the endpoint's address", name)
		}
	}
}

func terminated(s *session) {
	s.begin()
	if s.err != nil {
		return
	}
	r := s.runners[0]
	_ = r.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(stopWithin):
		s.wrong("it did not end within %s of SIGTERM", stopWithin)
	}
	if _, err := s.under.ask(question{}); err == nil {
		s.wrong("its command outlived it")
	}
	s.closedItsLease()
}

func notTrusted(s *session) {
	s.start()
	s.quiet(5 * time.Second)
	if shown, strange := s.vault.seen(); shown+len(strange) > 0 {
		s.wrong("it spoke to a vault that it had no reason to trust, and showed it the grant")
	}
	select {
	case <-s.probes:
		s.wrong("the command was started without a credential")
	default:
	}
}

func final(s *session, code codes.Code, reason string) {
	c := s.begin()
	s.end(c, refusal(code, reason))
	s.quiet(5*time.Second, func() { s.finally() })
}

// finally checks that the command gets nothing any more, be it that it was ended.
func (s *session) finally() {
	if s.err != nil {
		return
	}
	s.pause(2 * time.Second)
	for range 10 {
		a, err := s.under.ask(question{Audience: resourceManager})
		if err != nil {
			return
		}
		if a.Status == 200 {
			s.wrong("the command still got: %s", s.said(a))
			return
		}
		s.pause(interval)
	}
}
