package entrasim_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/entrasim/internal/devtls"
)

// serve runs the simulator on a loopback port over TLS, and gives the world and
// a client of its CA.
func serve(t *testing.T, config entrasim.Config) *world {
	t.Helper()
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	secure, err := devtls.ServerConfig(dir, time.Now(), []string{"127.0.0.1", "login.microsoftonline.com"})
	if err != nil {
		t.Fatal(err)
	}
	config.BaseURL = "https://" + listener.Addr().String()
	w := newWorld(t, config)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.sim.Run(ctx, listener, secure) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	ca, err := os.ReadFile(filepath.Join(dir, devtls.CAFile))
	w.must(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("the CA's file holds no certificate")
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, ForceAttemptHTTP2: true,
		// Every name leads to the simulator.
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, listener.Addr().String())
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	w.client.Transport = transport
	return w
}

func (w *world) credential(tenant, id, secret, authority string, discovery bool) *azidentity.ClientSecretCredential {
	w.Helper()
	c, err := azidentity.NewClientSecretCredential(tenant, id, secret, &azidentity.ClientSecretCredentialOptions{
		DisableInstanceDiscovery: !discovery,
		ClientOptions: azcore.ClientOptions{
			Transport: w.client, Retry: policy.RetryOptions{MaxRetries: -1},
			Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: authority},
		},
	})
	w.must(err)
	return c
}

func TestServer_AzidentityGetsATokenThatWorks(t *testing.T) {
	w := serve(t, entrasim.Config{})
	a, p := w.consented("one")
	w.assign(p.ID, "Reader", scope)
	for name, c := range map[string]*azidentity.ClientSecretCredential{
		"own authority":                    w.credential(customerID, a.clientID, a.secret, w.sim.Endpoints().Login, false),
		"public cloud, instance discovery": w.credential(customerID, a.clientID, a.secret, "https://login.microsoftonline.com", true),
	} {
		t.Run(name, func(t *testing.T) {
			token, err := c.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{armScope}})
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(token.ExpiresOn); left < 59*time.Minute || left > 90*time.Minute {
				t.Errorf("it lives %v", left)
			}
			if got := w.arm(http.MethodGet, scope, token.Token, ""); got.status != 200 {
				t.Errorf("Resource Manager: %d %s", got.status, got.body)
			}
		})
	}
	requests := w.sim.Journal(entrasim.Query{Operation: "login.token", Application: a.clientID})
	if len(requests) != 2 {
		t.Errorf("%d token requests for two credentials", len(requests))
	}
}

func TestServer_AzidentitySeesErrors(t *testing.T) {
	w := serve(t, entrasim.Config{})
	a, _ := w.consented("one")
	for code, c := range map[string]*azidentity.ClientSecretCredential{
		"AADSTS7000215": w.credential(customerID, a.clientID, "wrong", w.sim.Endpoints().Login, false),
		"AADSTS700016":  w.credential(customerID, subID, a.secret, w.sim.Endpoints().Login, false),
		"AADSTS7000229": w.credential(homeID, a.clientID, a.secret, w.sim.Endpoints().Login, false),
		"AADSTS90002":   w.credential(subID, a.clientID, a.secret, w.sim.Endpoints().Login, false),
	} {
		_, err := c.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{armScope}})
		if err == nil || !strings.Contains(err.Error(), code) {
			t.Errorf("want %s, got %v", code, err)
		}
		var failed *azidentity.AuthenticationFailedError
		if code != "AADSTS90002" && (!errors.As(err, &failed) || failed.RawResponse == nil) {
			t.Errorf("%s is not an answer of the token endpoint: %v", code, err)
		}
	}
}

func TestServer_CutsConnections(t *testing.T) {
	w := serve(t, entrasim.Config{})
	w.fault(entrasim.Fault{Plane: entrasim.PlaneARM, Effect: entrasim.Effect{Cut: true}})
	if got, err := w.try(http.MethodGet, w.sim.Endpoints().ResourceManager+"/subscriptions?api-version=1", "", ""); err == nil {
		t.Errorf("got %d", got.status)
	}
	if got := w.send(http.MethodGet, w.sim.Endpoints().Admin, "", ""); got.text("login") != w.sim.Endpoints().Login {
		t.Errorf("the simulator did not survive it: %d %s", got.status, got.body)
	}
}

func TestServer_RefusesLargeBodies(t *testing.T) {
	w := serve(t, entrasim.Config{})
	for _, where := range []string{"/" + customerID + "/oauth2/v2.0/token", "/v1.0/applications", "/subscriptions", "/admin/tenants"} {
		got, err := w.try(http.MethodPost, w.sim.Endpoints().Login+where, "", strings.Repeat("x", 1<<20+1))
		if err != nil || got.status != http.StatusRequestEntityTooLarge || !strings.HasPrefix(got.header.Get("Content-Type"), "application/json") {
			t.Errorf("%s: %d %v", where, got.status, err)
		}
	}
}

func TestTransport_EndsWithItsContext(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.sim.Endpoints().Admin, http.NoBody)
	w.must(err)
	resp, err := w.sim.Transport().RoundTrip(r)
	if !errors.Is(err, context.Canceled) {
		_, _ = io.Copy(io.Discard, resp.Body)
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestTransport_AzidentityInABubbleFollowsFakeTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{TokenLife: entrasim.Range{Min: time.Hour, Max: time.Hour}})
		a, _ := w.consented("one")
		c := w.credential(customerID, a.clientID, a.secret, w.sim.Endpoints().Login, true)
		get := func() string {
			token, err := c.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{armScope}})
			w.must(err)
			return token.Token
		}
		first := get()
		time.Sleep(30 * time.Minute)
		if get() != first {
			t.Error("a token was not kept for half its life")
		}
		time.Sleep(31 * time.Minute)
		if get() == first {
			t.Error("an expired token was used again")
		}
	})
}
