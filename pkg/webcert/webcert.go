// Package webcert gives an HTTPS server a certificate that browsers trust, from two files.
//
// It guarantees TLS 1.3, and that a certificate which changes on disk is used from the next handshake on. A change that cannot be used (half
// written, key and certificate of different pairs) keeps what was there and is logged. It asks clients for no certificate, and does
// not obtain or renew any: whoever writes the files does.
package webcert

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

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
	// read are the files' contents, as last tried; only Open and Run touch it.
	read [2][]byte
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
	if _, err := s.reload(); err != nil {
		return nil, fmt.Errorf("open web certificate: %w", err)
	}
	return s, nil
}

// Run follows changes until ctx ends. It returns nil.
func (s *Source) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Reload)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		changed, err := s.reload()
		switch {
		case err != nil:
			s.log.ErrorContext(ctx, "web certificate cannot be used, keeping the previous one", slog.Any(obs.KeyError, err))
		case changed:
			s.log.InfoContext(ctx, "web certificate reloaded", slog.String(obs.KeyFile, s.cfg.CertFile))
		}
	}
}

// reload reads the files and, if their contents differ from what was tried last, uses them. Contents, not times: a mounted secret
// changes behind a symbolic link.
func (s *Source) reload() (changed bool, err error) {
	var got [2][]byte
	for i, name := range []string{s.cfg.CertFile, s.cfg.KeyFile} {
		if got[i], err = os.ReadFile(name); err != nil { //nolint:gosec // the file that the configuration names
			// Try again next time, even if the contents come back as they were.
			s.read = [2][]byte{}
			return false, err
		}
	}
	if bytes.Equal(got[0], s.read[0]) && bytes.Equal(got[1], s.read[1]) {
		return false, nil
	}
	s.read = got
	cert, err := tls.X509KeyPair(got[0], got[1])
	if err != nil {
		return false, fmt.Errorf("%s: %w", s.cfg.CertFile, err)
	}
	s.current.Store(&cert)
	return true, nil
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
