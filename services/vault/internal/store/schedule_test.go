package store_test

import (
	"context"
	"fmt"
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
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE applications SET consented = 1`)
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
			s, err := b.store.Schedule(b.t.Context(), shard, at, credential.Production())
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
		// What has ended by itself is no danger any more, if it cannot be removed; and what never was at Entra is none.
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE credential_versions SET end_time = $2 WHERE integration_uid = $1`, uids[0], sqldb.Micros(start.Add(24*time.Hour)))
			return err
		})
		b.version(uids[0], 20, credential.Intended, start)
		b.version(uids[0], 21, credential.Abandoned, start)
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			if _, err := tx.Exec(ctx, `UPDATE credential_versions SET key_id = '', end_time = 0 WHERE integration_uid = $1 AND number >= 20`, uids[0]); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `UPDATE rotations SET up_to = 21 WHERE reason = 'COMPROMISED'`)
			return err
		})
		for after, want := range map[time.Duration]int{24*time.Hour - time.Minute: 1, 24 * time.Hour: 0} {
			if got := read(0, start.Add(after)).Open[credential.Compromised]; got != want {
				b.t.Errorf("%s later %d secrets that are compromised stand, want %d", after, got, want)
			}
		}
		// Nor is what is gone, though nothing may have taken its place.
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE rotations SET remove_time = 1 WHERE reason = 'COMPROMISED'`)
			return err
		})
		if got := read(0, start).Open; got[credential.Scheduled] != 1 || got[credential.Compromised] != 0 {
			b.t.Errorf("once it is gone, open are %v", got)
		}
	})
}

func TestSchedule_OfWhatIsNotRotated(t *testing.T) {
	onBoth(t, func(b *bench) {
		uids := inShard(0, 5)
		var wanted []store.Integration
		for n, uid := range uids {
			wanted = append(wanted, store.Integration{UID: uid, Name: fmt.Sprintf("accounts/a/integrations/i%d", n), Revision: 2})
		}
		wanted[4].Name = "accounts/ab/integrations/i4"
		b.want(2, wanted...)
		b.adopt(1)
		set := func(statement string, args ...any) {
			b.t.Helper()
			b.tx(func(ctx context.Context, tx sqldb.Tx) error {
				_, err := tx.Exec(ctx, statement, args...)
				return err
			})
		}
		hours := func(n int) int64 { return sqldb.Micros(start.Add(time.Duration(n) * time.Hour)) }
		for _, uid := range uids {
			b.version(uid, 1, credential.Active, start)
			set(`UPDATE credential_versions SET activate_time = $2, start_time = $2, end_time = $3 WHERE integration_uid = $1`, uid, hours(0), hours(72))
		}
		set(`UPDATE applications SET consented = 1, consent_time = $1, next_time = $2`, hours(0), hours(80))
		read := func(at time.Duration) store.Schedule {
			b.t.Helper()
			s, err := b.store.Schedule(b.t.Context(), 0, start.Add(at), credential.Production())
			if err != nil {
				b.t.Fatal(err)
			}
			s.Open = nil
			return s
		}
		check := func(what string, at time.Duration, want store.Schedule) {
			b.t.Helper()
			if diff := cmp.Diff(want, read(at)); diff != "" {
				b.t.Errorf("%s (-want +have):\n%s", what, diff)
			}
		}
		check("all late", 49*time.Hour, store.Schedule{OldestActive: start, Expiring: 5})

		pause := func(scope string) {
			b.t.Helper()
			if err := b.store.PauseRotation(b.t.Context(), credential.Pause{Scope: scope, CreateTime: start, ExpireTime: start.Add(100 * time.Hour)}, operator); err != nil {
				b.t.Fatal(err)
			}
		}
		pause(wanted[0].Name)
		check("one is paused", 49*time.Hour, store.Schedule{OldestActive: start, Expiring: 4})
		pause("accounts/a")
		check("an account is paused", 49*time.Hour, store.Schedule{OldestActive: start, Expiring: 1})
		// It refuses the only secret, and so a pause is not why there is no other.
		set(`UPDATE credential_versions SET refusals = 3 WHERE integration_uid = $1`, uids[1])
		check("what does not work", 49*time.Hour, store.Schedule{OldestActive: start, Expiring: 2})
		set(`UPDATE credential_versions SET refusals = 0 WHERE integration_uid = $1`, uids[1])
		// With a sixth of its life left it is replaced all the same, within an hour.
		check("no longer put off, and being replaced", 60*time.Hour+59*time.Minute, store.Schedule{OldestActive: start, Expiring: 1})
		check("no longer put off, and not replaced", 61*time.Hour, store.Schedule{OldestActive: start, Expiring: 5})

		set(`UPDATE credential_versions SET activate_time = $2 WHERE integration_uid = $1`, uids[2], hours(-9))
		set(`UPDATE applications SET consented = 0 WHERE integration_uid = $1`, uids[2])
		check("without consent", 61*time.Hour, store.Schedule{OldestActive: start, Expiring: 4, ConsentLost: 1})
		set(`UPDATE applications SET delete_time = $2, consented = 0 WHERE integration_uid = $1`, uids[3], hours(1))
		set(`UPDATE integrations SET deleting = 1 WHERE uid = $1`, uids[3])
		check("without consent, and deleted", 61*time.Hour, store.Schedule{OldestActive: start, Expiring: 3, ConsentLost: 1})

		commit := func(step store.Step) {
			b.t.Helper()
			step.IntegrationUID, step.Now, step.NextTime = uids[4], start.Add(61*time.Hour), start.Add(80*time.Hour)
			f, err := b.store.Facts(b.t.Context(), uids[4])
			if err != nil {
				b.t.Fatal(err)
			}
			step.Touches = f.Touches
			if err := b.store.Commit(b.t.Context(), b.master, step); err != nil {
				b.t.Fatal(err)
			}
		}
		standing := store.Schedule{OldestActive: start, Expiring: 3, ConsentLost: 1}
		waits := standing
		waits.Lag = 2 * time.Hour
		commit(store.Step{DueTime: start.Add(59 * time.Hour)})
		check("waits for Graph", 61*time.Hour, waits)
		if f, err := b.store.Facts(b.t.Context(), uids[4]); err != nil || !f.DueTime.Equal(start.Add(59*time.Hour)) || !f.NextTime.Equal(start.Add(80*time.Hour)) {
			b.t.Errorf("due since %s, next at %s, %v", f.DueTime, f.NextTime, err)
		}
		unlisted := standing
		unlisted.Unlisted = 1
		commit(store.Step{Unlisted: true})
		check("not listed", 61*time.Hour, unlisted)
		commit(store.Step{})
		check("listed again", 61*time.Hour, standing)
	})
}

// It is asked for every minute, of each shard: it must not cost what there is.
func TestSchedule_ReadsWhatStandsOut(t *testing.T) {
	t.Parallel()
	c := alone(t)
	const many = 5000
	c.exec(`INSERT INTO integrations SELECT r.* FROM integrations i, generate_series(1, $1) n,
		LATERAL jsonb_populate_record(i, jsonb_build_object('uid', 'many' || n, 'name', 'accounts/acme/integrations/many' || n)) r WHERE i.uid = 'uid'`, many)
	c.exec(`INSERT INTO applications (integration_uid, shard, next_time, consented) SELECT uid, shard, $1, 1 FROM integrations WHERE uid LIKE 'many%'`, sqldb.Micros(start))
	c.exec(`INSERT INTO credential_versions SELECT r.* FROM credential_versions v, generate_series(1, $1) n,
		LATERAL jsonb_populate_record(v, jsonb_build_object('id', 'many' || n, 'integration_uid', 'many' || n, 'name', 'many' || n, 'key_id', 'many' || n,
			'activate_time', CAST($2 AS BIGINT) + n, 'start_time', CAST($2 AS BIGINT), 'end_time', CAST($3 AS BIGINT))) r WHERE v.id = 'v2'`, many, sqldb.Micros(start), sqldb.Micros(start.Add(72*time.Hour)))
	c.exec(`INSERT INTO credential_versions SELECT r.* FROM credential_versions v, generate_series(1, $1) n,
		LATERAL jsonb_populate_record(v, jsonb_build_object('id', 'gone' || n, 'integration_uid', 'many' || n, 'number', 1, 'state', 'REVOKED', 'key_id', 'gone' || n,
			'attempts', 10, 'remove_time', CAST($2 AS BIGINT))) r WHERE v.id = 'v2'`, many, sqldb.Micros(start))
	c.exec(`ANALYZE`)
	before := c.rowsRead()
	got, err := c.store.Schedule(t.Context(), 0, start.Add(time.Hour), credential.Production())
	if err != nil || got.OldestActive.IsZero() || got.Expiring != 0 {
		t.Errorf("it stands %+v, %v", got, err)
	}
	if read := c.rowsRead() - before; read > many/50 {
		t.Errorf("with %d integrations it reads %d rows", many, read)
	} else {
		t.Logf("with %d integrations it reads %d rows", many, read)
	}
}
