package web_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/web"
)

func TestSite_LimitsHowOftenOneAddressAsks(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	var limited page
	for range 2000 {
		if limited = b.get(w.config.Links.PublicURL + "/"); limited.status == http.StatusTooManyRequests {
			break
		}
	}
	shows(t, limited, http.StatusTooManyRequests, "Too many requests")
	if limited.header.Get("Retry-After") == "" || limited.header.Get("X-Frame-Options") != "DENY" {
		t.Errorf("headers %v", limited.header)
	}
}

func TestSite_LimitsHowManyAreServedAtOnce(t *testing.T) {
	broken := &brokenStore{}
	release := make(chan struct{})
	var waiting sync.WaitGroup
	cfg := web.Config{Store: broken, Log: slog.New(slog.DiscardHandler), Links: consent.Links{PublicURL: "https://consent.example.com"}}
	site, err := web.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(i int) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/consent/"+strings.Repeat("A", consent.TokenSize), nil)
		r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", i%250)
		answer := httptest.NewRecorder()
		site.Handler().ServeHTTP(answer, r)
		return answer.Code
	}
	const most = 256
	inside := make(chan struct{}, most)
	broken.set(func() error {
		inside <- struct{}{}
		<-release
		return consent.ErrNotFound
	})
	for i := range most {
		waiting.Go(func() {
			if got := ask(i); got != http.StatusNotFound {
				t.Errorf("one within the bound: %d", got)
			}
		})
	}
	for range most {
		<-inside
	}
	if got := ask(0); got != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", got)
	}
	close(release)
	waiting.Wait()
	if got := ask(0); got != http.StatusNotFound {
		t.Errorf("afterwards: %d", got)
	}
}

func TestTask_StopsInTimeAndLetsRequestsEnd(t *testing.T) {
	for _, tc := range []struct {
		name  string
		drain time.Duration
		ends  bool
	}{{"one that ends", time.Minute, true}, {"one that does not", 50 * time.Millisecond, false}} {
		t.Run(tc.name, func(t *testing.T) {
			entra := httptest.NewTLSServer(http.NotFoundHandler())
			defer entra.Close()
			inside, release := make(chan struct{}), make(chan struct{})
			broken := &brokenStore{}
			broken.set(func() error {
				close(inside)
				<-release
				return consent.ErrNotFound
			})
			site, err := web.New(web.Config{Store: broken, Log: slog.New(slog.DiscardHandler), Links: consent.Links{PublicURL: "https://consent.example.com"}})
			if err != nil {
				t.Fatal(err)
			}
			ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				ended <- site.Task(ln, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: entra.TLS.Certificates}, tc.drain).Run(ctx)
			}()
			status := make(chan int, 1)
			go func() {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+ln.Addr().String()+"/consent/"+strings.Repeat("A", consent.TokenSize), nil)
				if err != nil {
					t.Error(err)
				}
				response, err := entra.Client().Do(r)
				if err != nil {
					status <- 0
					return
				}
				_ = response.Body.Close()
				status <- response.StatusCode
			}()
			<-inside
			cancel()
			if tc.ends {
				close(release)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if got := <-status; (got == http.StatusNotFound) != tc.ends {
				t.Errorf("status %d", got)
			}
			if !tc.ends {
				close(release)
			}
			entra.Client().CloseIdleConnections()
		})
	}
}
