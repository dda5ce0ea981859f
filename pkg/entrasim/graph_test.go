package entrasim_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

func TestGraph_UpsertByUniqueName(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	const path = "/applications(uniqueName='it''s%20one')"
	if got := w.graph(http.MethodPatch, path, appBody); got.status != 404 || got.text("error/code") != "Request_ResourceNotFound" {
		t.Errorf("without the preference: %d %s", got.status, got.body)
	}
	made := w.graph(http.MethodPatch, path, appBody, "Prefer", "create-if-missing")
	if made.status != 201 || made.text("uniqueName") != "it's one" || made.text("signInAudience") != "AzureADMultipleOrgs" || made.text("publisherDomain") != "home.example.com" {
		t.Fatalf("create: %d %s", made.status, made.body)
	}
	if made.text("@odata.context") != "https://graph.microsoft.com/v1.0/$metadata#applications/$entity" || made.at("servicePrincipalLockConfiguration/isEnabled") != true {
		t.Errorf("created %s", made.body)
	}
	again := w.graph(http.MethodPatch, path, `{"displayName":"renamed","web":{"homePageUrl":"https://x.example.com"}}`, "Prefer", "create-if-missing")
	if again.status != 204 || again.body != "" {
		t.Errorf("repeat: %d %s", again.status, again.body)
	}
	got := w.graph(http.MethodGet, path, "")
	uris, _ := got.at("web/redirectUris").([]any)
	if got.text("id") != made.text("id") || got.text("displayName") != "renamed" || len(uris) != 1 || got.text("web/homePageUrl") != "https://x.example.com" {
		t.Errorf("after the repeat: %s", got.body)
	}
}

func TestGraph_ReadsByEveryKey(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	for _, path := range []string{
		"/applications/" + a.id, "/applications(appId='" + a.clientID + "')", "/applications(uniqueName='one')", "/applications('" + a.id + "')",
	} {
		if got := w.graph(http.MethodGet, path, ""); got.status != 200 || got.text("appId") != a.clientID || !strings.HasPrefix(got.header.Get("Content-Type"), "application/json") {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	got := w.graph(http.MethodGet, "/applications/"+a.clientID, "")
	if got.status != 404 || got.text("error/message") != "Resource '"+a.clientID+"' does not exist or one of its queried reference-property objects are not present." {
		t.Errorf("an application ID where an object ID is due: %d %s", got.status, got.body)
	}
	if got.text("error/innerError/request-id") != got.header.Get("Request-Id") || got.text("error/innerError/date") == "" {
		t.Errorf("error %s with header %v", got.body, got.header)
	}
	if got := w.graph(http.MethodGet, "/applications/"+a.id+"?$select=appId,displayName", ""); len(got.json) != 3 {
		t.Errorf("select: %s", got.body)
	}
	if got := w.graph(http.MethodGet, "/applications/"+a.id+"?$select=nothing", ""); got.status != 400 {
		t.Errorf("select of an unknown property: %d", got.status)
	}
}

func TestGraph_ListsFilterAndPage(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	var ids []string
	for _, name := range []string{"a-1", "a-2", "a-3", "b-1"} {
		ids = append(ids, w.newApp(name).clientID)
		w.graph(http.MethodPatch, "/applications(uniqueName='"+name+"')", `{"displayName":"`+name+`"}`)
	}
	for filter, want := range map[string]int{
		"appId eq '" + ids[0] + "'":                                   1,
		"uniqueName eq 'a-2'":                                         1,
		"displayName eq 'none'":                                       0,
		"startswith(displayName,'a-')":                                3,
		"startsWith(displayName, 'a-') and not (uniqueName eq 'a-1')": 2,
		"displayName in ('a-1','b-1')":                                2,
	} {
		got := w.graph(http.MethodGet, "/applications?$filter="+url.QueryEscape(filter), "")
		if list, ok := got.at("value").([]any); !ok || len(list) != want {
			t.Errorf("%s: %d %s", filter, got.status, got.body)
		}
	}
	for _, filter := range []string{"displayName", "displayName eq", "nope eq 'x'", "(displayName eq 'x'", "eq eq eq eq"} {
		if got := w.graph(http.MethodGet, "/applications?$filter="+url.QueryEscape(filter), ""); got.status != 400 {
			t.Errorf("%s: %d", filter, got.status)
		}
	}
	for _, option := range []string{"$search", "$orderby", "$skip", "$apply", "$expand"} {
		if got := w.graph(http.MethodGet, "/applications?"+option+"=x", ""); got.status != 400 || got.text("error/code") != "Request_UnsupportedQuery" {
			t.Errorf("%s is not heeded, and the answer is %d %s", option, got.status, got.body)
		}
	}
	if got := w.graph(http.MethodPost, "/applications?$select=id,nonsense", `{"displayName":"made"}`); got.status != 201 || got.text("id") == "" || got.text("displayName") != "" {
		t.Errorf("an application was made, and the answer is %d %s", got.status, got.body)
	}
	pages, seen := 0, map[string]bool{}
	for next := "https://graph.microsoft.com/v1.0/applications?$top=2&$select=appId&$filter=" + url.QueryEscape("signInAudience eq 'AzureADMultipleOrgs'"); next != ""; pages++ {
		got := w.send(http.MethodGet, next, w.graphToken(), "")
		for _, item := range got.at("value").([]any) {
			seen[item.(map[string]any)["appId"].(string)] = true
		}
		next = got.text("@odata.nextLink")
	}
	if pages != 2 || len(seen) != 4 {
		t.Errorf("%d pages, %d applications", pages, len(seen))
	}
}

// All requests wait while a list is made, so of a large directory only what is
// asked for may be shown in full.
func TestGraph_AListShowsOnlyItsPage(t *testing.T) {
	w := newWorld(t, entrasim.Config{Budgets: entrasim.Budgets{Unlimited: true}})
	bearer := w.graphToken()
	cost := func(applications int) float64 {
		for range applications {
			w.send(http.MethodPost, w.sim.Endpoints().Graph+"/v1.0/applications", bearer, `{"displayName":"x"}`)
		}
		return testing.AllocsPerRun(3, func() {
			w.send(http.MethodGet, w.sim.Endpoints().Graph+"/v1.0/applications?$top=1&$filter=startswith(displayName,'x')", bearer, "")
		})
	}
	few, many := cost(10), cost(1000)
	if each := (many - few) / 1000; each > 10 {
		t.Errorf("a list of one among 1,000 more costs %.0f allocations for each of them", each)
	}
}

func TestGraph_Passwords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a := w.newApp("one")
		added := w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", `{"passwordCredential":{"displayName":"first","endDateTime":"2000-03-01T00:00:00Z"}}`)
		secret, key := added.text("secretText"), added.text("keyId")
		if added.status != 200 || len(secret) < 16 || len(secret) > 64 || added.text("hint") != secret[:3] || added.at("customKeyIdentifier") != nil || added.text("displayName") != "first" {
			t.Fatalf("added %d %s", added.status, added.body)
		}
		fine := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z$`)
		if !fine.MatchString(added.text("startDateTime")) || added.text("endDateTime") != "2000-03-01T00:00:00.0000000Z" {
			t.Errorf("times %s %s", added.text("startDateTime"), added.text("endDateTime"))
		}
		second := w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", "")
		start, _ := time.Parse(time.RFC3339, second.text("startDateTime"))
		if end, _ := time.Parse(time.RFC3339, second.text("endDateTime")); !end.Equal(start.AddDate(2, 0, 0)) {
			t.Errorf("the default end is %v for a start of %v", end, start)
		}
		read := w.graph(http.MethodGet, "/applications/"+a.id, "")
		list, _ := read.at("passwordCredentials").([]any)
		if strings.Contains(read.body, secret) || len(list) != 2 || list[0].(map[string]any)["secretText"] != nil || list[0].(map[string]any)["keyId"] != key {
			t.Errorf("read back %s", read.body)
		}
		if got := w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+key+`"}`); got.status != 204 || got.body != "" {
			t.Errorf("remove: %d %s", got.status, got.body)
		}
		if got := w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+key+`"}`); got.status != 400 || !strings.Contains(got.text("error/message"), "No password credential found with keyId") {
			t.Errorf("remove again: %d %s", got.status, got.body)
		}
		for name, body := range map[string]string{
			"end before start":  `{"passwordCredential":{"endDateTime":"1999-01-01T00:00:00Z"}}`,
			"not a time":        `{"passwordCredential":{"endDateTime":"soon"}}`,
			"not JSON":          `{`,
			"not an object":     `[]`,
			"far beyond a time": `{"passwordCredential":{"startDateTime":"9999-01-01T00:00:00Z"}}`,
		} {
			if got := w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", body); got.status != 400 {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
		}
	})
}

func TestGraph_RefusesWhatCannotBeSet(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	for name, body := range map[string]string{
		"a password":          `{"passwordCredentials":[{"displayName":"x"}]}`,
		"the application ID":  `{"appId":"` + subID + `"}`,
		"an unknown property": `{"nonsense":1}`,
		"a name too long":     `{"displayName":"` + strings.Repeat("字", 257) + `"}`,
		"a wrong type":        `{"displayName":1}`,
		"a wrong audience":    `{"signInAudience":"Everybody"}`,
		"another unique name": `{"uniqueName":"two"}`,
	} {
		if got := w.graph(http.MethodPatch, "/applications/"+a.id, body); got.status != 400 || got.text("error/code") != "Request_BadRequest" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if got := w.graph(http.MethodPatch, "/applications/"+a.id, `{"displayName":"`+strings.Repeat("字", 256)+`"}`); got.status != 204 {
		t.Errorf("a name of as many characters as there may be: %d %s", got.status, got.body)
	}
	if got := w.graph(http.MethodPatch, "/applications(uniqueName='')", appBody, "Prefer", "create-if-missing"); got.status != 400 {
		t.Errorf("no unique name: %d %s", got.status, got.body)
	}
	if got := w.graph(http.MethodPost, "/applications", `{}`); got.status != 400 || !strings.Contains(got.text("error/message"), "displayName") {
		t.Errorf("without a name: %d %s", got.status, got.body)
	}
	if got := w.graph(http.MethodPost, "/applications", `{"displayName":"x"}`); got.text("signInAudience") != "AzureADandPersonalMicrosoftAccount" {
		t.Errorf("default audience: %s", got.body)
	}
}

func TestGraph_DeleteRestorePurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, _ := w.consented("one")
		form := credentials(a.clientID, a.secret, armScope)
		expect := func(got answer, status int) {
			t.Helper()
			if got.status != status {
				t.Fatalf("got %d %s, want %d", got.status, got.body, status)
			}
		}
		expect(w.graph(http.MethodDelete, "/applications/"+a.id, ""), 204)
		expect(w.graph(http.MethodGet, "/applications/"+a.id, ""), 404)
		expect(w.login(customerID, form), 400)
		binned := w.graph(http.MethodGet, "/directory/deletedItems/microsoft.graph.application", "")
		if list, _ := binned.at("value").([]any); len(list) != 1 {
			t.Errorf("bin: %s", binned.body)
		}
		if got := w.graph(http.MethodGet, "/directory/deletedItems/"+a.id, ""); got.text("deletedDateTime") == "" {
			t.Errorf("binned item: %s", got.body)
		}
		expect(w.graph(http.MethodPost, "/directory/deletedItems/"+a.id+"/restore", ""), 200)
		expect(w.login(customerID, form), 200)
		expect(w.graph(http.MethodGet, "/applications(uniqueName='one')", ""), 200)
		expect(w.graph(http.MethodDelete, "/directory/deletedItems/"+a.id, ""), 404)
		expect(w.graph(http.MethodDelete, "/applications/"+a.id, ""), 204)
		expect(w.graph(http.MethodDelete, "/directory/deletedItems/"+a.id, ""), 204)
		expect(w.graph(http.MethodDelete, "/directory/deletedItems/"+a.id, ""), 404)
		expect(w.login(customerID, form), 400)
		b := w.newApp("two")
		expect(w.graph(http.MethodDelete, "/applications/"+b.id, ""), 204)
		time.Sleep(31 * 24 * time.Hour)
		expect(w.graph(http.MethodPost, "/directory/deletedItems/"+b.id+"/restore", ""), 404)
		binned = w.graph(http.MethodGet, "/directory/deletedItems/microsoft.graph.application", "")
		if list, _ := binned.at("value").([]any); len(list) != 0 {
			t.Errorf("bin after its time: %s", binned.body)
		}
	})
}

func TestGraph_OwnershipAndPermission(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, _ := w.consented("one")
	other, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID, DisplayName: "other"})
	w.must(err)
	reader, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID, DisplayName: "reader", Roles: []string{"Application.Read.All"}})
	w.must(err)
	where := "https://graph.microsoft.com/v1.0/applications/" + a.id
	for _, c := range []struct {
		name, method, bearer, code string
		status                     int
	}{
		{"not the owner", http.MethodDelete, w.token(homeID, other.ClientID, other.ClientSecret, graphScope), "Authorization_RequestDenied", 403},
		{"only a reader", http.MethodDelete, w.token(homeID, reader.ClientID, reader.ClientSecret, graphScope), "Authorization_RequestDenied", 403},
		{"no permission at all", http.MethodGet, w.token(customerID, a.clientID, a.secret, graphScope), "Authorization_RequestDenied", 403},
		{"no token", http.MethodGet, "", "InvalidAuthenticationToken", 401},
		{"a token for another resource", http.MethodGet, w.token(homeID, w.platform.ClientID, w.platform.ClientSecret, armScope), "InvalidAuthenticationToken", 401},
		{"a broken token", http.MethodGet, w.graphToken() + "x", "InvalidAuthenticationToken", 401},
		{"rubbish", http.MethodGet, "rubbish", "InvalidAuthenticationToken", 401},
	} {
		if got := w.send(c.method, where, c.bearer, ""); got.status != c.status || got.text("error/code") != c.code {
			t.Errorf("%s: %d %s", c.name, got.status, got.body)
		}
	}
	if got := w.send(http.MethodGet, where, w.token(homeID, reader.ClientID, reader.ClientSecret, graphScope), ""); got.status != 200 {
		t.Errorf("a reader reads: %d", got.status)
	}
}

func TestGraph_TokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{TokenLife: entrasim.Range{Min: time.Hour, Max: time.Hour}})
		bearer := w.graphToken()
		time.Sleep(time.Hour - time.Second)
		if got := w.send(http.MethodGet, "https://graph.microsoft.com/v1.0/organization", bearer, ""); got.status != 200 {
			t.Errorf("just before its end: %d %s", got.status, got.body)
		}
		time.Sleep(time.Second)
		if got := w.send(http.MethodGet, "https://graph.microsoft.com/v1.0/organization", bearer, ""); got.status != 401 || !strings.Contains(got.text("error/message"), "expired") {
			t.Errorf("at its end: %d %s", got.status, got.body)
		}
	})
}

func TestGraph_ServicePrincipals(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newSecret(w.newApp("one"))
	made := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`)
	if made.status != 201 || made.text("appOwnerOrganizationId") != homeID || made.at("accountEnabled") != true {
		t.Fatalf("create: %d %s", made.status, made.body)
	}
	if got := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`); got.status != 409 {
		t.Errorf("again: %d", got.status)
	}
	if got := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+subID+`"}`); got.status != 400 || !strings.Contains(got.text("error/message"), "does not reference a valid application object") {
		t.Errorf("of nothing: %d %s", got.status, got.body)
	}
	form := credentials(a.clientID, a.secret, armScope)
	if got := w.login(homeID, form); got.status != 200 {
		t.Errorf("token: %s", got.body)
	}
	list := w.graph(http.MethodGet, "/servicePrincipals?$filter="+url.QueryEscape("appId eq '"+a.clientID+"'"), "")
	if items, _ := list.at("value").([]any); len(items) != 1 {
		t.Errorf("list: %s", list.body)
	}
	if got := w.graph(http.MethodPatch, "/servicePrincipals/"+made.text("id"), `{"accountEnabled":false}`); got.status != 204 {
		t.Errorf("disable: %d %s", got.status, got.body)
	}
	if got := w.login(homeID, form); !strings.Contains(got.body, "AADSTS7000112") {
		t.Errorf("disabled: %s", got.body)
	}
	if got := w.graph(http.MethodDelete, "/servicePrincipals/"+made.text("id"), ""); got.status != 204 {
		t.Errorf("delete: %d", got.status)
	}
	if got := w.graph(http.MethodGet, "/servicePrincipals(appId='"+a.clientID+"')", ""); got.status != 404 {
		t.Errorf("deleted: %d", got.status)
	}
	if got := w.graph(http.MethodGet, "/organization", ""); !strings.Contains(got.body, homeID) {
		t.Errorf("organization: %s", got.body)
	}
}
