package signer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"

	"phasekey.dev/pkg/task"
)

const (
	// The paths below the issuer's URL.
	configurationPath = "/.well-known/openid-configuration"
	keysPath          = "/.well-known/jwks.json"

	// maxAge is how long others may keep the documents, in seconds: far less than a key is published before it signs.
	maxAge = 300
	// maxConnections bounds the descriptors that readers use up; behind a proxy they all come from one address.
	maxConnections = 512
	maxHeader      = 8 << 10
	maxStreams     = 32
	closeTimeout   = time.Second
)

// Site serves the two documents by which token services verify assertions, and nothing else.
type Site struct {
	signer        *Signer
	handler       http.Handler
	configuration []byte
	requests      *prometheus.CounterVec
	log           *slog.Logger
}

// NewSite makes a Site for the signer's issuer.
func NewSite(signer *Signer, log *slog.Logger, metrics prometheus.Registerer) (*Site, error) {
	issuer, err := url.Parse(signer.Issuer())
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	s := &Site{signer: signer, log: log, requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "phasekey_vault_issuer_requests_total",
		Help: "Requests for the issuer's documents, by document and status. None for a day while there are federated integrations: Entra ID cannot reach the issuer.",
	}, []string{"document", "status"})}
	s.configuration, err = json.Marshal(map[string]any{
		"issuer":                                issuer.String(),
		"jwks_uri":                              issuer.String() + keysPath,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"claims_supported":                      []string{"iss", "sub", "aud", "iat", "nbf", "exp", "jti", "run", "phase", "project", "lease"},
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	base := strings.TrimSuffix(issuer.Path, "/")
	mux.HandleFunc("GET "+base+configurationPath, func(w http.ResponseWriter, _ *http.Request) { s.answer(w, "configuration", s.configuration) })
	mux.HandleFunc("GET "+base+keysPath, func(w http.ResponseWriter, _ *http.Request) {
		var set []byte
		if k := signer.known.Load(); k != nil {
			set = k.set
		}
		s.answer(w, "keys", set)
	})
	s.handler = mux
	if metrics != nil {
		if err := metrics.Register(s.requests); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	s.handler.ServeHTTP(w, r)
}

// answer gives a document, or says that it is not known yet.
func (s *Site) answer(w http.ResponseWriter, name string, document []byte) {
	if document == nil {
		s.requests.WithLabelValues(name, "503").Inc()
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Retry-After", "2")
		http.Error(w, "the keys are not known yet", http.StatusServiceUnavailable)
		return
	}
	s.requests.WithLabelValues(name, "200").Inc()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", maxAge))
	_, _ = w.Write(document)
}

// Task serves on the listener, which it closes at the end. Requests at hand are given drain to end.
func (s *Site) Task(ln net.Listener, config *tls.Config, drain time.Duration) task.Task {
	srv := &http.Server{
		Handler:                      s,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  10 * time.Second,
		WriteTimeout:                 10 * time.Second,
		IdleTimeout:                  time.Minute,
		MaxHeaderBytes:               maxHeader,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return task.Task{Name: "issuer", Grace: drain + closeTimeout, Run: func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- srv.Serve(tls.NewListener(netutil.LimitListener(ln, maxConnections), config)) }()
		select {
		case err := <-served:
			return fmt.Errorf("serve issuer: %w", err)
		case <-ctx.Done():
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			_ = srv.Close()
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve issuer: %w", err)
		}
		return nil
	}}
}
