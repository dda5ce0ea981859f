package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/store"
)

func TestSchedule(t *testing.T) {
	onBoth(t, func(b *bench) {
		uids := inShard(0, 6)
		elsewhere := inShard(1, 1)[0]
		var wanted []store.Integration
		for _, uid := range append(uids, elsewhere) {
			wanted = append(wanted, store.Integration{UID: uid, Name: "accounts/a/integrations/" + uid, Revision: 2})
		}
		wanted[3].RotationPeriod = 6 * time.Hour
		b.want(2, wanted...)
		b.adopt(1)
		put := func(uid string, age, life, left time.Duration) {
			b.version(uid, 1, credential.Active, start)
			b.tx(func(ctx context.Context, tx sqldb.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE credential_versions SET activate_time = $2, start_time = $3, end_time = $4 WHERE integration_uid = $1`,
					uid, sqldb.Micros(start.Add(-age)), sqldb.Micros(start.Add(left-life)), sqldb.Micros(start.Add(left)))
				return err
			})
		}
		put(uids[0], 20*time.Hour, 72*time.Hour, 24*time.Hour)           // just enough
		put(uids[1], 30*time.Hour, 72*time.Hour, 24*time.Hour-time.Hour) // late
		put(uids[2], 2*time.Hour, 12*time.Hour, 3*time.Hour-time.Minute) // late, of those that a policy keeps short
		put(uids[3], 2*time.Hour, 72*time.Hour, 6*time.Hour)             // just enough of a shorter period
		put(elsewhere, 99*time.Hour, 72*time.Hour, time.Minute)
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE applications SET next_time = $1 WHERE integration_uid = $2`, sqldb.Micros(start.Add(-time.Minute)), uids[0])
			return err
		})
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO applications (integration_uid, shard, next_time) VALUES ($1, 1, $2)`, elsewhere, sqldb.Micros(start.Add(time.Hour)))
			return err
		})
		for _, stray := range []struct {
			uid, key string
			attempts int
		}{
			{uids[0], "a", credential.StuckAttempts}, {uids[0], "b", credential.StuckAttempts + 1}, {uids[1], "c", credential.StuckAttempts - 1},
			{uids[2], "d", credential.StuckAttempts}, {uids[5], "f", credential.StuckAttempts}, {elsewhere, "e", credential.StuckAttempts},
		} {
			b.tx(func(ctx context.Context, tx sqldb.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO stray_passwords (integration_uid, key_id, name, first_time, last_time, attempts) VALUES ($1, $2, '', 0, 0, $3)`,
					stray.uid, stray.key, stray.attempts)
				return err
			})
		}
		for number, v := range []struct {
			uid      string
			state    credential.State
			key      string
			attempts int
			removed  bool
		}{
			{uids[0], credential.Revoking, "a", credential.StuckAttempts, false}, // counted as it is
			{uids[1], credential.Revoking, "a", credential.StuckAttempts - 1, false},
			{uids[1], credential.Retiring, "a", credential.StuckAttempts, false},
			{uids[1], credential.Abandoned, "", credential.StuckAttempts, false}, // there never was one
			{uids[1], credential.Abandoned, "a", credential.StuckAttempts, true},
			{uids[1], credential.Revoked, "a", credential.StuckAttempts, true},
			{uids[3], credential.Revoking, "a", credential.StuckAttempts, false},
			{uids[4], credential.Abandoned, "a", credential.StuckAttempts, false},
		} {
			b.version(v.uid, int64(2+number), v.state, start)
			b.tx(func(ctx context.Context, tx sqldb.Tx) error {
				removed := int64(0)
				if v.removed {
					removed = sqldb.Micros(start)
				}
				_, err := tx.Exec(ctx, `UPDATE credential_versions SET key_id = $3, attempts = $4, remove_time = $5 WHERE integration_uid = $1 AND number = $2`,
					v.uid, 2+number, v.key, v.attempts, removed)
				return err
			})
		}
		// Of an application that is deleted nothing is left, whatever it had.
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE applications SET delete_time = 1, foreign_passwords = 1 WHERE integration_uid = $1`, uids[5])
			return err
		})
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE applications SET foreign_passwords = 1 WHERE integration_uid = $1`, uids[1])
			return err
		})
		read := func(shard int, at time.Time) store.Schedule {
			b.t.Helper()
			s, err := b.store.Schedule(b.t.Context(), shard, at)
			if err != nil {
				b.t.Fatal(err)
			}
			return s
		}
		none := map[credential.RotationReason]int{credential.Scheduled: 0, credential.Compromised: 0}
		want := store.Schedule{Lag: time.Minute, OldestActive: start.Add(-30 * time.Hour), Expiring: 2, Foreign: 1, Stray: 4, Open: none}
		if diff := cmp.Diff(want, read(0, start)); diff != "" {
			b.t.Errorf("shard 0 (-want +have):\n%s", diff)
		}
		if diff := cmp.Diff(store.Schedule{OldestActive: start.Add(-99 * time.Hour), Expiring: 1, Stray: 1, Open: none}, read(1, start)); diff != "" {
			b.t.Errorf("shard 1 (-want +have):\n%s", diff)
		}
		if diff := cmp.Diff(store.Schedule{Open: none}, read(2, start)); diff != "" {
			b.t.Errorf("an empty shard (-want +have):\n%s", diff)
		}
		b.asked("accounts/a/integrations/"+uids[0], credential.Scheduled)
		b.asked("accounts/a/integrations/"+uids[0], credential.Compromised)
		b.asked("accounts/a/integrations/"+uids[1], credential.Scheduled)
		if got := read(0, start).Open; got[credential.Scheduled] != 1 || got[credential.Compromised] != 1 {
			b.t.Errorf("open are %v", got)
		}
	})
}

// It is asked for every minute, of each shard: it must not cost what there is.
func TestSchedule_ReadsWhatStandsOut(t *testing.T) {
	t.Parallel()
	c := alone(t)
	const many = 5000
	c.exec(`INSERT INTO integrations SELECT r.* FROM integrations i, generate_series(1, $1) n,
		LATERAL jsonb_populate_record(i, jsonb_build_object('uid', 'many' || n, 'name', 'accounts/acme/integrations/many' || n)) r WHERE i.uid = 'uid'`, many)
	c.exec(`INSERT INTO applications (integration_uid, shard, next_time) SELECT uid, shard, $1 FROM integrations WHERE uid LIKE 'many%'`, sqldb.Micros(start))
	c.exec(`INSERT INTO credential_versions SELECT r.* FROM credential_versions v, generate_series(1, $1) n,
		LATERAL jsonb_populate_record(v, jsonb_build_object('id', 'many' || n, 'integration_uid', 'many' || n, 'name', 'many' || n, 'key_id', 'many' || n,
			'activate_time', CAST($2 AS BIGINT) + n, 'start_time', CAST($2 AS BIGINT), 'end_time', CAST($3 AS BIGINT))) r WHERE v.id = 'v2'`, many, sqldb.Micros(start), sqldb.Micros(start.Add(72*time.Hour)))
	c.exec(`INSERT INTO credential_versions SELECT r.* FROM credential_versions v, generate_series(1, $1) n,
		LATERAL jsonb_populate_record(v, jsonb_build_object('id', 'gone' || n, 'integration_uid', 'many' || n, 'number', 1, 'state', 'REVOKED', 'key_id', 'gone' || n,
			'attempts', 10, 'remove_time', CAST($2 AS BIGINT))) r WHERE v.id = 'v2'`, many, sqldb.Micros(start))
	c.exec(`ANALYZE`)
	before := c.rowsRead()
	got, err := c.store.Schedule(t.Context(), 0, start.Add(time.Hour))
	if err != nil || got.OldestActive.IsZero() || got.Expiring != 0 {
		t.Errorf("it stands %+v, %v", got, err)
	}
	if read := c.rowsRead() - before; read > many/50 {
		t.Errorf("with %d integrations it reads %d rows", many, read)
	} else {
		t.Logf("with %d integrations it reads %d rows", many, read)
	}
}
