package entrasim_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/entrasim"
)

// FuzzAssertion sends client assertions with any header and claims, well signed,
// to an application that trusts an issuer with any key set. Nobody gets a token
// but by the claims that the application trusts.
func FuzzAssertion(f *testing.F) {
	key, err := sharedKey()
	if err != nil {
		f.Fatal(err)
	}
	own := jwk("k1", &key.PublicKey, "")
	trusted := `{"iss":"` + issuerURL + `","sub":"` + subject + `","aud":"` + exchange + `","exp":32503680000}`
	f.Add(`{"alg":"RS256","kid":"k1"}`, trusted, `{"keys":[`+own+`]}`)
	f.Add(`{"alg":"RS256","kid":null,"x5t":1}`, `{"iss":"`+subID+`","sub":"`+subID+`","aud":["x"],"exp":1e300,"nbf":-1e300}`, `{"keys":null}`)
	f.Add(`{"alg":"PS256","x5t#S256":"====","crit":[]}`, `{"iss":"`+subID+`","sub":"`+subID+`","aud":"https://login.microsoftonline.com","exp":"1"}`, `[]`)
	f.Add(`null`, `null`, `null`)
	f.Fuzz(func(t *testing.T, header, body, keys string) {
		issuer := newIssuer(t, issuerURL)
		issuer.keys = func() string { return keys }
		w := newWorld(t, entrasim.Config{Issuers: issuer})
		a := w.newApp("one")
		w.consent(a)
		w.federate(a, federation("plan", issuerURL, subject, exchange))
		signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.ReplaceAll(body, subID, a.clientID)))
		signature, err := jwt.SigningMethodRS256.Sign(signed, key)
		w.must(err)
		got := w.login(customerID, asserted(a.clientID, signed+"."+base64.RawURLEncoding.EncodeToString(signature), armScope))
		if got.status != 200 && (got.status != 400 && got.status != 401 || !strings.HasPrefix(got.text("error_description"), "AADSTS")) {
			t.Fatalf("got %d %s", got.status, got.body)
		}
		var c struct{ Iss, Sub string }
		if got.status == 200 && (json.Unmarshal([]byte(body), &c) != nil || c.Iss != issuerURL || c.Sub != subject) {
			t.Fatalf("a token for %s", body)
		}
	})
}
