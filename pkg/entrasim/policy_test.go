package entrasim_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

const policyRole = "Policy.ReadWrite.ApplicationConfiguration"

const defaultPolicy = "/policies/defaultAppManagementPolicy"

// secretFor is a body of addPassword for so long from now.
func secretFor(d time.Duration) string {
	now := time.Now().UTC()
	return fmt.Sprintf(`{"passwordCredential":{"startDateTime":%q,"endDateTime":%q}}`, now.Format(time.RFC3339), now.Add(d).Format(time.RFC3339))
}

const day = 24 * time.Hour

func tooLong(got answer, policy string) bool {
	text := "Credential lifetime exceeds the max value allowed as per assigned policy '" + policy + "'."
	details, _ := got.at("error/details").([]any)
	if len(details) != 1 {
		return false
	}
	d, _ := details[0].(map[string]any)
	return got.status == 400 && got.text("error/code") == "CredentialInvalidLifetimeAsPerAppPolicy" && got.text("error/message") == text &&
		d["code"] == "InvalidKeyEndDate" && d["target"] == "EndDate" && d["message"] == text
}

func forbidden(got answer, policy string) bool {
	return got.status == 400 && got.text("error/code") == "CredentialTypeNotAllowedAsPerAppPolicy" &&
		got.text("error/message") == "Credential type not allowed as per assigned policy '"+policy+"'."
}

const everyTenants = "00000000-0000-0000-0000-000000000000"

func TestPolicy_TenantsDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := entrasim.Config{StateDir: t.TempDir(), Lags: entrasim.Lags{Graph: entrasim.Range{Min: seconds(5), Max: seconds(5)}}}
		w := newWorld(t, config)
		a := w.newApp("one")
		w.wait(5)
		_, graph := w.administration(homeID, policyRole, "Application.ReadWrite.All")
		usual := graph(http.MethodGet, defaultPolicy, "")
		if usual.status != 200 || usual.text("id") != everyTenants || usual.at("isEnabled") != false || len(usual.at("applicationRestrictions/passwordCredentials").([]any)) != 0 {
			t.Errorf("at first: %d %s", usual.status, usual.body)
		}
		add := func(d time.Duration) answer {
			return w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", secretFor(d))
		}
		patch := func(body string) {
			t.Helper()
			if got := graph(http.MethodPatch, defaultPolicy, body); got.status != 204 {
				t.Fatalf("%s: %d %s", body, got.status, got.body)
			}
		}
		patch(`{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"passwordLifetime","maxLifetime":"P4DT12H30M5S","restrictForAppsCreatedAfterDateTime":null}]}}`)
		w.wait(5)
		longest := 4*day + 12*time.Hour + 30*time.Minute + 5*time.Second
		if got := add(longest + time.Second); got.status != 200 {
			t.Errorf("a policy that is off: %d %s", got.status, got.body)
		}
		patch(`{"isEnabled":true}`)
		if got := add(30 * day); got.status != 200 {
			t.Errorf("a policy that is not known here yet: %d %s", got.status, got.body)
		}
		w.wait(5)
		if got := add(longest); got.status != 200 {
			t.Errorf("as long as allowed: %d %s", got.status, got.body)
		}
		if got := add(longest + time.Second); !tooLong(got, everyTenants) {
			t.Errorf("longer: %d %s", got.status, got.body)
		}
		if got := w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", "{}"); !tooLong(got, everyTenants) {
			t.Errorf("the usual two years: %d %s", got.status, got.body)
		}
		w.reopen(config)
		defer func() { w.must(w.sim.Close()) }()
		if got := add(30 * day); !tooLong(got, everyTenants) {
			t.Errorf("after a restart: %d %s", got.status, got.body)
		}
		if got := graph(http.MethodGet, defaultPolicy, ""); got.at("isEnabled") != true || got.text("displayName") != usual.text("displayName") || !strings.Contains(got.body, `"state":"enabled"`) {
			t.Errorf("after a restart: %s", got.body)
		}
		patch(`{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"passwordAddition"}]}}`)
		w.wait(5)
		if got := add(time.Hour); !forbidden(got, everyTenants) {
			t.Errorf("no passwords: %d %s", got.status, got.body)
		}
		// Removing is none of a policy's business, nor is what is there already.
		first := w.graph(http.MethodGet, "/applications/"+a.id, "").at("passwordCredentials").([]any)[0].(map[string]any)["keyId"].(string)
		if got := w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+first+`"}`); got.status != 204 {
			t.Errorf("remove: %d %s", got.status, got.body)
		}
		if n := len(w.sim.Journal(entrasim.Query{Kinds: []string{"policy.updated"}})); n != 3 {
			t.Errorf("%d changes of the policy in the journal", n)
		}
	})
}

func TestPolicy_WhatRestrictionsApplyTo(t *testing.T) {
	key, err := sharedKey()
	if err != nil {
		t.Fatal(err)
	}
	cert := keyJSON(certificate(t, key, time.Now().Add(-time.Hour), time.Now().Add(40*day)))
	const lifetime = `{"restrictionType":"passwordLifetime","maxLifetime":"P30D"`
	for _, c := range []struct {
		name, body             string
		password, own, key, ok bool // what is refused: an application's secret, a principal's, a certificate; ok: it is allowed to say so
	}{
		{"applications", `{"applicationRestrictions":{"passwordCredentials":[` + lifetime + `}]}}`, true, false, false, true},
		{"principals", `{"servicePrincipalRestrictions":{"passwordCredentials":[` + lifetime + `}]}}`, false, true, false, true},
		{"certificates", `{"applicationRestrictions":{"keyCredentials":[{"restrictionType":"asymmetricKeyLifetime","maxLifetime":"P30D"}]}}`, false, false, true, true},
		{"disabled", `{"applicationRestrictions":{"passwordCredentials":[` + lifetime + `,"state":"disabled"}]}}`, false, false, false, true},
		{"created before", `{"applicationRestrictions":{"passwordCredentials":[` + lifetime + `,"restrictForAppsCreatedAfterDateTime":"2999-01-01T00:00:00Z"}]}}`, false, false, false, true},
		{"created after", `{"applicationRestrictions":{"passwordCredentials":[` + lifetime + `,"restrictForAppsCreatedAfterDateTime":"2019-10-19T10:37:00Z"}]}}`, true, false, false, true},
		{"kept, with nothing to refuse", `{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"customPasswordAddition","maxLifetime":null},{"restrictionType":"symmetricKeyAddition"},{"restrictionType":"symmetricKeyLifetime","maxLifetime":"P40D"}]}}`, false, false, false, true},
		{"taken back", `{"applicationRestrictions":null}`, false, false, false, true},
		{"an unknown restriction", `{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"x"}]}}`, false, false, false, false},
		{"one of keys for passwords", `{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"asymmetricKeyLifetime","maxLifetime":"P1D"}]}}`, false, false, false, false},
		{"twice", `{"applicationRestrictions":{"passwordCredentials":[` + lifetime + `},` + lifetime + `}]}}`, false, false, false, false},
		{"no lifetime", `{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"passwordLifetime"}]}}`, false, false, false, false},
		{"a lifetime too many", `{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"passwordAddition","maxLifetime":"P1D"}]}}`, false, false, false, false},
		{"a year, which differs", `{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"passwordLifetime","maxLifetime":"P1Y"}]}}`, false, false, false, false},
		{"no time at all", `{"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"passwordLifetime","maxLifetime":"PT"}]}}`, false, false, false, false},
		{"a state", `{"applicationRestrictions":{"passwordCredentials":[` + lifetime + `,"state":"x"}]}}`, false, false, false, false},
		{"not a list", `{"applicationRestrictions":{"passwordCredentials":{}}}`, false, false, false, false},
		{"another's property", `{"restrictions":{}}`, false, false, false, false},
		{"no name", `{"displayName":""}`, false, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, entrasim.Config{})
			a := w.newApp("one")
			principal := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`).text("id")
			_, graph := w.administration(homeID, policyRole)
			if got := graph(http.MethodPatch, defaultPolicy, `{"isEnabled":true}`); got.status != 204 {
				t.Fatalf("enable: %d %s", got.status, got.body)
			}
			got := graph(http.MethodPatch, defaultPolicy, c.body)
			if !c.ok {
				if got.status != 400 || got.text("error/code") != "Request_BadRequest" {
					t.Errorf("%d %s", got.status, got.body)
				}
				return
			}
			if got.status != 204 {
				t.Fatalf("%d %s", got.status, got.body)
			}
			for name, attempt := range map[string]struct {
				got     answer
				refused bool
			}{
				"an application's secret": {w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", secretFor(31*day)), c.password},
				"a short one":             {w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", secretFor(30*day)), false},
				"a principal's secret":    {w.graph(http.MethodPost, "/servicePrincipals/"+principal+"/addPassword", secretFor(31*day)), c.own},
				"a certificate":           {w.graph(http.MethodPatch, "/applications/"+a.id, `{"keyCredentials":[`+cert+`]}`), c.key},
				"a new application's":     {w.graph(http.MethodPost, "/applications", `{"displayName":"x","keyCredentials":[`+cert+`]}`), c.key},
			} {
				if attempt.refused != tooLong(attempt.got, everyTenants) || (!attempt.refused && attempt.got.status >= 300) {
					t.Errorf("%s: %d %s", name, attempt.got.status, attempt.got.body)
				}
			}
		})
	}
}

func TestPolicy_AssignedInPlaceOfTheDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := entrasim.Config{StateDir: t.TempDir()}
		w := newWorld(t, config)
		a, b := w.newApp("one"), w.newApp("two")
		principal := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`).text("id")
		_, graph := w.administration(homeID, policyRole, "Application.Read.All")
		ok := func(got answer, status int) answer {
			t.Helper()
			if got.status != status {
				t.Fatalf("%d %s, want %d", got.status, got.body, status)
			}
			return got
		}
		const policies = "/policies/appManagementPolicies"
		w.must(w.sim.SetPasswordPolicy(entrasim.PasswordPolicy{Tenant: homeID, Forbidden: true}))
		made := ok(graph(http.MethodPost, policies, `{"displayName":"loose","description":"ninety days","isEnabled":true,
			"restrictions":{"passwordCredentials":[{"restrictionType":"passwordLifetime","maxLifetime":"P90D"}]}}`), 201)
		id := made.text("id")
		if made.text("@odata.context") != "https://graph.microsoft.com/v1.0/$metadata#policies/appManagementPolicies/$entity" || len(made.at("restrictions/keyCredentials").([]any)) != 0 {
			t.Errorf("made %s", made.body)
		}
		add := func(a app, d time.Duration) answer {
			return w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", secretFor(d))
		}
		if got := add(a, 80*day); !forbidden(got, everyTenants) {
			t.Errorf("before: %d %s", got.status, got.body)
		}
		named := func(id string) string {
			return `{"@odata.id":"https://graph.microsoft.com/v1.0` + policies + `/` + id + `"}`
		}
		ok(graph(http.MethodPost, "/applications/"+a.id+"/appManagementPolicies/$ref", named(id)), 204)
		ok(graph(http.MethodPost, "/servicePrincipals/"+principal+"/appManagementPolicies/$ref", named(id)), 204)
		w.reopen(config)
		defer func() { w.must(w.sim.Close()) }()
		ok(add(a, 80*day), 200)
		ok(w.graph(http.MethodPost, "/servicePrincipals/"+principal+"/addPassword", secretFor(80*day)), 200)
		if got := add(a, 91*day); !tooLong(got, id) {
			t.Errorf("beyond the assigned one: %d %s", got.status, got.body)
		}
		if got := add(b, time.Hour); !forbidden(got, everyTenants) {
			t.Errorf("another application: %d %s", got.status, got.body)
		}
		for _, where := range []string{"/applications/" + a.id, "/servicePrincipals/" + principal} {
			if got := graph(http.MethodGet, where+"/appManagementPolicies", ""); !strings.Contains(got.body, id) {
				t.Errorf("assigned: %d %s", got.status, got.body)
			}
		}
		applied := graph(http.MethodGet, policies+"/"+id+"/appliesTo?$select=appId", "")
		if list, _ := applied.at("value").([]any); len(list) != 2 || list[0].(map[string]any)["@odata.type"] != "#microsoft.graph.application" ||
			list[1].(map[string]any)["@odata.type"] != "#microsoft.graph.servicePrincipal" || list[0].(map[string]any)["appId"] != a.clientID {
			t.Errorf("applied: %d %s", applied.status, applied.body)
		}
		other := ok(graph(http.MethodPost, policies, `{"displayName":"other","description":"off","restrictions":{"passwordCredentials":[{"restrictionType":"passwordAddition"}]}}`), 201).text("id")
		if list, _ := graph(http.MethodGet, policies+"?$filter=displayName%20eq%20'other'", "").at("value").([]any); len(list) != 1 {
			t.Errorf("%d policies of that name", len(list))
		}
		ok(graph(http.MethodPost, "/applications/"+a.id+"/appManagementPolicies/$ref", named(other)), 400)
		ok(graph(http.MethodPost, "/applications/"+b.id+"/appManagementPolicies/$ref", named(subID)), 404)
		ok(graph(http.MethodPost, "/applications/"+subID+"/appManagementPolicies/$ref", named(id)), 404)
		ok(graph(http.MethodPost, "/applications/"+b.id+"/appManagementPolicies/$ref", `{"@odata.id":"https://graph.microsoft.com/v1.0/users/x"}`), 400)
		// One that is off spares from the default all the same.
		ok(graph(http.MethodPost, "/applications/"+b.id+"/appManagementPolicies/$ref", named(other)), 204)
		ok(add(b, 300*day), 200)
		ok(graph(http.MethodPatch, policies+"/"+id, `{"description":"eighty days","restrictions":{"passwordCredentials":[{"restrictionType":"passwordLifetime","maxLifetime":"P80D"}]}}`), 204)
		if got := add(a, 81*day); !tooLong(got, id) {
			t.Errorf("after its change: %d %s", got.status, got.body)
		}
		ok(graph(http.MethodDelete, "/applications/"+a.id+"/appManagementPolicies/"+other+"/$ref", ""), 404)
		ok(graph(http.MethodDelete, "/applications/"+a.id+"/appManagementPolicies/"+id+"/$ref", ""), 204)
		ok(graph(http.MethodDelete, "/servicePrincipals/"+principal+"/appManagementPolicies/"+id+"/$ref", ""), 204)
		if got := add(a, time.Hour); !forbidden(got, everyTenants) {
			t.Errorf("no longer assigned: %d %s", got.status, got.body)
		}
		ok(graph(http.MethodDelete, policies+"/"+other, ""), 204)
		ok(graph(http.MethodGet, policies+"/"+other, ""), 404)
		if got := add(b, time.Hour); !forbidden(got, everyTenants) {
			t.Errorf("a policy that is deleted: %d %s", got.status, got.body)
		}
		for _, body := range []string{`{"displayName":"x"}`, `{"description":"x"}`, `{"displayName":"x","description":"y","x":1}`, `[]`, `{"displayName":"x","description":"` + strings.Repeat("y", 2000) + `"}`} {
			ok(graph(http.MethodPost, policies, body), 400)
		}
		kinds := w.sim.Journal(entrasim.Query{Kinds: []string{"policy.created", "policy.updated", "policy.deleted"}})
		if len(kinds) != 5 || kinds[1].Object != id || kinds[4].Kind != "policy.deleted" {
			t.Errorf("journal %+v", kinds)
		}
	})
}

func TestPolicy_Permissions(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	_, reads := w.administration(homeID, "Policy.Read.All")
	_, writes := w.administration(homeID, policyRole)
	_, all := w.administration(homeID, "Application.ReadWrite.All")
	_, assigns := w.administration(homeID, policyRole, "Application.Read.All")
	const policies = "/policies/appManagementPolicies"
	id := writes(http.MethodPost, policies, `{"displayName":"x","description":"y"}`).text("id")
	for _, c := range []struct {
		name, method, path, body    string
		reads, writes, all, assigns bool
	}{
		{"read the default", "GET", defaultPolicy, "", true, true, false, true},
		{"write the default", "PATCH", defaultPolicy, `{"isEnabled":false}`, false, true, false, true},
		{"list", "GET", policies, "", true, true, false, true},
		{"read", "GET", policies + "/" + id, "", true, true, false, true},
		{"write", "PATCH", policies + "('" + id + "')", `{"isEnabled":false}`, false, true, false, true},
		{"what it applies to", "GET", policies + "/" + id + "/appliesTo", "", false, false, false, true},
		{"what applies", "GET", "/applications/" + a.id + "/appManagementPolicies", "", false, false, false, true},
		{"assign", "POST", "/applications/" + a.id + "/appManagementPolicies/$ref", `{"@odata.id":"https://graph.microsoft.com/v1.0` + policies + `/` + id + `"}`, false, false, false, true},
	} {
		for who, caller := range map[string]struct {
			ask func(method, path, body string) answer
			may bool
		}{"a reader": {reads, c.reads}, "a writer": {writes, c.writes}, "one of applications": {all, c.all}, "one of both": {assigns, c.assigns}} {
			got := caller.ask(c.method, c.path, c.body)
			if caller.may != (got.status < 300) || (!caller.may && got.status != 403) {
				t.Errorf("%s by %s: %d %s", c.name, who, got.status, got.body)
			}
		}
	}
}

// TestPolicy_ByControl does it by the Go method and by its twin.
func TestPolicy_ByControl(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	principal := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`).text("id")
	admin := func(body string, status int) {
		t.Helper()
		if got := w.send(http.MethodPost, w.sim.Endpoints().Admin+"/passwordPolicies", "", body); got.status != status {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	check := func(when string, d time.Duration, refused func(answer, string) bool) {
		t.Helper()
		for _, where := range []string{"/applications/" + a.id, "/servicePrincipals/" + principal} {
			got := w.graph(http.MethodPost, where+"/addPassword", secretFor(d))
			if refused == nil && got.status != 200 || refused != nil && !refused(got, everyTenants) {
				t.Errorf("%s: %s: %d %s", when, where, got.status, got.body)
			}
		}
	}
	check("at first", 700*day, nil)
	admin(`{"tenant":"home.example.com","maxLifetime":"36h1s"}`, 200)
	check("short", 36*time.Hour+time.Second, nil)
	check("longer", 36*time.Hour+2*time.Second, tooLong)
	admin(`{"tenant":"home.example.com","forbidden":true}`, 200)
	check("forbidden", time.Hour, forbidden)
	w.must(w.sim.SetPasswordPolicy(entrasim.PasswordPolicy{Tenant: homeID, MaxLifetime: 30 * day}))
	check("of thirty days", 31*day, tooLong)
	w.must(w.sim.SetPasswordPolicy(entrasim.PasswordPolicy{Tenant: homeID}))
	check("free again", 700*day, nil)
	admin(`{"tenant":"`+subID+`"}`, 404)
	admin(`{"tenant":"`+homeID+`","maxLifetime":"soon"}`, 400)
	admin(`{"tenant":"`+homeID+`","maxLifetime":"-1h"}`, 400)
	for _, d := range []time.Duration{-1, time.Millisecond, 100_000 * day} {
		if err := w.sim.SetPasswordPolicy(entrasim.PasswordPolicy{Tenant: homeID, MaxLifetime: d}); !errors.Is(err, entrasim.ErrInvalid) {
			t.Errorf("%v: %v", d, err)
		}
	}
}

// TestPolicy_WhatIsNotUsedIsNotWritten holds the log's records to the form they
// had before there were policies, quotas and principals' own credentials: what an
// older simulator wrote is what this one writes without them.
func TestPolicy_WhatIsNotUsedIsNotWritten(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, entrasim.Config{StateDir: dir})
	a, p := w.consented("one")
	w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+a.keyID+`"}`)
	w.must(w.sim.EnablePrincipal(customerID, a.clientID, false))
	w.graph(http.MethodDelete, "/applications/"+a.id, "")
	w.graph(http.MethodDelete, "/directory/deletedItems/"+a.id, "")
	text, err := os.ReadFile(filepath.Join(dir, "entrasim.log"))
	w.must(err)
	if !strings.Contains(string(text), p.ID) {
		t.Fatal("the log lacks the principal")
	}
	for _, name := range []string{`"policy"`, `"repealed"`, `"quota"`, `"principal":"`, `"keys"`, `"tokenEncryptionKeyId":"`} {
		if strings.Contains(string(text), name) {
			t.Errorf("the log has %s", name)
		}
	}
}
