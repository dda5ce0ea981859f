package entrasim_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/entrasim"
)

// otherKey is a second key, for what the shared one must not verify.
var otherKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// fakeIssuer is an OpenID provider: a handler, and a transport that leads to it.
type fakeIssuer struct {
	url   string
	key   *rsa.PrivateKey
	kid   string
	asked atomic.Int32 // requests for the configuration
	// keys, when set, is the key set in place of the issuer's own.
	keys func() string
	// spoil, when set, answers in place of the issuer.
	spoil http.HandlerFunc
}

func newIssuer(t *testing.T, where string) *fakeIssuer {
	t.Helper()
	key, err := sharedKey()
	if err != nil {
		t.Fatal(err)
	}
	return &fakeIssuer{url: where, key: key, kid: "k1"}
}

func jwk(kid string, key *rsa.PublicKey, extra string) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":"AQAB"%s}`, kid, base64.RawURLEncoding.EncodeToString(key.N.Bytes()), extra)
}

func (i *fakeIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	base, err := url.Parse(i.url)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	switch path := strings.TrimPrefix(r.URL.Path, strings.TrimSuffix(base.Path, "/")); {
	case i.spoil != nil:
		i.spoil(w, r)
	case path == "/.well-known/openid-configuration":
		i.asked.Add(1)
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, i.url, strings.TrimSuffix(i.url, "/")+"/keys")
	case path == "/keys" && i.keys != nil:
		_, _ = w.Write([]byte(i.keys()))
	case path == "/keys":
		_, _ = fmt.Fprintf(w, `{"keys":[%s]}`, jwk(i.kid, &i.key.PublicKey, `,"use":"sig","alg":"RS256"`))
	default:
		http.NotFound(w, r)
	}
}

func (i *fakeIssuer) RoundTrip(r *http.Request) (*http.Response, error) {
	if base, err := url.Parse(i.url); err != nil || r.URL.Host != base.Host {
		return nil, fmt.Errorf("no such host as %s", r.URL.Host)
	}
	out := httptest.NewRecorder()
	i.ServeHTTP(out, r)
	return out.Result(), nil
}

// claimsFor are those of a token that fits the federated credential of the tests.
func (i *fakeIssuer) claimsFor() jwt.MapClaims {
	return jwt.MapClaims{"iss": i.url, "sub": subject, "aud": exchange, "iat": time.Now().Unix(), "nbf": time.Now().Unix(), "exp": time.Now().Add(10 * time.Minute).Unix()}
}

func sign(t *testing.T, method jwt.SigningMethod, header map[string]any, claims jwt.MapClaims, key any) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	maps.Copy(token.Header, header)
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (i *fakeIssuer) token(t *testing.T) string {
	t.Helper()
	return sign(t, jwt.SigningMethodRS256, map[string]any{"kid": i.kid}, i.claimsFor(), i.key)
}

func asserted(clientID, assertion, scope string) url.Values {
	return url.Values{
		"grant_type": {"client_credentials"}, "client_id": {clientID}, "scope": {scope}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
}

// federatedWorld has an application that trusts the issuer.
func federatedWorld(t *testing.T, config entrasim.Config) (*world, *fakeIssuer, app, string) {
	t.Helper()
	issuer := newIssuer(t, issuerURL)
	config.Issuers = issuer
	w := newWorld(t, config)
	a := w.newApp("one")
	w.consent(a)
	return w, issuer, a, w.federate(a, federation("plan", issuerURL, subject, exchange))
}

func TestAssertion_AFederatedTokenSpeaksForTheApplication(t *testing.T) {
	w, issuer, a, id := federatedWorld(t, entrasim.Config{})
	got := w.login(customerID, asserted(a.clientID, issuer.token(t), armScope))
	if got.status != http.StatusOK {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	p, err := w.sim.Principal(customerID, a.clientID)
	w.must(err)
	if c := claims(t, got.text("access_token")); c["appidacr"] != "2" || c["oid"] != p.ID || c["appid"] != a.clientID {
		t.Errorf("claims %v", c)
	}
	if e := w.sim.Journal(entrasim.Query{Operation: "login.token", Application: a.clientID}); len(e) != 1 || e[0].KeyID != id {
		t.Errorf("journal %+v", e)
	}
	w.login(customerID, asserted(a.clientID, issuer.token(t), armScope))
	if n := issuer.asked.Load(); n != 1 {
		t.Errorf("the issuer was asked %d times for two tokens", n)
	}
	text, err := json.Marshal(w.sim.Journal(entrasim.Query{}))
	w.must(err)
	if bytes.Contains(text, []byte(issuer.token(t)[:40])) {
		t.Error("the journal holds an assertion")
	}
}

func TestAssertion_FederatedErrors(t *testing.T) {
	w, issuer, a, _ := federatedWorld(t, entrasim.Config{})
	bare := w.newApp("bare")
	w.consent(bare)
	other, err := otherKey()
	w.must(err)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	kid := map[string]any{"kid": issuer.kid}
	with := func(name string, value any) jwt.MapClaims {
		c := issuer.claimsFor()
		if value == nil {
			delete(c, name)
		} else {
			c[name] = value
		}
		return c
	}
	rs := func(c jwt.MapClaims) string { return sign(t, jwt.SigningMethodRS256, kid, c, issuer.key) }
	good := issuer.token(t)
	past, future := time.Now().Add(-time.Minute), time.Now().Add(6*time.Minute)
	for _, c := range []struct {
		name, client, assertion string
		status                  int
		oauth, code             string
	}{
		{"good", a.clientID, good, 200, "", ""},
		{"audience in a list", a.clientID, rs(with("aud", []string{"other", exchange})), 200, "", ""},
		{"no start", a.clientID, rs(with("nbf", nil)), 200, "", ""},
		{"no credential at all", bare.clientID, good, 401, "invalid_client", "AADSTS70025"},
		{"another issuer", a.clientID, rs(with("iss", issuerURL+"/")), 401, "invalid_client", "AADSTS700211"},
		{"another subject", a.clientID, rs(with("sub", "run:network:apply")), 401, "invalid_client", "AADSTS700213"},
		{"the subject in capitals", a.clientID, rs(with("sub", strings.ToUpper(subject))), 401, "invalid_client", "AADSTS7002138"},
		{"another audience", a.clientID, rs(with("aud", "https://other.example.com")), 401, "invalid_client", "AADSTS700212"},
		{"a token of Entra", a.clientID, rs(with("iss", "https://login.microsoftonline.com/"+homeID+"/v2.0")), 401, "invalid_client", "AADSTS700222"},
		{"expired", a.clientID, rs(with("exp", past.Unix())), 401, "invalid_client", "AADSTS700024"},
		{"not yet", a.clientID, rs(with("nbf", future.Unix())), 401, "invalid_client", "AADSTS700024"},
		{"no end", a.clientID, rs(with("exp", nil)), 400, "invalid_request", "AADSTS50027"},
		{"no subject", a.clientID, rs(with("sub", nil)), 400, "invalid_request", "AADSTS50027"},
		{"no audience", a.clientID, rs(with("aud", nil)), 400, "invalid_request", "AADSTS50027"},
		{"signed by another key", a.clientID, sign(t, jwt.SigningMethodRS256, kid, issuer.claimsFor(), other), 401, "invalid_client", "AADSTS50013"},
		{"altered", a.clientID, good[:strings.LastIndexByte(good, '.')+1] + "AAAA", 401, "invalid_client", "AADSTS50013"},
		{"an unknown key", a.clientID, sign(t, jwt.SigningMethodRS256, map[string]any{"kid": "k2"}, issuer.claimsFor(), issuer.key), 401, "invalid_client", "AADSTS7000272"},
		{"no key ID", a.clientID, sign(t, jwt.SigningMethodRS256, nil, issuer.claimsFor(), issuer.key), 401, "invalid_client", "AADSTS7000272"},
		{"PS256", a.clientID, sign(t, jwt.SigningMethodPS256, kid, issuer.claimsFor(), issuer.key), 400, "invalid_request", "AADSTS5002738"},
		{"ES256", a.clientID, sign(t, jwt.SigningMethodES256, kid, issuer.claimsFor(), curve), 400, "invalid_request", "AADSTS5002738"},
		{"HS256 by the public key", a.clientID, sign(t, jwt.SigningMethodHS256, kid, issuer.claimsFor(), issuer.key.N.Bytes()), 400, "invalid_request", "AADSTS5002738"},
		{"none", a.clientID, sign(t, jwt.SigningMethodNone, kid, issuer.claimsFor(), jwt.UnsafeAllowNoneSignatureType), 400, "invalid_request", "AADSTS5002738"},
		{"an unknown algorithm", a.clientID, base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"X"}`)) + good[strings.IndexByte(good, '.'):], 400, "invalid_request", "AADSTS5002738"},
		{"critical headers", a.clientID, sign(t, jwt.SigningMethodRS256, map[string]any{"kid": issuer.kid, "crit": []string{"x"}}, issuer.claimsFor(), issuer.key), 400, "invalid_request", "AADSTS50027"},
		{"no token", a.clientID, "rubbish", 400, "invalid_request", "AADSTS50027"},
		{"a huge token", a.clientID, good + strings.Repeat("A", 1<<16), 400, "invalid_request", "AADSTS50027"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.login(customerID, asserted(c.client, c.assertion, armScope))
			code, _, _ := strings.Cut(got.text("error_description"), ":")
			if got.status != c.status || got.text("error") != c.oauth || code != c.code {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
	for name, form := range map[string]url.Values{
		"AADSTS900144": {"client_assertion": {good}}, "AADSTS90100": {"client_assertion": {good}, "client_assertion_type": {"x"}},
		"AADSTS900144: The request body must contain the following parameter: 'client_assertion'": {"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}},
	} {
		form.Set("grant_type", "client_credentials")
		form.Set("client_id", a.clientID)
		form.Set("scope", armScope)
		if got := w.login(customerID, form); got.status != 400 || !strings.HasPrefix(got.text("error_description"), name) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}

func TestAssertion_TheTimeRangeIsInTheText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, issuer, a, _ := federatedWorld(t, entrasim.Config{})
		form := asserted(a.clientID, issuer.token(t), armScope)
		time.Sleep(10*time.Minute - time.Nanosecond)
		if got := w.code(customerID, form); got != "" {
			t.Errorf("just before its end: %q", got)
		}
		time.Sleep(time.Nanosecond)
		want := "AADSTS700024: Client assertion is not within its valid time range. Current time: 2000-01-01T00:10:00.0000000Z, assertion valid from 2000-01-01T00:00:00.0000000Z, expiry time of assertion 2000-01-01T00:10:00.0000000Z. "
		if got := w.login(customerID, form); !strings.HasPrefix(got.text("error_description"), want) {
			t.Errorf("at its end: %s", got.body)
		}
	})
}

func TestAssertion_IssuersThatCannotBeUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, issuer, a, _ := federatedWorld(t, entrasim.Config{})
		say := func(status int, body string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = w.Write([]byte(body))
			}
		}
		ask := func() string { return w.code(customerID, asserted(a.clientID, issuer.token(t), armScope)) }
		plain := &fakeIssuer{url: issuer.url, key: issuer.key, kid: issuer.kid}
		for _, c := range []struct {
			name  string
			spoil http.HandlerFunc
		}{
			{"an error", say(500, "")},
			{"no JSON", say(200, "<html>")},
			{"another issuer's configuration", say(200, `{"issuer":"https://other.example.com","jwks_uri":"`+issuerURL+`/keys"}`)},
			{"keys without TLS", say(200, `{"issuer":"`+issuerURL+`","jwks_uri":"http://issuer.example.com/keys"}`)},
			{"no place of the keys", say(200, `{"issuer":"`+issuerURL+`"}`)},
			{"a long document", func(w http.ResponseWriter, r *http.Request) {
				plain.ServeHTTP(w, r)
				_, _ = w.Write(bytes.Repeat([]byte(" "), 1<<20))
			}},
			{"a redirect", func(w http.ResponseWriter, r *http.Request) {
				if r.URL.RawQuery == "" {
					http.Redirect(w, r, r.URL.String()+"?again", http.StatusFound)
					return
				}
				plain.ServeHTTP(w, r)
			}},
		} {
			issuer.spoil = c.spoil
			if got := ask(); got != "AADSTS50166" {
				t.Errorf("%s: %q", c.name, got)
			}
			issuer.spoil = nil
			if got := ask(); got != "AADSTS50166" {
				t.Errorf("%s, asked again at once: %q", c.name, got)
			}
			time.Sleep(5 * time.Second)
			if got := ask(); got != "" {
				t.Errorf("%s is over: %q", c.name, got)
			}
			time.Sleep(time.Minute)
		}
		b := w.newApp("two")
		w.consent(b)
		w.federate(b, federation("plan", "http://issuer.example.com", subject, exchange))
		c := issuer.claimsFor()
		c["iss"] = "http://issuer.example.com"
		if got := w.code(customerID, asserted(b.clientID, sign(t, jwt.SigningMethodRS256, map[string]any{"kid": "k1"}, c, issuer.key), armScope)); got != "AADSTS50166" {
			t.Errorf("an issuer without TLS: %q", got)
		}
	})
}

func TestAssertion_KeysOfTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, issuer, a, _ := federatedWorld(t, entrasim.Config{})
		other, err := otherKey()
		w.must(err)
		ask := func() string { return w.code(customerID, asserted(a.clientID, issuer.token(t), armScope)) }
		filler := func(n int) string {
			var out strings.Builder
			for i := range n {
				out.WriteString(jwk(fmt.Sprint("filler-", i), &other.PublicKey, "") + ",")
			}
			return out.String()
		}
		own := jwk(issuer.kid, &issuer.key.PublicKey, "")
		for _, c := range []struct{ name, keys, code string }{
			{"the hundredth of many", `{"keys":[` + filler(99) + own + `]}`, ""},
			{"the hundred and first", `{"keys":[` + filler(100) + own + `]}`, "AADSTS7000272"},
			{"for encryption", `{"keys":[` + jwk(issuer.kid, &issuer.key.PublicKey, `,"use":"enc"`) + `]}`, "AADSTS7000272"},
			{"for another algorithm", `{"keys":[` + jwk(issuer.kid, &issuer.key.PublicKey, `,"alg":"PS256"`) + `]}`, "AADSTS7000272"},
			{"a short one", `{"keys":[` + jwk(issuer.kid, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023)}, "") + `]}`, "AADSTS7000272"},
			{"an oversized one", `{"keys":[` + jwk(issuer.kid, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 20000)}, "") + `]}`, "AADSTS7000272"},
			{"a key of another kind", `{"keys":[{"kty":"EC","kid":"k1"},null,1,{"kty":"RSA","kid":"k1","n":"!","e":"!"}]}`, "AADSTS7000272"},
			{"none", `{}`, "AADSTS7000272"},
		} {
			time.Sleep(2 * time.Minute)
			issuer.keys = func() string { return c.keys }
			if got := ask(); got != c.code {
				t.Errorf("%s: %q, want %q", c.name, got, c.code)
			}
		}
		// A new key is found soon, for it is missed; a withdrawn one counts until
		// what is remembered is fetched anew.
		issuer.keys = nil
		time.Sleep(time.Minute)
		if got := ask(); got != "" {
			t.Fatalf("own keys: %q", got)
		}
		old := issuer.token(t)
		time.Sleep(5 * time.Second)
		issuer.kid, issuer.key = "k2", other
		if got := ask(); got != "" {
			t.Errorf("with a new key: %q", got)
		}
		if got := w.code(customerID, asserted(a.clientID, old, armScope)); got != "AADSTS7000272" {
			t.Errorf("with the old key: %q", got)
		}
	})
}

func TestAssertion_AskersAtOnceShareAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, issuer, a, _ := federatedWorld(t, entrasim.Config{})
		token := issuer.token(t)
		issuer.spoil = func(out http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			plain := &fakeIssuer{url: issuer.url, key: issuer.key, kid: issuer.kid}
			if strings.HasSuffix(r.URL.Path, "configuration") {
				issuer.asked.Add(1)
			}
			plain.ServeHTTP(out, r)
		}
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if got := w.code(customerID, asserted(a.clientID, token, armScope)); got != "" {
					t.Errorf("got %q", got)
				}
			})
		}
		all.Wait()
		if n := issuer.asked.Load(); n != 1 {
			t.Errorf("the issuer was asked %d times", n)
		}
	})
}

func TestReplicas_AFederatedCredentialFlapsAndOutlivesItsRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Min: time.Second, Max: 20 * time.Second}
		w, issuer, a, id := federatedWorld(t, entrasim.Config{Seed: 9, Lags: entrasim.Lags{Federated: r, Removal: r}})
		ask := func() string { return w.code(customerID, asserted(a.clientID, issuer.token(t), armScope)) }
		first, changes := watch(20*time.Second, ask)
		if len(first) != 3 || first[2] != "" || changes < 5 || strings.Join(first, "") != "AADSTS70025AADSTS70021" && strings.Join(first, "") != "AADSTS70021AADSTS70025" {
			t.Errorf("answers %q, %d changes back", first, changes)
		}
		path := "/applications/" + a.id + "/federatedIdentityCredentials/" + id
		if got := w.graph(http.MethodPatch, path, `{"subject":"other"}`); got.status != 204 {
			t.Fatalf("update: %d %s", got.status, got.body)
		}
		if first, changes := watch(20*time.Second, ask); !equal(first, "", "AADSTS700213") || changes < 5 {
			t.Errorf("changed away: %q, %d changes back", first, changes)
		}
		w.graph(http.MethodPatch, path, `{"subject":"`+subject+`"}`)
		if first, _ := watch(21*time.Second, ask); first[len(first)-1] != "" || !strings.HasPrefix(strings.Join(first, ""), "AADSTS7002") {
			t.Errorf("changed back: %q", first)
		}
		if got := w.graph(http.MethodDelete, path, ""); got.status != 204 {
			t.Fatalf("delete: %d %s", got.status, got.body)
		}
		if first, changes := watch(21*time.Second, ask); !equal(first, "", "AADSTS70025") || changes == 0 {
			t.Errorf("removed: %q, %d changes back", first, changes)
		}
	})
}

// certificate makes a self-signed certificate of the key.
func certificate(t *testing.T, key *rsa.PrivateKey, from, until time.Time) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func keyJSON(c *x509.Certificate) string {
	return `{"type":"AsymmetricX509Cert","usage":"Verify","displayName":"one","key":"` + base64.StdEncoding.EncodeToString(c.Raw) + `"}`
}

func (w *world) register(a app, keys ...string) {
	w.Helper()
	if got := w.graph(http.MethodPatch, "/applications/"+a.id, `{"keyCredentials":[`+strings.Join(keys, ",")+`]}`); got.status != http.StatusNoContent {
		w.Fatalf("keyCredentials: %d %s", got.status, got.body)
	}
}

func TestGraph_KeyCredentials(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	key, err := sharedKey()
	w.must(err)
	from, until := time.Now().Add(-time.Hour).UTC().Truncate(time.Second), time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	cert, second := certificate(t, key, from, until), certificate(t, key, from, until.Add(time.Hour))
	a := w.newApp("one")
	w.register(a, keyJSON(cert))
	read := w.graph(http.MethodGet, "/applications/"+a.id, "")
	first, _ := read.at("keyCredentials").([]any)[0].(map[string]any)
	want := map[string]any{
		"type": "AsymmetricX509Cert", "usage": "Verify", "displayName": "one", "key": nil, "customKeyIdentifier": fmt.Sprintf("%X", sha1.Sum(cert.Raw)),
		"startDateTime": from.Format(time.RFC3339), "endDateTime": until.Format(time.RFC3339), "keyId": first["keyId"],
	}
	if !maps.Equal(first, want) || first["keyId"] == "" {
		t.Errorf("read back %v, want %v", first, want)
	}
	data := w.graph(http.MethodGet, "/applications/"+a.id+"?$select=id,keyCredentials", "")
	if got := data.at("keyCredentials").([]any)[0].(map[string]any)["key"]; got != base64.StdEncoding.EncodeToString(cert.Raw) {
		t.Errorf("selected %s", data.body)
	}
	kept := `{"keyId":"` + first["keyId"].(string) + `","type":"AsymmetricX509Cert","usage":"Verify","key":null}`
	w.register(a, kept, keyJSON(second))
	if got, _ := w.graph(http.MethodGet, "/applications/"+a.id, "").at("keyCredentials").([]any); len(got) != 2 || got[0].(map[string]any)["keyId"] != first["keyId"] {
		t.Errorf("one kept and one new are %v", got)
	}
	made := w.graph(http.MethodPost, "/applications", `{"displayName":"x","keyCredentials":[`+keyJSON(cert)+`]}`)
	if list, _ := made.at("keyCredentials").([]any); made.status != 201 || len(list) != 1 {
		t.Errorf("made with one: %d %s", made.status, made.body)
	}
	for name, body := range map[string]string{
		"an update":           strings.Replace(kept, `"key":null`, `"displayName":"other"`, 1),
		"another certificate": strings.Replace(kept, `null`, `"`+base64.StdEncoding.EncodeToString(second.Raw)+`"`, 1),
		"one twice":           kept + "," + kept,
		"no certificate":      strings.Replace(keyJSON(cert), `"key":"`, `"key":"AAAA`, 1),
		"no data":             `{"type":"AsymmetricX509Cert","usage":"Verify"}`,
		"another type":        strings.Replace(keyJSON(cert), "AsymmetricX509Cert", "Symmetric", 1),
		"another usage":       strings.Replace(keyJSON(cert), "Verify", "Sign", 1),
		"a bad key ID":        strings.Replace(keyJSON(cert), `{`, `{"keyId":"x",`, 1),
		"a late end":          strings.Replace(keyJSON(cert), `{`, `{"endDateTime":"`+until.Add(time.Second).Format(time.RFC3339)+`",`, 1),
		"an end before all":   strings.Replace(keyJSON(cert), `{`, `{"endDateTime":"2000-01-01T00:00:00Z",`, 1),
		"a wrong type":        `1`,
	} {
		if got := w.graph(http.MethodPatch, "/applications/"+a.id, `{"keyCredentials":[`+body+`]}`); got.status != 400 || got.text("error/code") != "Request_BadRequest" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if got := w.graph(http.MethodPatch, "/applications/"+a.id, `{"keyCredentials":[`+strings.Repeat("{},", 600)+`{}]}`); got.text("error/code") != "Directory_ResourceSizeExceeded" {
		t.Errorf("too many: %d %s", got.status, got.body)
	}
	w.register(a)
	if got := w.graph(http.MethodGet, "/applications/"+a.id, ""); !strings.Contains(got.body, `"keyCredentials":[]`) {
		t.Errorf("all removed: %s", got.body)
	}
}

func TestAssertion_CertificateErrors(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	key, err := sharedKey()
	w.must(err)
	other, err := otherKey()
	w.must(err)
	now := time.Now()
	cert, expired := certificate(t, key, now.Add(-time.Hour), now.Add(time.Hour)), certificate(t, key, now.Add(-time.Hour), now.Add(-time.Minute))
	unknown := certificate(t, key, now.Add(-time.Hour), now.Add(2*time.Hour))
	a := w.newApp("one")
	w.consent(a)
	w.register(a, keyJSON(cert), keyJSON(expired))
	endpoint := w.sim.Endpoints().Login + "/" + customerID + "/oauth2/v2.0/token"
	own := func(pairs ...any) jwt.MapClaims {
		c := jwt.MapClaims{"iss": a.clientID, "sub": a.clientID, "aud": endpoint, "jti": subID, "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix()}
		for i := 0; i < len(pairs); i += 2 {
			c[pairs[i].(string)] = pairs[i+1]
		}
		return c
	}
	x5t := func(c *x509.Certificate) map[string]any {
		sum := sha1.Sum(c.Raw)
		return map[string]any{"x5t": base64.RawURLEncoding.EncodeToString(sum[:])}
	}
	x5t256 := func(c *x509.Certificate) map[string]any {
		sum := sha256.Sum256(c.Raw)
		return map[string]any{"x5t#S256": base64.StdEncoding.EncodeToString(sum[:])}
	}
	for _, c := range []struct {
		name, assertion string
		status          int
		code            string
	}{
		{"RS256 by SHA-1", sign(t, jwt.SigningMethodRS256, x5t(cert), own(), key), 200, ""},
		{"PS256 by SHA-256", sign(t, jwt.SigningMethodPS256, x5t256(cert), own(), key), 200, ""},
		{"RS256 by SHA-256", sign(t, jwt.SigningMethodRS256, x5t256(cert), own(), key), 200, ""},
		{"RS256 by a key's ID", sign(t, jwt.SigningMethodRS256, map[string]any{"kid": x5t(cert)["x5t"].(string) + "="}, own(), key), 200, ""},
		{"a key's ID that names none", sign(t, jwt.SigningMethodRS256, map[string]any{"kid": x5t(unknown)["x5t"]}, own(), key), 401, "AADSTS700027"},
		{"a key's ID that is no thumbprint", sign(t, jwt.SigningMethodRS256, map[string]any{"kid": "key one"}, own(), key), 400, "AADSTS50027"},
		{"by domain", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("aud", strings.Replace(endpoint, customerID, "customer.example.com", 1)), key), 200, ""},
		{"for the issuer", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("aud", w.sim.Endpoints().Login+"/"+customerID+"/v2.0"), key), 200, ""},
		{"an unknown certificate", sign(t, jwt.SigningMethodPS256, x5t256(unknown), own(), key), 401, "AADSTS700027"},
		{"thumbprints of two certificates", sign(t, jwt.SigningMethodPS256, map[string]any{"x5t": x5t(cert)["x5t"], "x5t#S256": x5t256(expired)["x5t#S256"]}, own(), key), 401, "AADSTS700027"},
		{"an expired certificate", sign(t, jwt.SigningMethodPS256, x5t256(expired), own(), key), 401, "AADSTS700027"},
		{"another's signature", sign(t, jwt.SigningMethodPS256, x5t256(cert), own(), other), 401, "AADSTS700027"},
		{"no thumbprint", sign(t, jwt.SigningMethodPS256, nil, own(), key), 400, "AADSTS50027"},
		{"another algorithm", sign(t, jwt.SigningMethodRS384, x5t256(cert), own(), key), 400, "AADSTS5002738"},
		{"another application's", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("iss", subID, "sub", subID), key), 401, "AADSTS700021"},
		{"another subject", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("sub", subID), key), 401, "AADSTS700021"},
		{"for another tenant", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("aud", strings.Replace(endpoint, customerID, homeID, 1)), key), 401, "AADSTS700023"},
		{"for another service", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("aud", strings.Replace(endpoint, "login", "other", 1)), key), 401, "AADSTS700023"},
		{"for a federation", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("aud", exchange), key), 401, "AADSTS700023"},
		{"for two", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("aud", []string{endpoint, "x"}), key), 400, "AADSTS50027"},
		{"a little before its beginning", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("nbf", now.Add(4*time.Minute).Unix()), key), 200, ""},
		{"before its beginning", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("nbf", now.Add(6*time.Minute).Unix()), key), 401, "AADSTS700024"},
		{"past its end", sign(t, jwt.SigningMethodPS256, x5t256(cert), own("exp", now.Add(-time.Second).Unix()), key), 401, "AADSTS700024"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.login(customerID, asserted(a.clientID, c.assertion, armScope))
			code, _, _ := strings.Cut(got.text("error_description"), ":")
			if got.status != c.status || code != c.code {
				t.Fatalf("got %d %s", got.status, got.body)
			}
			if c.code == "" && claims(t, got.text("access_token"))["appidacr"] != "2" {
				t.Error("appidacr is not 2")
			}
		})
	}
}

func TestReplicas_ACertificateLagsAndOutlivesItsRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Min: time.Second, Max: 10 * time.Second}
		dir := t.TempDir()
		config := entrasim.Config{StateDir: dir, Lags: entrasim.Lags{Application: r, Removal: r}}
		w := newWorld(t, config)
		key, err := sharedKey()
		w.must(err)
		a := w.newApp("one")
		time.Sleep(10 * time.Second)
		w.consent(a)
		cert := certificate(t, key, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
		w.register(a, keyJSON(cert))
		w.reopen(config)
		defer func() { w.must(w.sim.Close()) }()
		ask := func() string {
			sum := sha256.Sum256(cert.Raw)
			assertion := sign(t, jwt.SigningMethodPS256, map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}, jwt.MapClaims{
				"iss": a.clientID, "sub": a.clientID, "aud": w.sim.Endpoints().Login + "/" + customerID + "/oauth2/v2.0/token", "exp": time.Now().Add(time.Minute).Unix(),
			}, key)
			return w.code(customerID, asserted(a.clientID, assertion, armScope))
		}
		if first, changes := watch(11*time.Second, ask); !equal(first, "AADSTS700027", "") || changes == 0 {
			t.Errorf("new: %q, %d changes back", first, changes)
		}
		w.register(a)
		if first, changes := watch(11*time.Second, ask); !equal(first, "", "AADSTS700027") || changes == 0 {
			t.Errorf("removed: %q, %d changes back", first, changes)
		}
	})
}

// credentialsByAssertion are azidentity's, for one application that trusts the
// issuer and has the certificate.
func (w *world) credentialsByAssertion(a app, issuer *fakeIssuer, cert *x509.Certificate, dir string) map[string]azcore.TokenCredential {
	w.Helper()
	options := azcore.ClientOptions{
		Transport: w.client, Retry: policy.RetryOptions{MaxRetries: -1},
		Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: w.sim.Endpoints().Login},
	}
	assertion, err := azidentity.NewClientAssertionCredential(customerID, a.clientID, func(ctx context.Context) (string, error) {
		return issuer.token(w.T), ctx.Err()
	}, &azidentity.ClientAssertionCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: true})
	w.must(err)
	file := filepath.Join(dir, "token")
	w.must(os.WriteFile(file, []byte(issuer.token(w.T)), 0o600))
	workload, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions: options, DisableInstanceDiscovery: true, ClientID: a.clientID, TenantID: customerID, TokenFilePath: file,
	})
	w.must(err)
	byCertificate, err := azidentity.NewClientCertificateCredential(customerID, a.clientID, []*x509.Certificate{cert}, issuer.key,
		&azidentity.ClientCertificateCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: true})
	w.must(err)
	return map[string]azcore.TokenCredential{"client assertion": assertion, "workload identity": workload, "client certificate": byCertificate}
}

func (w *world) checkCredentials(a app, credentials map[string]azcore.TokenCredential) {
	w.Helper()
	p, err := w.sim.Principal(customerID, a.clientID)
	w.must(err)
	w.assign(p.ID, "Reader", scope)
	for name, credential := range credentials {
		token, err := credential.GetToken(w.Context(), policy.TokenRequestOptions{Scopes: []string{armScope}})
		if err != nil {
			w.Errorf("%s: %v", name, err)
			continue
		}
		if acr := claims(w.T, token.Token)["appidacr"]; acr != "2" {
			w.Errorf("%s: appidacr %v", name, acr)
		}
		if got := w.arm(http.MethodGet, scope, token.Token, ""); got.status != 200 {
			w.Errorf("%s: Resource Manager: %d %s", name, got.status, got.body)
		}
	}
}

func TestTransport_AzidentityByAssertionInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, issuer, a, _ := federatedWorld(t, entrasim.Config{})
		cert := certificate(t, issuer.key, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		w.register(a, keyJSON(cert))
		w.checkCredentials(a, w.credentialsByAssertion(a, issuer, cert, t.TempDir()))
	})
}

func TestServer_AzidentityByAssertion(t *testing.T) {
	issuer := newIssuer(t, "")
	provider := httptest.NewTLSServer(issuer)
	defer provider.Close()
	issuer.url = provider.URL + "/" // as clusters' issuers are written
	roots := x509.NewCertPool()
	roots.AddCert(provider.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	w := serve(t, entrasim.Config{Issuers: transport})
	a := w.newApp("one")
	w.consent(a)
	w.federate(a, federation("plan", issuer.url, subject, exchange))
	cert := certificate(t, issuer.key, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	w.register(a, keyJSON(cert))
	w.checkCredentials(a, w.credentialsByAssertion(a, issuer, cert, t.TempDir()))
}

func TestServer_DistrustsAnIssuerOfAnUnknownCA(t *testing.T) {
	issuer := newIssuer(t, "")
	provider := httptest.NewTLSServer(issuer)
	provider.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	defer provider.Close()
	issuer.url = provider.URL
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	w.consent(a)
	w.federate(a, federation("plan", issuer.url, subject, exchange))
	if got := w.code(customerID, asserted(a.clientID, issuer.token(t), armScope)); got != "AADSTS50166" {
		t.Errorf("got %q", got)
	}
	if issuer.asked.Load() != 0 {
		t.Error("it was asked all the same")
	}
}

func TestReplicas_SecretStateJudgesCredentialsOfEveryKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Max: 10 * time.Second}
		w, issuer, a, id := federatedWorld(t, entrasim.Config{Replicas: 4, Lags: entrasim.Lags{Federated: r, Removal: r}})
		time.Sleep(20 * time.Second)
		state := func(id string) (everywhere, nowhere bool) {
			s, err := w.sim.SecretState(customerID, a.clientID, id)
			w.must(err)
			return s.Everywhere, s.Nowhere
		}
		if everywhere, _ := state(id); !everywhere {
			t.Error("a replicated federated credential does not work everywhere")
		}
		path := "/applications/" + a.id + "/federatedIdentityCredentials/" + id
		w.graph(http.MethodDelete, path, "")
		for range 11 {
			good, bad := 0, 0
			for range 40 {
				if w.code(customerID, asserted(a.clientID, issuer.token(t), armScope)) == "" {
					good++
				} else {
					bad++
				}
			}
			if everywhere, nowhere := state(id); everywhere != (bad == 0) || nowhere != (good == 0) {
				t.Errorf("everywhere %v, nowhere %v, but %d requests succeeded and %d failed", everywhere, nowhere, good, bad)
			}
			time.Sleep(time.Second)
		}
		w.register(a, keyJSON(certificate(t, issuer.key, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))))
		key := w.graph(http.MethodGet, "/applications/"+a.id, "").at("keyCredentials").([]any)[0].(map[string]any)["keyId"].(string)
		time.Sleep(10 * time.Second)
		if everywhere, _ := state(key); !everywhere {
			t.Error("a replicated certificate does not work everywhere")
		}
		time.Sleep(time.Hour)
		if _, nowhere := state(key); !nowhere {
			t.Error("an expired certificate works somewhere")
		}
	})
}
