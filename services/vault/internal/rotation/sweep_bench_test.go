package rotation_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/rotation"
)

const (
	manyIntegrations = 100_000
	manyShards       = 16
	// idleTime is for how long nothing is due, sweptTime how long the integrations are then worked on as they come due. A rotation takes longer: each step of it is seen of others.
	idleTime, sweptTime = 10 * time.Minute, 20 * time.Minute
	// latency is a request's.
	latency = 150 * time.Millisecond

	// What is promised.
	maxSweep  = 0.05             // of a core, to find that nothing is due
	maxLate   = 30 * time.Second // between the time for a new version and its password
	maxMemory = 64               // MiB of heap, whatever there is
)

// manyDirectory is an Entra ID with a hundred thousand applications, which all have consent. It has no lag.
type manyDirectory struct {
	*fakeDirectory
	mu   sync.Mutex
	apps map[string]*manyApp // by object ID, and by unique name
	// late is the longest that a password was asked for after it was due.
	late          time.Duration
	writes, reads map[int64]int // by the windows of Graph's limits
}

type manyApp struct {
	directory.Application
	due time.Time // when a new version shall be begun
}

func (d *manyDirectory) request(writes, reads int) {
	time.Sleep(latency)
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now().Unix()
	d.writes[now/150] += writes
	d.reads[now/10] += reads
}

// EnsureApplication is not asked for: there are all applications from the start.
func (d *manyDirectory) EnsureApplication(context.Context, directory.Spec) (directory.Application, error) {
	return directory.Application{}, refuse(directory.Denied, "Authorization_RequestDenied")
}

// RepairApplication finds that all is as it should be.
func (d *manyDirectory) RepairApplication(_ context.Context, spec directory.Spec) (directory.Application, error) {
	d.request(1, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.apps[spec.UniqueName].Application, nil
}

// FindApplication reads one.
func (d *manyDirectory) FindApplication(_ context.Context, uniqueName string) (directory.Application, error) {
	d.request(0, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	app := d.apps[uniqueName].Application
	app.Passwords = append([]directory.Password(nil), app.Passwords...)
	return app, nil
}

// AddPassword makes one.
func (d *manyDirectory) AddPassword(_ context.Context, objectID, name string, end time.Time) (directory.Password, secret.Text, error) {
	d.request(1, 0)
	d.mu.Lock()
	defer d.mu.Unlock()
	app := d.apps[objectID]
	p := directory.Password{KeyID: uuid.NewString(), DisplayName: name, StartTime: time.Now(), EndTime: end}
	app.Passwords = append(app.Passwords, p)
	d.late = max(d.late, time.Since(app.due))
	return p, secret.New(canary), nil
}

// RemovePassword removes one.
func (d *manyDirectory) RemovePassword(_ context.Context, objectID, keyID string) error {
	d.request(1, 0)
	d.mu.Lock()
	defer d.mu.Unlock()
	app := d.apps[objectID]
	app.Passwords = slices.DeleteFunc(app.Passwords, func(p directory.Password) bool { return p.KeyID == keyID })
	return nil
}

// Token gives one.
func (d *manyDirectory) Token(context.Context, directory.TokenRequest) (directory.Token, error) {
	time.Sleep(latency)
	return directory.Token{Text: secret.New(canary), IssueTime: time.Now(), ExpireTime: time.Now().Add(time.Hour), PrincipalObjectID: "principal"}, nil
}

// silentRegistry takes every report.
type silentRegistry struct{}

// Report takes a report.
func (silentRegistry) Report(context.Context, election.Mastership, rotation.Report) error { return nil }

func sum(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	digest := sha256.Sum256(text)
	return hex.EncodeToString(digest[:])
}

// populate makes of the one integration there is a hundred thousand, in the middle of their lives: what is done to each once in a while (an hour, a day) was done
// last at any moment of that while, and of those whose rotation takes place just then each is at some point of it. Until idle is over nothing is due.
func (s *stage) populate(d *manyDirectory, idle time.Duration) {
	s.t.Helper()
	template, timing := s.facts(), s.config.Timing
	now := time.Now()
	after := now.Add(idle)
	ago := func(while time.Duration) time.Time { return after.Add(-time.Duration(rand.Int64N(int64(while)))) }
	conditions := credential.Conditions(now, template.Facts, timing)
	period := template.Integration.RotationPeriod
	s.tx(func(ctx context.Context, tx sqldb.Tx) error {
		columns := map[string][]string{}
		for _, table := range []string{"integrations", "applications", "credential_versions"} {
			found, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (name string, err error) {
				err = row.Scan(&name)
				return name, err
			}, `SELECT name FROM pragma_table_info('`+table+`')`)
			if err != nil {
				return err
			}
			columns[table] = found
		}
		copied := func(table string, changed map[string]any) error {
			values, args := make([]string, len(columns[table])), []any{uid}
			for i, c := range columns[table] {
				values[i] = c
				if v, ok := changed[c]; ok {
					args = append(args, v)
					values[i] = fmt.Sprint("$", len(args))
				}
			}
			_, err := tx.Exec(ctx, `INSERT INTO `+table+` (`+strings.Join(columns[table], ", ")+`) SELECT `+strings.Join(values, ", ")+
				` FROM `+table+` WHERE `+columnOfUID(table)+` = $1`, args...)
			return err
		}
		// version stores one, with its password.
		version := func(app *manyApp, v credential.Version) error {
			v.KeyID, v.Name = uuid.NewString(), credential.PasswordName("test", v.ID)
			v.EndTime = v.AddTime.Add(timing.Life(period, 0))
			sealed, err := s.config.Keyring.Seal(credential.SealedAs(v.ID), secret.New(canary))
			if err != nil {
				return err
			}
			app.Passwords = append(app.Passwords, directory.Password{KeyID: v.KeyID, DisplayName: v.Name, StartTime: v.AddTime, EndTime: v.EndTime})
			return copied("credential_versions", map[string]any{
				"id": v.ID, "integration_uid": v.IntegrationUID, "number": v.Number, "state": string(v.State), "key_id": v.KeyID, "name": v.Name, "sealed": sealed, "proofs": v.Proofs,
				"add_time": sqldb.Micros(v.AddTime), "start_time": sqldb.Micros(v.AddTime), "end_time": sqldb.Micros(v.EndTime), "propagate_time": sqldb.Micros(v.AddTime),
				"probe_time": sqldb.Micros(v.ActivateTime), "prove_time": sqldb.Micros(v.ActivateTime), "activate_time": sqldb.Micros(v.ActivateTime), "retire_time": sqldb.Micros(v.RetireTime),
			})
		}
		for range manyIntegrations {
			id := uuid.NewString()
			spec := directory.Spec{
				UniqueName: "phasekey-test-" + id, DisplayName: fmt.Sprintf("Phasekey %s (%s)", template.Integration.DisplayName, id[:8]), RedirectURI: s.config.RedirectURI,
			}
			app := &manyApp{Application: directory.Application{ObjectID: uuid.NewString(), ClientID: uuid.NewString(), DisplayName: spec.DisplayName}}
			d.apps[spec.UniqueName], d.apps[app.ObjectID] = app, app
			first := template.Versions[0]
			first.ID, first.IntegrationUID, first.ActivateTime = uuid.NewString(), id, now
			active := first.RotateTime(period, timing).Sub(now)
			first.ActivateTime = ago(active + timing.Settling).Add(-timing.Retiring)
			app.due = first.ActivateTime.Add(active)
			first.AddTime = first.ActivateTime.Add(-timing.Settling)
			second := credential.Version{ID: uuid.NewString(), IntegrationUID: id, Number: first.Number + 1, State: credential.Propagating, AddTime: app.due}
			next := app.due
			switch settled := app.due.Add(timing.Settling); {
			case settled.Before(after):
				first.State, first.RetireTime = credential.Retiring, settled
				second.State, second.Proofs, second.ActivateTime = credential.Active, timing.Proofs, settled
				next = settled.Add(timing.Retiring)
			case app.due.Before(after):
				next = settled.Add(-time.Duration(timing.Proofs) * timing.ProofSpacing)
			default:
				second = credential.Version{}
			}
			ensured, read, observed := ago(timing.EnsureInterval), ago(timing.ReconcileInterval), ago(timing.ConsentInterval*9/10)
			next = earliest(ensured.Add(timing.EnsureInterval), read.Add(timing.ReconcileInterval), observed.Add(timing.ConsentInterval*9/10), next)
			if next.Before(after) {
				next = after
			}
			report := rotation.Report{
				IntegrationUID: id, Conditions: conditions, ApplicationDisplayName: spec.DisplayName, ClientID: app.ClientID, PrincipalObjectID: template.Application.PrincipalObjectID,
			}
			err := errors.Join(
				copied("integrations", map[string]any{"uid": id, "name": "accounts/acme/integrations/" + id}),
				copied("applications", map[string]any{
					"integration_uid": id, "object_id": app.ObjectID, "client_id": app.ClientID, "display_name": spec.DisplayName, "spec_digest": sum(spec),
					"ensure_time": sqldb.Micros(ensured), "read_time": sqldb.Micros(read), "observe_time": sqldb.Micros(observed), "next_time": sqldb.Micros(next),
					"report_digest": sum([]any{template.Incarnation, report}),
				}),
				version(app, first),
			)
			if err == nil && second.ID != "" {
				err = version(app, second)
			}
			if err != nil {
				return err
			}
		}
		for _, table := range []string{"credential_versions", "applications", "integrations"} {
			if _, err := tx.Exec(ctx, `DELETE FROM `+table+` WHERE `+columnOfUID(table)+` = $1`, uid); err != nil {
				return err
			}
		}
		return nil
	})
}

func earliest(all ...time.Time) time.Time {
	first := all[0]
	for _, t := range all {
		if t.Before(first) {
			first = t
		}
	}
	return first
}

// used is the CPU time that this process has used.
func used(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// BenchmarkWorker_Sweep has one replica see to a hundred thousand integrations, each of which rotates once a day. Time is a bubble's; the CPU is this machine's, SQLite's
// included.
func BenchmarkWorker_Sweep(b *testing.B) { inBubble(b, sweep) }

// BenchmarkWorker_Batch has all of a hundred thousand integrations rotated, as far as that is the masters' beginning with some every few seconds.
func BenchmarkWorker_Batch(b *testing.B) { inBubble(b, batch) }

func inBubble(b *testing.B, measure func(t *testing.T, metrics map[string]float64)) {
	for range b.N {
		metrics := map[string]float64{}
		// A bubble wants a test.
		ok := testing.RunTests(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: b.Name(), F: func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { measure(t, metrics) })
		}}})
		if !ok {
			b.Fatal("see above")
		}
		for name, value := range metrics {
			b.ReportMetric(value, name)
		}
	}
}

func batch(t *testing.T, metrics map[string]float64) {
	s := newStage(t)
	s.config.Poll = time.Second
	s.serve()
	s.live()
	time.Sleep(10 * time.Minute)
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	s.populate(&manyDirectory{fakeDirectory: s.entra, apps: map[string]*manyApp{}}, idleTime)
	s.tx(func(ctx context.Context, tx sqldb.Tx) error {
		_, err := fence.Reshard(ctx, tx, manyShards, time.Now())
		return err
	})
	masters := make([]election.Mastership, manyShards)
	s.tx(func(ctx context.Context, tx sqldb.Tx) (err error) {
		for shard := range masters {
			if masters[shard], err = fence.Take(ctx, tx, shard, time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	who := grant.Caller{Identity: "operator"}
	at := used(t)
	b, err := s.store.RequestBatch(t.Context(), time.Now(), credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, who)
	if err != nil || b.Total != manyIntegrations {
		t.Fatalf("%+v, %v", b, err)
	}
	metrics["ms-to-request"] = 1000 * (used(t) - at).Seconds()
	// open is what part of a core it takes that a batch is open: before has something done before each round.
	open := func(name string, begun int, before func()) {
		t.Helper()
		const rounds, every = 10, 5 * time.Second
		var cpu time.Duration
		for range rounds {
			time.Sleep(every)
			before()
			at := used(t)
			n := 0
			for _, m := range masters {
				some, err := s.store.AdvanceBatches(t.Context(), m, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				n += some
			}
			cpu += used(t) - at
			if n != begun {
				t.Errorf("%s: a round began with %d, want %d", name, n, begun)
			}
		}
		share := cpu.Seconds() / (rounds * every).Seconds()
		metrics["%-of-a-core-"+name] = 100 * share
		if share > maxSweep {
			t.Errorf("%s: that a batch is open takes %.1f %% of a core", name, 100*share)
		}
	}
	exec := func(statement string, args ...any) {
		t.Helper()
		s.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, statement, args...)
			return err
		})
	}
	for _, m := range masters {
		if _, err := s.store.AdvanceBatches(t.Context(), m, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	open("full", 0, func() {})
	// As many have their new secrets as with Graph's limits in that time.
	open("beginning", 2*manyShards, func() {
		exec(`UPDATE rotations SET state = 'PROPAGATING' WHERE id IN (SELECT id FROM (SELECT r.id, ROW_NUMBER() OVER (PARTITION BY i.shard ORDER BY r.id) AS place
			FROM rotations r JOIN integrations i ON i.uid = r.integration_uid WHERE r.state = 'PENDING') WHERE place <= 2)`)
	})
	exec(`INSERT INTO rotations (id, reason, immediately, up_to, batch_id, state, state_reason, new_number, create_time, activate_time, remove_time, end_time, integration_uid, creator)
		SELECT 'r-' || integration_uid, 'SCHEDULED', 0, 1, batch_id, 'COMPLETED', '', 2, 1, 1, 1, 1, integration_uid, 'operator' FROM rotation_queue`)
	exec(`DELETE FROM rotation_queue`)
	exec(`UPDATE rotations SET state = 'COMPLETED', end_time = 1 WHERE state = 'PENDING'`)
	open("ending", 0, func() {})
	at = used(t)
	if b, err = s.store.Batch(t.Context(), b.Scope, b.ID); err != nil || b.Running == 0 || !b.EndTime.IsZero() {
		t.Fatalf("%+v, %v", b, err)
	}
	metrics["ms-to-get"] = 1000 * (used(t) - at).Seconds()
	// What waits comes up again.
	now := time.Now()
	if err := s.store.PauseRotation(t.Context(), credential.Pause{Scope: credential.Everything, CreateTime: now, ExpireTime: now.Add(credential.LongestPause)}, who); err != nil {
		t.Fatal(err)
	}
	exec(`DELETE FROM rotations`)
	exec(`INSERT INTO rotation_queue (batch_id, integration_uid, shard, up_to, next_time)
		SELECT $1, i.uid, i.shard, v.number, $2 + ROW_NUMBER() OVER (ORDER BY i.uid) * 3000
		FROM integrations i JOIN credential_versions v ON v.integration_uid = i.uid AND v.state = 'ACTIVE'`, b.ID, sqldb.Micros(now))
	open("paused", 0, func() {})
}

func sweep(t *testing.T, metrics map[string]float64) {
	s := newStage(t)
	s.config.Poll = time.Second
	s.serve()
	s.live()
	time.Sleep(10 * time.Minute)
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	d := &manyDirectory{fakeDirectory: s.entra, apps: map[string]*manyApp{}, writes: map[int64]int{}, reads: map[int64]int{}}
	s.populate(d, idleTime)
	s.tx(func(ctx context.Context, tx sqldb.Tx) error {
		_, err := fence.Reshard(ctx, tx, manyShards, time.Now())
		return err
	})
	limits := budget.DefaultLimits()
	limits.AloneShare = 1
	s.config.Log = slog.New(slog.DiscardHandler)
	var err error
	if s.config.Budget, err = budget.New(budget.Config{Limits: limits, Log: s.config.Log}); err != nil {
		t.Fatal(err)
	}
	s.config.Clouds, s.config.Reporter = rotation.Clouds{"public": d}, silentRegistry{}
	w, err := rotation.New(s.config)
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	ctx, stop := context.WithCancel(t.Context())
	var shards sync.WaitGroup
	for shard := range manyShards {
		shards.Go(func() {
			var m election.Mastership
			s.tx(func(ctx context.Context, tx sqldb.Tx) (err error) {
				m, err = fence.Take(ctx, tx, shard, time.Now())
				return err
			})
			if err := w.Serve(ctx, m); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(time.Minute) // until all shards were taken, and what is new to their masters was adopted
	at := used(t)
	time.Sleep(idleTime - 2*time.Minute)
	idle := (used(t) - at).Seconds() / (idleTime - 2*time.Minute).Seconds()
	gauge := s.measuring(t)
	time.Sleep(time.Minute)
	began := time.Now()
	at = used(t)
	time.Sleep(sweptTime)
	all := (used(t) - at).Seconds() / sweptTime.Seconds()
	memory := heap() - before
	late := s.overdue()
	done := s.since(began)
	stop()
	shards.Wait()

	d.mu.Lock()
	defer d.mu.Unlock()
	most := func(windows map[int64]int) (n int) {
		for _, count := range windows {
			n = max(n, count)
		}
		return n
	}
	writes, reads := most(d.writes), most(d.reads)
	metrics["%-of-a-core-idle"], metrics["%-of-a-core-gauges"], metrics["%-of-a-core-rotating"] = 100*idle, 100*gauge, 100*(all-idle)
	metrics["MiB-heap"], metrics["s-late"], metrics["rotations/h"] = memory, d.late.Seconds(), float64(done.removed)/sweptTime.Hours()
	metrics["writes/150s"], metrics["reads/10s"] = float64(writes), float64(reads)
	if idle > maxSweep {
		t.Errorf("finding that nothing is due takes %.1f %% of a core", 100*idle)
	}
	if d.late > maxLate || late > maxLate {
		t.Errorf("a version was begun %s late, and an integration is overdue for %s", d.late, late)
	}
	if memory > maxMemory {
		t.Errorf("the rotator needs %.0f MiB", memory)
	}
	if writes > limits.Writes || reads > limits.Reads {
		t.Errorf("%d writes in a window, %d reads: more than Graph's share", writes, reads)
	}
	if want := sweptTime.Hours() / 24 * manyIntegrations; float64(min(done.added, done.activated, done.removed)) < 0.9*want {
		t.Errorf("%d versions were begun, %d proven and %d removed, of about %.0f", done.added, done.activated, done.removed, want)
	}
}

// measuring is what part of a core it takes to measure every minute how the shards stand: a part of what an idle replica takes.
func (s *stage) measuring(t *testing.T) float64 {
	t.Helper()
	const rounds = 10
	at := used(t)
	for range rounds {
		for shard := range manyShards {
			if _, err := s.store.Schedule(t.Context(), shard, time.Now(), s.config.Timing); err != nil {
				t.Fatal(err)
			}
		}
	}
	return (used(t) - at).Seconds() / (rounds * time.Minute).Seconds()
}

// done counts what was done to versions.
type done struct{ added, activated, removed int }

// since is what was done since then.
func (s *stage) since(then time.Time) (d done) {
	s.t.Helper()
	s.tx(func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT SUM(CASE WHEN add_time >= $1 THEN 1 ELSE 0 END), SUM(CASE WHEN activate_time >= $1 THEN 1 ELSE 0 END), SUM(CASE WHEN remove_time >= $1 THEN 1 ELSE 0 END)
			FROM credential_versions`, sqldb.Micros(then)).Scan(&d.added, &d.activated, &d.removed)
	})
	return d
}

// overdue is for how long the integration that is due longest has been.
func (s *stage) overdue() (longest time.Duration) {
	s.t.Helper()
	now := time.Now()
	for shard := range manyShards {
		schedule, err := s.store.Schedule(s.t.Context(), shard, now, s.config.Timing)
		if err != nil {
			s.t.Fatal(err)
		}
		longest = max(longest, schedule.Lag)
	}
	return longest
}
