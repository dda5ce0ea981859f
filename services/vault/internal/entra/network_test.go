package entra_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/entra"
)

// listening is a simulator without lag that serves TLS on loopback, and how a Directory of it is configured: by its URL and
// its CA alone. The number is that of the connections that were made to it.
func listening(t *testing.T) (*entrasim.Simulator, entra.Config, *atomic.Int64) {
	t.Helper()
	ca, err := devca.Open(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(time.Now(), "entra", devca.Leaf{ID: "spiffe://phasekey.dev/entrasim", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := os.ReadFile(ca.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trusted)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sim, err := entrasim.New(entrasim.Config{Seed: 1, BaseURL: "https://" + listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	accepting := &accepting{Listener: listener}
	go func() {
		done <- sim.Run(ctx, accepting, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	home, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Platform", Verified: true})
	if err != nil {
		t.Fatal(err)
	}
	platform, err := sim.CreatePlatform(entrasim.NewPlatform{Tenant: home.ID, DisplayName: "Platform"})
	if err != nil {
		t.Fatal(err)
	}
	here := parse(t, sim.Endpoints().Login)
	return sim, entra.Config{
		Login: here, Graph: here, ResourceManager: here, RootCAs: roots,
		HomeTenantID: home.ID, ClientID: platform.ClientID, Credential: entra.Credential{SecretFile: file(t, platform.ClientSecret)},
	}, &accepting.made
}

// accepting is a listener that counts.
type accepting struct {
	net.Listener

	made atomic.Int64
}

func (a *accepting) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err == nil {
		a.made.Add(1)
	}
	return c, err
}

// consented is an application with a secret, to which a customer's tenant has consented.
func consented(t *testing.T, sim *entrasim.Simulator, dir *entra.Directory) (directory.Application, directory.Password, directory.TokenRequest) {
	t.Helper()
	app, err := dir.EnsureApplication(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	made, text, err := dir.AddPassword(t.Context(), app.ObjectID, "intent-1", time.Now().Add(72*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	customer, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Customer"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sim.CreatePerson(entrasim.Person{Tenant: customer.ID, UserName: administrator, Admin: true}); err != nil {
		t.Fatal(err)
	}
	world{sim: sim, customer: customer.ID}.consent(t, app)
	return app, made, directory.TokenRequest{TenantID: customer.ID, ClientID: app.ClientID, Secret: text, Audience: dir.ResourceManager()}
}

// TestNetwork_EachTokenIsAskedForAnew: a proof says something of all of Entra only if it is not always the same replica that answers, and none of it
// comes from a cache.
func TestNetwork_EachTokenIsAskedForAnew(t *testing.T) {
	sim, config, connections := listening(t)
	dir, err := entra.New(config)
	if err != nil {
		t.Fatal(err)
	}
	_, _, request := consented(t, sim, dir)
	asked := func(q entrasim.Query) int64 {
		q.Kinds, q.Plane, q.Tenant = []string{entrasim.KindRequest}, entrasim.PlaneLogin, request.TenantID
		return int64(len(sim.Journal(q)))
	}
	earlier, requests := connections.Load(), asked(entrasim.Query{})
	const tokens = 8
	for range tokens {
		if _, err := dir.Token(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked(entrasim.Query{Operation: "login.token"}); n != tokens {
		t.Errorf("the token service was asked for %d of %d tokens", n, tokens)
	}
	if made, sent := connections.Load()-earlier, asked(entrasim.Query{})-requests; made != sent {
		t.Errorf("%d requests came over %d connections", sent, made)
	}
}

// TestNetwork_FromTokenToApplication is the SDKs on connections of the package's own, as in production.
func TestNetwork_FromTokenToApplication(t *testing.T) {
	sim, config, _ := listening(t)
	dir, err := entra.New(config)
	if err != nil {
		t.Fatal(err)
	}
	app, made, request := consented(t, sim, dir)
	if key, err := sim.SecretKey(app.ClientID, request.Secret.Expose()); err != nil || key != made.KeyID {
		t.Errorf("the password has the key ID %q, and Entra calls it %q (%v)", made.KeyID, key, err)
	}
	found, err := dir.FindApplication(t.Context(), spec.UniqueName)
	if err != nil {
		t.Fatal(err)
	}
	if found.ClientID != app.ClientID || len(found.Passwords) != 1 || found.Passwords[0].KeyID != made.KeyID {
		t.Errorf("found %+v", found)
	}
	principal, err := sim.Principal(request.TenantID, app.ClientID)
	if err != nil {
		t.Fatal(err)
	}
	token, err := dir.Token(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if token.PrincipalObjectID != principal.ID {
		t.Errorf("the token is for %s, not for %s", token.PrincipalObjectID, principal.ID)
	}
	if err := dir.DeleteApplication(t.Context(), app.ObjectID); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.FindApplication(t.Context(), spec.UniqueName); directory.ClassOf(err) != directory.NotFound {
		t.Errorf("a deleted application: %v", err)
	}
}

func TestNetwork_Refusals(t *testing.T) {
	_, config, _ := listening(t)
	for _, test := range []struct {
		name string
		edit func(*entra.Config)
		want directory.Class
	}{
		{"a wrong secret of the platform's own", func(c *entra.Config) { c.Credential.SecretFile = file(t, "wrong") }, directory.Denied},
		{"a CA that is not trusted", func(c *entra.Config) { c.RootCAs = x509.NewCertPool() }, directory.Transient},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := config
			test.edit(&config)
			dir, err := entra.New(config)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := dir.FindApplication(t.Context(), spec.UniqueName); directory.ClassOf(err) != test.want {
				t.Errorf("class %v: %v", directory.ClassOf(err), err)
			}
		})
	}
}
