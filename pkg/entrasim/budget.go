package entrasim

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Budget is what may be used at once; it comes back evenly, all of it within Per.
type Budget struct {
	Amount int
	Per    time.Duration
}

func (b Budget) check() error {
	if (b == Budget{}) || (b.Amount > 0 && b.Per >= time.Duration(b.Amount)) {
		return nil
	}
	return fmt.Errorf("%d in %v is not an amount above zero in a time above zero: %w", b.Amount, b.Per, ErrInvalid)
}

// share is the time in which so much comes back.
func (b Budget) share(cost int) time.Duration {
	return time.Duration(cost) * b.Per / time.Duration(b.Amount)
}

// Budgets are what may be asked of Graph and Resource Manager before they answer
// 429. A zero budget is the documented one, which each field names.
type Budgets struct {
	// Unlimited turns all of them off.
	Unlimited bool

	// Graph: resource units and writes of one application in one tenant, 3,500 in
	// 10 s (5,000 in a tenant of 50 people, 8,000 above 500) and 3,000 in 150 s.
	PairUnits, PairWrites Budget
	// Graph: the same of one application everywhere, 150,000 in 20 s and 70,000
	// in 5 min, and its requests whatever they cost, 2,000 in 1 s.
	ApplicationUnits, ApplicationWrites, ApplicationRequests Budget
	// Graph: writes in one tenant by whomever, 18,000 in 5 min.
	TenantWrites Budget

	// Resource Manager: requests of one principal to one subscription, or to none:
	// 250 that come back by 25 a second, 200 by 10 and 200 by 10. All principals
	// together have 15 times that for a subscription.
	Reads, Writes, Deletes Budget
}

const everybody = 15 // times one principal's budget

// withDefaults fills in what is documented, but for PairUnits, which depend on
// the tenant.
func (b Budgets) withDefaults() (Budgets, error) {
	for _, d := range []struct {
		name   string
		budget *Budget
		usual  Budget
	}{
		{"pair units", &b.PairUnits, Budget{}},
		{"pair writes", &b.PairWrites, Budget{3000, 150 * time.Second}},
		{"application units", &b.ApplicationUnits, Budget{150_000, 20 * time.Second}},
		{"application writes", &b.ApplicationWrites, Budget{70_000, 5 * time.Minute}},
		{"application requests", &b.ApplicationRequests, Budget{2000, time.Second}},
		{"tenant writes", &b.TenantWrites, Budget{18_000, 5 * time.Minute}},
		{"reads", &b.Reads, Budget{250, 10 * time.Second}},
		{"writes", &b.Writes, Budget{200, 20 * time.Second}},
		{"deletes", &b.Deletes, Budget{200, 20 * time.Second}},
	} {
		if err := d.budget.check(); err != nil {
			return b, fmt.Errorf("budget of %s: %w", d.name, err)
		}
		if *d.budget == (Budget{}) {
			*d.budget = d.usual
		}
	}
	return b, nil
}

// pairUnits are an application's resource units in a tenant with so many people.
func (b Budgets) pairUnits(people int) Budget {
	amount := 3500
	switch {
	case b.PairUnits != (Budget{}):
		return b.PairUnits
	case people > 500:
		amount = 8000
	case people >= 50:
		amount = 5000
	}
	return Budget{amount, 10 * time.Second}
}

// meters say how much of budgets is used, each by the moment at which all of it
// will have come back. They start nothing: time alone fills a budget.
type meters struct {
	mu    sync.Mutex
	whole map[string]time.Time
	sweep int // meters at which those of whole budgets are dropped
}

// spent is what became of a cost.
type spent struct {
	over bool
	// used is how much of the budget is in use, 1 for all of it.
	used float64
	// wait is when the same cost would be met, if it was not now.
	wait time.Duration
}

const (
	// overdraft is how far beyond a budget those get who do not heed its end: the
	// documented range of x-ms-throttle-limit-percentage ends here.
	overdraft = 1.8
	minSweep  = 1024
)

// spend takes a cost from the budget that the key names. With regardless, what
// is refused counts too.
func (m *meters) spend(key string, b Budget, cost int, now time.Time, regardless bool) spent {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.whole == nil {
		m.whole, m.sweep = make(map[string]time.Time), minSweep
	}
	if len(m.whole) >= m.sweep {
		for k, at := range m.whole {
			if !at.After(now) {
				delete(m.whole, k)
			}
		}
		m.sweep = max(minSweep, 2*len(m.whole))
	}
	before := max(0, m.whole[key].Sub(now))
	after := before + b.share(cost)
	over := after > b.Per
	if over {
		if !regardless {
			return spent{over: true, used: float64(before) / float64(b.Per), wait: after - b.Per}
		}
		after = min(after, time.Duration(overdraft*float64(b.Per)))
	}
	m.whole[key] = now.Add(after)
	out := spent{over: over, used: float64(after) / float64(b.Per)}
	if over {
		out.wait = after + b.share(cost) - b.Per
	}
	return out
}

// graphCost is what a request costs: resource units, and writes.
func graphCost(c *call) (units, writes int) {
	if c.Method != http.MethodGet {
		return 1, 1
	}
	units = 1
	if c.operation == "graph.application.list" {
		units = 2
	}
	query := c.URL.Query()
	if query.Has("$select") {
		units--
	}
	if query.Has("$expand") {
		units++
	}
	if top, err := strconv.Atoi(query.Get("$top")); err == nil && top < 20 {
		units--
	}
	return max(1, units), 0
}

// graphMetered carries a Graph request out, if the budgets allow. All of them are
// charged for it, even when one of them does not.
func (s *Simulator) graphMetered(c *call, run func(*call) reply) reply {
	s.mu.Lock()
	people := 0
	if t := s.state.tenants[c.tenant]; t != nil {
		people = len(t.people)
	}
	s.mu.Unlock()
	b, app := s.config.Budgets, c.token.AppID
	units, writes := graphCost(c)
	out, wait, used := "", time.Duration(0), 0.0
	for _, charge := range []struct {
		scope, limit string // of x-ms-throttle-scope; empty for what is not the directory's
		reason       string
		budget       Budget
		cost         int
	}{
		{"", "", "", b.ApplicationRequests, 1},
		{"Tenant_Application", "ReadWrite", "ResourceUnitLimitExceeded", b.pairUnits(people), units},
		{"Tenant_Application", "Write", "WriteLimitExceeded", b.PairWrites, writes},
		{"Application", "ReadWrite", "ResourceUnitLimitExceeded", b.ApplicationUnits, units},
		{"Application", "Write", "WriteLimitExceeded", b.ApplicationWrites, writes},
		{"Tenant", "Write", "WriteLimitExceeded", b.TenantWrites, writes},
	} {
		if charge.cost == 0 {
			continue
		}
		key := strings.Join([]string{"graph", charge.scope, charge.limit}, " ")
		if charge.scope != "Tenant" {
			key += " " + app
		}
		if strings.HasPrefix(charge.scope, "Tenant") {
			key += " " + c.tenant
		}
		got := s.meters.spend(key, charge.budget, charge.cost, c.now, true)
		if charge.scope != "" {
			used = max(used, got.used)
		}
		if got.over && got.wait > wait {
			wait = got.wait
			out = charge.reason
			if charge.scope != "" {
				out += " " + strings.Join([]string{charge.scope, charge.limit, app, c.tenant}, "/")
			}
		}
	}
	if wait == 0 {
		r := run(c)
		r.header.Set("X-Ms-Resource-Unit", strconv.Itoa(units))
		if used >= 0.8 {
			r.header.Set("X-Ms-Throttle-Limit-Percentage", strconv.FormatFloat(used, 'f', 2, 64))
		}
		return r
	}
	code, message := usualTrouble(PlaneGraph, http.StatusTooManyRequests)
	r := c.fail(http.StatusTooManyRequests, code, message)
	retryAfter(r.header, wait)
	if reason, scope, found := strings.Cut(out, " "); found {
		r.header.Set("X-Ms-Throttle-Information", reason)
		r.header.Set("X-Ms-Throttle-Scope", scope)
	}
	return r
}

// armMetered carries a Resource Manager request out, if the budgets allow. What
// they do not allow is not charged.
func (s *Simulator) armMetered(c *call, subscription string, run func(*call) reply) reply {
	kind, budget := "write", s.config.Budgets.Writes
	switch c.Method {
	case http.MethodGet, http.MethodHead:
		kind, budget = "read", s.config.Budgets.Reads
	case http.MethodDelete:
		kind, budget = "delete", s.config.Budgets.Deletes
	}
	scope, name := "tenant", c.tenant
	if subscription != "" {
		scope, name = "subscription", subscription
	}
	own := s.meters.spend(strings.Join([]string{"arm", kind, name, c.token.ObjectID}, " "), budget, 1, c.now, false)
	all, shared := own, Budget{everybody * budget.Amount, budget.Per}
	if !own.over && subscription != "" {
		all = s.meters.spend(strings.Join([]string{"arm", kind, name}, " "), shared, 1, c.now, false)
	}
	var r reply
	switch {
	case !own.over && !all.over:
		r = run(c)
	case subscription == "":
		r = c.fail(http.StatusTooManyRequests, "TooManyRequests", "The request is being throttled.")
	default:
		seconds := strconv.FormatFloat(math.Ceil(all.wait.Seconds()), 'f', 0, 64)
		r = c.fail(http.StatusTooManyRequests, "SubscriptionRequestsThrottled",
			"Number of '"+kind+"' requests for subscription '"+name+"' actor '"+c.token.ObjectID+"' exceeded. Please try again after '"+seconds+
				"' seconds after additional tokens are available. Refer to https://aka.ms/arm-throttling for additional information.")
	}
	if own.over || all.over {
		retryAfter(r.header, all.wait)
	}
	left := func(used float64, b Budget) string { return strconv.Itoa(max(0, int((1-used)*float64(b.Amount)+1e-6))) }
	r.header.Set("X-Ms-Ratelimit-Remaining-"+scope+"-"+kind+"s", left(own.used, budget))
	if subscription != "" && !own.over {
		r.header.Set("X-Ms-Ratelimit-Remaining-"+scope+"-Global-"+kind+"s", left(all.used, shared))
	}
	return r
}

// looped tells whether one token is asked for too often: for one tenant and
// resource, by one application's one credential.
func (s *Simulator) looped(c *call, audience string, by proof) bool {
	if s.config.LoginLoop == (Budget{}) || c.application == "" {
		return false
	}
	credential := c.keyID
	if credential == "" { // none of the application's: told apart without being kept
		credential = string(hashSecret([]byte(by.assertion), by.secret))
	}
	key := strings.Join([]string{"login", c.tenant, c.application, audience, credential}, " ")
	return s.meters.spend(key, s.config.LoginLoop, 1, c.now, true).over
}
