package entrasim_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/entrasim/internal/devtls"
)

// pipes is a listener without a socket, so that time may pass in a bubble.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.closed); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// Whoever sends slowly is cut off: a head within ten seconds, a body within thirty.
func TestServer_CutsOffWhoeverSendsSlowly(t *testing.T) {
	for _, tt := range []struct {
		name, sent string
		within     time.Duration
	}{
		{"nothing", "", seconds(11)},
		{"half a head", "POST /x/oauth2/v2.0/token HTTP/1.1\r\nHost: login.microsoftonline.com\r\n", seconds(11)},
		{"half a body", "POST /x/oauth2/v2.0/token HTTP/1.1\r\nHost: login.microsoftonline.com\r\nContent-Length: 9\r\n\r\ngrant", seconds(31)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				secure, err := devtls.ServerConfig(t.TempDir(), time.Now(), []string{"login.microsoftonline.com"})
				if err != nil {
					t.Fatal(err)
				}
				sim := open(t, entrasim.Config{})
				listener := pipes{make(chan net.Conn), make(chan struct{})}
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- sim.Run(ctx, listener, secure) }()
				near, far := net.Pipe()
				listener.accept <- far
				conn := tls.Client(near, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
				begin := time.Now()
				_ = near.SetDeadline(begin.Add(time.Hour))
				if _, err := io.WriteString(conn, tt.sent); err != nil {
					t.Error(err)
				}
				_, err = io.ReadAll(conn)
				if took := time.Since(begin); took > tt.within {
					t.Errorf("cut off after %v (%v)", took, err)
				}
				stop()
				if err := errors.Join(near.Close(), <-ended); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
