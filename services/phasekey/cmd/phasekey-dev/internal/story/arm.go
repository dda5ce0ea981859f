package story

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

const (
	// management is Resource Manager's audience, whatever address the simulated one has.
	management = "https://management.azure.com"
	// patience is how long a role assignment may take to show.
	patience  = 15 * time.Second
	retryCall = 300 * time.Millisecond
	// pace is how often a watching program calls.
	pace = 150 * time.Millisecond
)

// ARM is what the demo runs as a child of `phasekey exec`: a program that calls Resource Manager with whatever identity its
// environment names.
type ARM struct {
	ResourceManager, Login, CAFile string
	Method, Path                   string
	// Want is the status that is waited for, while roles replicate.
	Want int
}

// Progress is what has come of it so far.
type Progress struct {
	// Calls counts the calls to Resource Manager, Failed those among them that were not answered with what they asked for.
	Calls  int `json:"calls"`
	Failed int `json:"failed"`
	// Status is the last call's.
	Status int `json:"status"`
	// Tokens counts the different ones that it was given.
	Tokens int `json:"tokens"`
	// Refused says why it was given none any more.
	Refused string `json:"refused,omitempty"`
	// Terminated says that it was told to end.
	Terminated bool `json:"terminated,omitempty"`
}

// Once makes one call, with a credential of the Azure SDK's. A 403 where another status is wanted is tried again for a while.
func (a ARM) Once(ctx context.Context, out io.Writer) error {
	transport, err := trusting(a.CAFile)
	if err != nil {
		return err
	}
	identity, err := azidentity.NewManagedIdentityCredential(nil)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	var p Progress
	for {
		token, err := identity.GetToken(ctx, scope())
		if err != nil {
			return err
		}
		p.Calls++
		if p.Status, err = a.call(ctx, transport, token.Token); err != nil {
			return err
		}
		if p.Status != http.StatusForbidden || a.Want == http.StatusForbidden || time.Now().After(deadline) {
			return json.NewEncoder(out).Encode(p)
		}
		if err := pause(ctx, retryCall); err != nil {
			return err
		}
	}
}

// Watch calls again and again, each time with a token that it asks for anew, and says what has changed, until in ends, it is
// told to terminate, or it is given no token any more.
func (a ARM) Watch(ctx context.Context, in io.Reader, out io.Writer) error {
	transport, err := trusting(a.CAFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel(errThrough)
	}()
	var p Progress
	tokens := map[[sha256.Size]byte]bool{}
	said := json.NewEncoder(out)
	for {
		token, err := a.token(ctx, transport)
		if err != nil && ctx.Err() == nil {
			p.Refused = err.Error()
			return said.Encode(p)
		}
		if err == nil {
			tokens[sha256.Sum256([]byte(token))] = true
			if p.Status, err = a.call(ctx, transport, token); ctx.Err() == nil {
				p.Calls++
				if err != nil || p.Status != http.StatusOK {
					p.Failed++
				}
			}
		}
		if changed := p.Calls == 1 || len(tokens) != p.Tokens; changed || ctx.Err() != nil {
			p.Tokens = len(tokens)
			p.Terminated = ctx.Err() != nil && !errors.Is(context.Cause(ctx), errThrough)
			if err := said.Encode(p); err != nil || ctx.Err() != nil {
				return err
			}
		}
		_ = pause(ctx, pace)
	}
}

// errThrough means that whoever started the program has seen enough.
var errThrough = errors.New("through")

func scope() policy.TokenRequestOptions {
	return policy.TokenRequestOptions{Scopes: []string{management + "/.default"}}
}

// token asks for a token: with the client secret that the environment has, or from its managed identity. SDKs keep tokens
// for as long as they are good, so each is asked for by a credential of its own, and the managed identity without an SDK.
func (a ARM) token(ctx context.Context, transport *http.Transport) (string, error) {
	if clientSecret := os.Getenv("AZURE_CLIENT_SECRET"); clientSecret != "" {
		identity, err := azidentity.NewClientSecretCredential(os.Getenv("AZURE_TENANT_ID"), os.Getenv("AZURE_CLIENT_ID"), clientSecret,
			&azidentity.ClientSecretCredentialOptions{
				DisableInstanceDiscovery: true,
				ClientOptions: azcore.ClientOptions{
					Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: a.Login}, Transport: &http.Client{Transport: transport},
				},
			})
		if err != nil {
			return "", err
		}
		token, err := identity.GetToken(ctx, scope())
		return token.Token, err
	}
	query := url.Values{"api-version": {"2019-08-01"}, "resource": {management}}
	endpoint := os.Getenv("IDENTITY_ENDPOINT") + "?" + query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil) //nolint:gosec // the environment says where an identity is
	if err != nil {
		return "", err
	}
	request.Header.Set("X-Identity-Header", os.Getenv("IDENTITY_HEADER"))
	status, body, err := exchange(&http.Transport{DisableKeepAlives: true}, request)
	if err != nil {
		return "", err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", err
	}
	if status != http.StatusOK {
		return "", fmt.Errorf("%d: %s", status, answer.Description)
	}
	return answer.AccessToken, nil
}

func (a ARM) call(ctx context.Context, transport *http.Transport, token string) (status int, err error) {
	var body io.Reader
	if a.Method == http.MethodPut {
		body = strings.NewReader(`{"location":"westeurope"}`)
	}
	request, err := http.NewRequestWithContext(ctx, a.Method, a.ResourceManager+a.Path+"?api-version=2021-04-01", body)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	status, _, err = exchange(transport, request)
	return status, err
}

func exchange(transport *http.Transport, request *http.Request) (status int, body []byte, err error) {
	client := &http.Client{Timeout: 35 * time.Second, Transport: transport}
	response, err := client.Do(request) //nolint:gosec // as above, or the address that the flag names
	if err != nil {
		return 0, nil, err
	}
	body, err = io.ReadAll(io.LimitReader(response.Body, maxPage))
	return response.StatusCode, body, errors.Join(err, response.Body.Close())
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
