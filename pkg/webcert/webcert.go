// Package webcert gives an HTTPS server a certificate that browsers trust, from two files.
//
// It guarantees TLS 1.3, and that a certificate which changes on disk is used from the next handshake on. A change that cannot be used (half
// written, key and certificate of different pairs) keeps what was there and is logged. It asks clients for no certificate, and does
// not obtain or renew any: whoever writes the files does.
package webcert

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"phasekey.dev/pkg/internal/reread"
	"phasekey.dev/pkg/obs"
)

// defaultReload is how often the files are read again, unless the configuration says otherwise.
const defaultReload = 10 * time.Second

// ErrIncomplete means that of the two files one is not named.
var ErrIncomplete = errors.New("certificate and key go together")

// Config says where the certificate comes from.
type Config struct {
	// CertFile is a PEM file with the certificate and its intermediates.
	CertFile string
	// KeyFile is a PEM file with the certificate's private key.
	KeyFile string
	// Reload is how often the files are looked at; zero means 10 s.
	Reload time.Duration
}

// Source is the current certificate. It is safe for concurrent use.
type Source struct {
	cfg     Config
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]
	files   *reread.Files // only Open and Run touch them
}

// Open reads the files once, and fails if they cannot be used.
func Open(cfg Config, log *slog.Logger) (*Source, error) {
	if cfg.CertFile == "" || cfg.KeyFile == "" {
		return nil, fmt.Errorf("open web certificate: %w", ErrIncomplete)
	}
	if cfg.Reload == 0 {
		cfg.Reload = defaultReload
	}
	s := &Source{cfg: cfg, log: log}
	s.files = reread.New(s.use, cfg.CertFile, cfg.KeyFile)
	if _, err := s.files.Read(); err != nil {
		return nil, fmt.Errorf("open web certificate: %w", err)
	}
	return s, nil
}

// Run follows changes until ctx ends. It returns nil.
func (s *Source) Run(ctx context.Context) error {
	s.files.Follow(ctx, s.cfg.Reload, func(err error) {
		if err != nil {
			s.log.ErrorContext(ctx, "web certificate cannot be used, keeping the previous one", slog.Any(obs.KeyError, err))
			return
		}
		s.log.InfoContext(ctx, "web certificate reloaded", slog.String(obs.KeyFile, s.cfg.CertFile))
	})
	return nil
}

// use takes the contents of certificate and key.
func (s *Source) use(contents [][]byte) error {
	cert, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return fmt.Errorf("%s: %w", s.cfg.CertFile, err)
	}
	s.current.Store(&cert)
	return nil
}

// TLSConfig is the configuration of an HTTPS server.
func (s *Source) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.current.Load(), nil
		},
	}
}
