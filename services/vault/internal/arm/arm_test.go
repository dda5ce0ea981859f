package arm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

const (
	landing = "/providers/Microsoft.Management/managementGroups/landing"
	corp    = "/providers/Microsoft.Management/managementGroups/corp"
	online  = "/providers/Microsoft.Management/managementGroups/online"
)

// inGroups has a customer's management groups: landing, with corp and online in it, and a subscription in corp.
func inGroups(t *testing.T) *customer {
	t.Helper()
	c := newCustomer(t)
	for _, m := range []entrasim.ManagementGroup{{ID: "landing"}, {ID: "corp", Parent: "landing"}, {ID: "online", Parent: "landing"}} {
		m.Tenant = c.principal.Tenant
		if _, err := c.sim.CreateManagementGroup(m); err != nil {
			t.Fatal(err)
		}
	}
	inside, err := c.sim.CreateSubscription(entrasim.Subscription{Tenant: c.principal.Tenant, ManagementGroup: "corp"})
	if err != nil {
		t.Fatal(err)
	}
	c.subscription = "/subscriptions/" + inside.ID
	return c
}

func TestClient_SeesRolesThroughManagementGroups(t *testing.T) {
	full, part, none := permission.Full, permission.Partial, permission.None
	for _, tc := range []struct {
		name     string
		assigned string
		levels   map[string]permission.Level // of changing things, by scope
	}{
		{"at the top", landing, map[string]permission.Level{landing: full, corp: full, online: full, "subscription": full}},
		{"in the middle", corp, map[string]permission.Level{corp: full, "subscription": full, online: none}},
		{"in the subscription", "subscription", map[string]permission.Level{"subscription": full, online: none, landing: none}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := inGroups(t)
			at := map[string]string{"subscription": c.subscription}
			place := func(scope string) string {
				if known := at[scope]; known != "" {
					return known
				}
				return scope
			}
			c.assign("Contributor", place(tc.assigned))
			for scope, want := range tc.levels {
				if v := c.see(place(scope)); v.Write != want || (want == none) != (v.Visibility == permission.Denied) {
					t.Errorf("%s: %+v, want %s", scope, v, want)
				}
			}
		})
	}
	t.Run("above and below at once", func(t *testing.T) {
		c := inGroups(t)
		c.assign("Reader", landing)
		c.assign("Contributor", online)
		v := c.see(corp)
		if v.Read != full || v.Write != none || len(v.Assignments) != 1 || !v.Assignments[0].Above {
			t.Errorf("in the middle: %+v", v)
		}
		if v := c.see(landing); v.Read != full || v.Write != part || len(v.Assignments) != 2 {
			t.Errorf("at the top: %+v", v)
		}
	})
}

func TestClient_SeesWhatIsDenied(t *testing.T) {
	full, part, none := permission.Full, permission.Partial, permission.None
	for _, tc := range []struct {
		name        string
		denial      entrasim.DenyAssignment
		read, write permission.Level
		denied      bool
		shown       int
	}{
		{"changing, by a stack", entrasim.DenyAssignment{Scope: corp, Actions: []string{"*/write", "*/delete"}}, full, part, true, 1},
		{"all but reading, by a service", entrasim.DenyAssignment{Scope: landing, Actions: []string{"*"}, NotActions: []string{"*/read"}}, full, none, true, 1},
		{"everything", entrasim.DenyAssignment{Scope: corp, Actions: []string{"*"}}, none, none, true, 0},
		{"data", entrasim.DenyAssignment{Scope: corp, DataActions: []string{"*"}}, full, full, false, 1},
		{"beside", entrasim.DenyAssignment{Scope: online, Actions: []string{"*"}}, full, full, false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := inGroups(t)
			c.assign("Contributor", landing)
			tc.denial.Tenant, tc.denial.Name, tc.denial.Principals = c.principal.Tenant, "a stack", []string{entrasim.AllPrincipals}
			if _, err := c.sim.Deny(tc.denial); err != nil {
				t.Fatal(err)
			}
			v := c.see(c.subscription)
			if v.Read != tc.read || v.Write != tc.write || v.Denied != tc.denied || len(v.Denials) != tc.shown {
				t.Errorf("%+v", v)
			}
			if tc.shown > 0 && (v.Denials[0].Name != "a stack" || v.Denials[0].Scope != tc.denial.Scope || v.WriteCommand != "") {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestClient_TellsOfDataActions(t *testing.T) {
	c := newCustomer(t)
	c.assign("Reader", c.subscription)
	c.assign("Storage Blob Data Reader", c.subscription)
	v := c.see(c.subscription)
	data := map[string]bool{}
	for _, a := range v.Assignments {
		data[a.Role] = a.Data
	}
	if diff := cmp.Diff(map[string]bool{"Reader": false, "Storage Blob Data Reader": true}, data); diff != "" || v.Read != permission.Full {
		t.Errorf("read %s (-want +got):\n%s", v.Read, diff)
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
	if r.URL.Path == denials {
		status, body = http.StatusOK, `{"value":[]}`
	}
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
	denials     = managed + "/providers/Microsoft.Authorization/denyAssignments"
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
			permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{network}}, nil, 3},
		{"under a condition", map[string]func(*http.Request) (int, string){assignments: says(200, assigned(`"@Resource[x] StringEquals 'y'"`, `""`)), custom: definition},
			permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{conditional}}, nil, 3},
		{"of several pages", map[string]func(*http.Request) (int, string){assignments: func(r *http.Request) (int, string) {
			if r.URL.Query().Get("$skipToken") == "" {
				return 200, assigned("null", `"https://rm.example`+assignments+`?api-version=2022-04-01&$skipToken=2"`)
			}
			return 200, assigned("null", "null")
		}, custom: definition}, permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{network, network}}, nil, 4},
		{"a list that goes on elsewhere", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", `"https://evil.example/x"`)), custom: definition},
			permission.Seen{}, arm.ErrUnavailable, 1},
		{"a list without an end", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", `"https://rm.example`+assignments+`"`)), custom: definition},
			permission.Seen{}, arm.ErrUnavailable, 20},
		{"a role that cannot be read", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", "null")), custom: says(403, `{}`)},
			permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{unread}}, nil, 3},
		{"without the filter for groups", map[string]func(*http.Request) (int, string){assignments: func(r *http.Request) (int, string) {
			if strings.HasPrefix(r.URL.Query().Get("$filter"), "assignedTo") {
				return 400, `{"error":{"code":"UnsupportedQuery"}}`
			}
			return 200, assigned("null", "null")
		}, custom: definition}, permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{network}}, nil, 4},
		{"what it may do alone", map[string]func(*http.Request) (int, string){assignments: says(403, `{}`), permissions: says(200, `{"value":[{"actions":["*/read"],"notActions":["a"]}]}`)},
			permission.Seen{Visibility: permission.Actions, Allowed: []permission.Permission{{Actions: []string{"*/read"}, NotActions: []string{"a"}}}}, nil, 4},
		{"without deny assignments to be seen", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", "null")), custom: definition, denials: says(403, `{}`)},
			permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{network}, Hidden: true}, nil, 3},
		{"denied everything", map[string]func(*http.Request) (int, string){assignments: says(403, `{"error":{"code":"DenyAssignmentAuthorizationFailed"}}`)},
			permission.Seen{Visibility: permission.Denied, Hidden: true}, nil, 3},
		{"deny assignments that are not told", map[string]func(*http.Request) (int, string){assignments: says(200, assigned("null", "null")), custom: definition, denials: says(503, ``)},
			permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{network}}, arm.ErrUnavailable, 3},
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

// elsewhere is a Resource Manager that sends whoever asks somewhere else.
type elsewhere struct {
	status int
	to     string
	asked  []string
}

func (e *elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	e.asked = append(e.asked, r.URL.String())
	w := httptest.NewRecorder()
	w.Header().Set("Location", e.to)
	w.WriteHeader(e.status)
	return w.Result(), nil
}

func TestClient_ATokenGoesNowhereElse(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, to := range []string{"https://evil.example/x", "https://sub.rm.example/x", "http://rm.example/x", "/x"} {
			fake := &elsewhere{status: status, to: to}
			client := arm.New(arm.Config{URL: &url.URL{Scheme: "https", Host: "rm.example"}, Transport: fake})
			if _, err := client.See(t.Context(), secret.New("canary"), managed, "oid"); !errors.Is(err, arm.ErrUnavailable) || len(fake.asked) != 1 {
				t.Errorf("%d to %s: error %v, asked %v", status, to, err, fake.asked)
			}
		}
	}
}

func TestClient_DenyAssignments(t *testing.T) {
	everything := []permission.Permission{{Actions: []string{"*"}}}
	denial := func(name string) permission.Denial {
		return permission.Denial{Name: name, Scope: managed, Permissions: everything}
	}
	one := func(name, scope, principals, excluded string, here bool) string {
		return fmt.Sprintf(`{"id":%q,"properties":{"denyAssignmentName":%q,"scope":%q,"doNotApplyToChildScopes":%t,"permissions":[{"actions":["*"]}],"principals":[%s],"excludePrincipals":[%s]}}`,
			name, name, scope, here, principals, excluded)
	}
	const me, everybody, group, other = `{"id":"OID","type":"ServicePrincipal"}`, `{"id":"00000000-0000-0000-0000-000000000000","type":"SystemDefined"}`, `{"id":"group","type":"Group"}`, `{"id":"other","type":"User"}`
	for _, tc := range []struct {
		name      string
		all, mine string
		want      []permission.Denial
		asked     int
	}{
		{"of the principal", one("a", managed, other+","+me, "", false), "", []permission.Denial{denial("a")}, 1},
		{"of somebody else", one("a", managed, other, "", false), "", nil, 1},
		{"of everybody", one("a", managed, everybody, other, false), "", []permission.Denial{denial("a")}, 1},
		{"of everybody but the principal", one("a", managed, everybody, me, false), "", nil, 1},
		{"of everybody but a group", one("a", managed, everybody, group, false), "", []permission.Denial{denial("a")}, 1},
		{"of a group that it is in, and of one that it is not", one("a", managed, group, "", false) + "," + one("b", managed, group, "", false), one("a", managed, group, "", false), []permission.Denial{denial("a")}, 2},
		{"in the scope alone", one("a", managed, everybody, "", true), "", []permission.Denial{denial("a")}, 1},
		{"in the scope alone, in other letters", one("a", strings.ToUpper(managed), everybody, "", true), "", []permission.Denial{{Name: "a", Scope: strings.ToUpper(managed), Permissions: everything}}, 1},
		{"in a scope above alone", one("a", managed+"-above", everybody, "", true), "", nil, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked := 0
			fake := &fakeManager{t: t, answers: map[string]func(*http.Request) (int, string){
				assignments: says(200, `{"value":[]}`),
				denials: func(r *http.Request) (int, string) {
					asked++
					if r.URL.Query().Get("$filter") == "atScope()" {
						return 200, `{"value":[` + tc.all + `]}`
					}
					return 200, `{"value":[` + tc.mine + `]}`
				},
			}}
			client := arm.New(arm.Config{URL: &url.URL{Scheme: "https", Host: "rm.example"}, Transport: fake})
			got, err := client.See(t.Context(), secret.New("canary"), managed, "oid")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got.Denials); diff != "" || asked != tc.asked {
				t.Errorf("asked %d times (-want +got):\n%s", asked, diff)
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
