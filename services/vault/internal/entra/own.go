package entra

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// Credential says how the platform's own application shows who it is. What is set is tried in the order of the fields, and nothing else is: the environment is
// not searched. The next is tried only where one is not to be had, as a managed identity on a machine that has none; one that Entra refuses is an error.
type Credential struct {
	// TokenFile has a workload's own token, which the application trusts by a federated credential.
	TokenFile string
	// ManagedIdentity asks the machine for a token. The application is then that identity itself.
	ManagedIdentity ManagedIdentity
	// CertificateFile has a certificate and its private key, PEM.
	CertificateFile string
	// SecretFile has a client secret; white space around it is ignored.
	SecretFile string
}

// ManagedIdentity says which of a machine's identities is meant.
type ManagedIdentity string

// The managed identities.
const (
	// NoIdentity means none.
	NoIdentity ManagedIdentity = ""
	// UserAssigned is the one whose client ID is the configuration's.
	UserAssigned ManagedIdentity = "user_assigned"
	// SystemAssigned is the machine's own.
	SystemAssigned ManagedIdentity = "system_assigned"
)

// errNoCredential means that no credential is configured.
var errNoCredential = errors.New("none is configured")

// own makes the chain of what is configured.
func (d *Directory) own(options policy.ClientOptions) (azcore.TokenCredential, error) {
	var sources []azcore.TokenCredential
	c, tenant, client := d.config.Credential, d.config.HomeTenantID, d.config.ClientID
	if c.TokenFile != "" {
		if _, err := os.ReadFile(c.TokenFile); err != nil {
			return nil, fmt.Errorf("token file: %w", err)
		}
		made, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: options, ClientID: client, TenantID: tenant, TokenFilePath: c.TokenFile, DisableInstanceDiscovery: true,
		})
		if err != nil {
			return nil, err
		}
		sources = append(sources, made)
	}
	if c.ManagedIdentity != NoIdentity {
		local := options
		local.Transport = &http.Client{Transport: machine{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		opts := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: local}
		if c.ManagedIdentity == UserAssigned {
			opts.ID = azidentity.ClientID(client)
		}
		made, err := azidentity.NewManagedIdentityCredential(opts)
		if err != nil {
			return nil, err
		}
		sources = append(sources, made)
	}
	if c.CertificateFile != "" {
		made, err := followFile(c.CertificateFile, func(data []byte) (azcore.TokenCredential, error) {
			certificates, key, err := parseCertificate(data)
			if err != nil {
				return nil, err
			}
			return azidentity.NewClientCertificateCredential(tenant, client, certificates, key, &azidentity.ClientCertificateCredentialOptions{
				ClientOptions: options, DisableInstanceDiscovery: true,
			})
		})
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		sources = append(sources, made)
	}
	if c.SecretFile != "" {
		made, err := followFile(c.SecretFile, func(data []byte) (azcore.TokenCredential, error) {
			return azidentity.NewClientSecretCredential(tenant, client, strings.TrimSpace(string(data)), &azidentity.ClientSecretCredentialOptions{
				ClientOptions: options, DisableInstanceDiscovery: true,
			})
		})
		if err != nil {
			return nil, fmt.Errorf("client secret: %w", err)
		}
		sources = append(sources, made)
	}
	if len(sources) == 0 {
		return nil, errNoCredential
	}
	chain, err := azidentity.NewChainedTokenCredential(sources, &azidentity.ChainedTokenCredentialOptions{RetrySources: true})
	if err != nil {
		return nil, err
	}
	return quiet{chain}, nil
}

// parseCertificate reads a certificate and its key. The errors of the parser do not quote what they read.
func parseCertificate(data []byte) ([]*x509.Certificate, crypto.PrivateKey, error) {
	certificates, key, err := azidentity.ParseCertificates(data, nil)
	if err != nil {
		return nil, nil, errors.New("not a certificate and its private key in PEM")
	}
	return certificates, key, nil
}

// fileCredential is made from a file, and anew whenever that has changed. While the file cannot be read, or makes no credential, the last
// one stays: files are replaced in two steps.
type fileCredential struct {
	path string
	from func(data []byte) (azcore.TokenCredential, error)

	mu   sync.Mutex
	sum  [sha256.Size]byte
	last azcore.TokenCredential
}

// maxCredentialFile bounds what is read of a file.
const maxCredentialFile = 1 << 20

func followFile(path string, from func(data []byte) (azcore.TokenCredential, error)) (*fileCredential, error) {
	f := &fileCredential{path: path, from: from}
	if err := f.reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// reload looks at the file. It is small, and requests are few.
func (f *fileCredential) reload() error {
	data, err := readCredential(f.path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	if f.last != nil && sum == f.sum {
		return nil
	}
	made, err := f.from(data)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.sum, f.last = sum, made
	return nil
}

func readCredential(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxCredentialFile {
		return nil, fmt.Errorf("%s is too large", path)
	}
	return os.ReadFile(path) //nolint:gosec // the file that the configuration names
}

// GetToken implements azcore.TokenCredential.
func (f *fileCredential) GetToken(ctx context.Context, options policy.TokenRequestOptions) (azcore.AccessToken, error) {
	f.mu.Lock()
	_ = f.reload() // Directory.Expiries tells of it
	now := f.last
	f.mu.Unlock()
	return now.GetToken(ctx, options)
}

// metadataHost is where Azure's virtual machines ask for their identity's tokens, in clear text: it does not leave the machine.
const metadataHost = "169.254.169.254"

// machine carries requests to the machine's own endpoints for managed identities and nowhere else, past any proxy.
type machine struct{}

// near is what machine carries requests by.
var near = &http.Transport{Proxy: nil, DisableKeepAlives: true} //nolint:gochecknoglobals // connections are not kept

// RoundTrip implements http.RoundTripper.
func (machine) RoundTrip(r *http.Request) (*http.Response, error) {
	host := r.URL.Hostname()
	if ip := net.ParseIP(host); host != metadataHost && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		err := fmt.Errorf("%w: %s", errForeignHost, host)
		testify(r, err)
		return nil, err
	}
	response, err := near.RoundTrip(r)
	if err != nil {
		testify(r, err)
	}
	return response, err
}
