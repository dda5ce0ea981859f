package issuer_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/signingkey"
)

const arm = "https://management.azure.com"

// fakeMinter is a token service: it answers after delay, what refuse says for the secret that is shown.
type fakeMinter struct {
	mu       sync.Mutex
	requests []directory.TokenRequest
	refuse   map[string]error // by secret
	delay    time.Duration
	life     time.Duration
	canceled int
	panics   bool
}

func (f *fakeMinter) Token(ctx context.Context, cloud string, r directory.TokenRequest) (directory.Token, error) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	n, refusal, delay, panics := len(f.requests), f.refuse[r.Secret.Expose()], f.delay, f.panics
	f.mu.Unlock()
	if panics {
		panic("nobody thought of that answer") //nolint:forbidigo // what is tested
	}
	if cloud != "public" {
		return directory.Token{}, errors.New("wrong cloud")
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			f.mu.Lock()
			defer f.mu.Unlock()
			f.canceled++
			return directory.Token{}, &directory.Error{Op: "request token", Class: directory.OutcomeUnknown, Err: ctx.Err()}
		}
	}
	if refusal != nil {
		return directory.Token{}, refusal
	}
	now := time.Now()
	return directory.Token{Text: secret.New(fmt.Sprint("CANARY-token-", n)), IssueTime: now, ExpireTime: now.Add(f.life)}, nil
}

func (f *fakeMinter) say(text string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse[text] = err
}

func (f *fakeMinter) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

// fakeKeyring seals by turning a text into its identity and itself.
type fakeKeyring struct{}

func (fakeKeyring) Open(_ context.Context, identity string, sealed []byte) (secret.Text, error) {
	text, ok := strings.CutPrefix(string(sealed), identity+":")
	if !ok {
		return secret.Text{}, fmt.Errorf("sealed under another identity: %w", keyring.ErrCorrupt)
	}
	if strings.HasSuffix(text, "-away") {
		return secret.Text{}, fmt.Errorf("no key: %w", keyring.ErrKEKAway)
	}
	return secret.New(text), nil
}

// fakeProber notes whose tenant is to be asked again.
type fakeProber struct {
	mu     sync.Mutex
	wanted []string
}

func (f *fakeProber) WantProbe(_ context.Context, uid string, _ time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = append(f.wanted, uid)
	return errors.New("database is down")
}

func version(number int64) credential.Version {
	id := fmt.Sprint("v", number)
	return credential.Version{ID: id, Number: number, IntegrationUID: "uid", Sealed: []byte("credential_version/" + id + ":CANARY-secret-" + id)}
}

func request(versions ...credential.Version) issuer.Request {
	return issuer.Request{Cloud: "public", TenantID: "tenant", ClientID: "client", Audience: arm, Versions: versions}
}

func refusal(class directory.Class, code string) error {
	return &directory.Error{Op: "request token", Class: class, Code: code, Err: errors.New("refused")}
}

type bench struct {
	t      *testing.T
	minter *fakeMinter
	prober *fakeProber
	issuer *issuer.Issuer
	log    *bytes.Buffer
}

func inBubble(t *testing.T, test func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{
			t: t, minter: &fakeMinter{refuse: map[string]error{}, delay: time.Second, life: time.Hour}, prober: &fakeProber{}, log: &bytes.Buffer{},
		}
		b.issuer = issuer.New(issuer.Config{
			Minter: b.minter, Keyring: fakeKeyring{}, Prober: b.prober, Log: obs.NewLogger(b.log, slog.LevelDebug, obs.FormatText),
		})
		test(b)
		synctest.Wait()
		if strings.Contains(b.log.String(), "CANARY") {
			t.Errorf("a secret was logged: %s", b.log)
		}
	})
}

// ask issues one token and checks how many requests Entra has seen by then.
func (b *bench) ask(name string, r issuer.Request, wantVersion string, wantErr error, wantRequests int) issuer.Token {
	b.t.Helper()
	token, err := b.issuer.Issue(b.t.Context(), r)
	if !errors.Is(err, wantErr) || token.VersionID != wantVersion {
		b.t.Errorf("%s: version %q, error %v; want %q, %v", name, token.VersionID, err, wantVersion, wantErr)
	}
	if err != nil && strings.Contains(err.Error(), "CANARY") {
		b.t.Errorf("%s: error tells a secret: %v", name, err)
	}
	if got := b.minter.count(); got != wantRequests {
		b.t.Errorf("%s: %d requests so far, want %d", name, got, wantRequests)
	}
	return token
}

func TestIssuer_KeepsTokensUntilBeforeHalfTheirLife(t *testing.T) {
	inBubble(t, func(b *bench) {
		first := b.ask("first", request(version(2)), "v2", nil, 1)
		sent := b.minter.requests[0]
		if sent.TenantID != "tenant" || sent.ClientID != "client" || sent.Audience != arm || sent.Secret.Expose() != "CANARY-secret-v2" || sent.RequestID != first.RequestID {
			b.t.Errorf("asked %+v", sent)
		}
		life := first.ExpireTime.Sub(first.IssueTime)
		if renew := first.RenewTime.Sub(first.IssueTime); renew > life/2 || renew < life*4/10 {
			b.t.Errorf("renewed after %v of %v", renew, life)
		}
		other := request(version(2))
		other.Audience = "https://vault.azure.net"
		b.ask("another audience", other, "v2", nil, 2)
		time.Sleep(time.Until(first.RenewTime) - time.Second)
		if again := b.ask("before renewal", request(version(2)), "v2", nil, 2); again.RequestID != first.RequestID {
			b.t.Error("not the kept one")
		}
		time.Sleep(time.Second)
		if again := b.ask("at renewal", request(version(2)), "v2", nil, 3); !again.ExpireTime.After(first.ExpireTime) {
			b.t.Error("not a newer one")
		}
		b.issuer.Drop("v2")
		b.ask("dropped", request(version(2)), "v2", nil, 4)
	})
}

// trusted has one signing key, k1.
type trusted []signingkey.Key

func (k trusted) SigningKeys(context.Context) ([]signingkey.Key, error) { return k, nil }

// By a federated version one subject stands for reading and another for writing: a token of the one is never given to who may have the other. By a secret
// there is one token for both.
func TestIssuer_ReadingAndWritingShareNoFederatedToken(t *testing.T) {
	made, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&made.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	keys := trusted{{ID: "k1", Number: 1, State: signingkey.Signing, Public: public, Sealed: append([]byte(signingkey.SealedAs("k1")+":"), private...)}}
	inBubble(t, func(b *bench) {
		b.issuer = issuer.New(issuer.Config{
			Minter: b.minter, Keyring: fakeKeyring{}, Prober: b.prober, Log: slog.New(slog.DiscardHandler),
			Signer: signer.New(signer.Config{Issuer: "https://issuer.example", Store: keys, Keyring: fakeKeyring{}, Log: slog.New(slog.DiscardHandler)}),
		})
		federated := version(1)
		federated.Sealed, federated.SigningKey = nil, "k1"
		read, write := request(federated), request(federated)
		write.Write = true
		reads := b.ask("reading", read, "v1", nil, 1)
		writes := b.ask("writing", write, "v1", nil, 2)
		if reads.Text.Equal(writes.Text) {
			b.t.Error("reading and writing share a token")
		}
		var subjects []any
		for _, sent := range b.minter.requests {
			claims := jwt.MapClaims{}
			if _, _, err := jwt.NewParser().ParseUnverified(sent.Assertion.Expose(), claims); err != nil {
				b.t.Error(err)
			}
			subjects = append(subjects, claims["sub"])
		}
		if want := []any{"integration:uid:read", "integration:uid:write"}; !slices.Equal(subjects, want) {
			b.t.Errorf("asked about %v, want %v", subjects, want)
		}
		if again := b.ask("reading again", read, "v1", nil, 2); !again.Text.Equal(reads.Text) {
			b.t.Error("another token is given to who reads")
		}
		if again := b.ask("writing again", write, "v1", nil, 2); !again.Text.Equal(writes.Text) {
			b.t.Error("another token is given to who writes")
		}
		single := request(version(2))
		b.ask("reading by a secret", single, "v2", nil, 3)
		single.Write = true
		b.ask("writing by it", single, "v2", nil, 3)
	})
}

func TestIssuer_PanicFailsThoseWhoWait(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.minter.panics = true
		_, err := b.issuer.Issue(b.t.Context(), request(version(2)))
		if p := (*caught.PanicError)(nil); !errors.As(err, &p) {
			b.t.Errorf("the request that panicked: %v", err)
		}
		b.minter.panics = false
		time.Sleep(time.Minute)
		b.ask("afterwards", request(version(2)), "v2", nil, 2)
	})
}

func TestIssuer_OneRequestForAllWhoWait(t *testing.T) {
	inBubble(t, func(b *bench) {
		const callers = 20
		var group sync.WaitGroup
		ids := make([]string, callers)
		for i := range callers {
			group.Go(func() {
				ctx := b.t.Context()
				if i == 0 {
					// The first one, whose request it is, gives up halfway.
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
					defer cancel()
				} else {
					time.Sleep(time.Millisecond)
				}
				token, err := b.issuer.Issue(ctx, request(version(2)))
				if i == 0 {
					if !errors.Is(err, context.DeadlineExceeded) {
						b.t.Errorf("who gave up got %v", err)
					}
					return
				}
				if err != nil {
					b.t.Error(err)
				}
				ids[i] = token.RequestID
			})
		}
		group.Wait()
		for _, id := range ids[2:] {
			if id != ids[1] {
				b.t.Fatal("callers got different tokens")
			}
		}
		if b.minter.count() != 1 {
			b.t.Errorf("%d requests", b.minter.count())
		}
	})
}

func TestIssuer_RequestEndsWithItsLastWaiter(t *testing.T) {
	inBubble(t, func(b *bench) {
		ctx, cancel := context.WithTimeout(b.t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := b.issuer.Issue(ctx, request(version(2))); !errors.Is(err, context.DeadlineExceeded) {
			b.t.Errorf("error %v", err)
		}
		synctest.Wait()
		if b.minter.canceled != 1 {
			b.t.Error("the request went on for nobody")
		}
		b.ask("next", request(version(2)), "v2", nil, 2)
	})
}

func TestIssuer_FallsBackWhileTheNewestIsRefused(t *testing.T) {
	for _, class := range []directory.Class{directory.SecretRefused, directory.SecretExpired, directory.ApplicationUnknown, directory.PrincipalMissing} {
		t.Run(fmt.Sprint("class ", int(class)), func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.minter.delay = 0
				b.minter.say("CANARY-secret-v2", refusal(class, "AADSTS1"))
				b.ask("refused", request(version(2), version(1)), "v1", nil, 2)
				b.ask("within the back-off", request(version(2), version(1)), "v1", nil, 2)
				b.minter.say("CANARY-secret-v2", nil)
				time.Sleep(time.Second)
				b.ask("Entra has come round", request(version(2), version(1)), "v2", nil, 3)
				if len(b.prober.wanted) != 1 || b.prober.wanted[0] != "uid" {
					b.t.Errorf("tenants to ask again: %v", b.prober.wanted)
				}
			})
		})
	}
}

func TestIssuer_ClassifiesWhatEntraSays(t *testing.T) {
	for _, tt := range []struct {
		name     string
		err      error
		want     error
		requests int
		probes   int
	}{
		{"secret refused", refusal(directory.SecretRefused, "AADSTS7000215"), issuer.ErrNotReady, 2, 2},
		{"secret expired", refusal(directory.SecretExpired, "AADSTS7000222"), issuer.ErrNotReady, 2, 2},
		{"application unknown", refusal(directory.ApplicationUnknown, "AADSTS700016"), issuer.ErrConsentMissing, 2, 2},
		{"principal missing", refusal(directory.PrincipalMissing, "AADSTS7000229"), issuer.ErrConsentMissing, 2, 2},
		{"principal disabled", refusal(directory.PrincipalDisabled, "AADSTS7000112"), issuer.ErrConsentMissing, 1, 1},
		{"tenant unknown", refusal(directory.TenantUnknown, "AADSTS90002"), issuer.ErrConsentMissing, 1, 1},
		{"policy", refusal(directory.BlockedByPolicy, "AADSTS53003"), issuer.ErrConsentMissing, 1, 1},
		{"throttled", refusal(directory.Throttled, "AADSTS50196"), issuer.ErrEntra, 1, 0},
		{"transient", refusal(directory.Transient, ""), issuer.ErrEntra, 1, 0},
		{"no answer", refusal(directory.OutcomeUnknown, ""), issuer.ErrEntra, 1, 0},
		{"unknown code", refusal(directory.Unclassified, "AADSTS9"), issuer.ErrEntra, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.minter.say("CANARY-secret-v1", tt.err)
				b.minter.say("CANARY-secret-v2", tt.err)
				b.ask("asked", request(version(2), version(1)), "", tt.want, tt.requests)
				if len(b.prober.wanted) != tt.probes {
					b.t.Errorf("%d probes wanted, want %d", len(b.prober.wanted), tt.probes)
				}
			})
		})
	}
	inBubble(t, func(b *bench) {
		b.ask("no version", request(), "", issuer.ErrNotReady, 0)
		away := version(2)
		away.Sealed = []byte(string(away.Sealed) + "-away")
		if _, err := b.issuer.Issue(b.t.Context(), request(away)); err == nil || errors.Is(err, issuer.ErrEntra) || b.minter.count() != 0 || len(b.prober.wanted) != 0 {
			b.t.Errorf("a secret that does not open for now: %v, %d requests", err, b.minter.count())
		}
		lost := version(3)
		lost.Sealed = version(1).Sealed
		b.ask("a secret that never opens again", request(lost), "", issuer.ErrNotReady, 0)
		b.ask("with one before it", request(lost, version(1)), "v1", nil, 1)
		if len(b.prober.wanted) != 1 {
			b.t.Errorf("%d probes wanted, want one", len(b.prober.wanted))
		}
	})
}

func TestIssuer_GoesOnWithWhatIsLeftWhileEntraIsAway(t *testing.T) {
	inBubble(t, func(b *bench) {
		first := b.ask("first", request(version(2)), "v2", nil, 1)
		b.minter.say("CANARY-secret-v2", refusal(directory.Transient, ""))
		time.Sleep(time.Until(first.RenewTime))
		if got := b.ask("renewal fails", request(version(2)), "v2", nil, 2); got.RequestID != first.RequestID {
			b.t.Error("not the kept one")
		}
		time.Sleep(time.Until(first.ExpireTime) - 30*time.Second)
		b.ask("too little is left", request(version(2)), "", issuer.ErrEntra, 3)
	})
}

func TestIssuer_BacksOffShortlyAndAsTold(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.minter.delay = 0
		b.minter.say("CANARY-secret-v2", refusal(directory.Transient, ""))
		for range 600 { // a minute's worth of impatience
			if _, err := b.issuer.Issue(b.t.Context(), request(version(2))); !errors.Is(err, issuer.ErrEntra) {
				b.t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := b.minter.count(); got < 4 || got > 10 {
			b.t.Errorf("%d requests in a minute, want a handful", got)
		}
		// However long it lasted, thirty seconds after its end it is over.
		b.minter.say("CANARY-secret-v2", nil)
		time.Sleep(30 * time.Second)
		if _, err := b.issuer.Issue(b.t.Context(), request(version(2))); err != nil {
			b.t.Errorf("after the outage: %v", err)
		}
	})
	inBubble(t, func(b *bench) {
		b.minter.delay = 0
		throttled := &directory.Error{Op: "request token", Class: directory.Throttled, RetryAfter: time.Minute, Err: errors.New("slow down")}
		b.minter.say("CANARY-secret-v2", throttled)
		b.ask("throttled", request(version(2)), "", issuer.ErrEntra, 1)
		time.Sleep(59 * time.Second)
		b.ask("before it may", request(version(2)), "", issuer.ErrEntra, 1)
		time.Sleep(time.Second)
		b.ask("when it may", request(version(2)), "", issuer.ErrEntra, 2)
	})
}
