package year_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"phasekey.dev/pkg/entrasim"
)

// kind is a kind of bad weather.
type kind string

// The kinds there are.
const (
	noRedis    kind = "Redis away"
	noSQL      kind = "SQL away"
	noEntra    kind = "Entra away"
	noGraph    kind = "Graph away"
	throttled  kind = "Graph throttles"
	lossy      kind = "replies are lost"
	noRegistry kind = "registry away"
	noSecrets  kind = "policy forbids secrets"
	shortLives kind = "policy shortens secrets' lives"
	oneAway    kind = "one replica is paused, or cut off from Redis"
	nobody     kind = "no replica answers"
)

// span is a time of something.
type span struct{ from, to time.Time }

// weather is what is wrong everywhere at once.
type weather struct {
	now     map[kind]int
	began   map[kind]time.Time // of what is now
	history map[kind][]span
	// ended is when a life last did, or Redis forgot everything.
	ended time.Time
}

func newWeather() *weather {
	return &weather{now: map[kind]int{}, began: map[kind]time.Time{}, history: map[kind][]span{}}
}

// near tells whether a moment lies in a time of this kind, or not longer than that after it.
func (w *weather) near(k kind, at time.Time, after time.Duration) bool {
	for _, s := range w.history[k] {
		if !at.Before(s.from) && at.Before(s.to.Add(after)) {
			return true
		}
	}
	return w.now[k] > 0 && !at.Before(w.began[k])
}

// calm tells whether since a moment until now every replica has gone on as before, and had all that it needs to ask tenants.
func (w *weather) calm(since, now time.Time) bool {
	return w.ended.Before(since) && !slices.ContainsFunc([]kind{noSQL, noRedis, noEntra, oneAway}, func(k kind) bool {
		return w.is(k) || w.overlap(span{since, now}, k) > 0
	})
}

// is tells whether it is so now.
func (w *weather) is(k kind) bool {
	return w.now[k] > 0
}

func (anew) happen(j *judge) { j.weather.ended = j.now }

func (e clouds) happen(j *judge) {
	w := j.weather
	if e.There {
		if w.now[e.Kind]++; w.now[e.Kind] == 1 {
			w.began[e.Kind] = j.now
		}
		return
	}
	if w.now[e.Kind]--; w.now[e.Kind] == 0 {
		w.history[e.Kind] = append(w.history[e.Kind], span{w.began[e.Kind], j.now})
	}
}

func (e answers) happen(j *judge) {
	before := len(j.answering)
	if e.Is {
		j.answering[e.Life] = true
	} else {
		delete(j.answering, e.Life)
	}
	if there := len(j.answering) == 0; there != (before == 0) {
		clouds{nobody, there}.happen(j)
	}
}

// during has it so for a time.
func (w *world) during(ctx context.Context, k kind, d time.Duration) {
	w.journal.tell(clouds{k, true})
	defer w.journal.tell(clouds{k, false})
	sleep(ctx, d)
}

// is tells whether it is so now.
func (w *world) is(k kind) (is bool) {
	w.journal.ask(func(j *judge) { is = j.weather.is(k) })
	return is
}

// overlap is how long any of the kinds was there in a span; what is there now counts from its beginning.
func (w *weather) overlap(in span, kinds ...kind) time.Duration {
	var total time.Duration
	for _, k := range kinds {
		all := w.history[k]
		if w.is(k) {
			all = append(slices.Clip(all), span{w.began[k], in.to})
		}
		for _, s := range all {
			from, to := later(s.from, in.from), earlier(s.to, in.to)
			total += max(0, to.Sub(from))
		}
	}
	return total
}

// in says what the weather was like in a span.
func (w *weather) in(s span) string {
	var out []string
	say := func(k kind, from, to time.Time) {
		if from.Before(s.to) && s.from.Before(to) {
			out = append(out, fmt.Sprintf("%s from %s to %s", k, from.UTC().Format(time.DateTime), to.UTC().Format(time.DateTime)))
		}
	}
	for k, all := range w.history {
		for _, h := range all {
			say(k, h.from, h.to)
		}
	}
	for k, n := range w.now {
		if n > 0 {
			say(k, w.began[k], s.to)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// blow changes the weather, a few times a day.
func (w *world) blow(ctx context.Context) {
	dice := w.luck.dice("weather")
	minutes := func(most int) time.Duration {
		return time.Minute + time.Duration(dice.Int64N(int64(most)*int64(time.Minute)))
	}
	// What breaks must be able to heal: the first day is calm.
	sleep(ctx, 24*time.Hour)
	for ctx.Err() == nil {
		sleep(ctx, minutes(10*60))
		switch dice.IntN(9) {
		case 0:
			w.count(string(noRedis))
			for _, r := range w.replicas {
				r.link.Cut()
			}
			w.during(ctx, noRedis, minutes(60))
			for _, r := range w.replicas {
				r.link.Heal()
			}
		case 1:
			// One replica alone is cut off; all it sends vanishes.
			r := w.replicas[dice.IntN(len(w.replicas))]
			w.count("one replica cut off from Redis")
			r.link.Stall()
			w.during(ctx, oneAway, minutes(60))
			r.link.Heal()
		case 2:
			w.count("Redis emptied")
			w.journal.tell(anew{})
			if err := w.replicas[0].link.FlushAll(ctx).Err(); err != nil {
				w.count("Redis emptied, or not")
			}
		case 3:
			w.count(string(noSQL))
			w.during(ctx, noSQL, minutes(12))
		case 4:
			w.trouble(ctx, noEntra, minutes(40), entrasim.Fault{Plane: entrasim.PlaneLogin, Effect: entrasim.Effect{Status: http.StatusServiceUnavailable}})
		case 5:
			w.trouble(ctx, noGraph, minutes(120), entrasim.Fault{Plane: entrasim.PlaneGraph, Effect: entrasim.Effect{Cut: true}})
		case 6:
			w.trouble(ctx, throttled, minutes(120), entrasim.Fault{
				Plane: entrasim.PlaneGraph, Probability: 0.8, Effect: entrasim.Effect{Status: http.StatusTooManyRequests, RetryAfter: 90 * time.Second},
			})
		case 7:
			w.trouble(ctx, lossy, minutes(240), entrasim.Fault{
				Plane: entrasim.PlaneGraph, Probability: 0.5, Effect: entrasim.Effect{Status: http.StatusGatewayTimeout, AfterCommit: true},
			})
		case 8:
			w.count(string(noRegistry))
			w.during(ctx, noRegistry, minutes(10))
		}
		if life := w.replicas[dice.IntN(len(w.replicas))].current(); life != nil {
			switch dice.IntN(4) {
			case 0:
				life.kill("at any moment")
			case 1:
				w.count("stopped in order")
				w.journal.tell(anew{})
				life.end()
			case 2:
				w.count("paused past the lock's life")
				life.pause(ctx, lockTTL+minutes(60))
			}
		}
	}
}

// trouble has Entra in trouble for a time.
func (w *world) trouble(ctx context.Context, k kind, d time.Duration, f entrasim.Fault) {
	w.count(string(k))
	f.ID = fmt.Sprintf("%s at %d", k, time.Now().Unix())
	if _, err := w.sim.AddFault(f); err != nil {
		w.fail("add fault: %v", err)
		return
	}
	w.during(ctx, k, d)
	if err := w.sim.RemoveFault(f.ID); err != nil {
		w.fail("remove fault: %v", err)
	}
}

// policies has the platform's own tenant say how long secrets may be valid, or that there may be none.
func (w *world) policies(ctx context.Context) {
	dice := w.luck.dice("policies")
	hours := func(least, most int64) time.Duration {
		return time.Duration(least+dice.Int64N(most-least)) * time.Hour
	}
	for ctx.Err() == nil {
		// What a policy leaves behind, lives that are short, is over before the next.
		sleep(ctx, hours(24, 72))
		if dice.IntN(2) == 0 {
			w.policy(ctx, noSecrets, hours(1, 4), entrasim.PasswordPolicy{Forbidden: true})
		} else {
			w.policy(ctx, shortLives, hours(12, 72), entrasim.PasswordPolicy{MaxLifetime: hours(24, 60)})
		}
	}
}

// policy has the tenant's policy say this for a time.
func (w *world) policy(ctx context.Context, k kind, d time.Duration, p entrasim.PasswordPolicy) {
	w.count(string(k))
	p.Tenant = w.platform.Tenant
	if err := w.sim.SetPasswordPolicy(p); err != nil {
		w.fail("set policy: %v", err)
		return
	}
	w.during(ctx, k, d)
	if err := w.sim.SetPasswordPolicy(entrasim.PasswordPolicy{Tenant: p.Tenant}); err != nil {
		w.fail("unset policy: %v", err)
	}
}
