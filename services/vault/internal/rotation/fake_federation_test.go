package rotation_test

import (
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/directory"
)

const issuerURL = "https://issuer.example"

// fakeTrust is a federated credential; removed is when the last replica forgets it, zero while it is there.
type fakeTrust struct {
	directory.Trust
	visible, removed time.Time
}

// fakeFederation is what Entra knows of an issuer's keys: what they were when it looked, an hour ago at most.
type fakeFederation struct {
	site   http.Handler
	keys   map[string]*rsa.PublicKey
	looked time.Time
	// subjects counts the tokens that were given, by the assertion's subject; signed, by its key.
	subjects, signed map[string]int
	shown            map[string]bool
}

func (f *fakeFederation) key(id string) *rsa.PublicKey {
	if time.Since(f.looked) >= time.Hour {
		f.looked, f.keys = time.Now(), map[string]*rsa.PublicKey{}
		w := httptest.NewRecorder()
		f.site.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/.well-known/jwks.json", http.NoBody))
		var set struct {
			Keys []struct {
				ID string `json:"kid"`
				N  string `json:"n"`
			} `json:"keys"`
		}
		if err := json.NewDecoder(w.Body).Decode(&set); err != nil {
			return nil
		}
		for _, k := range set.Keys {
			n, _ := base64.RawURLEncoding.DecodeString(k.N)
			f.keys[k.ID] = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
		}
	}
	return f.keys[id]
}

// exchange gives a token for an assertion that is signed by the issuer and about a subject that the application trusts. The lock is held.
func (d *fakeDirectory) exchange(app *fakeApp, text string) (directory.Token, error) {
	var claims jwt.RegisteredClaims
	kid := ""
	_, err := jwt.ParseWithClaims(text, &claims, func(t *jwt.Token) (any, error) {
		kid, _ = t.Header["kid"].(string)
		if key := d.federation.key(kid); key != nil {
			return key, nil
		}
		return nil, errors.New("not known")
	}, jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(issuerURL), jwt.WithAudience(directory.AssertionAudience))
	if err != nil {
		return directory.Token{}, refuse(directory.IssuerUnread, "AADSTS7000272")
	}
	if d.federation.shown[claims.ID] {
		d.note("assertion shown again")
	}
	d.federation.shown[claims.ID] = true
	for _, t := range app.trusts {
		if t.Subject == claims.Subject && t.Issuer == claims.Issuer && (t.removed.IsZero() && d.knows(t.visible) || time.Now().Before(t.removed)) {
			d.federation.subjects[claims.Subject]++
			d.federation.signed[kid]++
			return directory.Token{Text: secret.New(canary + "token"), IssueTime: time.Now(), ExpireTime: time.Now().Add(time.Hour), PrincipalObjectID: "principal"}, nil
		}
	}
	return directory.Token{}, refuse(directory.TrustRefused, "AADSTS700213")
}

func (d *fakeDirectory) EnsureTrust(ctx context.Context, objectID string, wanted []directory.Trust) (left int, err error) {
	err = d.around(ctx, "trust", func() error {
		app, err := d.byObject(objectID)
		if err != nil {
			return err
		}
		var lacking []directory.Trust
		for _, w := range wanted {
			if have := app.trusts[w.Name]; have == nil || have.Trust != w || !have.removed.IsZero() || !d.knows(have.visible) {
				lacking = append(lacking, w)
			}
		}
		if len(lacking) > 0 {
			app.trusts[lacking[0].Name] = &fakeTrust{Trust: lacking[0], visible: d.some()}
			d.note("trusted %s", lacking[0].Subject)
			left = len(lacking) - 1
		}
		return nil
	})
	return left, err
}

func (d *fakeDirectory) RemoveTrust(ctx context.Context, objectID string, names []string) (left int, err error) {
	err = d.around(ctx, "untrust", func() error {
		app, err := d.byObject(objectID)
		if err != nil {
			return err
		}
		for _, name := range names {
			if t := app.trusts[name]; t != nil && t.removed.IsZero() {
				t.removed = d.some()
				d.note("untrusted %s", t.Subject)
				break
			}
		}
		for _, name := range names {
			if t := app.trusts[name]; t != nil && t.removed.IsZero() {
				left++
			}
		}
		return nil
	})
	return left, err
}

// trusts are the subjects that applications trust.
func (d *fakeDirectory) trusts() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, app := range d.apps {
		for _, t := range app.trusts {
			if t.removed.IsZero() {
				out = append(out, strings.TrimPrefix(t.Subject, "integration:"+uid+":"))
			}
		}
	}
	slices.Sort(out)
	return out
}
