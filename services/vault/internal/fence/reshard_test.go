package fence_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/store"
)

// deployment is a vault's database with some integrations, as replicas write it.
type deployment struct {
	t     *testing.T
	db    *sqldb.DB
	store *store.Store
	uids  []string
}

func onBoth(t *testing.T, test func(d *deployment)) {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	sqldbtest.Run(t, migrations, func(t *testing.T, db *sqldb.DB) { test(deploy(t, db)) })
}

func onPostgres(t *testing.T) *deployment {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	return deploy(t, sqldbtest.Postgres(t, migrations))
}

// deploy divides a database by three, and has it know forty integrations, all of which are adopted, and wait in a batch.
func deploy(t *testing.T, db *sqldb.DB) *deployment {
	t.Helper()
	d := &deployment{t: t, db: db, store: store.New(db, audittest.Keys(1))}
	d.tx(func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, 3) })
	var all []store.Integration
	for i := range 40 {
		d.uids = append(d.uids, fmt.Sprintf("uid-%d", i))
		all = append(all, store.Integration{UID: d.uids[i], Name: d.uids[i], Revision: 1})
	}
	if err := d.store.ReplaceProjection(t.Context(), now, projection(1), store.Wanted{Integrations: all}); err != nil {
		t.Fatal(err)
	}
	for shard := range 3 {
		if _, err := d.store.Adopt(t.Context(), d.take(3, shard, now), now, -1); err != nil {
			t.Fatal(err)
		}
	}
	d.tx(func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO rotation_queue (batch_id, integration_uid, shard, up_to, next_time) SELECT 'batch', uid, shard, 1, 0 FROM integrations`)
		return err
	})
	return d
}

func projection(revision int64) store.Projection {
	return store.Projection{Incarnation: "registry", Revision: revision, Cursor: "c", BookmarkTime: now}
}

func (d *deployment) tx(fn func(ctx context.Context, tx sqldb.Tx) error) {
	d.t.Helper()
	if err := d.db.Tx(d.t.Context(), fn); err != nil {
		d.t.Fatal(err)
	}
}

// take makes a replica master that believes in so many shards.
func (d *deployment) take(shards, shard int, now time.Time) election.Mastership {
	d.t.Helper()
	m, err := fence.New(d.db, shards).Take(d.t.Context(), shard, now)
	if err != nil {
		d.t.Fatal(err)
	}
	return m
}

func (d *deployment) reshard(shards int, now time.Time) (were int) {
	d.t.Helper()
	d.tx(func(ctx context.Context, tx sqldb.Tx) (err error) {
		were, err = fence.Reshard(ctx, tx, shards, now)
		return err
	})
	return were
}

// guard tells whether a mastership is effective.
func (d *deployment) guard(m election.Mastership) error {
	return d.db.Tx(d.t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Guard(ctx, tx, m) })
}

// divided fails the test unless everything is divided by so many shards, each of which can be taken under an epoch greater than any before; it returns the greatest.
func (d *deployment) divided(shards int, now time.Time, newest int64) int64 {
	d.t.Helper()
	for table, column := range map[string]string{"integrations": "uid", "applications": "integration_uid", "rotation_queue": "integration_uid"} {
		of := map[string]int{}
		d.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (none struct{}, err error) {
				var uid string
				var shard int
				err = row.Scan(&uid, &shard)
				of[uid] = shard
				return none, err
			}, `SELECT `+column+`, shard FROM `+table)
			return err
		})
		for _, uid := range d.uids {
			if got, ok := of[uid]; !ok || got != election.ShardOf(uid, shards) {
				d.t.Errorf("%s: %s is in shard %d of %d, want %d", table, uid, got, shards, election.ShardOf(uid, shards))
			}
		}
	}
	seen := newest
	for shard := range shards {
		m := d.take(shards, shard, now)
		if m.Epoch <= newest {
			d.t.Errorf("shard %d of %d was taken under epoch %d, there has been %d", shard, shards, m.Epoch, newest)
		}
		seen = max(seen, m.Epoch)
	}
	if _, err := fence.New(d.db, shards).Take(d.t.Context(), shards, now); !errors.Is(err, fence.ErrNoShard) {
		d.t.Errorf("a shard more than there are: %v", err)
	}
	return seen
}

func TestReshard_MovesEverythingAndFencesEveryMaster(t *testing.T) {
	onBoth(t, func(d *deployment) {
		newest := d.divided(3, now, 0)
		shards := 3
		for _, step := range []struct {
			shards int
			now    time.Time
		}{
			{7, now.Add(time.Hour)},
			{2, now.Add(2 * time.Hour)},
			{7, now.Add(-time.Hour)}, // a clock that was set back: shards come back whose last epochs nobody knows
			{1, now},
			{16, now},
		} {
			var masters []election.Mastership
			for shard := range shards {
				m := d.take(shards, shard, now)
				masters, newest = append(masters, m), max(newest, m.Epoch)
			}
			if were := d.reshard(step.shards, step.now); were != shards {
				d.t.Errorf("%d shards there were, want %d", were, shards)
			}
			for _, m := range masters {
				if err := d.guard(m); !errors.Is(err, election.ErrFenced) {
					d.t.Errorf("from %d to %d: the master of shard %d: %v, want ErrFenced", shards, step.shards, m.Shard, err)
				}
			}
			shards = step.shards
			newest = d.divided(shards, step.now, newest)
		}
	})
}

func TestReshard_ToWhatThereIsChangesNothing(t *testing.T) {
	onBoth(t, func(d *deployment) {
		m := d.take(3, 1, now)
		if were := d.reshard(3, now); were != 3 {
			d.t.Errorf("%d shards there were", were)
		}
		if err := d.guard(m); err != nil {
			d.t.Errorf("the master was fenced: %v", err)
		}
		for _, shards := range []int{0, -1} {
			err := d.db.Tx(d.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				_, err := fence.Reshard(ctx, tx, shards, now)
				return err
			})
			if !errors.Is(err, fence.ErrShardCount) {
				d.t.Errorf("%d shards: %v", shards, err)
			}
		}
	})
}

// What is interrupted has not happened, and is done again.
func TestReshard_IsAllOrNothing(t *testing.T) {
	onBoth(t, func(d *deployment) {
		m := d.take(3, 1, now)
		interruption := errors.New("interrupted")
		err := d.db.Tx(d.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			_, err := fence.Reshard(ctx, tx, 7, now)
			return errors.Join(err, interruption)
		})
		if !errors.Is(err, interruption) {
			d.t.Fatal(err)
		}
		if err := d.guard(m); err != nil {
			d.t.Errorf("the master was fenced: %v", err)
		}
		d.reshard(7, now)
		d.divided(7, now, m.Epoch)
	})
}

func TestReshard_NeedsADatabaseThatIsDivided(t *testing.T) {
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	err = sqldbtest.SQLite(t, migrations).Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := fence.Reshard(ctx, tx, 7, now)
		return err
	})
	if !errors.Is(err, fence.ErrNoShard) {
		t.Errorf("got %v, want ErrNoShard", err)
	}
}

// A replica goes on as it was configured. It takes no shard, knows that it could not, and does not bring back what belonged to which.
func TestReshard_UnderAReplicaThatRuns(t *testing.T) {
	onBoth(t, func(d *deployment) {
		replica := fence.New(d.db, 3)
		if err := replica.Ready(d.t.Context(), time.Now()); err != nil {
			d.t.Fatal(err)
		}
		d.reshard(7, now)
		current := d.take(7, 1, now)
		if err := replica.Ready(d.t.Context(), time.Now()); !errors.Is(err, fence.ErrShardCount) {
			d.t.Errorf("ready: %v, want ErrShardCount", err)
		}
		if m, err := replica.Take(d.t.Context(), 1, now); !errors.Is(err, fence.ErrShardCount) || m != (election.Mastership{}) {
			d.t.Errorf("taking a shard: %v, %v, want ErrShardCount", m, err)
		}
		if err := d.guard(current); err != nil {
			d.t.Errorf("it fenced the master of today: %v", err)
		}
		changed := store.Integration{UID: d.uids[0], Name: "changed", Revision: 2}
		if err := d.store.AdvanceProjection(d.t.Context(), now, projection(2), store.Wanted{Integrations: []store.Integration{changed}}); err != nil {
			d.t.Fatal(err)
		}
		d.divided(7, now, 0)
	})
}

// late is written while the database is being divided. By three it is in shard 2, by seven in 5.
const late = "late-3"

func (d *deployment) late(shards int) {
	d.t.Helper()
	d.tx(func(ctx context.Context, tx sqldb.Tx) error {
		var shard int
		if err := tx.QueryRow(ctx, `SELECT shard FROM integrations WHERE uid = $1`, late).Scan(&shard); err != nil {
			return err
		}
		if want := election.ShardOf(late, shards); shard != want || want == election.ShardOf(late, 3) {
			d.t.Errorf("what was written meanwhile is in shard %d, want %d", shard, want)
		}
		return nil
	})
}

// Whoever writes what belongs to which shard, or takes one, while the database is being divided waits, and then does it by the new number.
func TestReshard_KeepsOthersWaiting(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(d *deployment) error
		want error
	}{
		{"a copy of the registry, the first there is", func(d *deployment) error {
			return d.store.ReplaceProjection(d.t.Context(), now, projection(1), store.Wanted{Integrations: []store.Integration{{UID: late, Name: "late", Revision: 1}}})
		}, nil},
		{"taking a shard", func(d *deployment) error {
			_, err := fence.New(d.db, 3).Take(d.t.Context(), 1, now)
			return err
		}, fence.ErrShardCount},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := onPostgres(t)
			d.tx(func(ctx context.Context, tx sqldb.Tx) error {
				_, err := tx.Exec(ctx, `DELETE FROM projection`)
				return err
			})
			resharded, commit := background(t, d.db, func(ctx context.Context, tx sqldb.Tx) error {
				_, err := fence.Reshard(ctx, tx, 7, now)
				return err
			})
			<-resharded
			done := make(chan error, 1)
			go func() { done <- test.do(d) }()
			waiting(t, d.db, 1)
			if err := commit(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if test.want == nil {
				d.late(7)
			}
		})
	}
}

// And the other way round: what was being written is moved too.
func TestReshard_WaitsForOthers(t *testing.T) {
	d := onPostgres(t)
	d.tx(func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM projection`)
		return err
	})
	written, commit := background(t, d.db, func(ctx context.Context, tx sqldb.Tx) error {
		shards, err := fence.Shards(ctx, tx)
		if err != nil {
			return err
		}
		columns := `, name, display_name, tenant_id, cloud, default_subscription_id, allowed_audiences, rotation_period, deleting, revision, delivery_materials`
		_, err = tx.Exec(ctx, `INSERT INTO integrations (uid, shard`+columns+`) SELECT $1, $2`+columns+` FROM integrations WHERE uid = 'uid-0'`,
			late, election.ShardOf(late, shards))
		return err
	})
	<-written
	done := make(chan error, 1)
	go func() {
		done <- d.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			_, err := fence.Reshard(ctx, tx, 7, now)
			return err
		})
	}()
	waiting(t, d.db, 1)
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	d.divided(7, now, 0)
	d.late(7)
}
