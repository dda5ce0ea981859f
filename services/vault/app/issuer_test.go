package app_test

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"phasekey.dev/services/vault/app"
)

// A vault that is told to be an issuer makes keys and serves them, beside a registry and an Entra that are away.
func TestApp_IsAnIssuer(t *testing.T) {
	p := newPlace(t)
	certificate := p.certificate(t, "vault")
	p.config.Issuer = app.Issuer{
		URL: "https://issuer.example.com/vault", Listen: "127.0.0.1:0", Keys: app.DevelopmentKeys(),
		CertFile: certificate.CertFile, KeyFile: certificate.KeyFile,
	}
	vault, stop := p.start(t)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: p.source(t, "").ClientConfig("spiffe://phasekey.dev/vault"), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	get := func(path string, into any) int {
		t.Helper()
		resp, err := client.Get("https://" + vault.IssuerAddr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			if err := json.Unmarshal(text, into); err != nil {
				t.Fatal(err)
			}
		}
		return resp.StatusCode
	}
	var configuration struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if code := get("/vault/.well-known/openid-configuration", &configuration); code != http.StatusOK || configuration.Issuer != p.config.Issuer.URL ||
		configuration.Keys != "https://issuer.example.com/vault/.well-known/jwks.json" {
		t.Fatalf("%d, %+v", code, configuration)
	}
	var set struct{ Keys []any }
	for deadline := time.Now().Add(patience); len(set.Keys) < 2 && time.Now().Before(deadline); {
		get("/vault/.well-known/jwks.json", &set)
	}
	if len(set.Keys) != 2 {
		t.Errorf("%d keys are served; want the one that signs and the next", len(set.Keys))
	}
	if code := get("/.well-known/openid-configuration", nil); code != http.StatusNotFound {
		t.Errorf("elsewhere: %d", code)
	}
	stop()
	p.config.Issuer = app.Issuer{}
	without, _ := p.start(t)
	if without.IssuerAddr() != nil {
		t.Error("it listens although it is no issuer")
	}
}
