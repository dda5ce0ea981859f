package budget_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"phasekey.dev/pkg/redistest"
	"phasekey.dev/services/vault/internal/budget"
)

const home = "11111111-1111-4111-8111-111111111111"

// limits are met within seconds by reads, whose window is ten seconds: up to 125 are saved up by each class, and 175 come each second.
func limits() budget.Limits { return budget.Limits{Writes: 2400, Reads: 2000, AloneShare: 0.25} }

func replica(t *testing.T, client redis.UniversalClient) (*budget.Budget, *prometheus.Registry) {
	t.Helper()
	metrics := prometheus.NewRegistry()
	b, err := budget.New(budget.Config{Limits: limits(), Client: client, Prefix: "test", Log: slog.New(slog.DiscardHandler), Metrics: metrics})
	if err != nil {
		t.Fatal(err)
	}
	return b, metrics
}

// crowd asks for one permit after another, each for another integration, until a time.
type crowd struct {
	kind  budget.Kind
	class budget.Class
	// every is how far apart integrations come; 0 has twenty always at it.
	every time.Duration

	permits atomic.Int64
	asked   atomic.Int64
	mu      sync.Mutex
	longest time.Duration
}

func (c *crowd) one(ctx context.Context, b *budget.Budget, uid string, until time.Time) bool {
	came := time.Now()
	for {
		c.asked.Add(1)
		at := b.Take(ctx, home, c.kind, c.class, uid)
		if at.IsZero() {
			c.permits.Add(1)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.longest = max(c.longest, time.Since(came))
			return true
		}
		if !at.Before(until) {
			return false
		}
		<-time.After(time.Until(at))
	}
}

func (c *crowd) run(ctx context.Context, name string, b *budget.Budget, until time.Time) {
	var all sync.WaitGroup
	defer all.Wait()
	if c.every == 0 {
		for i := range 20 {
			all.Go(func() {
				for n := 0; c.one(ctx, b, fmt.Sprintf("%s-%d-%d", name, i, n), until); n++ {
				}
			})
		}
		return
	}
	for n := 0; time.Now().Before(until); n++ {
		all.Go(func() { c.one(ctx, b, fmt.Sprintf("%s-%d", name, n), until) })
		<-time.After(c.every)
	}
}

// together runs crowds at all replicas for a time.
func together(t *testing.T, d time.Duration, replicas []*budget.Budget, crowds ...*crowd) {
	t.Helper()
	until := time.Now().Add(d)
	var all sync.WaitGroup
	for i, b := range replicas {
		for k, c := range crowds {
			all.Go(func() { c.run(t.Context(), fmt.Sprintf("%d-%d", i, k), b, until) })
		}
	}
	all.Wait()
}

func TestBudget_IsOneForAllReplicas(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		var replicas []*budget.Budget
		for range 3 {
			b, _ := replica(t, r.Link(t))
			replicas = append(replicas, b)
		}
		greedy := &crowd{kind: budget.Read, class: budget.Change}
		together(t, 3*time.Second, replicas, greedy)
		// Half, until the other class' bucket is full, which it is after 1.4 s: then all.
		if n := greedy.permits.Load(); n < 320 || n > 3*175 {
			t.Errorf("%d permits in three seconds", n)
		}
		// Sixty that want one at every moment do not ask at every moment.
		if n, asked := greedy.permits.Load(), greedy.asked.Load(); asked > 20*n {
			t.Errorf("asked %d times for %d permits", asked, n)
		}
	})
}

func TestBudget_GuaranteesEachClassItsHalf(t *testing.T) {
	for _, flooded := range []budget.Class{budget.Change, budget.Upkeep} {
		t.Run(flooded.String(), func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
				b, _ := replica(t, r.Link(t))
				flood := &crowd{kind: budget.Read, class: flooded}
				steady := &crowd{kind: budget.Read, class: 1 - flooded, every: 25 * time.Millisecond} // 80 a second, of 87 that are its own
				together(t, 3*time.Second, []*budget.Budget{b}, flood, steady)
				if n := steady.permits.Load(); n < 60 {
					t.Errorf("%d of some 120 came through", n)
				}
				if steady.longest > time.Second {
					t.Errorf("one waited for %v", steady.longest)
				}
			})
			t.Run("without Redis", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b, _ := replica(t, nil)
					flood := &crowd{kind: budget.Read, class: flooded}
					steady := &crowd{kind: budget.Read, class: 1 - flooded, every: 100 * time.Millisecond} // ten a second, of twenty that are its own
					together(t, 20*time.Second, []*budget.Budget{b}, flood, steady)
					if n := steady.permits.Load(); n < 150 {
						t.Errorf("%d of some 200 came through", n)
					}
					if steady.longest > time.Second {
						t.Errorf("one waited for %v", steady.longest)
					}
				})
			})
		})
	}
}

func TestBudget_APauseIsEverybodys(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		link := r.Link(t)
		one, _ := replica(t, link)
		two, _ := replica(t, r.Link(t))
		one.Take(t.Context(), home, budget.Read, budget.Upkeep, "first")
		<-time.After(300 * time.Millisecond)
		if at := two.Take(t.Context(), home, budget.Read, budget.Upkeep, "a"); !at.IsZero() {
			t.Fatalf("no permit until %v", at)
		}
		one.Throttled(t.Context(), home, 2*time.Second)
		one.Throttled(t.Context(), home, time.Second) // takes nothing back
		end := time.Now().Add(1900 * time.Millisecond)
		for name, b := range map[string]*budget.Budget{"who was told": one, "another": two} {
			for _, kind := range []budget.Kind{budget.Read, budget.Write} {
				if at := b.Take(t.Context(), home, kind, budget.Change, "b"+name); at.Before(end) {
					t.Errorf("%s may ask for a %s at %v, before %v", name, kind, at, end)
				}
			}
			if at := b.Take(t.Context(), "another cloud", budget.Read, budget.Change, "c"+name); time.Until(at) > time.Second {
				t.Errorf("%s: another cloud is paused until %v", name, at)
			}
		}
		// Redis forgets, or does not answer: who was told does not.
		if err := link.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if at := one.Take(t.Context(), home, budget.Read, budget.Change, "d"); at.Before(end) {
			t.Errorf("after Redis forgot, one may ask at %v", at)
		}
		link.Cut()
		if at := one.Take(t.Context(), home, budget.Write, budget.Change, "e"); at.Before(end) {
			t.Errorf("without Redis, one may ask at %v", at)
		}
	})
}

func TestBudget_RedisForgetsAndNothingIsGivenAway(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		link := r.Link(t)
		b, _ := replica(t, link)
		got := 0
		for range 200 {
			if err := link.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			if b.Take(t.Context(), home, budget.Write, budget.Upkeep, fmt.Sprint(got)).IsZero() {
				got++
			}
		}
		if got != 0 {
			t.Errorf("%d permits from a Redis that forgot what was spent", got)
		}
	})
}

func TestBudget_AShareWithoutRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Mini(t)
		link := r.Link(t)
		b, metrics := replica(t, link)
		b.Take(t.Context(), home, budget.Read, budget.Change, "x")
		link.Cut()
		greedy := &crowd{kind: budget.Read, class: budget.Change}
		together(t, 100*time.Second, []*budget.Budget{b}, greedy)
		// A quarter of 2,000 in any ten seconds.
		if n := greedy.permits.Load(); n < 3800 || n > 5000 {
			t.Errorf("%d permits alone in a hundred seconds", n)
		}
		link.Heal()
		<-time.After(10 * time.Second)
		if together(t, time.Second, []*budget.Budget{b}, greedy); !counted(t, metrics, "shared") || !counted(t, metrics, "alone") {
			t.Error("permits are not counted by whose budget they were of")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b, _ := replica(t, nil)
		greedy := &crowd{kind: budget.Write, class: budget.Upkeep}
		together(t, 10*time.Minute, []*budget.Budget{b}, greedy)
		if n := greedy.permits.Load(); n < 2000 || n > 2400 {
			t.Errorf("%d writes alone in ten minutes", n)
		}
	})
}

// counted reports whether permits of a budget were counted.
func counted(t *testing.T, metrics *prometheus.Registry, whose string) bool {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "phasekey_vault_graph_permits_total" && l.GetValue() == whose {
					return m.GetCounter().GetValue() > 0
				}
			}
		}
	}
	return false
}

// Two thousand new integrations at three replicas, while others rotate: nobody asks often, whoever comes first is served about first, in
// no window is more spent than may be, and rotations hardly notice.
func TestBudget_WorksOffABacklog(t *testing.T) {
	// In which order those ask who may at the same moment is the scheduler's, and how often they are told to come again depends on that, as does who is served before whom.
	const lives = 3
	asked, permits := 0, 0
	var late [3]int
	for range lives {
		synctest.Test(t, func(t *testing.T) {
			a, p, l := worksOffABacklog(t)
			asked, permits = asked+a, permits+p
			for i := range late {
				late[i] += l[i]
			}
		})
	}
	if asked > 6*permits {
		t.Errorf("asked %d times for %d permits", asked, permits)
	}
	for i, n := range late {
		if n > lives*backlog/10 {
			t.Errorf("replica %d served %d of %d far out of order", i, n, lives*backlog)
		}
	}
}

// backlog is how many each of three replicas has to do.
const backlog = 700

// worksOffABacklog returns how often was asked for how many permits, and how many each replica served far out of order.
func worksOffABacklog(t *testing.T) (asked, permits int, late [3]int) {
	t.Helper()
	r := redistest.Mini(t)
	start := time.Now()
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		when []time.Duration // of all permits
		wait time.Duration   // the longest of a rotation
		done [3][]int        // the order in which each replica's were served
	)
	ask := func(b *budget.Budget, class budget.Class, uid string) time.Duration {
		came := time.Now()
		for {
			at := b.Take(t.Context(), home, budget.Write, class, uid)
			mu.Lock()
			asked++
			if at.IsZero() {
				defer mu.Unlock()
				when = append(when, time.Since(start))
				return time.Since(came)
			}
			mu.Unlock()
			time.Sleep(time.Until(at))
		}
	}
	for i := range done {
		b, _ := replica(t, r.Link(t))
		for n := range backlog {
			all.Go(func() {
				time.Sleep(time.Duration(n) * time.Millisecond)
				ask(b, budget.Change, fmt.Sprintf("new-%d-%d", i, n))
				mu.Lock()
				defer mu.Unlock()
				done[i] = append(done[i], n)
			})
		}
		all.Go(func() {
			for n := range 200 {
				d := ask(b, budget.Upkeep, fmt.Sprintf("old-%d-%d", i, n))
				mu.Lock()
				wait = max(wait, d)
				mu.Unlock()
				time.Sleep(time.Second)
			}
		})
	}
	all.Wait()
	total := 3*backlog + 600
	if len(when) != total {
		t.Fatalf("%d permits", len(when))
	}
	if took := time.Since(start); took > 5*time.Minute {
		t.Errorf("took %v", took)
	}
	if wait > 2*time.Second {
		t.Errorf("a rotation waited for %v", wait)
	}
	for i, j := 0, 0; i < len(when); i++ {
		for when[i]-when[j] >= 150*time.Second {
			j++
		}
		if n := i - j + 1; n > limits().Writes {
			t.Fatalf("%d writes in a window", n)
		}
	}
	for i, order := range done {
		for at, n := range order {
			if at-n > backlog/4 || n-at > backlog/4 {
				late[i]++
			}
		}
	}
	return asked, total, late
}

func TestLimits_Validate(t *testing.T) {
	if err := budget.DefaultLimits().Validate(false); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for _, test := range []struct {
		limits      budget.Limits
		development bool
		keys        []string
	}{
		{budget.Limits{}, false, []string{"writes", "reads", "alone_share"}},
		{budget.Limits{Writes: 3001, Reads: 8001, AloneShare: 1.1}, false, []string{"writes", "reads", "alone_share"}},
		{budget.Limits{Writes: 3000, Reads: 8000, AloneShare: 1}, false, nil},
		{budget.Limits{Writes: 100, Reads: 100, AloneShare: 0.05}, false, nil},
		{budget.Limits{Writes: 99, Reads: 99, AloneShare: 0.04}, true, []string{"writes", "reads", "alone_share"}},
		{budget.Limits{Writes: 1_000_000, Reads: 1_000_000, AloneShare: 1}, true, nil},
	} {
		err := test.limits.Validate(test.development)
		var lines []string
		if err != nil {
			lines = strings.Split(err.Error(), "\n")
		}
		if len(lines) != len(test.keys) {
			t.Errorf("%+v: %v", test.limits, err)
			continue
		}
		for i, key := range test.keys {
			if !strings.HasPrefix(lines[i], key+": ") {
				t.Errorf("%+v: line %q, want %s", test.limits, lines[i], key)
			}
		}
	}
}
