// Package arm asks Azure Resource Manager what a principal may do, as that principal.
//
// It guarantees that a token goes to the cloud's own host and nowhere else, whatever a redirect or a next link says, and that answers and
// their number are bounded. It changes nothing there, and judges nothing: package permission does.
package arm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/permission"
)

const (
	apiVersion = "2022-04-01"
	// maxResponse bounds one answer, in bytes; maxPages how many of a list are read, maxRoles how many roles are looked up.
	maxResponse = 4 << 20
	maxPages    = 20
	maxRoles    = 50
)

// ErrUnavailable means that Resource Manager does not answer, throttles or errs.
var ErrUnavailable = errors.New("resource manager is not available")

// errDenied means that the principal may not see what it asked for, or that it is not there: Resource Manager says either.
var errDenied = errors.New("denied, or not there")

// Config names one cloud's Resource Manager.
type Config struct {
	// URL is its base.
	URL *url.URL
	// RootCAs verifies its host; nil means the system's.
	RootCAs *x509.CertPool
	// Transport, when set, carries every request instead of connections of the package's own.
	Transport http.RoundTripper
}

// Client asks one cloud's Resource Manager. It is safe for concurrent use.
type Client struct {
	base *url.URL
	http *http.Client
}

// New makes a Client. It sends nothing.
func New(config Config) *Client {
	transport := config.Transport
	if transport == nil {
		transport = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: config.RootCAs},
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: 10 * time.Second,
			IdleConnTimeout:     90 * time.Second,
		}
	}
	return &Client{base: config.URL, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// See says what a principal sees of its own roles in a scope, with a token of its own. ErrUnavailable, or ctx's error. That it may see
// nothing is no error.
func (c *Client) See(ctx context.Context, token secret.Text, scope, principal string) (permission.Seen, error) {
	// assignedTo, unlike principalId, has what is assigned to the principal's groups too; it may want to read them.
	held, err := c.assignments(ctx, token, scope, "assignedTo('"+principal+"')")
	if errors.Is(err, errUnsupported) || errors.Is(err, errDenied) {
		held, err = c.assignments(ctx, token, scope, "principalId eq '"+principal+"'")
	}
	switch {
	case err == nil:
		return permission.Seen{Visibility: permission.Assignments, Assignments: held}, nil
	case !errors.Is(err, errDenied):
		return permission.Seen{}, err
	}
	var own struct {
		Value []permissionJSON `json:"value"`
	}
	err = c.get(ctx, token, scope+"/providers/Microsoft.Authorization/permissions", "", &own)
	switch {
	case errors.Is(err, errDenied), errors.Is(err, errUnsupported):
		return permission.Seen{Visibility: permission.Denied}, nil
	case err != nil:
		return permission.Seen{}, err
	}
	allowed := permissionsOf(own.Value)
	if len(allowed) == 0 {
		return permission.Seen{Visibility: permission.Denied}, nil
	}
	return permission.Seen{Visibility: permission.Actions, Allowed: allowed}, nil
}

type permissionJSON struct {
	Actions    []string `json:"actions"`
	NotActions []string `json:"notActions"`
}

func permissionsOf(all []permissionJSON) []permission.Permission {
	out := make([]permission.Permission, len(all))
	for i, p := range all {
		out[i] = permission.Permission{Actions: p.Actions, NotActions: p.NotActions}
	}
	return out
}

type assignmentsJSON struct {
	Value []struct {
		Properties struct {
			RoleDefinitionID string `json:"roleDefinitionId"`
			Scope            string `json:"scope"`
			Condition        string `json:"condition"`
		} `json:"properties"`
	} `json:"value"`
	NextLink string `json:"nextLink"`
}

// assignments are those that a filter lets through, with what their roles allow.
func (c *Client) assignments(ctx context.Context, token secret.Text, scope, filter string) ([]permission.Assignment, error) {
	roles := map[string]*roleJSON{}
	var out []permission.Assignment
	link := c.address(scope+"/providers/Microsoft.Authorization/roleAssignments", filter)
	for range maxPages {
		var page assignmentsJSON
		if err := c.fetch(ctx, token, link, &page); err != nil {
			return nil, err
		}
		for _, a := range page.Value {
			role, err := c.role(ctx, token, a.Properties.RoleDefinitionID, roles)
			if err != nil {
				return nil, err
			}
			out = append(out, permission.Assignment{
				Role: role.Properties.RoleName, Scope: a.Properties.Scope, Conditional: a.Properties.Condition != "",
				Permissions: permissionsOf(role.Properties.Permissions),
			})
		}
		if page.NextLink == "" {
			return out, nil
		}
		next, err := url.Parse(page.NextLink)
		if err != nil || next.Scheme != c.base.Scheme || next.Host != c.base.Host {
			return nil, fmt.Errorf("%w: a list goes on at another host", ErrUnavailable)
		}
		link = next.String()
	}
	return nil, fmt.Errorf("%w: a list of more than %d pages", ErrUnavailable, maxPages)
}

type roleJSON struct {
	Properties struct {
		RoleName    string           `json:"roleName"`
		Permissions []permissionJSON `json:"permissions"`
	} `json:"properties"`
}

// role looks a role up, once. One that the principal may not read has its ID for a name, and allows something that nobody knows.
func (c *Client) role(ctx context.Context, token secret.Text, id string, known map[string]*roleJSON) (*roleJSON, error) {
	key := strings.ToLower(id)
	if role := known[key]; role != nil {
		return role, nil
	}
	unread := &roleJSON{}
	unread.Properties.RoleName = id[strings.LastIndexByte(id, '/')+1:]
	if len(known) >= maxRoles || !strings.HasPrefix(id, "/") {
		return unread, nil
	}
	role := &roleJSON{}
	err := c.get(ctx, token, id, "", role)
	switch {
	case errors.Is(err, errDenied), errors.Is(err, errUnsupported):
		role = unread
	case err != nil:
		return nil, err
	}
	known[key] = role
	return role, nil
}

func (c *Client) address(path, filter string) string {
	u := c.base.JoinPath(path)
	query := url.Values{"api-version": {apiVersion}}
	if filter != "" {
		query.Set("$filter", filter)
	}
	u.RawQuery = query.Encode()
	return u.String()
}

func (c *Client) get(ctx context.Context, token secret.Text, path, filter string, into any) error {
	return c.fetch(ctx, token, c.address(path, filter), into)
}

// errUnsupported means that the question itself is refused.
var errUnsupported = errors.New("not supported")

func (c *Client) fetch(ctx context.Context, token secret.Text, address string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token.Expose())
	response, err := c.http.Do(request)
	if err != nil {
		if cause := ctx.Err(); cause != nil {
			return cause
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponse))
	switch status := response.StatusCode; {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case status == http.StatusOK:
		if err := json.Unmarshal(body, into); err != nil {
			return fmt.Errorf("%w: an answer that cannot be read: %w", ErrUnavailable, err)
		}
		return nil
	case status == http.StatusForbidden, status == http.StatusNotFound:
		return errDenied
	case status == http.StatusBadRequest:
		return errUnsupported
	default:
		return fmt.Errorf("%w: status %d", ErrUnavailable, status)
	}
}
