package runner_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/runner/runnertest"
	"phasekey.dev/pkg/secret"
)

// Whatever is sent to the endpoint, in whatever pieces of HTTP: without the secret, and without the kernel's word for who asks in
// the one shape that takes it, there is no token in the answer, and never the secret.
func FuzzLoopback(f *testing.F) {
	for _, seed := range []string{
		"GET /msi/token?api-version=2019-08-01&resource=https://management.azure.com HTTP/1.1\r\nHost: HOST\r\nX-IDENTITY-HEADER: guess\r\n\r\n",
		"GET /msi/token?api-version=2019-08-01&resource=https://management.azure.com HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com HTTP/1.1\r\nHost: evil.example\r\nMetadata: true\r\n\r\n",
		"GET /metadata/identity/oauth2/token?api-version=2018-02-01 HTTP/1.1\r\nHost: HOST\r\nMetadata: true\r\nOrigin: http://evil.example\r\n\r\n",
		"GET http://HOST/msi/token HTTP/1.1\r\nHost: HOST\r\n\r\n", "GET //msi/token HTTP/1.1\r\nHost: HOST\r\n\r\n", "GET /msi/../msi/token HTTP/1.0\r\n\r\n",
		"POST /msi/token HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"GET /msi/token HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT HOST HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x00", "",
		"GET /oidc/token?audience=api://AzureADTokenExchange HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer guess\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	log := &logtest.Transcript{}
	vault := runnertest.New(grantCanary)
	vault.Always(credential(1))
	w := &world{vault: vault, log: log}
	address, guard := serveForFuzzing(f, w)
	f.Fuzz(func(t *testing.T, raw []byte) {
		text := strings.ReplaceAll(string(raw), "HOST", address)
		if strings.Contains(strings.ToLower(text), "metadata") && strings.Contains(text, address) && !strings.Contains(strings.ToLower(text), "origin") {
			// The kernel knows who asks: this test, who may.
			return
		}
		conn, err := net.Dial("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, text)
		_ = conn.(*net.TCPConn).CloseWrite()
		answer, _ := io.ReadAll(conn)
		if bytes.Contains(answer, []byte(tokenCanary)) || bytes.Contains(answer, []byte(guard)) {
			t.Errorf("%q was answered with a secret", text)
		}
		if len(answer) > 0 {
			resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
			if err != nil {
				t.Fatalf("%q was answered with no HTTP: %q", text, answer)
			}
			_ = resp.Body.Close()
			if resp.StatusCode < 400 {
				t.Errorf("%q was answered with %s", text, resp.Status)
			}
		}
	})
}

// serveForFuzzing serves tokens until the test has ended, and returns where, and the secret.
func serveForFuzzing(f *testing.F, w *world) (address, guard string) {
	f.Helper()
	r, err := runner.New(runner.Config{Conn: w.vault.Memory(f), Grant: secret.New(grantCanary), Log: obs.NewLogger(w.log, slog.LevelWarn, obs.FormatText)})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l, err := runner.Listen(ctx, runner.LoopbackConfig{Runner: r, Wait: time.Second, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	served := make(chan error, 2)
	go func() { served <- r.Run(ctx) }()
	go func() { served <- l.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := errors.Join(<-served, <-served); err != nil {
			f.Error(err)
		}
	})
	held, err := r.Credential(ctx)
	if err != nil {
		f.Fatal(err)
	}
	for _, entry := range l.Environment(nil, held) {
		switch name, value, _ := strings.Cut(entry, "="); name {
		case "IDENTITY_ENDPOINT":
			address = strings.TrimSuffix(strings.TrimPrefix(value, "http://"), "/msi/token")
		case "IDENTITY_HEADER":
			guard = value
		}
	}
	return address, guard
}
