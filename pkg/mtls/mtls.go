// Package mtls gives servers and clients their TLS identity and checks their peers'.
//
// It guarantees TLS 1.3; that a peer's certificate is verified against our CA bundle on both sides; that the peer's
// identity is the one SPIFFE ID in its certificate's URI SANs (none, or two, is a failed handshake); that a client speaks only
// to the server IDs it names, whatever the host is called; and that certificates and bundles which change on disk, or
// at the SPIFFE Workload API, are used from the next handshake on. A change that cannot be used (half written, key and certificate
// of different pairs) keeps what was there and is logged. It does not check revocation (certificates are short-lived) and does not end
// connections that were made with an older certificate: the server's maximum connection age does.
//
// The tricky idea: session tickets are off, since a resumed session would skip the verification of the peer against
// today's bundle.
package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"phasekey.dev/pkg/internal/reread"
	"phasekey.dev/pkg/obs"
)

// defaultReload is how often files are read again, unless the configuration says otherwise.
const defaultReload = 10 * time.Second

// The errors of this package; the text around them says more.
var (
	// ErrNoIdentity: a peer's certificate has no SPIFFE ID, or more than one URI.
	ErrNoIdentity = errors.New("certificate has no single SPIFFE ID")
	// ErrWrongPeer: a peer's SPIFFE ID is not one that is expected here.
	ErrWrongPeer = errors.New("unexpected SPIFFE ID")
	// ErrNoCertificate: a certificate is needed, and the configuration has none.
	ErrNoCertificate = errors.New("no certificate configured")
)

// Config says where certificates come from: three files, or a Workload API. A client that shows no certificate has a
// CAFile alone.
type Config struct {
	// CertFile is a PEM file with the certificate and its intermediates.
	CertFile string `yaml:"cert_file"`
	// KeyFile is a PEM file with the certificate's private key.
	KeyFile string `yaml:"key_file"`
	// CAFile is a PEM file with the CAs that peers' certificates are verified against.
	CAFile string `yaml:"ca_file"`
	// WorkloadAPI is the address of a SPIFFE Workload API ("unix:///run/spire/agent.sock"), instead of files. Peers
	// are verified against the bundle of its own trust domain.
	WorkloadAPI string `yaml:"workload_api"`
	// ReloadInterval is how often files are looked at; zero means 10 s.
	ReloadInterval time.Duration `yaml:"reload_interval"`
}

// Validate reports all that is wrong with the configuration, without opening anything.
func (c Config) Validate() error {
	var errs []error
	files := c.CertFile != "" || c.KeyFile != "" || c.CAFile != ""
	switch {
	case c.WorkloadAPI != "" && files:
		errs = append(errs, errors.New("workload_api excludes cert_file, key_file and ca_file"))
	case c.WorkloadAPI != "":
		if err := workloadapi.ValidateAddress(c.WorkloadAPI); err != nil {
			errs = append(errs, fmt.Errorf("workload_api: %w", err))
		}
	case c.CAFile == "":
		errs = append(errs, errors.New("ca_file or workload_api is required"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("cert_file and key_file go together"))
	}
	if c.ReloadInterval < 0 {
		errs = append(errs, errors.New("reload_interval is negative"))
	}
	return errors.Join(errs...)
}

// ClientAuth says whether a server's clients must show a certificate.
type ClientAuth int

// The kinds of ClientAuth. The zero value is the strict one.
const (
	// Required: no certificate, or one that does not verify, is a failed handshake.
	Required ClientAuth = iota
	// Optional: a client may show none; one that it shows must verify.
	Optional
)

// material is what one handshake needs, all of one moment.
type material struct {
	cert  *tls.Certificate // nil: none
	roots *x509.CertPool
	// domain is the trust domain of our own identity; peers of servers are of the same.
	domain spiffeid.TrustDomain
}

// Source is the current certificate and CA bundle. It is safe for concurrent use.
type Source struct {
	cfg     Config
	log     *slog.Logger
	current atomic.Pointer[material] // from files
	files   *reread.Files            // only Open and Run touch them
	spire   *workloadapi.X509Source  // or from the Workload API
}

// Open reads the certificate and the CAs once, and fails if they cannot be used. With a Workload API it waits for the
// first answer, until ctx ends. Whoever does not call Run calls Close.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open tls: %w", err)
	}
	s := &Source{cfg: cfg, log: log}
	if cfg.WorkloadAPI != "" {
		src, err := workloadapi.NewX509Source(ctx,
			workloadapi.WithClientOptions(workloadapi.WithAddr(cfg.WorkloadAPI)))
		if err != nil {
			return nil, fmt.Errorf("open workload api: %w", err)
		}
		s.spire = src
		return s, nil
	}
	s.files = reread.New(s.use, cfg.CertFile, cfg.KeyFile, cfg.CAFile)
	if _, err := s.files.Read(); err != nil {
		return nil, fmt.Errorf("open tls: %w", err)
	}
	return s, nil
}

// Close releases the connection to the Workload API. It may be called more than once, and after Run.
func (s *Source) Close() error {
	if s.spire == nil {
		return nil
	}
	return s.spire.Close()
}

// Run follows changes until ctx ends, then closes the source. It returns nil.
func (s *Source) Run(ctx context.Context) error {
	defer func() { _ = s.Close() }()
	if s.spire != nil {
		s.followSPIRE(ctx)
		return nil
	}
	every := s.cfg.ReloadInterval
	if every == 0 {
		every = defaultReload
	}
	s.files.Follow(ctx, every, func(err error) {
		if err != nil {
			s.log.ErrorContext(ctx, "certificate files cannot be used, keeping the previous ones", slog.Any(obs.KeyError, err))
			return
		}
		s.log.InfoContext(ctx, "certificate files reloaded", slog.String(obs.KeyFile, s.cfg.CertFile))
	})
	return nil
}

// followSPIRE logs updates; the source itself takes them in.
func (s *Source) followSPIRE(ctx context.Context) {
	updated := s.spire.Updated()
	for {
		select {
		case <-ctx.Done():
			return
		case <-updated:
			s.log.InfoContext(ctx, "certificate renewed by the workload api")
		}
	}
}

// use takes the contents of certificate and key, if there are any, and of the CAs.
func (s *Source) use(contents [][]byte) error {
	m := &material{roots: x509.NewCertPool()}
	if !m.roots.AppendCertsFromPEM(contents[2]) {
		return fmt.Errorf("%s: no certificate in it", s.cfg.CAFile)
	}
	if s.cfg.CertFile != "" {
		cert, err := tls.X509KeyPair(contents[0], contents[1])
		if err != nil {
			return fmt.Errorf("%s: %w", s.cfg.CertFile, err)
		}
		id, err := identity(cert.Leaf)
		if err != nil {
			return fmt.Errorf("%s: %w", s.cfg.CertFile, err)
		}
		m.cert, m.domain = &cert, id.TrustDomain()
	}
	s.current.Store(m)
	return nil
}

// material returns what the next handshake uses.
func (s *Source) material() (*material, error) {
	if s.spire == nil {
		return s.current.Load(), nil
	}
	svid, err := s.spire.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("read svid: %w", err)
	}
	bundle, err := s.spire.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	m := &material{roots: x509.NewCertPool(), domain: svid.ID.TrustDomain()}
	for _, ca := range bundle.X509Authorities() {
		m.roots.AddCert(ca)
	}
	m.cert = &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		m.cert.Certificate = append(m.cert.Certificate, c.Raw)
	}
	return m, nil
}

// ID returns our own SPIFFE ID, ErrNoCertificate without a certificate.
func (s *Source) ID() (string, error) {
	m, err := s.material()
	if err != nil {
		return "", err
	}
	if m.cert == nil {
		return "", ErrNoCertificate
	}
	id, err := identity(m.cert.Leaf)
	return id.String(), err
}

// ServerConfig is the configuration of a gRPC server. Clients' certificates are verified against the bundle and must
// carry one SPIFFE ID of our own trust domain.
func (s *Source) ServerConfig(auth ClientAuth) *tls.Config {
	clientAuth := tls.RequireAndVerifyClientCert
	if auth == Optional {
		clientAuth = tls.VerifyClientCertIfGiven
	}
	return s.server(clientAuth, "h2")
}

// HTTPSConfig is the configuration of an HTTPS server for browsers and scrapers: our certificate, no client's.
func (s *Source) HTTPSConfig() *tls.Config { return s.server(tls.NoClientCert, "h2", "http/1.1") }

// server builds a configuration whose every handshake takes today's material. The outer one carries the policy too, so
// that whoever gets it can see what it is.
func (s *Source) server(auth tls.ClientAuthType, protocols ...string) *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
		ClientAuth:             auth,
	}
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m, err := s.material()
		if err != nil {
			return nil, err
		}
		if m.cert == nil {
			return nil, ErrNoCertificate
		}
		cfg := base.Clone()
		cfg.Certificates = []tls.Certificate{*m.cert}
		cfg.ClientCAs = m.roots
		cfg.VerifyConnection = func(st tls.ConnectionState) error {
			if len(st.PeerCertificates) == 0 {
				// ClientAuth has decided already whether that is allowed.
				return nil
			}
			id, err := identity(st.PeerCertificates[0])
			if err != nil {
				return err
			}
			if !id.MemberOf(m.domain) {
				return fmt.Errorf("%w: %s is not of trust domain %s", ErrWrongPeer, id, m.domain)
			}
			return nil
		}
		return cfg, nil
	}
	return outer
}

// ClientConfig is the configuration of a client that speaks only to servers with one of these SPIFFE IDs; without any,
// to none. Host names are not looked at: the ID decides.
func (s *Source) ClientConfig(serverIDs ...string) *tls.Config {
	allowed := slices.Clone(serverIDs)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
		// Verification is ours, below: the chain against today's bundle, and the ID instead of a host name.
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m, err := s.material()
			if err != nil {
				return nil, err
			}
			if m.cert == nil {
				return &tls.Certificate{}, nil
			}
			return m.cert, nil
		},
		VerifyConnection: func(st tls.ConnectionState) error {
			m, err := s.material()
			if err != nil {
				return err
			}
			return verifyServer(st, m.roots, allowed)
		},
	}
}

// verifyServer checks a server's chain and that its ID is an allowed one.
func verifyServer(st tls.ConnectionState, roots *x509.CertPool, allowed []string) error {
	id, err := IDFromState(st)
	if err != nil {
		return err
	}
	opts := x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, c := range st.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := st.PeerCertificates[0].Verify(opts); err != nil {
		return fmt.Errorf("verify server: %w", err)
	}
	if !slices.Contains(allowed, id) {
		return fmt.Errorf("%w: %s", ErrWrongPeer, id)
	}
	return nil
}

// IDFromState returns the SPIFFE ID in the peer's certificate of a connection whose handshake is over. It is
// ErrNoIdentity if the peer showed none.
func IDFromState(st tls.ConnectionState) (string, error) {
	if len(st.PeerCertificates) == 0 {
		return "", ErrNoIdentity
	}
	id, err := identity(st.PeerCertificates[0])
	if err != nil {
		return "", err
	}
	return id.String(), nil
}

// identity returns a certificate's SPIFFE ID.
func identity(c *x509.Certificate) (spiffeid.ID, error) {
	id, err := x509svid.IDFromCert(c)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrNoIdentity, err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("%w: %s names a trust domain only", ErrNoIdentity, id)
	}
	return id, nil
}
