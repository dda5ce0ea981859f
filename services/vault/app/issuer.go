package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"strings"

	"golang.org/x/sync/errgroup"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/task"
	"phasekey.dev/pkg/webcert"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/signingkey"
)

// Issuer is the vault as an OpenID issuer, for federated integrations. Without a URL there is none, and such integrations get no
// credential.
type Issuer struct {
	// URL is under which Entra ID finds the issuer, on the Internet, with a certificate of a public authority: https, without a slash
	// at the end. Every federated credential at Entra names it, so it must never change.
	URL string `yaml:"url"`
	// Listen is the address of the HTTPS listener; what answers at URL must lead there, with the path as it is.
	Listen string `yaml:"listen"`
	// CertFile and KeyFile are PEM files with the listener's certificate and key; they are read again when they change. Without them it
	// has the service's own.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// Keys is how long signing keys take.
	Keys signingkey.Timing `yaml:"keys"`
}

// DevelopmentKeys is how long signing keys take where Entra is simulated.
func DevelopmentKeys() signingkey.Timing { return signingkey.Development() }

// maxIssuerSize is what Entra ID takes of an issuer, in characters.
const maxIssuerSize = 600

var errIssuerURL = errors.New("must be an https URL of at most 600 characters, without query, fragment, user and a slash at its end")

// problems are by key, below `issuer`.
func (i Issuer) problems(development bool) map[string]error {
	if i.URL == "" {
		if i.Listen+i.CertFile+i.KeyFile != "" {
			return map[string]error{"url": confload.ErrRequired}
		}
		return nil
	}
	out := map[string]error{"keys": i.Keys.Validate(development)}
	u, err := url.Parse(i.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(i.URL) > maxIssuerSize ||
		u.Path != "" && path.Clean(u.Path) != u.Path || strings.HasSuffix(i.URL, "/") || u.String() != i.URL || strings.ContainsAny(u.Path, "{}% ") {
		out["url"] = errIssuerURL
	}
	if i.Listen == "" {
		out["listen"] = confload.ErrRequired
	}
	if (i.CertFile == "") != (i.KeyFile == "") {
		out["cert_file"] = webcert.ErrIncomplete
	}
	return out
}

// openID is what makes the vault an OpenID issuer.
type openID struct {
	signer *signer.Signer
	keeper *signer.Keeper
	addr   net.Addr
	tasks  []task.Task
}

// openIssuer makes the signer, its listener and what keeps its keys; nothing without a configuration.
func (a *App) openIssuer(ctx context.Context) error {
	cfg := a.cfg.Issuer
	if cfg.URL == "" {
		return nil
	}
	i := &openID{
		signer: signer.New(signer.Config{Issuer: cfg.URL, Store: a.store, Keyring: a.keyring, Log: a.log, Metrics: a.metrics}),
		keeper: &signer.Keeper{Store: a.store, Keyring: a.keyring, Timing: cfg.Keys, Log: a.log},
	}
	site, err := signer.NewSite(i.signer, a.log, a.metrics)
	if err != nil {
		return err
	}
	certificate := a.tls.HTTPSConfig()
	if cfg.CertFile != "" {
		web, err := webcert.Open(webcert.Config{CertFile: cfg.CertFile, KeyFile: cfg.KeyFile}, a.log)
		if err != nil {
			return fmt.Errorf("issuer: %w", err)
		}
		certificate = web.TLSConfig()
		i.tasks = append(i.tasks, task.Task{Name: "issuer certificate", Run: web.Run})
	}
	ln, err := a.held.Listen(ctx, "issuer.listen", cfg.Listen)
	if err != nil {
		return err
	}
	i.addr = ln.Addr()
	i.tasks = append(i.tasks, task.Task{Name: "signer", Run: i.signer.Run}, site.Task(ln, certificate, a.cfg.Drain))
	a.issuer = i
	return nil
}

// signer is nil where the vault is no issuer.
func (a *App) signer() *signer.Signer {
	if a.issuer == nil {
		return nil
	}
	return a.issuer.signer
}

// IssuerAddr is the bound address of the issuer's listener, nil without one.
func (a *App) IssuerAddr() net.Addr {
	if a.issuer == nil {
		return nil
	}
	return a.issuer.addr
}

// serve works on a shard, and the first shard's master keeps the signing keys besides.
func (a *App) serve(ctx context.Context, m election.Mastership) error {
	if a.issuer == nil || m.Shard != 0 {
		return a.worker.Serve(ctx, m)
	}
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { return a.worker.Serve(ctx, m) })
	both.Go(func() error { return a.issuer.keeper.Serve(ctx, m) })
	return both.Wait()
}
