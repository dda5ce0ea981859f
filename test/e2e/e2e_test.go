package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/test/internal/rigtest"
)

func TestMain(m *testing.M) { rigtest.RunAbreast(m, 3) }

// start runs phasekey-dev for the test, and stops it afterwards by Ctrl-C, which must succeed in time and with nothing leaked.
func start(t *testing.T, dir string) *dev {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := startDev(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.interrupt(); err != nil {
			t.Errorf("stopping: %v\n%s", err, tail(d.out.String()))
		}
		if shown := leaked(d.out.String()); shown != nil {
			t.Errorf("the log shows %v", shown)
		}
	})
	return d
}

func tail(text string) string { return text[max(0, len(text)-4000):] }

// dial connects as a role of the folder's certificates.
func dial(t *testing.T, d *dev, address, role string) *grpc.ClientConn {
	t.Helper()
	return connect(t, address, clientTLS(t, filepath.Join(d.dir, "tls"), role, filepath.Join(d.dir, "tls", "ca.pem")))
}

func clientTLS(t *testing.T, dir, role, caFile string) *tls.Config {
	t.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "localhost", RootCAs: pool(t, caFile)}
	if role != "" {
		certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, role+".pem"), filepath.Join(dir, role+"-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config
}

func connect(t *testing.T, address string, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	transport := insecure.NewCredentials()
	if config != nil {
		transport = credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(transport))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func TestDemo_TellsTheWholeStoryAndNoSecret(t *testing.T) {
	t.Parallel()
	path, err := binary("phasekey-dev")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, path, "demo", "--dir", dir, "--log-level", "debug")
	out := &logtest.Transcript{}
	command.Stdout, command.Stderr = out, out
	if err := command.Run(); err != nil {
		t.Fatalf("%v\n%s", err, tail(out.String()))
	}
	text := out.String()
	for _, want := range []string{
		"demo: ok", "declined once, 2 principals, 2 names", "az role assignment create", "GET 200, PUT 403", "PUT 201",
		"intended, as phasekey/dev/", "active, after 8 proofs in a row", "retiring", "revoking", "removed at Entra ID",
		"0 calls failed, 2 tokens, 1 secret left", "served, then GRANT_REVOKED", "0 calls failed, held, then removed",
		"2 gone for good, 0 secrets left, 2 tombstones", "az ad sp delete --id",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the demo does not say %q", want)
		}
	}
	for _, id := range []string{"network-read", "network-write"} {
		if !regexp.MustCompile(id + `: the administrator opens https://127\.0\.0\.1:\d+/consent/…,`).MatchString(text) {
			t.Errorf("the demo does not say where the pages of %s are", id)
		}
	}
	if shown := leaked(text); shown != nil {
		t.Errorf("the output shows %v", shown)
	}
	platform, err := os.ReadFile(filepath.Join(dir, "platform.secret"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, strings.TrimSpace(string(platform))) {
		t.Error("the output shows the platform's own secret")
	}
	// The shapes that are looked for are the ones there are.
	if leaked(string(platform)) == nil {
		t.Error("a client secret would not be recognised")
	}
}

func TestDev_GoesOnWhereItStopped(t *testing.T) {
	dir := t.TempDir()
	first := start(t, dir)
	integrations := registryv1.NewIntegrationServiceClient(dial(t, first, first.at.Registry, "platform"))
	made, err := integrations.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{
		Parent: "accounts/acme", IntegrationId: "kept",
		Integration: &registryv1.Integration{DisplayName: "kept", TenantId: "11111111-2222-4333-8444-555555555555"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.interrupt(); err != nil {
		t.Fatalf("%v\n%s", err, tail(first.out.String()))
	}

	second := start(t, dir)
	if second.at != first.at {
		t.Errorf("it listened at %+v, and now at %+v", first.at, second.at)
	}
	integrations = registryv1.NewIntegrationServiceClient(dial(t, second, second.at.Registry, "platform"))
	got, err := integrations.GetIntegration(t.Context(), &registryv1.GetIntegrationRequest{Name: made.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetUid() != made.GetUid() {
		t.Errorf("UID %s is now %s", made.GetUid(), got.GetUid())
	}
}

func TestDev_LeavesAFolderAloneThatIsInUse(t *testing.T) {
	d := start(t, t.TempDir())
	path, err := binary("phasekey-dev")
	if err != nil {
		t.Fatal(err)
	}
	before := files(t, d.dir)
	for _, arguments := range [][]string{{"--dir", d.dir}, {"demo", "--dir", d.dir}} {
		out, err := exec.CommandContext(t.Context(), path, arguments...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), d.dir+" is in use by another phasekey-dev") {
			t.Errorf("%v: %v: %s", arguments, err, out)
		}
	}
	if after := files(t, d.dir); !slices.Equal(before, after) {
		t.Errorf("the folder had %v, and has %v", before, after)
	}
}

// files are the names in a folder, but for those that SQLite makes and removes as it works.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".db-") {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestServicesListeners_RefuseStrangers(t *testing.T) {
	d := start(t, t.TempDir())
	strangers := t.TempDir()
	ca, err := devca.Open(strangers, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(time.Now(), "platform", devca.Leaf{ID: "spiffe://phasekey.dev/platform"}); err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(d.dir, "tls", "ca.pem")
	for _, listener := range []struct{ name, address string }{{"registry", d.at.Registry}, {"broker", d.at.Broker}, {"vault", d.at.Vault}} {
		for _, test := range []struct {
			name   string
			config *tls.Config
		}{
			{"no certificate", clientTLS(t, "", "", roots)},
			{"another CA's certificate", clientTLS(t, strangers, "platform", roots)},
			{"plaintext", nil},
		} {
			t.Run(listener.name+"/"+test.name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := healthv1.NewHealthClient(connect(t, listener.address, test.config)).Check(ctx, &healthv1.HealthCheckRequest{})
				if status.Code(err) != codes.Unavailable {
					t.Errorf("got %v, not a failed connection", err)
				}
			})
		}
	}
	t.Run("runners need none", func(t *testing.T) {
		answer, err := healthv1.NewHealthClient(connect(t, d.at.VaultRunners, clientTLS(t, "", "", roots))).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("got %v, %v", answer, err)
		}
	})
}

func TestHints_WorkWhenPasted(t *testing.T) {
	t.Parallel()
	grpcurl, err := binary("grpcurl")
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, t.TempDir())
	text := strings.ReplaceAll(d.out.String(), "\\\n", " ")
	count := 0
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "grpcurl ") {
			continue
		}
		count++
		command := exec.CommandContext(t.Context(), "/bin/sh", "-c", line)
		command.Env = append(os.Environ(), "PATH="+filepath.Dir(grpcurl)+":"+os.Getenv("PATH"))
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%s\n%v: %s", line, err, out)
		}
	}
	if count < 5 {
		t.Errorf("only %d lines to paste", count)
	}
}

func pool(t *testing.T, caFile string) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("%s has no certificate", caFile)
	}
	return roots
}
