// Package fault kills, pauses and cuts off the suite's processes, while runners use what they are given, and judges that nobody notices: real processes, a real
// PostgreSQL, a real Redis, real TLS, and the simulator of Entra. It needs what `make build` and `make setup` put into .bin.
package fault

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"syscall"
	"testing"
	"time"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/test/internal/rigtest"
)

func TestMain(m *testing.M) { rigtest.RunAbreast(m, 4) }

// again is how long after a fault every integration has rotated: longer than a period, what a lock lives, and the back-off of whoever was refused.
const again = 40 * time.Second

// TestFaults is one long story: each fault meets a suite that has come over the ones before. It runs beside none of the others, since it measures how long a failover takes.
func TestFaults(t *testing.T) {
	began := time.Now()
	w := newWorld(t)
	followed := w.followAudit(t)
	w.onboard(t)
	t.Logf("%d integrations have settled versions after %s", integrations, time.Since(began).Round(time.Second))
	stop := w.work(t)
	var failovers []time.Duration
	for _, fault := range []struct {
		name string
		meet func(t *testing.T)
	}{
		{"every vault is stopped in order, one after another", w.drain},
		{"a vault is killed", func(t *testing.T) {
			v := w.master(t)
			failovers = append(failovers, w.failover(t, v, func() { v.Kill(t) }))
			v.Start(t)
		}},
		{"a vault is paused for longer than its locks live", func(t *testing.T) {
			v := w.master(t)
			failovers = append(failovers, w.failover(t, v, func() { v.Signal(t, syscall.SIGSTOP) }))
			pause(t, lockTTL)
			v.Signal(t, syscall.SIGCONT)
		}},
		{"the network between a vault and Redis is cut", func(t *testing.T) {
			v := w.master(t)
			failovers = append(failovers, w.failover(t, v, v.redis.interrupt))
			v.redis.heal()
		}},
		{"Redis forgets everything", func(t *testing.T) { w.flushRedis(t) }},
		{"Redis is killed, and comes back empty", func(t *testing.T) {
			w.redis.Kill(t)
			pause(t, 2*lockTTL)
			w.redis.Start(t)
		}},
		{"PostgreSQL crashes", func(t *testing.T) {
			w.postgres.Stop(t, sqldbtest.Crash)
			pause(t, 3*time.Second)
			w.postgres.Start(t)
		}},
		{"a vault is killed while another is paused", func(t *testing.T) {
			v := w.master(t)
			v.Signal(t, syscall.SIGSTOP)
			other := w.master(t, v)
			other.Kill(t)
			other.Start(t)
			pause(t, 2*lockTTL)
			v.Signal(t, syscall.SIGCONT)
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			began := time.Now()
			fault.meet(t)
			healed := time.Now()
			w.rotated(t, again)
			t.Logf("every integration has rotated %s after it, which took %s", time.Since(healed).Round(time.Millisecond), healed.Sub(began).Round(time.Millisecond))
			w.judge.pronounce(t)
		})
	}
	stop()
	followed(t)
	w.judge.pronounce(t)
	w.tidy(t)
	w.covered(t)
	t.Run("PostgreSQL fails over to a standby that lacks what was committed last", w.loseCommits)
	for _, material := range []string{"token", "secret", "assertion"} {
		if w.judge.uses[material] == 0 {
			t.Errorf("no %s was used", material)
		}
	}
	t.Logf("%v uses of %d versions; failovers %v, of at most %s; %s in all", w.judge.uses, len(w.judge.versions), failovers, lockTTL*12/10, time.Since(began).Round(time.Second))
}

// pause lets time pass.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(d):
	}
}

// epochs are those of all shards, by the database.
func (w *world) epochs(ctx context.Context) (map[int]int64, error) {
	rows, err := w.shards.QueryContext(ctx, `SELECT shard, epoch FROM shards`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[int]int64{}
	for rows.Next() {
		var shard int
		var epoch int64
		if err := rows.Scan(&shard, &epoch); err != nil {
			return nil, err
		}
		out[shard] = epoch
	}
	return out, rows.Err()
}

// held are the shards that a vault is the master of: what its log says it took, and the database does not know otherwise.
func (w *world) held(ctx context.Context, v *vault) (map[int]int64, error) {
	epochs, err := w.epochs(ctx)
	if err != nil {
		return nil, err
	}
	out := map[int]int64{}
	for _, r := range records(&v.Process, "shard taken") {
		if epochs[r.Shard] == r.Epoch {
			out[r.Shard] = r.Epoch
		}
	}
	return out, nil
}

// master is a vault that is master of its share of the shards. It is none of those that are named.
func (w *world) master(t *testing.T, not ...*vault) (found *vault) {
	t.Helper()
	rigtest.Await(t, again, func(ctx context.Context) error {
		for _, v := range w.vaults {
			shards, err := w.held(ctx, v)
			if err != nil {
				return err
			}
			if len(shards) >= shardsEach && !slices.Contains(not, v) {
				found = v
				return nil
			}
		}
		return notYet("no vault has its share of the shards")
	})
	return found
}

// shardsEach is a vault's share.
const shardsEach = shards / vaults

// failover has something happen to a vault, and measures how long it takes until another has taken the last of its shards.
func (w *world) failover(t *testing.T, v *vault, happen func()) time.Duration {
	t.Helper()
	before, err := w.held(t.Context(), v)
	rigtest.Must(t, err)
	began := time.Now()
	happen()
	took := map[int]time.Duration{}
	limit := 4 * lockTTL
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for len(took) < len(before) {
		epochs, err := w.epochs(ctx)
		if err != nil {
			t.Fatalf("%s keeps its shards for longer than %s: %v of %v were taken: %v", v.Name, limit, took, before, err)
		}
		for shard, epoch := range before {
			if _, ok := took[shard]; !ok && epochs[shard] != epoch {
				took[shard] = time.Since(began)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	longest := slices.Max(slices.Collect(maps.Values(took)))
	t.Logf("%d shards of %s were taken over within %s, %.2f of their locks' life", len(before), v.Name, longest.Round(time.Millisecond), longest.Seconds()/lockTTL.Seconds())
	if longest > lockTTL*12/10 {
		t.Errorf("failover took %s, want at most 1.2 times %s", longest, lockTTL)
	}
	return longest.Round(time.Millisecond)
}

// password is one that the simulator has.
type password struct {
	KeyID   string    `json:"keyId"`
	Kind    string    `json:"kind"`
	Removed time.Time `json:"removed"`
}

// tidy waits until the passwords at Entra are those of versions that may have one.
func (w *world) tidy(t *testing.T) {
	t.Helper()
	for _, i := range w.integrations {
		rigtest.Await(t, 2*jobLife, func(ctx context.Context) error {
			var standing []password
			if err := w.Admin(ctx, http.MethodGet, "credentials?clientId="+i.clientID, nil, &standing); err != nil {
				return err
			}
			versions, err := w.versions(ctx, i)
			if err != nil {
				return err
			}
			known := map[string]bool{}
			for _, v := range versions {
				switch v.GetState() {
				case vaultv1.CredentialVersion_STATE_PROPAGATING, vaultv1.CredentialVersion_STATE_ACTIVE, vaultv1.CredentialVersion_STATE_RETIRING, vaultv1.CredentialVersion_STATE_REVOKING:
					known[v.GetKeyId()] = true
				default:
				}
			}
			count := 0
			for _, p := range standing {
				if !p.Removed.IsZero() || p.Kind == "federated" {
					continue // some replica has not heard of it; or it is no password
				}
				if count++; !known[p.KeyID] {
					return notYet("%s has a password that the vault does not know: %s", i.name, p.KeyID)
				}
			}
			if count > 3 {
				return notYet("%s has %d passwords", i.name, count)
			}
			return nil
		})
	}
}

// change is a line of the simulator's journal: a password that was added or removed, and when each replica of the token service knew.
type change struct {
	Kind    string    `json:"kind"`
	Time    time.Time `json:"time"`
	KeyID   string    `json:"keyId"`
	Visible struct {
		Login []int64 `json:"login"`
	} `json:"visible"`
}

// covered judges that from the first settled version on there was at every moment one that the vault held and every replica of the token service took.
func (w *world) covered(t *testing.T) {
	t.Helper()
	for _, i := range w.integrations {
		versions, err := w.versions(t.Context(), i)
		rigtest.Must(t, err)
		if i.federated {
			w.trusted(t, i, versions)
			continue
		}
		known := map[string]time.Time{}
		var first time.Time
		for _, v := range versions {
			if at := v.GetActivateTime(); at.IsValid() {
				known[v.GetKeyId()] = at.AsTime()
				if first.IsZero() || at.AsTime().Before(first) {
					first = at.AsTime()
				}
			}
		}
		var changes []change
		rigtest.Must(t, w.Admin(t.Context(), http.MethodGet, "journal?"+url.Values{"application": {i.clientID}, "kind": {"password.added", "password.removed"}}.Encode(), nil, &changes))
		from, to := map[string]time.Time{}, map[string]time.Time{}
		for _, c := range changes {
			moments := c.Visible.Login
			if _, ok := known[c.KeyID]; !ok {
				continue
			}
			if c.Kind == "password.added" {
				from[c.KeyID], to[c.KeyID] = time.Unix(0, slices.Max(append(moments, c.Time.UnixNano()))), time.Now()
			} else {
				to[c.KeyID] = c.Time
			}
		}
		at, rotations := first.Add(lag), 0
		for _, key := range slices.SortedFunc(maps.Keys(from), func(a, b string) int { return from[a].Compare(from[b]) }) {
			if from[key].After(at) {
				t.Errorf("%s had no version that every replica takes from %s to %s", i.name, at, from[key])
			}
			if to[key].After(at) {
				at = to[key]
			}
			rotations++
		}
		if rotations < 8 {
			t.Errorf("%s had %d versions in all, which proves little", i.name, rotations)
		}
		t.Logf("%s had %d versions", i.name, rotations)
	}
}
