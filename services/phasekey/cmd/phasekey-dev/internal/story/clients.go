package story

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"os"

	"google.golang.org/grpc"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/services/phasekey/cmd/phasekey-dev/internal/stack"
)

// platform is the platform's service that the story plays: its clients, with its certificate.
type platform struct {
	integrations registryv1.IntegrationServiceClient
	projects     registryv1.ProjectServiceClient
	attachments  registryv1.AttachmentServiceClient
	consent      brokerv1.ConsentServiceClient
	grants       vaultv1.GrantServiceClient
	rotation     vaultv1.RotationServiceClient
	// watch is an operator's.
	watch registryv1.WatchServiceClient
	// held is closed in reverse order.
	held []func() error
}

func dial(ctx context.Context, dir string, at stack.Endpoints) (_ *platform, err error) {
	p := &platform{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	source := func(role string) (*mtls.Source, error) {
		tls := dir + "/tls/"
		s, err := mtls.Open(ctx, mtls.Config{
			CertFile: tls + role + ".pem", KeyFile: tls + role + "-key.pem", CAFile: tls + "ca.pem",
		}, slog.New(slog.DiscardHandler))
		if err == nil {
			p.held = append(p.held, s.Close)
		}
		return s, err
	}
	connect := func(as *mtls.Source, target, service string) (*grpc.ClientConn, error) {
		conn, err := grpcclient.Dial(grpcclient.Config{Target: target, TLS: as.ClientConfig(stack.ID(service))})
		if err == nil {
			p.held = append(p.held, conn.Close)
		}
		return conn, err
	}
	us, err := source("platform")
	if err != nil {
		return nil, err
	}
	operator, err := source("operator")
	if err != nil {
		return nil, err
	}
	registry, err := connect(us, at.Registry, "registry")
	if err != nil {
		return nil, err
	}
	watched, err := connect(operator, at.Registry, "registry")
	if err != nil {
		return nil, err
	}
	broker, err := connect(us, at.Broker, "broker")
	if err != nil {
		return nil, err
	}
	vault, err := connect(us, at.Vault, "vault")
	if err != nil {
		return nil, err
	}
	p.integrations = registryv1.NewIntegrationServiceClient(registry)
	p.projects = registryv1.NewProjectServiceClient(registry)
	p.attachments = registryv1.NewAttachmentServiceClient(registry)
	p.watch = registryv1.NewWatchServiceClient(watched)
	p.consent = brokerv1.NewConsentServiceClient(broker)
	p.grants = vaultv1.NewGrantServiceClient(vault)
	p.rotation = vaultv1.NewRotationServiceClient(vault)
	return p, nil
}

func (p *platform) close() error {
	var problems []error
	for i := len(p.held) - 1; i >= 0; i-- {
		problems = append(problems, p.held[i]())
	}
	return errors.Join(problems...)
}

// trusting makes a transport for HTTPS servers whose certificates the CA in the file has signed.
func trusting(caFile string) (*http.Transport, error) {
	pem, err := os.ReadFile(caFile) //nolint:gosec // a file of the stack's own folder, or the one that the flag names
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New(caFile + " has no certificate")
	}
	return &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}, nil
}
