package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// start runs the command until stop, and returns its admin URL and a client
// that trusts its CA.
func start(t *testing.T, dir string, args ...string) (admin string, client *http.Client, stop func()) {
	t.Helper()
	printed, end := launch(t, append([]string{
		"-listen", "127.0.0.1:0", "-state", filepath.Join(dir, "state"), "-tls", filepath.Join(dir, "tls"), "-lag", "0s-1s", "-token-life", "10m",
	}, args...)...)
	client, idle := trusting(t, printed["trust"], "")
	return printed["admin"], client, func() {
		idle()
		end()
	}
}

// launch runs the command until stop, and returns what it prints by name.
func launch(t *testing.T, args ...string) (printed map[string]string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, args, w, io.Discard)
		_ = w.Close()
	}()
	printed = make(map[string]string)
	for lines := bufio.NewScanner(r); printed["trust"] == "" && lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "  ")
		printed[name] = strings.TrimSpace(value)
	}
	if printed["trust"] == "" {
		t.Fatalf("it did not start: %v", <-done)
	}
	return printed, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// trusting is a client that trusts the CA in a file. Every name leads it to the
// address, if that is not empty.
func trusting(t *testing.T, file, address string) (client *http.Client, idle func()) {
	t.Helper()
	ca, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	if address != "" {
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}
	return &http.Client{Transport: transport}, transport.CloseIdleConnections
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

func TestRun_Trouble(t *testing.T) {
	admin, client, stop := start(t, t.TempDir(), "-lag", "0s", "-login-loop", "1/1h", "-conflicts", "1", "-conflict-window", "1h", "-removal-failures", "1", "-unlimited")
	defer stop()
	origin := strings.TrimSuffix(admin, "/admin")
	post := func(where, bearer, kind, body string) (*http.Response, map[string]any) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, where, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+bearer)
		r.Header.Set("Content-Type", kind)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var out map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		return resp, out
	}
	const kind = "application/json"
	_, tenant := post(admin+"/tenants", "", kind, "{}")
	_, p := post(admin+"/platforms", "", kind, fmt.Sprintf(`{"tenant":%q}`, tenant["id"]))
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {fmt.Sprint(p["clientId"])}, "client_secret": {fmt.Sprint(p["clientSecret"])},
		"scope": {"https://graph.microsoft.com/.default"},
	}.Encode()
	token := fmt.Sprintf("%s/%s/oauth2/v2.0/token", origin, tenant["id"])
	_, granted := post(token, "", "application/x-www-form-urlencoded", form)
	if resp, _ := post(token, "", "application/x-www-form-urlencoded", form); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a loop of token requests: %d", resp.StatusCode)
	}
	bearer := fmt.Sprint(granted["access_token"])
	made, app := post(origin+"/v1.0/applications", bearer, kind, `{"displayName":"x"}`)
	if made.StatusCode != http.StatusCreated || made.Header.Get("X-Ms-Resource-Unit") != "" {
		t.Errorf("without budgets: %d %v", made.StatusCode, made.Header)
	}
	where := fmt.Sprintf("%s/v1.0/applications/%s/addPassword", origin, app["id"])
	if resp, body := post(where, bearer, kind, "{}"); resp.StatusCode != http.StatusConflict {
		t.Errorf("a second write: %d %v", resp.StatusCode, body)
	}
}

func TestRun_RefusesBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"extra"}, {"-cert", "x"}, {"-lag", "soon"}, {"-lag", "3s-1s", "-listen", "127.0.0.1:0", "-tls", t.TempDir()},
		{"-token-life", "0s", "-listen", "127.0.0.1:0", "-tls", t.TempDir()}, {"-nonsense"},
		{"-issuer-ca", "/nonexistent", "-listen", "127.0.0.1:0", "-tls", t.TempDir()}, {"-issuer-ca", "run_test.go", "-listen", "127.0.0.1:0", "-tls", t.TempDir()},
		{"-login-loop", "1"}, {"-max-credentials", "-1", "-listen", "127.0.0.1:0", "-tls", t.TempDir()}, {"-login-loop", "x/1s"}, {"-login-loop", "0/1s", "-listen", "127.0.0.1:0", "-tls", t.TempDir()},
		{"-conflicts", "2", "-listen", "127.0.0.1:0", "-tls", t.TempDir()},
		{"-base-url", "x", "-listen", "127.0.0.1:0", "-tls", t.TempDir()}, {"-replicas", "-1", "-listen", "127.0.0.1:0", "-tls", t.TempDir()},
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

func TestRun_CertificateHasTheCloudsNames(t *testing.T) {
	admin, client, stop := start(t, t.TempDir())
	defer stop()
	address := strings.TrimSuffix(strings.TrimPrefix(admin, "https://"), "/admin")
	roots := client.Transport.(*http.Transport).TLSClientConfig.RootCAs
	for _, name := range []string{"login.microsoftonline.com", "graph.microsoft.com", "management.azure.com", "localhost"} {
		conn, err := tls.Dial("tcp", address, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: name})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = conn.Close()
	}
}
