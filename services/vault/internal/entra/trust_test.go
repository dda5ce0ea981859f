package entra_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/directory"
)

// fakeIssuer is an OpenID issuer with one key, read without a socket.
type fakeIssuer struct{ key *rsa.PrivateKey }

const issuerURL = "https://issuer.example.com"

func (i fakeIssuer) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	document := map[string]any{"issuer": issuerURL, "jwks_uri": issuerURL + "/keys"}
	if r.URL.Path == "/keys" {
		encode := base64.RawURLEncoding.EncodeToString
		document = map[string]any{"keys": []any{map[string]string{"kty": "RSA", "kid": "k1", "use": "sig", "alg": "RS256", "n": encode(i.key.N.Bytes()), "e": "AQAB"}}}
	}
	if err := json.NewEncoder(w).Encode(document); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

func (i fakeIssuer) assert(t *testing.T, subject string) secret.Text {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{
		Issuer: issuerURL, Subject: subject, Audience: jwt.ClaimStrings{directory.AssertionAudience}, ID: uuid.NewString(),
		IssuedAt: jwt.NewNumericDate(time.Now()), ExpiresAt: jwt.NewNumericDate(time.Now().Add(time.Minute)),
	})
	token.Header["kid"] = "k1"
	text, err := token.SignedString(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return secret.New(text)
}

// newFederatedWorld is newWorld with an issuer that the simulator can read.
func newFederatedWorld(t *testing.T) (world, fakeIssuer) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	issuer := fakeIssuer{key}
	return newWorldOf(t, entrasim.Config{Seed: 1, Issuers: issuer}), issuer
}

func TestTrust_IsMadeByOneRequestEachAndMended(t *testing.T) {
	w, issuer := newFederatedWorld(t)
	app := w.application(t)
	w.consent(t, app)
	wanted := directory.Trusts("test", issuerURL, "uid")
	writes := func() int {
		return w.count("graph.federatedCredential.upsert") + w.count("graph.federatedCredential.create") + w.count("graph.federatedCredential.update") +
			w.count("graph.federatedCredential.delete")
	}
	for step, want := range []struct{ left, writes int }{{1, 1}, {0, 2}, {0, 2}} {
		left, err := w.dir.EnsureTrust(t.Context(), app.ObjectID, wanted)
		if err != nil || left != want.left || writes() != want.writes {
			t.Fatalf("step %d: %d left after %d writes, %v", step, left, writes(), err)
		}
	}
	for _, write := range []bool{false, true} {
		request := directory.TokenRequest{
			TenantID: w.customer, ClientID: app.ClientID, Audience: resourceManager, RequestID: uuid.NewString(), Assertion: issuer.assert(t, directory.Subject("uid", write)),
		}
		if token, err := w.dir.Token(t.Context(), request); err != nil || token.PrincipalObjectID == "" {
			t.Errorf("write %t: %v", write, err)
		}
	}
	request := directory.TokenRequest{TenantID: w.customer, ClientID: app.ClientID, Audience: resourceManager, Assertion: issuer.assert(t, directory.Subject("another", false))}
	if _, err := w.dir.Token(t.Context(), request); directory.ClassOf(err) != directory.TrustRefused {
		t.Errorf("another integration's assertion: %v", err)
	}

	// Somebody moves it; it is mended in place.
	moved := directory.Trusts("test", "https://elsewhere.example.com", "uid")
	if left, err := w.dir.EnsureTrust(t.Context(), app.ObjectID, moved[:1]); err != nil || left != 0 {
		t.Fatalf("moved: %d left, %v", left, err)
	}
	if left, err := w.dir.EnsureTrust(t.Context(), app.ObjectID, wanted); err != nil || left != 0 || writes() != 4 {
		t.Errorf("mended: %d left after %d writes, %v", left, writes(), err)
	}
	request.Assertion = issuer.assert(t, directory.Subject("uid", false))
	if _, err := w.dir.Token(t.Context(), request); err != nil {
		t.Errorf("mended: %v", err)
	}

	// A stranger's is left alone.
	stranger := []directory.Trust{{Name: "stranger", Issuer: issuerURL, Subject: "stranger", Audience: directory.AssertionAudience}}
	if _, err := w.dir.EnsureTrust(t.Context(), app.ObjectID, stranger); err != nil {
		t.Fatal(err)
	}
	found, err := w.dir.FindApplication(t.Context(), spec.UniqueName)
	if err != nil || !slices.Equal(found.Trusts, append(wanted, stranger...)) {
		t.Errorf("the application has %v, %v", found.Trusts, err)
	}
	names := []string{wanted[0].Name, wanted[1].Name}
	for step, want := range []struct{ left, writes int }{{1, 6}, {0, 7}, {0, 7}} {
		left, err := w.dir.RemoveTrust(t.Context(), app.ObjectID, names)
		if err != nil || left != want.left || writes() != want.writes {
			t.Fatalf("removal, step %d: %d left after %d writes, %v", step, left, writes(), err)
		}
	}
	request.Assertion = issuer.assert(t, "stranger")
	if _, err := w.dir.Token(t.Context(), request); err != nil {
		t.Errorf("the stranger's: %v", err)
	}
	request.Assertion = issuer.assert(t, directory.Subject("uid", true))
	if _, err := w.dir.Token(t.Context(), request); directory.ClassOf(err) != directory.TrustRefused {
		t.Errorf("once removed: %v", err)
	}
}

func TestTrust_RefusalsAreClassified(t *testing.T) {
	w, _ := newFederatedWorld(t)
	app := w.application(t)
	if _, err := w.dir.EnsureTrust(t.Context(), uuid.NewString(), directory.Trusts("test", issuerURL, "uid")); directory.ClassOf(err) != directory.NotFound {
		t.Errorf("an application that is not there: %v", err)
	}
	if _, err := w.dir.RemoveTrust(t.Context(), uuid.NewString(), []string{"x"}); directory.ClassOf(err) != directory.NotFound {
		t.Errorf("removed from one that is not there: %v", err)
	}
	long := directory.Trusts("test", issuerURL+"/"+fmt.Sprintf("%0700d", 1), "uid")
	if _, err := w.dir.EnsureTrust(t.Context(), app.ObjectID, long); directory.ClassOf(err) != directory.Malformed {
		t.Errorf("an issuer that is too long: %v", err)
	}
}
