package entrasim_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"phasekey.dev/pkg/entrasim"
)

// batched is what became of one request of a batch.
type batched struct {
	ID      string            `json:"id"`
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    map[string]any    `json:"body"`
}

// batch sends the requests, and returns their answers by ID and the order of IDs.
func (w *world) batch(requests ...string) (map[string]batched, []string) {
	w.Helper()
	got := w.graph(http.MethodPost, "/$batch", `{"requests":[`+strings.Join(requests, ",")+`]}`)
	if got.status != http.StatusOK {
		w.Fatalf("batch: %d %s", got.status, got.body)
	}
	var body struct {
		Responses []batched `json:"responses"`
	}
	w.must(json.Unmarshal([]byte(got.body), &body))
	out, order := make(map[string]batched), []string(nil)
	for _, r := range body.Responses {
		out[r.ID] = r
		order = append(order, r.ID)
	}
	return out, order
}

// step is a request of a batch; rest is more of its members.
func step(id, method, where, rest string) string {
	return fmt.Sprintf(`{"id":%q,"method":%q,"url":%q%s}`, id, method, where, rest)
}

const contentJSON = `,"headers":{"Content-Type":"application/json"}`

func (b batched) code() any {
	e, _ := b.Body["error"].(map[string]any)
	return e["code"]
}

func TestBatch_EachRequestIsItsOwn(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	other, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID, DisplayName: "other"})
	w.must(err)
	before := w.sim.Journal(entrasim.Query{})
	got, _ := w.batch(
		step("read", "GET", "/applications/"+a.id+"?$select=id,appId", ""),
		step("slashless", "GET", "applications?$filter=displayName eq 'network-read'&$count=true", `,"body":null`),
		step("add", "POST", "/applications/"+a.id+"/addPassword", contentJSON+`,"body":{"passwordCredential":{"displayName":"batched"}}`),
		step("upsert", "PATCH", "/applications(uniqueName='two')", `,"headers":{"content-type":"application/json","Prefer":"create-if-missing"},"body":`+appBody),
		step("tags", "PATCH", "/applications/"+a.id, contentJSON+`,"body":{"tags":["x"]}`),
		step("missing", "GET", "/applications/"+subID, ""),
		step("forbidden", "DELETE", "/applications/"+other.ObjectID, ""),
		step("unknown", "GET", "/me", ""),
		step("policies", "GET", "/policies/defaultAppManagementPolicy", ""),
	)
	for id, want := range map[string]int{
		"read": 200, "slashless": 200, "add": 200, "upsert": 201, "tags": 204, "missing": 404, "forbidden": 403, "unknown": 400, "policies": 403,
	} {
		if r := got[id]; r.Status != want || (want == 204) != (r.Body == nil) || r.Headers["Request-Id"] == "" {
			t.Errorf("%s: %+v", id, r)
		}
	}
	if got["read"].Body["appId"] != a.clientID || got["slashless"].Body["@odata.count"] != 1.0 || got["missing"].code() != "Request_ResourceNotFound" || got["upsert"].Body["uniqueName"] != "two" {
		t.Errorf("got %+v", got)
	}
	if !strings.HasPrefix(got["read"].Headers["Content-Type"], "application/json") || got["read"].Headers["Request-Id"] == got["add"].Headers["Request-Id"] {
		t.Errorf("headers %v, %v", got["read"].Headers, got["add"].Headers)
	}
	a.secret, _ = got["add"].Body["secretText"].(string)
	w.consent(a)
	w.token(customerID, a.clientID, a.secret, armScope)

	journal := w.sim.Journal(entrasim.Query{After: before[len(before)-1].Seq, Plane: entrasim.PlaneGraph})
	var names []string
	for _, e := range journal {
		names = append(names, e.Operation)
	}
	for _, name := range []string{
		"graph.batch", "graph.application.get", "graph.application.list", "graph.application.addPassword", "graph.application.upsert",
		"graph.application.update", "graph.application.delete", "graph.unknown", "graph.defaultAppManagementPolicy.get",
	} {
		if !slices.Contains(names, name) {
			t.Errorf("the journal of %v lacks %s", names, name)
		}
	}
	if added := w.sim.Journal(entrasim.Query{Operation: "graph.application.addPassword"}); len(added) != 1 || added[0].Application != a.clientID || added[0].Actor != w.platform.ClientID || added[0].KeyID == "" {
		t.Errorf("the journal says of a batched request %+v", added)
	}
	if none := w.send(http.MethodPost, w.sim.Endpoints().Graph+"/v1.0/$batch", "rubbish", `{"requests":[`+step("1", "GET", "/organization", "")+`]}`); none.status != 401 {
		t.Errorf("without a token: %d %s", none.status, none.body)
	}
}

// TestBatch_AnswersInAnotherOrder holds for most batches.
func TestBatch_AnswersInAnotherOrder(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	var steps, asked []string
	for i := range 20 {
		asked = append(asked, fmt.Sprint(i))
		steps = append(steps, step(asked[i], "GET", "/organization", ""))
	}
	got, order := w.batch(steps...)
	if len(got) != 20 || slices.Equal(order, asked) {
		t.Errorf("answered in the order %v", order)
	}
}

func TestBatch_Dependencies(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	remove := "/applications/" + a.id
	got, _ := w.batch(
		step("Fails", "GET", "/applications/"+subID, ""),
		step("b", "GET", "/organization", ""),
		step("after failure", "DELETE", remove, `,"dependsOn":["b","fails"]`),
		step("after that", "DELETE", remove, `,"dependsOn":["AFTER failure"]`),
		step("after success", "GET", remove, `,"dependsOn":["B"]`),
	)
	for id, want := range map[string]int{"Fails": 404, "b": 200, "after failure": 424, "after that": 424, "after success": 200} {
		if got[id].Status != want {
			t.Errorf("%s: %+v", id, got[id])
		}
	}
	if got["after that"].code() != "FailedDependency" {
		t.Errorf("got %+v", got["after that"])
	}
	// In the order given: what depends finds what was made.
	made, _ := w.batch(
		step("1", "PATCH", "/applications(uniqueName='two')", `,"headers":{"Content-Type":"application/json","Prefer":"create-if-missing"},"body":`+appBody),
		step("2", "POST", "/applications(uniqueName='two')/addPassword", contentJSON+`,"body":{},"dependsOn":["1"]`),
	)
	if made["1"].Status != 201 || made["2"].Status != 200 {
		t.Errorf("made %+v", made)
	}
}

func TestBatch_RefusedAsAWhole(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	organization := step("1", "GET", "/organization", "")
	list := func(n int) string {
		var steps []string
		for i := range n {
			steps = append(steps, step(fmt.Sprint(i), "GET", "/organization", ""))
		}
		return strings.Join(steps, ",")
	}
	for _, c := range []struct{ name, requests, text string }{
		{"none", "", "Invalid batch payload format."},
		{"more than twenty", list(21), "Number of batch request steps exceeds the maximum value of 20."},
		{"an ID twice", step("x", "GET", "/organization", "") + "," + step("X", "GET", "/organization", ""), "Request Id X has to be unique in a batch."},
		{"no ID", step("", "GET", "/organization", ""), "Invalid batch payload format."},
		{"no method", step("1", "", "/organization", ""), "Invalid batch payload format."},
		{"no object", `1`, "Invalid batch payload format."},
		{"a write without a body", step("1", "POST", "/applications", contentJSON), "Write request id : 1 does not contain Content-Type header or body."},
		{"a body without its type", step("1", "POST", "/applications", `,"body":{}`), "Write request id : 1 does not contain Content-Type header or body."},
		{"a body that is no object", step("1", "POST", "/applications", contentJSON+`,"body":"e30"`), "Invalid body of request Id 1"},
		{"an absolute URL", step("1", "GET", "https://graph.microsoft.com/v1.0/organization", ""), "Invalid URL of request Id 1: it is not relative."},
		{"a batch within", step("1", "POST", "/$batch", contentJSON+`,"body":{"requests":[]}`), "Invalid URL of request Id 1: a batch"},
		{"a batch within, written otherwise", step("1", "POST", "//%24BATCH/?x", contentJSON+`,"body":{"requests":[]}`), "Invalid URL of request Id 1: a batch"},
		{"a URL that cannot be read", step("1", "GET", "/%zz", ""), "Invalid batch payload format."},
		{"a dependency on nothing", step("1", "GET", "/organization", `,"dependsOn":["0"]`), "Invalid dependency for request Id 1"},
		{"a dependency on itself", step("1", "GET", "/organization", `,"dependsOn":["1"]`), "Invalid dependency for request Id 1"},
		{"a dependency on a later one", step("0", "GET", "/organization", `,"dependsOn":["1"]`) + "," + organization, "Invalid dependency for request Id 0"},
	} {
		got := w.graph(http.MethodPost, "/$batch", `{"requests":[`+c.requests+`]}`)
		if got.status != 400 || got.text("error/code") != "BadRequest" || !strings.HasPrefix(got.text("error/message"), c.text) {
			t.Errorf("%s: %d %s", c.name, got.status, got.body)
		}
	}
	if got, _ := w.batch(strings.Split(list(20), "},")[0]+"}", step("19", "FETCH", "/organization", "")); got["0"].Status != 200 || got["19"].Status != 400 {
		t.Errorf("got %+v", got)
	}
	if entries := w.sim.Journal(entrasim.Query{Operation: "graph.organization.list"}); len(entries) != 1 {
		t.Errorf("refused batches carried out %d requests", len(entries)-1)
	}
}

// TestBatch_FaultsAndBudgets meets them one by one, and loses single answers.
func TestBatch_FaultsAndBudgets(t *testing.T) {
	w := newWorld(t, entrasim.Config{Budgets: entrasim.Budgets{PairUnits: entrasim.Budget{Amount: 6, Per: seconds(6000)}}})
	a := w.newApp("one") // of 6 units, 1
	add := func(id string) string {
		return step(id, "POST", "/applications/"+a.id+"/addPassword", contentJSON+`,"body":{}`)
	}
	w.fault(entrasim.Fault{Operation: "graph.application.addPassword", Count: 1, Effect: entrasim.Effect{Status: 429, RetryAfter: seconds(7)}})
	w.fault(entrasim.Fault{Operation: "graph.application.addPassword", Count: 1, Effect: entrasim.Effect{Cut: true, AfterCommit: true}})
	w.fault(entrasim.Fault{Operation: "graph.application.addPassword", Count: 1, Effect: entrasim.Effect{Status: 500, Body: "<html>"}})
	got := w.graph(http.MethodPost, "/$batch", `{"requests":[`+strings.Join([]string{
		add("refused"), add("cut"), add("broken"), add("good"), step("read", "GET", "/applications/"+a.id, ""),
		step("a", "GET", "/organization", ""), step("b", "GET", "/organization", ""), step("over", "GET", "/organization", ""),
	}, ",")+`]}`)
	answers := make(map[string]map[string]any)
	for _, r := range got.at("responses").([]any) {
		m, _ := r.(map[string]any)
		answers[m["id"].(string)] = m
	}
	for id, want := range map[string]float64{"refused": 429, "cut": 504, "broken": 500, "good": 200, "read": 200, "a": 200, "b": 200, "over": 429} {
		if answers[id]["status"] != want {
			t.Errorf("%s: %v, want %v", id, answers[id], want)
		}
	}
	if h, _ := answers["refused"]["headers"].(map[string]any); h["Retry-After"] != "7" {
		t.Errorf("refused: %v", answers["refused"])
	}
	if h, _ := answers["over"]["headers"].(map[string]any); h["X-Ms-Throttle-Information"] != "ResourceUnitLimitExceeded" {
		t.Errorf("over: %v", answers["over"])
	}
	if answers["broken"]["body"] != "PGh0bWw+" {
		t.Errorf("broken: %v", answers["broken"])
	}
	// The cut one was carried out; of the read, both.
	body, _ := answers["read"]["body"].(map[string]any)
	if list, _ := body["passwordCredentials"].([]any); len(list) != 2 {
		t.Errorf("%d passwords: %v", len(list), body)
	}
	w.fault(entrasim.Fault{Operation: "graph.batch", Count: 1, Effect: entrasim.Effect{Status: 503}})
	if got := w.graph(http.MethodPost, "/$batch", `{"requests":[`+step("1", "GET", "/organization", "")+`]}`); got.status != 503 {
		t.Errorf("a batch that fails as a whole: %d %s", got.status, got.body)
	}
}

// TestBatch_EachRequestLandsOnAReplica finds that reads of one batch differ.
func TestBatch_EachRequestLandsOnAReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Seed: 2, Lags: entrasim.Lags{Graph: entrasim.Range{Max: seconds(100)}}})
		a := w.newApp("one")
		var steps []string
		for i := range 20 {
			steps = append(steps, step(fmt.Sprint(i), "GET", "/applications/"+a.id, ""))
		}
		for range 10 {
			statuses := make(map[int]int)
			got, _ := w.batch(steps...)
			for _, r := range got {
				statuses[r.Status]++
			}
			if statuses[200] > 0 && statuses[404] > 0 {
				return
			}
			w.wait(10)
		}
		t.Error("all reads of every batch agreed")
	})
}
