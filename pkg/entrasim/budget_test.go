package entrasim_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

// until sends the same request until it is refused, and returns how often it was
// not, and the refusal.
func until(most int, send func() answer) (int, answer) {
	var got answer
	for n := range most {
		if got = send(); got.status == http.StatusTooManyRequests {
			return n, got
		}
	}
	return most, got
}

func (w *world) reader(bearer, path string) func() answer {
	return func() answer { return w.send(http.MethodGet, w.sim.Endpoints().Graph+"/v1.0"+path, bearer, "") }
}

func TestBudget_ResourceUnitsOfAPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Budgets: entrasim.Budgets{PairUnits: entrasim.Budget{Amount: 100, Per: 10 * time.Second}}})
		bearer := w.graphToken()
		read := w.reader(bearer, "/applications")
		for i := range 50 {
			got := read()
			want := ""
			if used := 2 * (i + 1); used >= 80 {
				want = fmt.Sprintf("%.2f", float64(used)/100)
			}
			if got.status != 200 || got.header.Get("X-Ms-Resource-Unit") != "2" || got.header.Get("X-Ms-Throttle-Limit-Percentage") != want {
				t.Fatalf("%d: %d %v", i, got.status, got.header)
			}
		}
		refused := read()
		if refused.status != 429 || refused.text("error/code") != "TooManyRequests" || refused.header.Get("Retry-After") != "1" ||
			refused.header.Get("X-Ms-Throttle-Information") != "ResourceUnitLimitExceeded" ||
			refused.header.Get("X-Ms-Throttle-Scope") != "Tenant_Application/ReadWrite/"+w.platform.ClientID+"/"+homeID ||
			refused.header.Get("X-Ms-Resource-Unit") != "" {
			t.Errorf("refused: %d %v %s", refused.status, refused.header, refused.body)
		}
		other, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID})
		w.must(err)
		if got := w.reader(w.token(homeID, other.ClientID, other.ClientSecret, graphScope), "/applications")(); got.status != 200 {
			t.Errorf("another application: %d", got.status)
		}
		time.Sleep(time.Second) // as told
		if got := read(); got.status != 200 {
			t.Errorf("after Retry-After: %d", got.status)
		}
		// Those who go on asking are charged for it, up to 1.8 times the budget.
		for range 100 {
			refused = read()
		}
		if refused.header.Get("Retry-After") != "9" {
			t.Errorf("after a hundred more: %v", refused.header)
		}
		time.Sleep(8 * time.Second)
		if got := read(); got.status != 429 {
			t.Errorf("before Retry-After: %d", got.status)
		}
		time.Sleep(time.Minute)
		if n, _ := until(100, read); n != 50 {
			t.Errorf("rested, %d were answered", n)
		}
	})
}

func TestBudget_CostsOfRequests(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	for _, c := range []struct{ method, path, units string }{
		{http.MethodGet, "/applications", "2"},
		{http.MethodGet, "/applications?$select=id", "1"},
		{http.MethodGet, "/applications?$top=19", "1"},
		{http.MethodGet, "/applications?$top=20", "2"},
		{http.MethodGet, "/applications?$expand=owners", "3"},
		{http.MethodGet, "/applications?$select=id&$top=1", "1"},
		{http.MethodGet, "/applications/" + a.id, "1"},
		{http.MethodGet, "/servicePrincipals", "1"},
		{http.MethodPost, "/applications/" + a.id + "/addPassword", "1"},
		{http.MethodPatch, "/applications/" + a.id + "?$expand=x", "1"},
	} {
		if got := w.graph(c.method, c.path, "{}"); got.header.Get("X-Ms-Resource-Unit") != c.units {
			t.Errorf("%s %s: %d %v, want %s", c.method, c.path, got.status, got.header, c.units)
		}
	}
}

// TestBudget_EachOfGraphs exhausts each of Graph's budgets from one instant: the
// documented ones where that does not take long.
func TestBudget_EachOfGraphs(t *testing.T) {
	const (
		read  = "/applications?$filter=appId+eq+'x'"
		write = "/applications/x"
	)
	large, small := entrasim.Budget{Amount: 1_000_000, Per: time.Second}, entrasim.Budget{Amount: 10, Per: time.Minute}
	for _, c := range []struct {
		name, method, path string
		people             int // besides one
		budgets            entrasim.Budgets
		want               int
		after              string
		scope, what        string
	}{
		{"units, small tenant", http.MethodGet, read, 0, entrasim.Budgets{}, 1750, "1", "Tenant_Application/ReadWrite", "ResourceUnitLimitExceeded"},
		{"units, tenant of 50", http.MethodGet, read, 49, entrasim.Budgets{ApplicationRequests: large}, 2500, "1", "Tenant_Application/ReadWrite", "ResourceUnitLimitExceeded"},
		{"units, tenant of 501", http.MethodGet, read, 500, entrasim.Budgets{ApplicationRequests: large}, 4000, "1", "Tenant_Application/ReadWrite", "ResourceUnitLimitExceeded"},
		{"requests", http.MethodGet, write, 0, entrasim.Budgets{}, 2000, "1", "", ""},
		{"writes", http.MethodPatch, write, 0, entrasim.Budgets{ApplicationRequests: large}, 3000, "1", "Tenant_Application/Write", "WriteLimitExceeded"},
		{"writes of a tenant", http.MethodPatch, write, 0, entrasim.Budgets{TenantWrites: small}, 10, "12", "Tenant/Write", "WriteLimitExceeded"},
		{"writes of an application", http.MethodPatch, write, 0, entrasim.Budgets{ApplicationWrites: small}, 10, "12", "Application/Write", "WriteLimitExceeded"},
		{"units of an application", http.MethodGet, write, 0, entrasim.Budgets{ApplicationUnits: small}, 10, "12", "Application/ReadWrite", "ResourceUnitLimitExceeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, entrasim.Config{Budgets: c.budgets})
				for i := range c.people {
					_, err := w.sim.CreatePerson(entrasim.Person{Tenant: homeID, UserName: fmt.Sprintf("p%d@home.example.com", i)})
					w.must(err)
				}
				bearer := w.graphToken()
				n, got := until(c.want+1, func() answer { return w.send(c.method, w.sim.Endpoints().Graph+"/v1.0"+c.path, bearer, "{}") })
				scope := ""
				if c.scope != "" {
					scope = c.scope + "/" + w.platform.ClientID + "/" + homeID
				}
				if n != c.want || got.status != 429 || got.header.Get("Retry-After") != c.after ||
					got.header.Get("X-Ms-Throttle-Scope") != scope || got.header.Get("X-Ms-Throttle-Information") != c.what {
					t.Errorf("%d were answered, then %d %v", n, got.status, got.header)
				}
			})
		})
	}
}

func TestBudget_ResourceManagersBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, p := w.consented("one")
		w.assign(p.ID, "Owner", scope)
		bearer := w.token(customerID, a.clientID, a.secret, armScope)
		send := func(method, path, body string) func() answer {
			return func() answer { return w.arm(method, path, bearer, body) }
		}
		for _, c := range []struct {
			kind   string
			send   func() answer
			amount int
			global string // what all have left after the first
		}{
			{"reads", send(http.MethodGet, scope, ""), 250, "3749"},
			{"writes", send(http.MethodPut, scope+"/resourcegroups/x", `{"location":"y"}`), 200, "2999"},
			{"deletes", send(http.MethodDelete, scope+"/resourcegroups/x", ""), 200, "2999"},
		} {
			first := c.send()
			if first.header.Get("X-Ms-Ratelimit-Remaining-Subscription-"+c.kind) != fmt.Sprint(c.amount-1) ||
				first.header.Get("X-Ms-Ratelimit-Remaining-Subscription-Global-"+c.kind) != c.global {
				t.Errorf("%s: first %d %v", c.kind, first.status, first.header)
			}
			n, refused := until(c.amount, c.send)
			want := "Number of '" + strings.TrimSuffix(c.kind, "s") + "' requests for subscription '" + subID + "' actor '" + p.ID + "' exceeded. Please try again after '1' seconds"
			if n != c.amount-1 || refused.text("error/code") != "SubscriptionRequestsThrottled" || refused.header.Get("Retry-After") != "1" ||
				!strings.HasPrefix(refused.text("error/message"), want) || refused.header.Get("X-Ms-Ratelimit-Remaining-Subscription-"+c.kind) != "0" {
				t.Errorf("%s: %d more were answered, then %d %v %s", c.kind, n, refused.status, refused.header, refused.body)
			}
			for range 100 {
				c.send()
			}
			time.Sleep(time.Second)
			if n, _ := until(100, c.send); n != c.amount/10+map[bool]int{true: 0, false: -10}[c.kind == "reads"] {
				t.Errorf("%s: %d a second come back", c.kind, n)
			}
		}
		_, other := w.consented("two")
		w.assign(other.ID, "Reader", scope)
		if n, got := until(300, send(http.MethodGet, "/subscriptions", "")); n != 250 || got.text("error/code") != "TooManyRequests" {
			t.Errorf("without a subscription %d were answered, then %s", n, got.body)
		}
	})
}

func TestBudget_AllOfASubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Budgets: entrasim.Budgets{Reads: entrasim.Budget{Amount: 2, Per: time.Minute}}})
		answered := 0
		for i := range 20 {
			a, p := w.consented(fmt.Sprint("a", i))
			w.assign(p.ID, "Reader", scope)
			bearer := w.token(customerID, a.clientID, a.secret, armScope)
			n, _ := until(3, func() answer { return w.arm(http.MethodGet, scope, bearer, "") })
			answered += n
		}
		if answered != 30 {
			t.Errorf("%d were answered, of 2 for each and 30 for all", answered)
		}
	})
}

func TestBudget_UnlimitedWhenAskedTo(t *testing.T) {
	tiny := entrasim.Budget{Amount: 1, Per: time.Hour}
	w := newWorld(t, entrasim.Config{Budgets: entrasim.Budgets{Unlimited: true, PairUnits: tiny, Reads: tiny}})
	a, p := w.consented("one")
	w.assign(p.ID, "Reader", scope)
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	if n, _ := until(5, w.reader(w.graphToken(), "/applications")); n != 5 {
		t.Errorf("Graph answered %d", n)
	}
	if n, got := until(5, func() answer { return w.arm(http.MethodGet, scope, bearer, "") }); n != 5 || got.header.Get("X-Ms-Ratelimit-Remaining-Subscription-Reads") != "" {
		t.Errorf("Resource Manager answered %d, %v", n, got.header)
	}
}

func TestLogin_LoopsAreStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{LoginLoop: entrasim.Budget{Amount: 5, Per: time.Minute}})
		a, _ := w.consented("one")
		second := w.newSecret(a)
		good := credentials(a.clientID, a.secret, armScope)
		ask := func(form url.Values) answer { return w.login(customerID, form) }
		if n, got := until(9, func() answer { return ask(good) }); n != 5 || got.header.Get("Retry-After") != "60" {
			t.Errorf("%d were answered, then %d %v", n, got.status, got.header)
		}
		for name, form := range map[string]url.Values{
			"another resource":   credentials(a.clientID, a.secret, graphScope),
			"another credential": credentials(a.clientID, second.secret, armScope),
		} {
			if got := ask(form); got.status != 200 {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
		}
		if got := w.login(homeID, good); got.status == 429 {
			t.Errorf("another tenant: %s", got.body)
		}
		if n, _ := until(9, func() answer { return ask(credentials(a.clientID, "wrong", armScope)) }); n != 5 {
			t.Errorf("%d wrong ones were answered", n)
		}
		time.Sleep(time.Minute)
		if got := ask(good); got.status != 200 {
			t.Errorf("after Retry-After: %d %s", got.status, got.body)
		}
	})
}
