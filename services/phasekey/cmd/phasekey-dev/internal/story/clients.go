package story

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

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
	close        func() error
}

func dial(ctx context.Context, dir string, at stack.Endpoints) (*platform, error) {
	source, err := mtls.Open(ctx, mtls.Config{
		CertFile: dir + "/tls/platform.pem", KeyFile: dir + "/tls/platform-key.pem", CAFile: dir + "/tls/ca.pem",
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	p := &platform{close: source.Close}
	connect := func(target, role string) *grpc.ClientConn {
		conn, dialErr := grpcclient.Dial(grpcclient.Config{Target: target, TLS: source.ClientConfig(stack.ID(role))})
		if dialErr != nil {
			err = errors.Join(err, dialErr)
			return nil
		}
		release := p.close
		p.close = func() error { return errors.Join(conn.Close(), release()) }
		return conn
	}
	registry, broker, vault := connect(at.Registry, "registry"), connect(at.Broker, "broker"), connect(at.Vault, "vault")
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.integrations = registryv1.NewIntegrationServiceClient(registry)
	p.projects = registryv1.NewProjectServiceClient(registry)
	p.attachments = registryv1.NewAttachmentServiceClient(registry)
	p.consent = brokerv1.NewConsentServiceClient(broker)
	p.grants = vaultv1.NewGrantServiceClient(vault)
	return p, nil
}

// customer is the customer's administrator: a browser at Entra's pages, and the tools of the Azure portal.
type customer struct {
	http  *http.Client
	admin string
	world stack.World
}

func newCustomer(dir string, at stack.Endpoints, world stack.World) (*customer, error) {
	pem, err := os.ReadFile(dir + "/tls/ca.pem") //nolint:gosec // a file of the stack's own folder
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("ca.pem has no certificate")
	}
	return &customer{
		http: &http.Client{
			Timeout:   10 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}},
			// The redirect back to the platform is looked at, not followed.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		admin: at.SimulatorAdmin, world: world,
	}, nil
}

// consent opens the page, signs in and approves. It returns the code that the page shows when it does not send the browser
// back.
func (c *customer) consent(ctx context.Context, page string) (refusal string, err error) {
	u, err := url.Parse(page)
	if err != nil {
		return "", err
	}
	if _, err := c.do(ctx, http.MethodGet, page, "", nil); err != nil {
		return "", err
	}
	form := u.Query()
	form.Set("username", c.world.Administrator)
	form.Set("decision", "accept")
	u.RawQuery = ""
	answer, err := c.do(ctx, http.MethodPost, u.String(), "application/x-www-form-urlencoded", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	if answer.status != http.StatusFound {
		return code(answer.body), nil
	}
	back, err := url.Parse(answer.location)
	if err != nil {
		return "", err
	}
	if back.Query().Get("admin_consent") != "True" || back.Query().Get("error") != "" {
		return back.Query().Get("error"), nil
	}
	return "", nil
}

// assign gives a principal a role on the subscription.
func (c *customer) assign(ctx context.Context, principal, role string) error {
	return c.ask(ctx, http.MethodPost, "/roleAssignments", map[string]string{
		"scope": "/subscriptions/" + c.world.Subscription, "principalId": principal, "role": role,
	}, nil)
}

// principalName is what the customer's tenant calls an application's service principal.
func (c *customer) principalName(ctx context.Context, clientID string) (string, error) {
	var out struct {
		DisplayName string `json:"displayName"`
	}
	query := url.Values{"tenant": {c.world.CustomerTenant}, "clientId": {clientID}}
	err := c.ask(ctx, http.MethodGet, "/principals?"+query.Encode(), nil, &out)
	return out.DisplayName, err
}

func (c *customer) ask(ctx context.Context, method, path string, in, out any) error {
	var payload io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(text)
	}
	got, err := c.do(ctx, method, c.admin+path, "application/json", payload)
	if err != nil {
		return err
	}
	if got.status != http.StatusOK {
		return fmt.Errorf("%s %s: status %d: %s", method, path, got.status, got.body)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(got.body, out)
}

// answer is an HTTP answer, read.
type answer struct {
	status   int
	location string
	body     []byte
}

func (c *customer) do(ctx context.Context, method, where, contentType string, body io.Reader) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, where, body)
	if err != nil {
		return answer{}, err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return answer{}, err
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxPage))
	return answer{response.StatusCode, response.Header.Get("Location"), text}, errors.Join(err, response.Body.Close())
}

// maxPage bounds what is read of an answer.
const maxPage = 1 << 20

// code finds the AADSTS code on a page.
func code(page []byte) string {
	_, after, found := bytes.Cut(page, []byte("AADSTS"))
	if !found {
		return "a page without a code"
	}
	end := bytes.IndexFunc(after, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(after)
	}
	return "AADSTS" + string(after[:end])
}
