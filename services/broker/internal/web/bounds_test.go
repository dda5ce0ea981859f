package web_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/web"
)

// most is how many requests are served at once.
const most = 256

// emptySite knows no session.
func emptySite(t *testing.T, metrics prometheus.Registerer, trusted ...netip.Prefix) *web.Site {
	t.Helper()
	broken := &brokenStore{}
	broken.set(func() error { return consent.ErrNotFound })
	site, err := web.New(web.Config{
		Store: broken, Log: slog.New(slog.DiscardHandler), Metrics: metrics, Proxies: trusted, Links: consent.Links{PublicURL: "https://consent.example.com"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return site
}

func request(t *testing.T, method string, source int, body io.Reader) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/consent/"+strings.Repeat("A", consent.TokenSize), body)
	r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", source%250)
	return r
}

// slow is a body that does not come, until it breaks.
type slow struct {
	asked   chan<- struct{}
	release <-chan struct{}
}

func (s slow) Read([]byte) (int, error) {
	s.asked <- struct{}{}
	<-s.release
	return 0, errors.New("gone")
}

func TestSite_WhoeverSendsSlowlyTakesNoPlace(t *testing.T) {
	takesNoPlace(t, func(site *web.Site, source int, held chan<- struct{}, release <-chan struct{}) {
		answer := httptest.NewRecorder()
		site.Handler().ServeHTTP(answer, request(t, http.MethodPost, source, slow{held, release}))
		if answer.Code != http.StatusBadRequest {
			t.Errorf("a body that breaks off: %d", answer.Code)
		}
	})
}

// takesNoPlace has as many requests as are served at once be held until they are released, and sees that another one is answered.
func takesNoPlace(t *testing.T, send func(site *web.Site, source int, held chan<- struct{}, release <-chan struct{})) {
	t.Helper()
	site := emptySite(t, nil)
	held, release := make(chan struct{}), make(chan struct{})
	var sending sync.WaitGroup
	for i := range most {
		sending.Go(func() { send(site, i, held, release) })
	}
	for range most {
		<-held
	}
	answer := httptest.NewRecorder()
	site.Handler().ServeHTTP(answer, request(t, http.MethodGet, 0, nil))
	if answer.Code != http.StatusNotFound {
		t.Errorf("another request: %d", answer.Code)
	}
	close(release)
	sending.Wait()
}

// reluctant is a browser that does not take what it asked for.
type reluctant struct {
	*httptest.ResponseRecorder
	offered chan<- struct{}
	release <-chan struct{}
}

func (r reluctant) Write(b []byte) (int, error) {
	r.offered <- struct{}{}
	<-r.release
	return r.ResponseRecorder.Write(b)
}

func TestSite_WhoeverReadsSlowlyTakesNoPlace(t *testing.T) {
	takesNoPlace(t, func(site *web.Site, source int, held chan<- struct{}, release <-chan struct{}) {
		answer := reluctant{httptest.NewRecorder(), held, release}
		site.Handler().ServeHTTP(answer, request(t, http.MethodGet, source, nil))
		if answer.Code != http.StatusNotFound {
			t.Errorf("one that reads slowly: %d", answer.Code)
		}
	})
}

// addressed is a listener whose connections come from where a test says.
type addressed struct {
	net.Listener
	mu   sync.Mutex
	from string
}

func (a *addressed) set(from string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.from = from
}

func (a *addressed) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return &elsewhere{c, a.from}, nil
}

type elsewhere struct {
	net.Conn
	from string
}

func (e *elsewhere) RemoteAddr() net.Addr {
	at, _ := net.ResolveTCPAddr("tcp", e.from)
	return at
}

// served is a site on a real listener.
type served struct {
	*addressed
	trusted *httptest.Server
}

func serve(t *testing.T, site *web.Site) served {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := served{&addressed{Listener: ln, from: "192.0.2.1:1"}, httptest.NewTLSServer(http.NotFoundHandler())}
	t.Cleanup(s.trusted.Close)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() {
		ended <- site.Task(s.addressed, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: s.trusted.TLS.Certificates}, time.Second).Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s served) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask sends a request by hand, with which no client meddles. The error says that the connection was closed.
func (s served) ask(t *testing.T, raw string) (*http.Response, error) {
	t.Helper()
	config := s.trusted.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.ServerName = "example.com"
	c := tls.Client(s.dial(t), config)
	if err := c.HandshakeContext(t.Context()); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, raw); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil {
		t.Cleanup(func() { _ = response.Body.Close() })
	}
	return response, err
}

func TestTask_OneAddressDoesNotGetAllConnections(t *testing.T) {
	metrics := prometheus.NewRegistry()
	s := serve(t, emptySite(t, metrics))
	const root = "GET / HTTP/1.1\r\nHost: consent.example.com\r\n\r\n"
	first := s.dial(t)
	for range most - 1 {
		s.dial(t)
	}
	if response, err := s.ask(t, root); err == nil {
		t.Fatalf("one connection more is answered %d", response.StatusCode)
	}
	refused := &world{t: t, metrics: metrics}
	if n := refused.counted("phasekey_broker_page_connections_refused_total"); n != 1 {
		t.Errorf("%v refused connections are counted", n)
	}
	s.set("192.0.2.2:1")
	if response, err := s.ask(t, root); err != nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("another address: %v, error %v", response, err)
	}
	s.set("192.0.2.1:2")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// The server sees that in its own time.
	for deadline := time.Now().Add(patience); ; {
		response, err := s.ask(t, root)
		if err == nil && response.StatusCode == http.StatusNotFound {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one was closed: error %v", err)
		}
	}
}

func TestTask_AnswersForTheServerAsAWholeAreOurs(t *testing.T) {
	s := serve(t, emptySite(t, nil))
	for _, line := range []string{"OPTIONS * HTTP/1.1", "GET * HTTP/1.1"} {
		response, err := s.ask(t, line+"\r\nHost: consent.example.com\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != http.StatusNotFound || response.Header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: %d %v", line, response.StatusCode, response.Header)
		}
	}
}
