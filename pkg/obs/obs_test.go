package obs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewLogger(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-obs"
	var out bytes.Buffer
	log := obs.NewLogger(&out, slog.LevelDebug, obs.FormatJSON)
	ctx := obs.WithRequestID(t.Context(), "req-1")
	log.With("s", secret.New(canary)).WithGroup("g").DebugContext(ctx, "m", slog.Any("v", notetest.Note(`token: "`+canary+`" text: "plain"`)))
	if strings.Contains(out.String(), canary) || !strings.Contains(out.String(), "plain") || !strings.Contains(out.String(), `"request_id":"req-1"`) {
		t.Error(out.String())
	}
	if !json.Valid(out.Bytes()) {
		t.Errorf("no JSON: %s", out.String())
	}
	out.Reset()
	text := obs.NewLogger(&out, slog.LevelInfo, obs.FormatText)
	text.Debug("below the level")
	text.Info("m")
	if got := out.String(); !strings.Contains(got, "level=INFO msg=m") || strings.Contains(got, "below") || strings.Contains(got, "request_id") {
		t.Error(got)
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	var f obs.Format
	if err := f.UnmarshalText([]byte("text")); err != nil || f != obs.FormatText {
		t.Error(f, err)
	}
	if err := f.UnmarshalText([]byte("xml")); err == nil {
		t.Error("took xml")
	}
}

// get fetches a page.
func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode, string(b)
}

func TestMetricsTask(t *testing.T) {
	t.Parallel()
	ca, err := devca.Open(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f, err := ca.Issue(time.Now(), "vault", devca.Leaf{ID: "spiffe://phasekey.dev/vault"})
	if err != nil {
		t.Fatal(err)
	}
	src, err := mtls.Open(t.Context(), mtls.Config{CertFile: f.Cert, KeyFile: f.Key, CAFile: ca.CAFile()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		server *tls.Config
		scheme string
	}{
		{name: "plaintext on loopback", scheme: "http"},
		{name: "TLS", scheme: "https", server: src.HTTPSConfig()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			log := slog.New(slog.DiscardHandler)
			metrics, err := obs.MetricsTask(ln, tt.server, obs.NewRegistry("vault"), log)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- task.Run(ctx, log, metrics) }()
			transport := &http.Transport{TLSClientConfig: src.ClientConfig("spiffe://phasekey.dev/vault"), ForceAttemptHTTP2: true}
			client := &http.Client{Transport: transport}
			base := tt.scheme + "://" + ln.Addr().String()
			if code, body := get(t, client, base+"/livez"); code != http.StatusOK || body != "ok\n" {
				t.Errorf("livez: %d %q", code, body)
			}
			code, body := get(t, client, base+"/metrics")
			for _, w := range []string{`phasekey_build_info{`, `service="vault"`, "go_goroutines", "process_open_fds"} {
				if code != http.StatusOK || !strings.Contains(body, w) {
					t.Errorf("metrics: %d, no %s", code, w)
				}
			}
			if code, _ := get(t, client, base+"/debug/pprof"); code != http.StatusNotFound {
				t.Errorf("pprof: %d", code)
			}
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
			transport.CloseIdleConnections()
		})
	}
}

func TestMetricsTask_RefusesPlaintextBeyondLoopback(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if _, err := obs.MetricsTask(ln, nil, obs.NewRegistry("vault"), slog.New(slog.DiscardHandler)); !errors.Is(err, obs.ErrPlaintext) {
		t.Errorf("got %v", err)
	}
}

func TestProfileTask(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	profiles, err := obs.ProfileTask(ln, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- task.Run(ctx, log, profiles) }()
	transport := &http.Transport{}
	client := &http.Client{Transport: transport}
	base := "http://" + ln.Addr().String()
	for page, want := range map[string]string{
		"/debug/pprof/goroutine?debug=2": "obs_test.TestProfileTask",
		"/debug/pprof/heap?debug=1":      "heap profile",
		"/debug/pprof/profile?seconds=1": "\x1f\x8b", // gzip
	} {
		if code, body := get(t, client, base+page); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d, no %q in %.200q", page, code, want, body)
		}
	}
	if code, _ := get(t, client, base+"/metrics"); code != http.StatusNotFound {
		t.Errorf("metrics: %d", code)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	transport.CloseIdleConnections()
}

func TestProfileTask_IsForLoopbackOnly(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if _, err := obs.ProfileTask(ln, slog.New(slog.DiscardHandler)); !errors.Is(err, obs.ErrExposed) {
		t.Errorf("got %v", err)
	}
}
