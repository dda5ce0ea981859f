package signer_test

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/signingkey"
)

const issuerURL = "https://issuer.example/tenant"

// timing has a key sign for three hours.
var timing = signingkey.Timing{Period: 3 * time.Hour, Publish: time.Hour, Keep: time.Hour}

var errAway = errors.New("database is away")

// fakeStore keeps keys in memory; away, it keeps them to itself.
type fakeStore struct {
	mu    sync.Mutex
	keys  []signingkey.Key
	used  []string
	away  error
	looks int
}

func (f *fakeStore) SigningKeys(context.Context) ([]signingkey.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	return slices.Clone(f.keys), f.away
}

func (f *fakeStore) SigningFacts(context.Context) (signingkey.Facts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return signingkey.Facts{Keys: slices.Clone(f.keys), Used: f.used, LastNumber: int64(len(f.keys))}, f.away
}

func (f *fakeStore) AddSigningKey(_ context.Context, m election.Mastership, _ time.Time, k signingkey.Key) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.Holder != "master" {
		return election.ErrFenced
	}
	f.keys = append(f.keys, k)
	return f.away
}

func (f *fakeStore) MoveSigningKey(_ context.Context, m election.Mastership, move signingkey.Move) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.Holder != "master" {
		return election.ErrFenced
	}
	f.keys[slices.IndexFunc(f.keys, func(k signingkey.Key) bool { return k.ID == move.Key.ID })] = move.Key
	return f.away
}

// set changes what is stored.
func (f *fakeStore) set(change func(*fakeStore)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// fakeKeyring seals by turning a text into its identity and itself.
type fakeKeyring struct{}

func (fakeKeyring) Seal(identity string, text secret.Text) ([]byte, error) {
	return []byte(identity + ":" + text.Expose()), nil
}

func (fakeKeyring) Open(_ context.Context, identity string, sealed []byte) (secret.Text, error) {
	text, ok := strings.CutPrefix(string(sealed), identity+":")
	if !ok {
		return secret.Text{}, errors.New("sealed under another identity")
	}
	return secret.New(text), nil
}

type bench struct {
	t      *testing.T
	store  *fakeStore
	keeper *signer.Keeper
	signer *signer.Signer
	site   *signer.Site
	log    *bytes.Buffer
}

// inBubble runs a case in fake time, with a keeper and a signer that run until it ends.
func inBubble(t *testing.T, test func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, store: &fakeStore{}, log: &bytes.Buffer{}}
		log := obs.NewLogger(b.log, slog.LevelDebug, obs.FormatText)
		b.keeper = &signer.Keeper{Store: b.store, Keyring: fakeKeyring{}, Timing: timing, Log: log}
		metrics := prometheus.NewRegistry()
		b.signer = signer.New(signer.Config{Issuer: issuerURL, Store: b.store, Keyring: fakeKeyring{}, Log: log, Metrics: metrics})
		var err error
		if b.site, err = signer.NewSite(b.signer, log, metrics); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := b.keeper.Serve(ctx, election.Mastership{Holder: "master"}); err != nil {
				t.Error(err)
			}
		})
		running.Go(func() {
			if err := b.signer.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(5 * time.Second)
		test(b)
		cancel()
		running.Wait()
	})
}

func (b *bench) current() string {
	b.t.Helper()
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	k, ok := signingkey.Current(b.store.keys)
	if !ok {
		b.t.Fatal("nothing signs")
	}
	return k.ID
}

func (b *bench) get(path string) *http.Response {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.site.ServeHTTP(w, httptest.NewRequestWithContext(b.t.Context(), http.MethodGet, path, http.NoBody))
	return w.Result()
}

// set reads the key set as a token service does: from what the configuration names.
func (b *bench) set() map[string]*rsa.PublicKey {
	b.t.Helper()
	var configuration struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	b.decode(b.get("/tenant/.well-known/openid-configuration"), &configuration)
	if configuration.Issuer != issuerURL {
		b.t.Fatalf("the issuer is %q", configuration.Issuer)
	}
	var set struct {
		Keys []struct {
			ID        string `json:"kid"`
			Algorithm string `json:"alg"`
			Use       string `json:"use"`
			N, E      string
		} `json:"keys"`
	}
	path, ok := strings.CutPrefix(configuration.Keys, "https://issuer.example")
	if !ok {
		b.t.Fatalf("the keys are at %q", configuration.Keys)
	}
	b.decode(b.get(path), &set)
	out := map[string]*rsa.PublicKey{}
	for _, k := range set.Keys {
		n, err := base64.RawURLEncoding.DecodeString(k.N)
		if err != nil || k.Algorithm != "RS256" || k.Use != "sig" {
			b.t.Fatalf("key %+v, %v", k, err)
		}
		out[k.ID] = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
	}
	return out
}

func (b *bench) decode(resp *http.Response, into any) {
	b.t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("status %d, %v: %s", resp.StatusCode, err, body)
	}
	if resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "public, max-age=300" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		b.t.Errorf("headers %v", resp.Header)
	}
	if err := json.Unmarshal(body, into); err != nil {
		b.t.Fatal(err)
	}
}

func TestSigner_WhatItSignsIsVerifiedByWhatItServes(t *testing.T) {
	inBubble(t, func(b *bench) {
		before := time.Now()
		got, err := b.signer.Assert(b.t.Context(), b.current(), signer.Claims{
			Subject: "integration:uid:read", Run: "run-1", Phase: "PLANNING", Project: "accounts/a/projects/p", Lease: "lease-1",
		})
		if err != nil {
			b.t.Fatal(err)
		}
		set := b.set()
		if len(set) != 2 {
			b.t.Errorf("%d keys are served; want the one that signs and the next", len(set))
		}
		claims := jwt.MapClaims{}
		token, err := jwt.ParseWithClaims(got.Text.Expose(), claims, func(t *jwt.Token) (any, error) { return set[t.Header["kid"].(string)], nil },
			jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(issuerURL), jwt.WithAudience("api://AzureADTokenExchange"), jwt.WithExpirationRequired())
		if err != nil || token.Header["kid"] != b.current() {
			b.t.Fatalf("%v by key %v", err, token.Header["kid"])
		}
		for name, want := range map[string]string{"sub": "integration:uid:read", "run": "run-1", "phase": "PLANNING", "project": "accounts/a/projects/p", "lease": "lease-1"} {
			if claims[name] != want {
				b.t.Errorf("%s is %v, want %s", name, claims[name], want)
			}
		}
		if life := got.ExpireTime.Sub(before); life > signingkey.AssertionLife || life < signingkey.AssertionLife-time.Second {
			b.t.Errorf("it is good for %s", life)
		}
		again, err := b.signer.Assert(b.t.Context(), b.current(), signer.Claims{Subject: "integration:uid:read"})
		if err != nil || again.Text.Expose() == got.Text.Expose() {
			b.t.Errorf("another one is the same, or %v", err)
		}
	})
}

func TestSigner_SignsOnlyWithWhatSigns(t *testing.T) {
	inBubble(t, func(b *bench) {
		current := b.current()
		for _, state := range signingkey.States() {
			b.store.set(func(f *fakeStore) {
				f.used = []string{current}
				for i := range f.keys {
					if f.keys[i].ID == current {
						f.keys[i].State, f.keys[i].RetireTime = state, time.Now()
					}
				}
			})
			time.Sleep(signer.PollInterval + time.Second)
			_, err := b.signer.Assert(b.t.Context(), current, signer.Claims{Subject: "s"})
			if want := state == signingkey.Signing; (err == nil) != want || !want && !errors.Is(err, signer.ErrKeyGone) {
				b.t.Errorf("%s: %v", state, err)
			}
			if _, served := b.set()[current]; served != (state != signingkey.Removed) {
				b.t.Errorf("%s: it is served: %t", state, served)
			}
		}
		if _, err := b.signer.Assert(b.t.Context(), "unheard-of", signer.Claims{}); !errors.Is(err, signer.ErrKeyGone) {
			b.t.Errorf("an unknown key: %v", err)
		}
	})
}

func TestSigner_WithoutTheDatabaseItServesForEverAndSignsForAMinute(t *testing.T) {
	inBubble(t, func(b *bench) {
		current := b.current()
		b.store.set(func(f *fakeStore) { f.away = errAway })
		time.Sleep(30 * time.Second)
		if _, err := b.signer.Assert(b.t.Context(), current, signer.Claims{}); err != nil {
			b.t.Errorf("after half a minute: %v", err)
		}
		time.Sleep(10 * time.Minute)
		if _, err := b.signer.Assert(b.t.Context(), current, signer.Claims{}); !errors.Is(err, signer.ErrStale) || !errors.Is(err, errAway) {
			b.t.Errorf("after ten minutes: %v", err)
		}
		if b.set()[current] == nil {
			b.t.Error("what was known is not served")
		}
		b.store.set(func(f *fakeStore) { f.away = nil })
		if _, err := b.signer.Assert(b.t.Context(), current, signer.Claims{}); err != nil {
			b.t.Errorf("once it is back: %v", err)
		}
		synctest.Wait()
		if n := strings.Count(b.log.String(), "cannot be looked at"); n != 1 {
			b.t.Errorf("the log says so %d times", n)
		}
	})
}

func TestSite_HasNothingElse(t *testing.T) {
	inBubble(t, func(b *bench) {
		for path, want := range map[string]int{
			"/": 404, "/tenant": 404, "/.well-known/openid-configuration": 404, "/tenant/.well-known/": 404, "/tenant/.well-known/jwks.json/": 404, "/metrics": 404,
		} {
			if got := b.get(path).StatusCode; got != want {
				b.t.Errorf("%s: %d", path, got)
			}
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			w := httptest.NewRecorder()
			b.site.ServeHTTP(w, httptest.NewRequestWithContext(b.t.Context(), method, "/tenant/.well-known/jwks.json", http.NoBody))
			if w.Code != http.StatusMethodNotAllowed {
				b.t.Errorf("%s: %d", method, w.Code)
			}
		}
	})
}

func TestSite_BeforeTheFirstLook(t *testing.T) {
	s := signer.New(signer.Config{Issuer: "https://issuer.example", Store: &fakeStore{away: errAway}, Log: slog.New(slog.DiscardHandler)})
	site, err := signer.NewSite(s, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	site.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/.well-known/jwks.json", http.NoBody))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%d, %v", w.Code, w.Header())
	}
}

// Through many changes of keys: of what was signed at any moment the key was served for an hour before, and is for an hour after it is good.
func TestKeeper_KeysAreServedLongBeforeAndAfterTheySign(t *testing.T) {
	inBubble(t, func(b *bench) {
		first := map[string]time.Time{}
		last := map[string]time.Time{}
		signed := map[string]time.Time{}
		for step := range 120 {
			current := b.current()
			if step > 0 && (first[current].IsZero() || signed[current].IsZero() && step > 10 && time.Since(first[current]) < timing.Publish) {
				b.t.Errorf("step %d: a key signs that was seen at %s first", step, first[current])
			}
			b.store.set(func(f *fakeStore) { f.used = []string{current} })
			if _, err := b.signer.Assert(b.t.Context(), current, signer.Claims{}); err != nil {
				b.t.Fatal(err)
			}
			signed[current] = time.Now()
			for id := range b.set() {
				if first[id].IsZero() {
					first[id] = time.Now()
				}
				last[id] = time.Now()
			}
			time.Sleep(10 * time.Minute)
		}
		if len(signed) < 6 {
			b.t.Errorf("%d keys signed in twenty hours", len(signed))
		}
		current := b.current()
		for id := range signed {
			// The last but one may be served still.
			if id != current && time.Since(signed[id]) > 3*time.Hour && last[id].Sub(signed[id]) < timing.Keep+signingkey.AssertionLife {
				b.t.Errorf("key %s was served until %s after it signed", id, last[id].Sub(signed[id]))
			}
		}
		if len(b.set()) > 3 {
			b.t.Errorf("%d keys are served", len(b.set()))
		}
		for _, k := range b.store.keys {
			if k.State == signingkey.Removed && k.Sealed != nil {
				b.t.Error("a removed key's private half is kept")
			}
		}
	})
}

func TestKeeper_EndsWhenItIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := &signer.Keeper{Store: &fakeStore{}, Keyring: fakeKeyring{}, Timing: signingkey.Production(), Log: slog.New(slog.DiscardHandler)}
		if err := keeper.Serve(t.Context(), election.Mastership{Holder: "former"}); !errors.Is(err, election.ErrFenced) {
			t.Errorf("it ended with %v", err)
		}
	})
}
