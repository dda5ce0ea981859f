package delivery_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/signingkey"
	"phasekey.dev/services/vault/internal/store"
)

// pair is a key that signs, as k1; making one takes its time.
var pair = sync.OnceValues(func() (*rsa.PrivateKey, signingkey.Key) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, signingkey.Key{}
	}
	private, _ := x509.MarshalPKCS8PrivateKey(key)
	public, _ := x509.MarshalPKIXPublicKey(&key.PublicKey)
	return key, signingkey.Key{ID: "k1", Number: 1, State: signingkey.Signing, Public: public, Sealed: append([]byte(signingkey.SealedAs("k1")+":"), private...)}
})

func (f *fakeStore) SigningKeys(context.Context) ([]signingkey.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.keys), nil
}

func (f *fakeStore) SigningKeyCompromised(_ context.Context, id string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return false, sqldb.ErrUnavailable
	}
	return slices.ContainsFunc(f.keys, func(k signingkey.Key) bool { return k.ID == id && k.Reason == signingkey.Compromised }), nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// trust is a federated version under k1.
func trust(number int64) store.Live { return trustUnder("k1", number) }

func trustUnder(key string, number int64) store.Live {
	v := live(number)
	v.Sealed, v.SigningKey, v.EndTime = nil, key, time.Time{}
	return v
}

// federate has the request be for an assertion, and the integration give it.
func (w *world) federate(versions ...store.Live) {
	_, key := pair()
	w.request.Material, w.store.federated, w.store.versions, w.store.keys = lease.FederatedToken, true, versions, []signingkey.Key{key}
}

func (w *world) claims(d delivery.Delivery) jwt.MapClaims {
	w.t.Helper()
	key, _ := pair()
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(d.Token.Expose(), claims, func(t *jwt.Token) (any, error) {
		if t.Header["kid"] != "k1" {
			return nil, errors.New("signed by another key")
		}
		return &key.PublicKey, nil
	}, jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer("https://issuer.example"), jwt.WithAudience("api://AzureADTokenExchange"))
	if err != nil {
		w.t.Fatal(err)
	}
	return claims
}

func TestHub_AssertionNamesItsLease(t *testing.T) {
	inBubble(t, func(w *world) {
		w.federate(trust(2), retiring(1))
		w.issuer.fail(issuer.ErrEntra) // Entra is not asked
		defer w.open()()
		w.took("at once", "INITIAL v2 1")
		d := w.last().Delivery
		claims := w.claims(d)
		for name, want := range map[string]any{
			"sub": "integration:uid:read", "run": "r", "phase": "PLANNING", "project": "accounts/acme/projects/network", "lease": d.LeaseUID,
		} {
			if claims[name] != want {
				t.Errorf("%s is %v, want %v", name, claims[name], want)
			}
		}
		if life := d.ExpireTime.Sub(w.began); life <= 0 || life > signingkey.AssertionLife || !d.ExpireTime.After(d.RefreshTime) || d.Audience != "api://AzureADTokenExchange" {
			t.Errorf("it is good for %s, renewed at %s, for %s", life, d.RefreshTime, d.Audience)
		}
		record := w.store.delivered[0]
		if record.LeaseUID != d.LeaseUID || record.ClientRequestID != claims["jti"] || record.Material != lease.FederatedToken || !record.ExpireTime.Equal(d.ExpireTime) {
			t.Errorf("recorded %+v", record)
		}
		// A fetch is of the same lease, and another assertion.
		fetched, err := w.hub.Fetch(t.Context(), w.request)
		if err != nil || fetched.LeaseUID != d.LeaseUID || w.claims(fetched)["lease"] != d.LeaseUID || fetched.Token.Expose() == d.Token.Expose() {
			t.Errorf("fetched %+v, %v", fetched, err)
		}
	})
}

// Who may write has another subject than who reads, in what is signed for the run itself too.
func TestHub_AssertionIsOfTheRunsAccess(t *testing.T) {
	for phase, want := range map[grant.Phase]string{
		grant.Initializing: "integration:uid:read", grant.Planning: "integration:uid:read", grant.Applying: "integration:uid:write",
		grant.Destroying: "integration:uid:write", grant.Performing: "integration:uid:write", grant.Testing: "integration:uid:write",
	} {
		inBubble(t, func(w *world) {
			w.federate(trust(1))
			w.store.standing.Grant.Phase = phase
			d, err := w.hub.Fetch(t.Context(), w.request)
			if err != nil {
				t.Fatal(err)
			}
			if claims := w.claims(d); claims["sub"] != want || claims["phase"] != string(phase) {
				t.Errorf("%s: signed for %v in phase %v, want %s", phase, claims["sub"], claims["phase"], want)
			}
		})
	}
}

func TestHub_AssertionsAreRenewedBeforeTheyEnd(t *testing.T) {
	inBubble(t, func(w *world) {
		w.federate(trust(1))
		defer w.open()()
		w.took("at once", "INITIAL v1 1")
		end := w.last().ExpireTime
		for renewed := range int64(6) {
			w.after(5 * time.Minute)
			w.mu.Lock()
			n := len(w.taken)
			at := w.taken[n-1].at
			w.mu.Unlock()
			if int64(n) != renewed+2 || !w.began.Add(at).Before(end) || w.last().Reason != delivery.Refresh {
				t.Fatalf("%d messages after %d times five minutes, the last at %s for one that ended at %s", n, renewed+1, at, end)
			}
			end = w.last().ExpireTime
		}
		// A change that does not concern it has nothing signed.
		n := len(w.store.delivered)
		w.store.change("uid", "", func(*fakeStore) {})
		w.after(2 * time.Second)
		if len(w.store.delivered) != n {
			t.Error("a change that says nothing was delivered")
		}
	})
}

func TestHub_AssertionsFollowTheKind(t *testing.T) {
	inBubble(t, func(w *world) {
		w.federate(live(1)) // its kind was changed; the new version is being proven
		if _, err := w.hub.Fetch(t.Context(), w.request); !errors.Is(err, issuer.ErrNotReady) {
			t.Errorf("before a trust is proven: %v", err)
		}
		w.store.do(func(f *fakeStore) { f.versions = []store.Live{trust(2), retiring(1)} })
		defer w.open()()
		w.took("once it is", "INITIAL v2 1")
		// Tokens go on being minted with whatever works.
		w.request.Material = lease.AccessToken
		if d, err := w.hub.Fetch(t.Context(), w.request); err != nil || d.Version != 2 {
			t.Errorf("a token: %v by version %d", err, d.Version)
		}
		// The other way: streams of assertions end, for nobody trusts those any more.
		w.store.change("uid", "", func(f *fakeStore) { f.federated = false })
		w.after(2 * time.Second)
		w.end("the kind changed", delivery.ErrMaterialNotAllowed)
		if d, err := w.hub.Fetch(t.Context(), w.request); err != nil || d.Version != 2 {
			t.Errorf("a token: %v by version %d", err, d.Version)
		}
	})
}

// A key that is dropped leaves its version without a signature, until another is proven under the next key: the reader waits, and is told why.
func TestHub_ADroppedKeyIsACompromise(t *testing.T) {
	for name, tt := range map[string]struct {
		material lease.Material
		reason   string
		want     string
	}{
		"of an assertion": {lease.FederatedToken, signingkey.Compromised, "COMPROMISED v2 2"},
		"of a token":      {lease.AccessToken, signingkey.Compromised, "COMPROMISED v2 2"},
		"in its course":   {lease.FederatedToken, "", "ROTATED v2 2"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.federate(trustUnder("k0", 1))
				w.request.Material = tt.material
				next, lost := w.store.keys[0], w.store.keys[0]
				lost.ID, lost.Sealed = "k0", append([]byte(signingkey.SealedAs("k0")), lost.Sealed[len(signingkey.SealedAs("k1")):]...)
				w.store.keys = []signingkey.Key{lost}
				defer w.open()()
				w.took("at once", "INITIAL v1 1")
				if tt.reason != "" {
					lost.State, lost.Reason = signingkey.Removed, tt.reason
					w.store.change("uid", "", func(f *fakeStore) { f.keys, f.versions = []signingkey.Key{lost}, nil })
					w.after(10 * time.Second)
					w.took("while there is nothing")
					w.end("while there is nothing", nil)
				}
				w.store.change("uid", "", func(f *fakeStore) { f.keys, f.versions = []signingkey.Key{lost, next}, []store.Live{trust(2)} })
				w.after(10 * time.Second)
				w.took("once there is another", tt.want)
			})
		})
	}
}

func TestHub_SecretsFollowTheKind(t *testing.T) {
	inBubble(t, func(w *world) {
		w.whole()
		defer w.open()()
		w.took("at once", "INITIAL v1 1")
		w.store.change("uid", "", func(f *fakeStore) { f.federated = true })
		w.after(2 * time.Second)
		w.end("the kind changed", delivery.ErrMaterialNotAllowed)
		w.store.do(func(f *fakeStore) { f.federated, f.versions = false, []store.Live{trust(1)} })
		if _, err := w.hub.Fetch(t.Context(), w.request); !errors.Is(err, issuer.ErrNotReady) {
			t.Errorf("of a trust: %v", err)
		}
	})
}

func TestHub_NothingIsSignedForWhomItMustNot(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(w *world)
		want error
	}{
		"its key was dropped":   {func(w *world) { w.store.keys[0].State = signingkey.Removed }, issuer.ErrNotReady},
		"the policy":            {func(w *world) { w.store.materials = []lease.Material{lease.AccessToken} }, delivery.ErrMaterialNotAllowed},
		"of another kind":       {func(w *world) { w.store.federated = false }, delivery.ErrMaterialNotAllowed},
		"the grant was revoked": {func(w *world) { w.store.standing.Grant.RevokeTime = w.began }, grant.ErrRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.federate(trust(1))
				tt.edit(w)
				if d, err := w.hub.Fetch(t.Context(), w.request); !errors.Is(err, tt.want) || d.Token.Expose() != "" || len(w.store.delivered) != 0 {
					t.Errorf("%v, %d records", err, len(w.store.delivered))
				}
			})
		})
	}
}

// Two first deliveries to one instance at once: the second finds the lease that the first opened, and has its assertion made anew.
func TestHub_AnAssertionForALeaseThatIsNotDoesNotLeave(t *testing.T) {
	inBubble(t, func(w *world) {
		w.federate(trust(1))
		w.store.leaseUID = "opened meanwhile"
		w.store.goneOnce = true
		d, err := w.hub.Fetch(t.Context(), w.request)
		if err != nil || w.claims(d)["lease"] != "opened meanwhile" {
			t.Errorf("%v, %v", d.LeaseUID, err)
		}
	})
}
