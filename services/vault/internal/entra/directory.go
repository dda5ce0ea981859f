// Package entra speaks to Entra ID and Microsoft Graph with Microsoft's SDKs, for one cloud each Directory.
//
// It guarantees that one call is at most one request that changes anything: the SDKs' own retries are off, because
// Graph's default middleware answers a lost reply to addPassword by making another password, and every retry has to be
// counted and budgeted by the caller. It guarantees too that nothing is sent beyond the cloud's own hosts, whatever a
// redirect, a discovery document or a next link says. It decides nothing: refusals come back as *directory.Error.
//
// It is the only package that imports the Graph SDK, whose models take minutes to compile.
package entra

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	abstractions "github.com/microsoft/kiota-abstractions-go"
	jsonserialization "github.com/microsoft/kiota-serialization-json-go"
	graphcore "github.com/microsoftgraph/msgraph-sdk-go-core"
	graphauth "github.com/microsoftgraph/msgraph-sdk-go-core/authentication"

	"phasekey.dev/services/vault/internal/directory"
)

// maxResponse bounds what is read of any answer. An application with all the passwords it can hold is far below it.
const maxResponse = 4 << 20

// Config names one cloud and the platform's own identity there.
type Config struct {
	// Login is the base URL of the token service, for example that of the public cloud.
	Login *url.URL
	// Graph is the base URL of Microsoft Graph, without a version.
	Graph *url.URL
	// ResourceManager is the base URL of Azure Resource Manager.
	ResourceManager *url.URL
	// GraphAudience and ResourceManagerAudience are what tokens for them are asked for, without `/.default`; empty means the
	// URL's origin, as in all of Azure's own clouds.
	GraphAudience           string
	ResourceManagerAudience string
	// HomeTenantID is the platform's own tenant, which has the applications.
	HomeTenantID string
	// ClientID is the platform's own application, which makes the others. It needs Application.ReadWrite.OwnedBy.
	ClientID string
	// Credential is how it shows who it is.
	Credential Credential
	// RootCAs verifies the hosts; nil means the system's.
	RootCAs *x509.CertPool
	// Transport, when set, carries every request instead of connections of the package's own.
	Transport http.RoundTripper
}

// Directory is one cloud's Entra ID and Graph.
type Directory struct {
	config    Config
	hosts     []string
	authority policy.ClientOptions
	adapter   abstractions.RequestAdapter
	graph     string

	// ownID is the platform's own application's object ID, empty if it has none that we may see; nil until that was asked.
	ownID atomic.Pointer[string]
}

// New makes a Directory. It sends nothing.
func New(config Config) (*Directory, error) {
	for name, u := range map[string]*url.URL{"login": config.Login, "graph": config.Graph, "resource manager": config.ResourceManager} {
		if u == nil || u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("the %s URL must be https with a host", name)
		}
	}
	d := &Directory{
		config: config,
		hosts:  []string{config.Login.Host, config.Graph.Host},
		graph:  config.Graph.JoinPath("v1.0").String(),
	}
	d.authority = policy.ClientOptions{
		Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: config.Login.String()},
		// 0 would mean three.
		Retry:     policy.RetryOptions{MaxRetries: -1},
		Telemetry: policy.TelemetryOptions{Disabled: true},
	}
	client := &http.Client{
		Transport: d.transport(false),
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	options := d.authority
	options.Transport = client
	credential, err := d.own(options)
	if err != nil {
		return nil, fmt.Errorf("the platform's own credential: %w", err)
	}
	provider, err := graphauth.NewAzureIdentityAuthenticationProviderWithScopesAndValidHosts(
		credential, []string{origin(config.GraphAudience, config.Graph) + "/.default"}, []string{config.Graph.Hostname()})
	if err != nil {
		return nil, fmt.Errorf("graph authentication: %w", err)
	}
	// Own factories instead of the SDK's root package, which registers them for the whole process and costs minutes more to
	// compile. Own client instead of the SDK's, which retries.
	adapter, err := graphcore.NewGraphRequestAdapterBaseWithParseNodeFactoryAndSerializationWriterFactoryAndHttpClient(
		provider, graphcore.GraphClientOptions{},
		jsonserialization.NewJsonParseNodeFactory(), jsonserialization.NewJsonSerializationWriterFactory(), client)
	if err != nil {
		return nil, fmt.Errorf("graph client: %w", err)
	}
	adapter.SetBaseUrl(d.graph)
	d.adapter = adapter
	return d, nil
}

// HomeTenantID is the platform's own tenant in this cloud.
func (d *Directory) HomeTenantID() string { return d.config.HomeTenantID }

// ResourceManager is the audience of Azure Resource Manager in this cloud.
func (d *Directory) ResourceManager() string {
	return origin(d.config.ResourceManagerAudience, d.config.ResourceManager)
}

func origin(audience string, u *url.URL) string {
	if audience != "" {
		return strings.TrimSuffix(audience, "/")
	}
	return u.Scheme + "://" + u.Host
}

func (d *Directory) credential(r directory.TokenRequest, options policy.ClientOptions) (azcore.TokenCredential, error) {
	if r.Assertion.Expose() != "" {
		show := func(context.Context) (string, error) { return r.Assertion.Expose(), nil }
		made, err := azidentity.NewClientAssertionCredential(r.TenantID, r.ClientID, show, &azidentity.ClientAssertionCredentialOptions{
			ClientOptions: options, DisableInstanceDiscovery: true,
		})
		if err != nil {
			return nil, err
		}
		return quiet{made}, nil
	}
	made, err := azidentity.NewClientSecretCredential(r.TenantID, r.ClientID, r.Secret.Expose(), &azidentity.ClientSecretCredentialOptions{
		ClientOptions: options,
		// Discovery asks the public cloud's login host, whichever cloud is meant.
		DisableInstanceDiscovery: true,
	})
	if err != nil {
		return nil, err
	}
	return quiet{made}, nil
}

// transport carries requests to the cloud's own hosts and nowhere else. With fresh set, every request gets a connection of
// its own, so that it lands on whichever replica the service's balancer picks.
func (d *Directory) transport(fresh bool) http.RoundTripper {
	next := d.config.Transport
	if next == nil {
		next = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.config.RootCAs},
			ForceAttemptHTTP2:     true,
			DisableKeepAlives:     fresh,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
			IdleConnTimeout:       90 * time.Second,
			MaxIdleConnsPerHost:   16,
		}
	}
	return &guard{hosts: d.hosts, next: next}
}

var errForeignHost = errors.New("refused to send a request beyond the cloud's own hosts")

// guard keeps requests at home and answers bounded.
type guard struct {
	hosts []string
	next  http.RoundTripper
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || !slices.Contains(g.hosts, r.URL.Host) {
		err := fmt.Errorf("%w: %s", errForeignHost, r.URL.Host)
		testify(r, err)
		return nil, err
	}
	response, err := g.next.RoundTrip(r)
	if err != nil {
		testify(r, err)
		return nil, err
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(response.Body, maxResponse), response.Body}
	return response, nil
}
