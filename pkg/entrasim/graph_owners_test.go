package entrasim_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"phasekey.dev/pkg/entrasim"
)

// reference is the body that names a directory object.
func reference(kind, id string) string {
	return `{"@odata.id":"https://graph.microsoft.com/v1.0/` + kind + `/` + id + `"}`
}

// owners are the IDs at a path's owners.
func (w *world) owners(path string) []string {
	w.Helper()
	got := w.graph(http.MethodGet, path+"/owners", "")
	list, ok := got.at("value").([]any)
	if got.status != 200 || !ok {
		w.Fatalf("%s: %d %s", path, got.status, got.body)
	}
	var out []string
	for _, item := range list {
		owner, _ := item.(map[string]any)
		id, _ := owner["id"].(string)
		out = append(out, id)
	}
	return out
}

func TestGraph_Owners(t *testing.T) {
	config := entrasim.Config{StateDir: t.TempDir()}
	w := newWorld(t, config)
	a := w.newApp("one")
	principal := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`).text("id")
	other, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID})
	w.must(err)
	people, err := w.sim.People(homeID)
	w.must(err)
	person := people[0].ID
	strangers, err := w.sim.People(customerID)
	w.must(err)
	for _, path := range []string{"/applications/" + a.id, "/applications(appId='" + a.clientID + "')", "/servicePrincipals/" + principal} {
		if got := w.owners(path); !slices.Equal(got, []string{w.platform.PrincipalID}) {
			t.Errorf("%s: owned at first by %v", path, got)
		}
		for _, c := range []struct {
			name, method, path, body, code string
			status                         int
		}{
			{"nothing", http.MethodPost, "/owners/$ref", `{}`, "Request_BadRequest", 400},
			{"an application", http.MethodPost, "/owners/$ref", reference("applications", a.id), "Request_BadRequest", 400},
			{"nobody", http.MethodPost, "/owners/$ref", reference("directoryObjects", homeID), "Request_ResourceNotFound", 404},
			{"somebody from elsewhere", http.MethodPost, "/owners/$ref", reference("users", strangers[0].ID), "Request_ResourceNotFound", 404},
			{"one who is not an owner leaves", http.MethodDelete, "/owners/" + other.PrincipalID + "/$ref", "", "Request_ResourceNotFound", 404},
			{"a principal", http.MethodPost, "/owners/$ref", reference("directoryObjects", other.PrincipalID), "", 204},
			{"the same again", http.MethodPost, "/owners/$ref", reference("servicePrincipals", other.PrincipalID), "Request_BadRequest", 400},
			{"a person", http.MethodPost, "/owners/$ref", reference("users", person), "", 204},
		} {
			if got := w.graph(c.method, path+c.path, c.body); got.status != c.status || got.text("error/code") != c.code {
				t.Errorf("%s: %s: %d %s", path, c.name, got.status, got.body)
			}
		}
		if got := w.owners(path); !slices.Equal(got, []string{person, w.platform.PrincipalID, other.PrincipalID}) {
			t.Errorf("%s: owned by %v", path, got)
		}
		got := w.graph(http.MethodGet, path+"/owners?$filter=id%20eq%20'"+person+"'", "")
		if list, _ := got.at("value").([]any); len(list) != 1 || list[0].(map[string]any)["@odata.type"] != "#microsoft.graph.user" {
			t.Errorf("%s: filtered: %s", path, got.body)
		}
		for _, id := range []string{person, other.PrincipalID} {
			if got := w.graph(http.MethodDelete, path+"/owners/"+id+"/$ref", ""); got.status != 204 {
				t.Errorf("%s: remove: %d %s", path, got.status, got.body)
			}
		}
	}
	w.graph(http.MethodPost, "/applications/"+a.id+"/owners/$ref", reference("directoryObjects", other.PrincipalID))
	w.reopen(config)
	if got := w.owners("/applications/" + a.id); !slices.Equal(got, []string{w.platform.PrincipalID, other.PrincipalID}) {
		t.Errorf("after a restart owned by %v", got)
	}
}

func TestGraph_OwnersMayWrite(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	principal := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`).text("id")
	other, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID})
	w.must(err)
	bearer := w.token(homeID, other.ClientID, other.ClientSecret, graphScope)
	for path, body := range map[string]string{"/applications/" + a.id: `{"displayName":"x"}`, "/servicePrincipals/" + principal: `{"tags":["x"]}`} {
		where := w.sim.Endpoints().Graph + "/v1.0" + path
		mine := reference("directoryObjects", other.PrincipalID)
		if got := w.send(http.MethodPost, where+"/owners/$ref", bearer, mine); got.status != 403 {
			t.Errorf("%s: one who is no owner adds itself: %d %s", path, got.status, got.body)
		}
		if got := w.send(http.MethodDelete, where+"/owners/"+w.platform.PrincipalID+"/$ref", bearer, ""); got.status != 403 {
			t.Errorf("%s: one who is no owner removes another: %d %s", path, got.status, got.body)
		}
		w.graph(http.MethodPost, path+"/owners/$ref", mine)
		if got := w.send(http.MethodPatch, where, bearer, body); got.status != 204 {
			t.Errorf("%s: a new owner writes: %d %s", path, got.status, got.body)
		}
		if got := w.send(http.MethodDelete, where+"/owners/"+w.platform.PrincipalID+"/$ref", bearer, ""); got.status != 204 {
			t.Errorf("%s: a new owner removes the first: %d %s", path, got.status, got.body)
		}
		if got := w.graph(http.MethodPatch, path, body); got.status != 403 {
			t.Errorf("%s: the former owner writes: %d %s", path, got.status, got.body)
		}
		if got := w.send(http.MethodDelete, where+"/owners/"+other.PrincipalID+"/$ref", bearer, ""); got.status != 204 {
			t.Errorf("%s: the last owner goes: %d %s", path, got.status, got.body)
		}
		if got := w.owners(path); len(got) != 0 {
			t.Errorf("%s: owned by %v in the end", path, got)
		}
	}
}

func TestGraph_OwnersAreAHundredAtMost(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	for i := range 100 {
		p, err := w.sim.CreatePerson(entrasim.Person{Tenant: homeID, UserName: fmt.Sprintf("p%d@home.example.com", i)})
		w.must(err)
		want, code := 204, ""
		if i == 99 {
			want, code = 403, "Directory_ResourceSizeExceeded"
		}
		if got := w.graph(http.MethodPost, "/applications/"+a.id+"/owners/$ref", reference("users", p.ID)); got.status != want || got.text("error/code") != code {
			t.Fatalf("person %d: %d %s", i, got.status, got.body)
		}
	}
	first := w.graph(http.MethodGet, "/applications/"+a.id+"/owners?$top=60", "")
	rest := w.send(http.MethodGet, first.text("@odata.nextLink"), w.graphToken(), "")
	if list, _ := rest.at("value").([]any); len(list) != 40 || list[39].(map[string]any)["id"] != w.platform.PrincipalID {
		t.Errorf("second page: %d %s", rest.status, rest.body)
	}
}

func TestGraph_OwnersFromTheBeginning(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	people, err := w.sim.People(homeID)
	w.must(err)
	person, me := people[0].ID, w.platform.PrincipalID
	bind := func(kind, id string) string {
		const base = "https://graph.microsoft.com/v1.0/"
		return `"owners@odata.bind":["` + base + kind + `/` + id + `","` + base + `directoryObjects/` + me + `"]`
	}
	made := w.graph(http.MethodPost, "/applications", `{"displayName":"x",`+bind("users", person)+`}`)
	principal := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+made.text("appId")+`",`+bind("directoryObjects", person)+`}`)
	for _, path := range []string{"/applications/" + made.text("id"), "/servicePrincipals/" + principal.text("id")} {
		if got := w.owners(path); !slices.Equal(got, []string{person, me}) {
			t.Errorf("%s: owned by %v", path, got)
		}
	}
	for body, want := range map[string]int{
		`{"displayName":"y",` + bind("users", homeID) + `}`:        404,
		`{"displayName":"y",` + bind("applications", person) + `}`: 400,
		`{"displayName":"y","owners@odata.bind":"x"}`:              400,
	} {
		if got := w.graph(http.MethodPost, "/applications", body); got.status != want {
			t.Errorf("%s: %d %s, want %d", body, got.status, got.body, want)
		}
	}
	got := w.graph(http.MethodGet, "/applications?$filter=displayName%20eq%20'y'", "")
	if list, _ := got.at("value").([]any); len(list) != 0 {
		t.Errorf("what was refused was made: %s", got.body)
	}
}
