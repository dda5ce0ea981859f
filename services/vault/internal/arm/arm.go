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
	"slices"
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

// errDenyAssignment means that it may not see it in spite of its roles.
var errDenyAssignment = fmt.Errorf("%w: by a deny assignment", errDenied)

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

// See says what a principal sees of its own roles in a scope, and of what is denied to it, with a token of its own. ErrUnavailable, or
// ctx's error. That it may see nothing is no error.
func (c *Client) See(ctx context.Context, token secret.Text, scope, principal string) (permission.Seen, error) {
	seen, err := c.roles(ctx, token, scope, principal)
	if err != nil || seen.Visibility == permission.Denied {
		return seen, err
	}
	seen.Denials, err = c.denials(ctx, token, scope, principal)
	if refused(err) {
		seen.Hidden, err = true, nil
	}
	return seen, err
}

// roles says what is seen of the principal's roles.
func (c *Client) roles(ctx context.Context, token secret.Text, scope, principal string) (permission.Seen, error) {
	// assignedTo, unlike principalId, has what is assigned to the principal's groups too; it may want to read them.
	held, err := c.assignments(ctx, token, scope, "assignedTo('"+principal+"')")
	if refused(err) {
		held, err = c.assignments(ctx, token, scope, "principalId eq '"+principal+"'")
	}
	switch {
	case err == nil:
		return permission.Seen{Visibility: permission.Assignments, Assignments: held}, c.place(ctx, token, scope, principal, held)
	case !refused(err):
		return permission.Seen{}, err
	}
	var own struct {
		Value []permissionJSON `json:"value"`
	}
	hidden := errors.Is(err, errDenyAssignment)
	err = c.get(ctx, token, scope+"/providers/Microsoft.Authorization/permissions", "", &own)
	switch {
	case refused(err):
		return permission.Seen{Visibility: permission.Denied, Hidden: hidden || errors.Is(err, errDenyAssignment)}, nil
	case err != nil:
		return permission.Seen{}, err
	}
	allowed := permissionsOf(own.Value)
	if len(allowed) == 0 {
		return permission.Seen{Visibility: permission.Denied, Hidden: hidden}, nil
	}
	return permission.Seen{Visibility: permission.Actions, Allowed: allowed}, nil
}

// refused reports whether an error is Resource Manager's no, in whichever words.
func refused(err error) bool {
	return errors.Is(err, errDenied) || errors.Is(err, errUnsupported)
}

// place finds out which assignments of other management groups than the one that is looked at are above it. Where that is not to be
// known, they count as below.
func (c *Client) place(ctx context.Context, token secret.Text, scope, principal string, held []permission.Assignment) error {
	another := func(a permission.Assignment) bool {
		return isManagementGroup(a.Scope) && !strings.EqualFold(a.Scope, scope)
	}
	if !isManagementGroup(scope) || !slices.ContainsFunc(held, another) {
		return nil
	}
	above, err := list[assignmentJSON](ctx, c, token, scope+"/providers/Microsoft.Authorization/roleAssignments", "atScope() and assignedTo('"+principal+"')")
	if refused(err) {
		return nil
	}
	for i := range held {
		held[i].Above = another(held[i]) && slices.ContainsFunc(above, func(a assignmentJSON) bool { return strings.EqualFold(a.Properties.Scope, held[i].Scope) })
	}
	return err
}

func isManagementGroup(scope string) bool {
	return strings.HasPrefix(strings.ToLower(scope), "/providers/microsoft.management/managementgroups/")
}

type denialJSON struct {
	ID         string `json:"id"`
	Properties struct {
		Name                    string           `json:"denyAssignmentName"`
		Scope                   string           `json:"scope"`
		DoNotApplyToChildScopes bool             `json:"doNotApplyToChildScopes"`
		Permissions             []permissionJSON `json:"permissions"`
		Principals              []principalJSON  `json:"principals"`
		ExcludePrincipals       []principalJSON  `json:"excludePrincipals"`
	} `json:"properties"`
}

type principalJSON struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}

// allPrincipals stands for everybody in a deny assignment.
const allPrincipals = "00000000-0000-0000-0000-000000000000"

// denials are the deny assignments that are in force in a scope against a principal. Those below it are left out: services have them on
// the resource groups that they manage, where nobody else is to change anything.
func (c *Client) denials(ctx context.Context, token secret.Text, scope, principal string) ([]permission.Denial, error) {
	path := scope + "/providers/Microsoft.Authorization/denyAssignments"
	all, err := list[denialJSON](ctx, c, token, path, "atScope()")
	if err != nil {
		return nil, err
	}
	var mine []denialJSON
	if slices.ContainsFunc(all, func(d denialJSON) bool { return slices.ContainsFunc(d.Properties.Principals, principalJSON.isGroup) }) {
		if mine, err = list[denialJSON](ctx, c, token, path, "atScope() and assignedTo('"+principal+"')"); err != nil {
			return nil, err
		}
	}
	is := func(p principalJSON) bool { return strings.EqualFold(p.ID, principal) }
	var out []permission.Denial
	for _, d := range all {
		concerned := slices.ContainsFunc(d.Properties.Principals, func(p principalJSON) bool { return is(p) || p.ID == allPrincipals }) ||
			slices.ContainsFunc(mine, func(m denialJSON) bool { return m.ID == d.ID })
		elsewhere := d.Properties.DoNotApplyToChildScopes && !strings.EqualFold(d.Properties.Scope, scope)
		if concerned && !elsewhere && !slices.ContainsFunc(d.Properties.ExcludePrincipals, is) {
			out = append(out, permission.Denial{Name: d.Properties.Name, Scope: d.Properties.Scope, Permissions: permissionsOf(d.Properties.Permissions)})
		}
	}
	return out, nil
}

func (p principalJSON) isGroup() bool { return strings.EqualFold(p.Type, "Group") }

type permissionJSON struct {
	Actions     []string `json:"actions"`
	NotActions  []string `json:"notActions"`
	DataActions []string `json:"dataActions"`
}

func permissionsOf(all []permissionJSON) []permission.Permission {
	out := make([]permission.Permission, len(all))
	for i, p := range all {
		out[i] = permission.Permission{Actions: p.Actions, NotActions: p.NotActions}
	}
	return out
}

type assignmentJSON struct {
	Properties struct {
		RoleDefinitionID string `json:"roleDefinitionId"`
		Scope            string `json:"scope"`
		Condition        string `json:"condition"`
	} `json:"properties"`
}

// assignments are those that a filter lets through, with what their roles allow.
func (c *Client) assignments(ctx context.Context, token secret.Text, scope, filter string) ([]permission.Assignment, error) {
	all, err := list[assignmentJSON](ctx, c, token, scope+"/providers/Microsoft.Authorization/roleAssignments", filter)
	if err != nil {
		return nil, err
	}
	roles := map[string]*roleJSON{}
	var out []permission.Assignment
	for _, a := range all {
		role, err := c.role(ctx, token, scope, a.Properties.RoleDefinitionID, roles)
		if err != nil {
			return nil, err
		}
		out = append(out, permission.Assignment{
			Role: role.Properties.RoleName, Scope: a.Properties.Scope, Conditional: a.Properties.Condition != "",
			Data:        slices.ContainsFunc(role.Properties.Permissions, func(p permissionJSON) bool { return len(p.DataActions) > 0 }),
			Permissions: permissionsOf(role.Properties.Permissions),
		})
	}
	return out, nil
}

// list is all of a list, page by page.
func list[T any](ctx context.Context, c *Client, token secret.Text, path, filter string) ([]T, error) {
	var out []T
	link := c.address(path, filter)
	for range maxPages {
		var page struct {
			Value    []T    `json:"value"`
			NextLink string `json:"nextLink"`
		}
		if err := c.fetch(ctx, token, link, &page); err != nil {
			return nil, err
		}
		out = append(out, page.Value...)
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

// role looks a role up, once: as it is called in the scope, where the principal may read what it may read at all, and by its own ID
// where it is not known there. One that the principal may not read has its ID for a name, and allows something that nobody knows.
func (c *Client) role(ctx context.Context, token secret.Text, scope, id string, known map[string]*roleJSON) (*roleJSON, error) {
	key := strings.ToLower(id)
	if role := known[key]; role != nil {
		return role, nil
	}
	name := id[strings.LastIndexByte(id, '/')+1:]
	unread := &roleJSON{}
	unread.Properties.RoleName = name
	if len(known) >= maxRoles || !strings.HasPrefix(id, "/") {
		return unread, nil
	}
	role := &roleJSON{}
	err := c.get(ctx, token, scope+"/providers/Microsoft.Authorization/roleDefinitions/"+name, "", role)
	if refused(err) && !strings.HasPrefix(key, strings.ToLower(scope)+"/providers/microsoft.authorization/") {
		err = c.get(ctx, token, id, "", role)
	}
	switch {
	case refused(err):
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
	case status == http.StatusForbidden && codeOf(body) == "DenyAssignmentAuthorizationFailed":
		return errDenyAssignment
	case status == http.StatusForbidden, status == http.StatusNotFound:
		return errDenied
	case status == http.StatusBadRequest:
		return errUnsupported
	default:
		return fmt.Errorf("%w: status %d", ErrUnavailable, status)
	}
}

// codeOf is the code of an error's body, empty for one that cannot be read.
func codeOf(body []byte) string {
	var failed struct {
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &failed) != nil {
		return ""
	}
	return failed.Error.Code
}
