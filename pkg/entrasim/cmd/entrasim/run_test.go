package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// start runs the command until stop, and returns its admin URL and a client
// that trusts its CA.
func start(t *testing.T, dir string) (admin string, client *http.Client, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{
			"-listen", "127.0.0.1:0", "-state", filepath.Join(dir, "state"), "-tls", filepath.Join(dir, "tls"), "-lag", "0s-1s", "-token-life", "10m",
		}, w, io.Discard)
		_ = w.Close()
	}()
	for lines := bufio.NewScanner(r); lines.Scan() && !strings.HasPrefix(lines.Text(), "trust"); {
		if fields := strings.Fields(lines.Text()); len(fields) == 2 && fields[0] == "admin" {
			admin = fields[1]
		}
	}
	if admin == "" {
		t.Fatalf("it did not start: %v", <-done)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "tls", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	return admin, &http.Client{Transport: transport}, func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestRun_KeepsItsStateAndItsCA(t *testing.T) {
	dir := t.TempDir()
	admin, client, stop := start(t, dir)
	resp, err := client.Post(admin+"/tenants", "application/json", strings.NewReader(`{"domain":"home.example.com"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	stop()

	ca, err := os.ReadFile(filepath.Join(dir, "tls", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	admin, client, stop = start(t, dir)
	defer stop()
	if again, err := os.ReadFile(filepath.Join(dir, "tls", "ca.pem")); err != nil || string(again) != string(ca) {
		t.Errorf("the CA changed (%v)", err)
	}
	if resp, err = client.Get(admin + "/tenants"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var tenants []struct{ Domain string }
	if err := json.NewDecoder(resp.Body).Decode(&tenants); err != nil || len(tenants) != 1 || tenants[0].Domain != "home.example.com" {
		t.Errorf("tenants %v, %v", tenants, err)
	}
}

func TestRun_RefusesBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"extra"}, {"-cert", "x"}, {"-lag", "soon"}, {"-lag", "3s-1s", "-listen", "127.0.0.1:0", "-tls", t.TempDir()},
		{"-token-life", "0s", "-listen", "127.0.0.1:0", "-tls", t.TempDir()}, {"-nonsense"},
		{"-issuer-ca", "/nonexistent", "-listen", "127.0.0.1:0", "-tls", t.TempDir()}, {"-issuer-ca", "run_test.go", "-listen", "127.0.0.1:0", "-tls", t.TempDir()},
		{"-base-url", "x", "-listen", "127.0.0.1:0", "-tls", t.TempDir()}, {"-replicas", "-1", "-listen", "127.0.0.1:0", "-tls", t.TempDir()},
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
