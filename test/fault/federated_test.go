package fault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"testing"
	"time"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/test/internal/rigtest"
)

// keyPeriod is how long a signing key signs for new versions: federated integrations are rotated as often as the others.
const keyPeriod = 8 * time.Second

// federated tells whether the n-th integration has no secret.
func federated(n int) bool { return n%3 == 2 }

func (w *world) issuerURL() string { return "https://" + w.At(7440) }

// startIssuer starts what leads the simulator to the vaults' issuer, as a load balancer does that asks who is well.
func (w *world) startIssuer(t *testing.T, server rigtest.Files) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(server.CertFile, server.KeyFile)
	rigtest.Must(t, err)
	roots := x509.NewCertPool()
	for _, file := range []string{server.CAFile, w.nextCA.CAFile()} {
		pem, err := os.ReadFile(file)
		rigtest.Must(t, err)
		roots.AppendCertsFromPEM(pem)
	}
	way := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: "localhost"}, DisableKeepAlives: true}
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", w.At(7440))
	rigtest.Must(t, err)
	srv := &http.Server{
		ReadHeaderTimeout: 5 * time.Second, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}},
		ErrorLog: log.New(io.Discard, "", 0),
		Handler: &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "https", Host: "vaults"}) },
			Transport: carrier(func(r *http.Request) (*http.Response, error) {
				var problems []error
				for _, v := range w.vaults {
					answer, err := ask(way, r, v.issuer)
					if err == nil {
						return answer, nil
					}
					problems = append(problems, err)
				}
				return nil, errors.Join(problems...)
			}),
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(ln, "", "") }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// carrier is an http.RoundTripper.
type carrier func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (c carrier) RoundTrip(r *http.Request) (*http.Response, error) { return c(r) }

// ask has one vault answer, the whole of it, within a second.
func ask(way http.RoundTripper, r *http.Request, address string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	r = r.Clone(ctx)
	r.URL.Host = address
	answer, err := way.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		return nil, err
	}
	answer.Body = io.NopCloser(bytes.NewReader(body))
	return answer, nil
}

// useAssertion exchanges the assertion that the runner was given first for tokens, until it ends, and the newest one.
func (w *world) useAssertion(ctx context.Context, i *integration, r *runner.Runner) {
	var began runner.Credential
	for first := true; rest(ctx); first = false {
		newest, err := held(ctx, r, first)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			w.judge.fail("a runner of %s has no assertion: %v", i.name, err)
			continue
		}
		// Entra ID takes one to its end, and a second is what the request may take.
		if first || time.Until(began.ExpireTime) < time.Second {
			began = newest
		}
		for _, c := range []runner.Credential{began, newest} {
			if !w.exchange(ctx, i, "assertion", c, url.Values{
				"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {c.Assertion.Expose()},
			}) {
				return
			}
		}
	}
}

// trusted judges that an integration without a secret was rotated too, with each change of keys, and trusted all the time.
func (w *world) trusted(t *testing.T, i *integration, versions []*vaultv1.CredentialVersion) {
	t.Helper()
	proven := slices.DeleteFunc(versions, func(v *vaultv1.CredentialVersion) bool { return !v.GetActivateTime().IsValid() })
	if len(proven) < 8 {
		t.Errorf("%s had %d versions in all, which proves little", i.name, len(proven))
	}
	slices.SortFunc(proven, func(a, b *vaultv1.CredentialVersion) int {
		return a.GetActivateTime().AsTime().Compare(b.GetActivateTime().AsTime())
	})
	for n, v := range proven[1:] {
		if before := proven[n]; before.GetRetireTime().AsTime().Before(v.GetActivateTime().AsTime()) {
			t.Errorf("%s had no version between %s and %s", i.name, before, v)
		}
	}
	var changes []change
	rigtest.Must(t, w.Admin(t.Context(), http.MethodGet, "journal?"+url.Values{"application": {i.clientID}, "kind": {"federatedCredential.removed"}}.Encode(), nil, &changes))
	if len(changes) != 0 {
		t.Errorf("%s was not trusted any more: %v", i.name, changes)
	}
	t.Logf("%s had %d versions, without a secret", i.name, len(proven))
}
