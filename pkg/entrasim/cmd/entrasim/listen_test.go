package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ask sends a request and reads the answer, which is JSON.
func ask(t *testing.T, client *http.Client, method, where, bearer, kind, body string, into any) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, where, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	r.Header.Set("Authorization", bearer)
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v: %s", where, err, text)
	}
	return resp.StatusCode
}

// useAll does something on each plane, where the command says they are.
func useAll(t *testing.T, client *http.Client, printed map[string]string) {
	t.Helper()
	const form = "application/x-www-form-urlencoded"
	var tenant struct{ ID string }
	ask(t, client, http.MethodPost, printed["admin"]+"/tenants", "", "application/json", `{}`, &tenant)
	var platform struct{ ClientID, ClientSecret string }
	ask(t, client, http.MethodPost, printed["admin"]+"/platforms", "", "application/json", `{"tenant":"`+tenant.ID+`"}`, &platform)
	token := func(scope string) string {
		var granted struct {
			Token string `json:"access_token"`
		}
		values := url.Values{"grant_type": {"client_credentials"}, "client_id": {platform.ClientID}, "client_secret": {platform.ClientSecret}, "scope": {scope}}
		ask(t, client, http.MethodPost, printed["login"]+"/"+tenant.ID+"/oauth2/v2.0/token", "", form, values.Encode(), &granted)
		return "Bearer " + granted.Token
	}
	var list struct {
		Context string `json:"@odata.context"`
		Value   []any
	}
	if status := ask(t, client, http.MethodGet, printed["graph"]+"/organization", token("https://graph.microsoft.com/.default"), "", "", &list); status != http.StatusOK || !strings.HasPrefix(list.Context, printed["graph"]+"/$metadata") {
		t.Errorf("Graph at %s answered %d, and calls itself %s", printed["graph"], status, list.Context)
	}
	if status := ask(t, client, http.MethodGet, printed["resource manager"]+"/subscriptions?api-version=2022-12-01", token("https://management.azure.com/.default"), "", "", &list); status != http.StatusOK {
		t.Errorf("Resource Manager at %s answered %d", printed["resource manager"], status)
	}
}

func TestRun_OnOnePort(t *testing.T) {
	printed, stop := launch(t, "-listen", "127.0.0.1:0", "-tls", t.TempDir())
	defer stop()
	client, idle := trusting(t, printed["trust"], "")
	defer idle()
	if printed["login"]+"/v1.0" != printed["graph"] || printed["login"] != printed["resource manager"] || printed["login"]+"/admin" != printed["admin"] {
		t.Errorf("one port has several origins: %v", printed)
	}
	useAll(t, client, printed)
}

func TestRun_OnAPortForEachPlane(t *testing.T) {
	printed, stop := launch(t, "-tls", t.TempDir(),
		"-listen-login", "127.0.0.1:0", "-listen-graph", "127.0.0.1:0", "-listen-arm", "127.0.0.1:0", "-listen-admin", "127.0.0.1:0")
	defer stop()
	client, idle := trusting(t, printed["trust"], "")
	defer idle()
	origins := make(map[string]bool)
	for _, name := range []string{"login", "graph", "resource manager", "admin"} {
		u, err := url.Parse(printed[name])
		if err != nil {
			t.Fatal(err)
		}
		origins[u.Host] = true
	}
	if len(origins) != 4 {
		t.Errorf("the planes share origins: %v", printed)
	}
	useAll(t, client, printed)
	// Nothing but its plane is at a port.
	var refused struct{ Error struct{ Code string } }
	for _, name := range []string{"graph", "resource manager"} {
		if status := ask(t, client, http.MethodPost, strings.TrimSuffix(printed[name], "/v1.0")+"/admin/tenants", "", "application/json", `{}`, &refused); status != http.StatusUnauthorized || refused.Error.Code == "" {
			t.Errorf("the admin API is at the port of %s: %d", name, status)
		}
	}
}

func TestRun_OnePlaneOnAPortOfItsOwn(t *testing.T) {
	printed, stop := launch(t, "-tls", t.TempDir(), "-listen", "127.0.0.1:0", "-listen-admin", "127.0.0.1:0")
	defer stop()
	client, idle := trusting(t, printed["trust"], "")
	defer idle()
	if printed["login"]+"/v1.0" != printed["graph"] || strings.HasPrefix(printed["admin"], printed["login"]) {
		t.Errorf("origins %v", printed)
	}
	useAll(t, client, printed)
}

func TestRun_UnderHostNames(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	printed, stop := launch(t, "-listen", address, "-tls", t.TempDir(), "-domain", "azure.test")
	defer stop()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"login": "https://login.azure.test:" + port, "graph": "https://graph.azure.test:" + port + "/v1.0",
		"resource manager": "https://management.azure.test:" + port, "admin": "https://admin.azure.test:" + port + "/admin",
	} {
		if printed[name] != want {
			t.Errorf("%s is at %s, want %s", name, printed[name], want)
		}
	}
	client, idle := trusting(t, printed["trust"], address)
	defer idle()
	useAll(t, client, printed)
}

func TestRun_BehindAnotherOrigin(t *testing.T) {
	printed, stop := launch(t, "-listen", "127.0.0.1:0", "-tls", t.TempDir(), "-base-url", "https://entra.test/")
	defer stop()
	if printed["login"] != "https://entra.test" || printed["admin"] != "https://entra.test/admin" {
		t.Errorf("origins %v", printed)
	}
}

func TestRun_ByAGivenCertificate(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	printed, stop := launch(t, "-listen", "127.0.0.1:0", "-cert", filepath.Join(dir, "cert.pem"), "-key", filepath.Join(dir, "key.pem"))
	defer stop()
	client, idle := trusting(t, filepath.Join(dir, "cert.pem"), "")
	defer idle()
	useAll(t, client, printed)
}

func TestRun_ExplainsEveryFlagOnce(t *testing.T) {
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, io.Discard, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	grouped := make(map[string]int)
	for _, g := range groups() {
		for name := range strings.FieldsSeq(g.names) {
			grouped[name]++
		}
	}
	_, flags := define(io.Discard)
	flags.VisitAll(func(f *flag.Flag) {
		if grouped[f.Name] != 1 {
			t.Errorf("-%s is in %d groups", f.Name, grouped[f.Name])
		}
		delete(grouped, f.Name)
		if !strings.Contains(help.String(), "\n  -"+f.Name+" ") {
			t.Errorf("-h does not tell of -%s", f.Name)
		}
	})
	if len(grouped) > 0 {
		t.Errorf("groups name flags that there are not: %v", grouped)
	}
	for line := range strings.Lines(help.String()) {
		if len(line) > 150 {
			t.Errorf("a line of %d characters: %s", len(line), line)
		}
	}
}

// TestReadme_StartsAServer follows the README's two lines: the command's flags
// in the first, and what the second posts where.
func TestReadme_StartsAServer(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(readme), "```sh\n")
	block, _, _ = strings.Cut(block, "```")
	lines := strings.Split(strings.TrimSpace(block), "\n")
	if len(lines) != 2 {
		t.Fatalf("the README's server is started by %q", lines)
	}
	command, _, _ := strings.Cut(lines[0], "#")
	args, found := strings.CutPrefix(command, "go run phasekey.dev/pkg/entrasim/cmd/entrasim ")
	post := strings.Fields(lines[1])
	if !found || len(post) != 6 || post[0] != "curl" || post[1] != "--cacert" || post[4] != "-d" {
		t.Fatalf("the README's lines are %q", lines)
	}
	t.Chdir(t.TempDir())
	printed, stop := launch(t, append(strings.Fields(args), "-listen", "127.0.0.1:0")...)
	defer stop()
	if printed["trust"] != post[2] {
		t.Errorf("the CA is in %s, not in %s", printed["trust"], post[2])
	}
	client, idle := trusting(t, post[2], "")
	defer idle()
	var tenant struct{ DisplayName string }
	where := strings.Replace(post[3], "https://127.0.0.1:8443", printed["login"], 1)
	if status := ask(t, client, http.MethodPost, where, "", "application/x-www-form-urlencoded", strings.Trim(post[5], "'"), &tenant); status != http.StatusOK || tenant.DisplayName != "Home" {
		t.Errorf("curl would get %d %+v", status, tenant)
	}
}
