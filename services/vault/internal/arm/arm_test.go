package arm_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/arm"
	"phasekey.dev/services/vault/internal/permission"
)

// customer is a simulated tenant with a subscription, where a platform's application has a principal.
type customer struct {
	t            *testing.T
	sim          *entrasim.Simulator
	client       *arm.Client
	token        secret.Text
	principal    entrasim.ServicePrincipal
	subscription string
}

func newCustomer(t *testing.T) *customer {
	t.Helper()
	sim, err := entrasim.New(entrasim.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// One tenant is enough: the platform's own principal in it.
	tenant, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Customer", Verified: true})
	must(err)
	platform, err := sim.CreatePlatform(entrasim.NewPlatform{Tenant: tenant.ID, DisplayName: "Platform"})
	must(err)
	subscription, err := sim.CreateSubscription(entrasim.Subscription{Tenant: tenant.ID, DisplayName: "Production"})
	must(err)
	principal, err := sim.Principal(tenant.ID, platform.ClientID)
	must(err)
	base, err := url.Parse(sim.Endpoints().ResourceManager)
	must(err)
	c := &customer{t: t, sim: sim, client: arm.New(arm.Config{URL: base, Transport: sim.Transport()}), principal: principal, subscription: "/subscriptions/" + subscription.ID}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {platform.ClientID}, "client_secret": {platform.ClientSecret}, "scope": {base.String() + "/.default"}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, sim.Endpoints().Login+"/"+tenant.ID+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	must(err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := (&http.Client{Transport: sim.Transport()}).Do(request)
	must(err)
	defer func() { _ = response.Body.Close() }()
	var answer struct {
		Token string `json:"access_token"`
	}
	must(json.NewDecoder(response.Body).Decode(&answer))
	c.token = secret.New(answer.Token)
	return c
}

func (c *customer) assign(role, scope string) {
	c.t.Helper()
	if _, err := c.sim.AssignRole(entrasim.NewAssignment{PrincipalID: c.principal.ID, Role: role, Scope: scope}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *customer) see(scope string) permission.Verdict {
	c.t.Helper()
	seen, err := c.client.See(c.t.Context(), c.token, scope, c.principal.ID)
	if err != nil {
		c.t.Fatal(err)
	}
	return permission.Judge(scope, c.principal.ID, seen)
}

func TestClient_SeesWhatIsAssigned(t *testing.T) {
	c := newCustomer(t)
	if v := c.see(c.subscription); v.Visibility != permission.Denied || v.Read != permission.None || v.Write != permission.None {
		t.Errorf("without a role: %+v", v)
	}
	c.assign("Reader", c.subscription)
	v := c.see(c.subscription)
	if v.Visibility != permission.Assignments || v.Read != permission.Full || v.Write != permission.None || v.ReadCommand != "" ||
		!strings.HasSuffix(v.WriteCommand, "--role Contributor --scope "+c.subscription) {
		t.Errorf("as Reader: %+v", v)
	}
	if len(v.Assignments) != 1 || v.Assignments[0].Role != "Reader" || v.Assignments[0].Scope != c.subscription || v.Assignments[0].Conditional {
		t.Errorf("the assignments: %+v", v.Assignments)
	}
	group := c.subscription + "/resourceGroups/network"
	if v := c.see(group); v.Read != permission.Full {
		t.Errorf("below: %+v", v)
	}
	c.assign("Contributor", c.subscription)
	if v := c.see(c.subscription); v.Read != permission.Full || v.Write != permission.Full || v.WriteCommand != "" || len(v.Assignments) != 2 {
		t.Errorf("as Contributor: %+v", v)
	}
}

// fakeManager is a Resource Manager that answers by path.
type fakeManager struct {
	t       *testing.T
	answers map[string]func(*http.Request) (int, string)
	asked   []string
}

func (f *fakeManager) RoundTrip(r *http.Request) (*http.Response, error) {
	f.asked = append(f.asked, r.URL.String())
	if r.URL.Host != "rm.example" || r.Header.Get("Authorization") != "Bearer canary" || r.Method != http.MethodGet {
		f.t.Errorf("%s %s, authorization %q", r.Method, r.URL, r.Header.Get("Authorization"))
	}
	status, body := http.StatusNotFound, `{}`
	if answer := f.answers[r.URL.Path]; answer != nil {
		status, body = answer(r)
	}
	w := httptest.NewRecorder()
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

const (
	managed     = "/providers/Microsoft.Management/managementGroups/corp"
	assignments = managed + "/providers/Microsoft.Authorization/roleAssignments"
	permissions = managed + "/providers/Microsoft.Authorization/permissions"
	custom      = managed + "/providers/Microsoft.Authorization/roleDefinitions/c0ffee"
)

func says(status int, body string) func(*http.Request) (int, string) {
	return func(*http.Request) (int, string) { return status, body }
}

func TestClient_OfManagementGroups(t *testing.T) {
	assigned := func(condition, next string) string {
		return `{"value":[{"properties":{"roleDefinitionId":"` + custom + `","scope":"` + managed + `","condition":` + condition + `}}],"nextLink":` + next + `}`
	}
	network := permission.Assignment{Role: "Network", Scope: managed, Permissions: []permission.Permission{{Actions: []string{"Microsoft.Network/*"}}}}
	conditional := network
	conditional.Conditional = true
	unread := permission.Assignment{Role: "c0ffee", Scope: managed, Permissions: []permission.Permission{}}
	definition := says(http.StatusOK, `{"properties":{"roleName":"Network","permissions":[{"actions":["Microsoft.Network/*"]}]}}`)
	for _, tc := range []struct {
		name    string
		answers map[string]func(*http.Request) (int, string)
		want    permission.Seen
		err     error
		asked   int
	}{
		{"a role of somebody's own", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", "null")), custom: definition},
			permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{network}}, nil, 2},
		{"under a condition", map[string]func(*http.Request) (int, string){assignments: says(200, assigned(`"@Resource[x] StringEquals 'y'"`, `""`)), custom: definition},
			permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{conditional}}, nil, 2},
		{"of several pages", map[string]func(*http.Request) (int, string){assignments: func(r *http.Request) (int, string) {
			if r.URL.Query().Get("$skipToken") == "" {
				return 200, assigned("null", `"https://rm.example`+assignments+`?api-version=2022-04-01&$skipToken=2"`)
			}
			return 200, assigned("null", "null")
		}, custom: definition}, permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{network, network}}, nil, 3},
		{"a list that goes on elsewhere", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", `"https://evil.example/x"`)), custom: definition},
			permission.Seen{}, arm.ErrUnavailable, 2},
		{"a list without an end", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", `"https://rm.example`+assignments+`"`)), custom: definition},
			permission.Seen{}, arm.ErrUnavailable, 21},
		{"a role that cannot be read", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", "null")), custom: says(403, `{}`)},
			permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{unread}}, nil, 2},
		{"without the filter for groups", map[string]func(*http.Request) (int, string){assignments: func(r *http.Request) (int, string) {
			if strings.HasPrefix(r.URL.Query().Get("$filter"), "assignedTo") {
				return 400, `{"error":{"code":"UnsupportedQuery"}}`
			}
			return 200, assigned("null", "null")
		}, custom: definition}, permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{network}}, nil, 3},
		{"what it may do alone", map[string]func(*http.Request) (int, string){assignments: says(403, `{}`), permissions: says(200, `{"value":[{"actions":["*/read"],"notActions":["a"]}]}`)},
			permission.Seen{Visibility: permission.Actions, Allowed: []permission.Permission{{Actions: []string{"*/read"}, NotActions: []string{"a"}}}}, nil, 3},
		{"nothing", map[string]func(*http.Request) (int, string){assignments: says(403, `{}`), permissions: says(200, `{"value":[]}`)},
			permission.Seen{Visibility: permission.Denied}, nil, 3},
		{"nothing at all", nil, permission.Seen{Visibility: permission.Denied}, nil, 3},
		{"throttled", map[string]func(*http.Request) (int, string){assignments: says(429, `{}`)}, permission.Seen{}, arm.ErrUnavailable, 1},
		{"a token that is refused", map[string]func(*http.Request) (int, string){assignments: says(401, `{}`)}, permission.Seen{}, arm.ErrUnavailable, 1},
		{"not JSON", map[string]func(*http.Request) (int, string){assignments: says(200, `<html>`)}, permission.Seen{}, arm.ErrUnavailable, 1},
		{"redirected", map[string]func(*http.Request) (int, string){assignments: says(302, ``)}, permission.Seen{}, arm.ErrUnavailable, 1},
		{"erring later", map[string]func(*http.Request) (int, string){assignments: says(403, `{}`), permissions: says(503, `{}`)}, permission.Seen{}, arm.ErrUnavailable, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fake := &fakeManager{t: t, answers: tc.answers}
			client := arm.New(arm.Config{URL: &url.URL{Scheme: "https", Host: "rm.example"}, Transport: fake})
			got, err := client.See(t.Context(), secret.New("canary"), managed, "oid")
			if diff := cmp.Diff(tc.want, got); diff != "" || !errors.Is(err, tc.err) {
				t.Errorf("error %v (-want +got):\n%s", err, diff)
			}
			if len(fake.asked) != tc.asked {
				t.Errorf("asked %v", fake.asked)
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("the error tells the token: %v", err)
			}
		})
	}
}

func TestClient_EndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	client := arm.New(arm.Config{URL: &url.URL{Scheme: "https", Host: "rm.example"}, Transport: &fakeManager{t: t}})
	if _, err := client.See(ctx, secret.New("canary"), managed, "oid"); !errors.Is(err, context.Canceled) || errors.Is(err, arm.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}
