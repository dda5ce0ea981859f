package store_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// model is what the store should hold, kept beside it.
type model struct {
	c    *counter
	rand *rand.Rand
	m    election.Mastership
	now  time.Time
	// states and limits are the versions', by ID; versions their IDs by number.
	versions []string
	states   map[string]credential.State
	limits   map[string]time.Time
	grants   map[string]*modelGrant
}

type modelGrant struct {
	end     time.Time
	revoked bool
	// leases are by instance.
	leases map[string]*modelLease
}

type modelLease struct {
	closed bool
	held   map[string]bool
}

func (g *modelGrant) live(now time.Time) bool { return !g.revoked && now.Before(g.end) }

func (g *modelGrant) release() {
	for _, l := range g.leases {
		clear(l.held)
	}
}

func (g *modelGrant) holds() bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(g.leases)), func(l *modelLease) bool { return len(l.held) > 0 })
}

// holders counts who holds a version.
func (w *model) holders(id string) (n int) {
	for _, g := range w.grants {
		for _, l := range g.leases {
			if l.held[id] {
				n++
			}
		}
	}
	return n
}

// pick is one of the keys.
func pick[T any](r *rand.Rand, of map[string]T) string {
	keys := slices.Sorted(maps.Keys(of))
	return keys[r.IntN(len(keys))]
}

// fresh is a moment that no other grant ends at.
func (w *model) fresh(within time.Duration) time.Time {
	return w.now.Add(time.Duration(1+w.rand.Int64N(within.Microseconds())) * time.Microsecond)
}

func (w *model) deliver() (string, error) {
	uid, instance, id := pick(w.rand, w.grants), fmt.Sprint("i", w.rand.IntN(6)), pick(w.rand, w.states)
	if w.rand.IntN(4) > 0 {
		for v, state := range w.states {
			if state == credential.Active {
				id = v
			}
		}
	}
	d := whole(uid, instance, id)
	d.HoldLimit = w.limits[id]
	_, err := w.c.store.Deliver(w.c.t.Context(), w.now, d)
	g := w.grants[uid]
	l, known := g.leases[instance]
	open := 0
	for _, other := range g.leases {
		if !other.closed {
			open++
		}
	}
	may := g.live(w.now) && w.states[id] == credential.Active && !g.end.After(d.HoldLimit) && (known && !l.closed || !known && open < lease.MaxPerGrant)
	if may != (err == nil) {
		return "", fmt.Errorf("deliver %s to %s of %s: %w, want success %t", id, instance, uid, err, may)
	}
	if err == nil {
		if !known {
			l = &modelLease{held: map[string]bool{}}
			g.leases[instance] = l
		}
		l.held[id] = true
	}
	return fmt.Sprintf("deliver %s to %s of %s: %v", id, instance, uid, err), nil
}

func (w *model) close() (string, error) {
	uid, instance := pick(w.rand, w.grants), fmt.Sprint("i", w.rand.IntN(6))
	if l, known := w.grants[uid].leases[instance]; known {
		l.closed = true
		clear(l.held)
	}
	return fmt.Sprintf("close %s of %s", instance, uid), w.c.store.CloseLease(w.c.t.Context(), w.now, uid, instance, platform)
}

func (w *model) revokeGrant() (string, error) {
	uid := pick(w.rand, w.grants)
	w.grants[uid].revoked = true
	w.grants[uid].release()
	_, err := w.c.store.RevokeGrant(w.c.t.Context(), w.now, "acme", uid, platform)
	return "revoke " + uid, err
}

func (w *model) extend() (string, error) {
	uid := pick(w.rand, w.grants)
	g, end := w.grants[uid], w.fresh(3*time.Hour)
	may := g.live(w.now)
	for _, l := range g.leases {
		for id := range l.held {
			may = may && (!end.After(w.limits[id]) || !end.After(g.end))
		}
	}
	_, err := w.c.store.ExtendGrant(w.c.t.Context(), w.now, "acme", uid, end, platform)
	if may != (err == nil) {
		return "", fmt.Errorf("extend %s: %w, want success %t", uid, err, may)
	}
	if err == nil && end.After(g.end) {
		g.end = end
	}
	return fmt.Sprintf("extend %s: %v", uid, err), nil
}

func (w *model) release() (string, error) {
	limit := 1 + w.rand.IntN(3)
	var over []*modelGrant
	for _, g := range w.grants {
		if g.holds() && !w.now.Before(g.end) {
			over = append(over, g)
		}
	}
	slices.SortFunc(over, func(a, b *modelGrant) int { return a.end.Compare(b.end) })
	over = over[:min(len(over), limit)]
	for _, g := range over {
		g.release()
	}
	n, err := w.c.store.ReleaseEnded(w.c.t.Context(), w.now, limit)
	if err == nil && n != len(over) {
		err = fmt.Errorf("released %d grants, want %d", n, len(over))
	}
	return fmt.Sprintf("release %d", n), err
}

func (w *model) rotate() (string, error) {
	old := w.versions[len(w.versions)-1]
	if w.states[old] != credential.Active {
		return "", fmt.Errorf("%s is %s", old, w.states[old])
	}
	id := fmt.Sprint("v", len(w.versions)+1)
	w.c.version(id, len(w.versions)+1, "PROPAGATING")
	w.versions = append(w.versions, id)
	w.states[old], w.states[id], w.limits[id] = credential.Retiring, credential.Active, w.now.Add(time.Duration(1+w.rand.IntN(6))*time.Hour)
	return "rotate to " + id, w.c.commit(w.m, promote(old, id))
}

func (w *model) retire() (string, error) {
	id := pick(w.rand, w.states)
	if w.states[id] != credential.Retiring {
		return "nothing", nil
	}
	err := w.c.commit(w.m, revoke(id))
	held := w.holders(id) > 0
	if held != errors.Is(err, store.ErrHeld) || !held && err != nil {
		return "", fmt.Errorf("revoke %s, which %d hold: %w", id, w.holders(id), err)
	}
	if !held {
		w.states[id] = credential.Revoking
	}
	return fmt.Sprintf("revoke %s: %v", id, err), nil
}

// check compares the versions' rows with the model.
func (w *model) check(step string) {
	w.c.t.Helper()
	var want []string
	for _, id := range w.versions {
		want = append(want, fmt.Sprint(id, " ", w.states[id], " ", w.holders(id), " ", w.holders(id)))
	}
	have := w.c.rows(4, `SELECT id, state, holders, (SELECT COUNT(*) FROM holdings WHERE version_id = credential_versions.id)
		FROM credential_versions ORDER BY number`)
	if !slices.Equal(have, want) {
		w.c.t.Fatalf("%s: versions %q, want %q", step, have, want)
	}
}

func TestHoldings_AsTheModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			overTheCounter(t, func(c *counter) {
				c.exec(`DELETE FROM credential_versions WHERE id <> 'v1'`)
				c.exec(`UPDATE credential_versions SET state = 'ACTIVE'`)
				c.exec(`UPDATE projection SET bookmark_time = $1`, sqldb.Micros(start.Add(1000*time.Hour)))
				w := &model{
					c: c, rand: rand.New(rand.NewPCG(seed, 7)), m: c.master(), now: start, versions: []string{"v1"},
					states: map[string]credential.State{"v1": credential.Active}, limits: map[string]time.Time{"v1": start.Add(4 * time.Hour)},
					grants: map[string]*modelGrant{},
				}
				for range 250 {
					if len(w.grants) == 0 || w.rand.IntN(10) == 0 {
						uid, end := fmt.Sprint("g", len(w.grants)), w.fresh(3*time.Hour)
						c.grant(uid, func(g *grant.Grant) { g.CreateTime, g.ExpireTime = w.now, end })
						w.grants[uid] = &modelGrant{end: end, leases: map[string]*modelLease{}}
					}
					ops := []func() (string, error){
						w.deliver, w.deliver, w.deliver, w.deliver, w.deliver, w.close, w.extend, w.release, w.retire, w.retire, w.rotate, w.revokeGrant,
					}
					step, err := ops[w.rand.IntN(len(ops))]()
					if err != nil {
						c.t.Fatal(err)
					}
					w.check(step)
					w.now = w.now.Add(time.Duration(w.rand.IntN(600)) * time.Second)
				}
				c.beginDeleting()
				if _, err := c.endLeases(w.m, w.now); err != nil {
					c.t.Fatal(err)
				}
				for _, g := range w.grants {
					g.release()
				}
				w.check("end leases")
			})
		})
	}
}
