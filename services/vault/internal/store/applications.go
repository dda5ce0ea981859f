package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
)

// keepEnded is how long the rows of versions and rotations that have ended are kept.
const keepEnded = 30 * 24 * time.Hour

// never is stored for "nothing to do until somebody touches it".
const never = math.MaxInt64

// Facts is everything that a decision about one integration needs.
type Facts struct {
	credential.Facts
	// Integration is the zero value when the registry does not list it.
	Integration Integration
	// Incarnation is the registry database's.
	Incarnation string
	// NextTime is when the integration is to be looked at next; zero for never. DueTime is since when what is to be done next waits; zero while nothing does.
	NextTime, DueTime time.Time
	// Touches goes back into the Step, see there.
	Touches int64
}

// Step is what one decision came to: one transaction.
type Step struct {
	IntegrationUID string
	Now            time.Time
	Change         credential.Change
	// NextTime is when the integration is to be looked at again; zero for never. It is written only if nobody has touched the
	// integration since Touches was read.
	NextTime time.Time
	Touches  int64
	// DueTime is since when what is to be done next waits for leave to do it; zero while nothing does.
	DueTime time.Time
	// Unlisted is set where nothing is done because the registry does not list the integration.
	Unlisted bool
}

// Due returns at most limit integrations of the shard that are due, the longest due first, and when the next one after now
// will be: zero when none will.
func (s *Store) Due(ctx context.Context, shard int, now time.Time, limit int) (uids []string, next time.Time, err error) {
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		uids, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (uid string, err error) {
			err = row.Scan(&uid)
			return uid, err
		}, `SELECT integration_uid FROM applications WHERE shard = $1 AND next_time <= $2 ORDER BY next_time, integration_uid LIMIT $3`,
			shard, sqldb.Micros(now), limit)
		if err != nil {
			return err
		}
		var first int64
		err = tx.QueryRow(ctx, `SELECT next_time FROM applications WHERE shard = $1 AND next_time > $2 ORDER BY next_time LIMIT 1`,
			shard, sqldb.Micros(now)).Scan(&first)
		if errors.Is(err, sqldb.ErrNoRows) || first == never {
			next = time.Time{}
			return nil
		}
		next = sqldb.Time(first)
		return err
	})
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read what is due in shard %d: %w", shard, err)
	}
	return uids, next, nil
}

// Facts reads what is known about an integration; sqldb.ErrNoRows when it was never adopted. SpecDigest of what is wanted is
// for the caller to fill in.
func (s *Store) Facts(ctx context.Context, uid string) (Facts, error) {
	var out Facts
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out = Facts{}
		p := &out.Probe
		var next int64
		if out.Application, err = scanApplication(tx.QueryRow(ctx, `SELECT `+applicationColumns+`, applications.touches,
				COALESCE((SELECT MAX(number) FROM credential_versions WHERE integration_uid = $1), 0),
				COALESCE((SELECT incarnation FROM projection WHERE singleton = 1), ''),
				COALESCE(p.time, 0), COALESCE(p.version_id, ''), COALESCE(p.finding, ''), COALESCE(p.code, ''),
				COALESCE(p.principal_object_id, ''), COALESCE(p.want_time, 0),
				COALESCE((SELECT change_time FROM database_timeline WHERE singleton = 1), 0), applications.next_time, applications.due_time
			FROM applications LEFT JOIN consent_probes p ON p.integration_uid = applications.integration_uid
			WHERE applications.integration_uid = $1`, uid), &out.Touches, &out.LastNumber, &out.Incarnation,
			at{&p.Time}, &p.VersionID, &p.Finding, &p.Code, &p.PrincipalObjectID, at{&p.WantTime}, at{&out.FailOverTime}, &next, at{&out.DueTime}); err != nil {
			return err
		}
		if next != never {
			out.NextTime = sqldb.Time(next)
		}
		out.Wanted.UID = uid
		if out.Recovery, err = readRecovery(ctx, tx); err != nil {
			return err
		}
		if out.Permissions, err = readPermissions(ctx, tx, uid); err != nil {
			return err
		}
		out.Integration, err = scanIntegration(tx.QueryRow(ctx, `SELECT `+integrationColumns+` FROM integrations WHERE uid = $1`, uid))
		switch {
		case err == nil:
			out.Wanted.Present, out.Wanted.Deleting, out.Wanted.Period = true, out.Integration.Deleting, out.Integration.RotationPeriod
			out.Wanted.Federated = out.Integration.Federated
			pause, err := readPause(ctx, tx, out.Integration.Name)
			if err != nil {
				return err
			}
			out.PauseEndTime = pause.ExpireTime
		case !errors.Is(err, sqldb.ErrNoRows):
			return err
		}
		if out.Versions, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (credential.Version, error) { return scanVersion(row) },
			`SELECT `+versionColumns+` FROM credential_versions WHERE integration_uid = $1
				AND (state NOT IN ('REVOKED', 'ABANDONED') OR (state = 'ABANDONED' AND key_id <> '' AND remove_time = 0))
				ORDER BY number`, uid); err != nil {
			return err
		}
		if out.Wanted.Federated || slices.ContainsFunc(out.Versions, credential.Version.Federated) {
			if out.Trust, err = readTrust(ctx, tx); err != nil {
				return err
			}
		}
		if out.Rotations, err = openRotations(ctx, tx, uid); err != nil {
			return err
		}
		out.Strays, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (p credential.Stray, err error) {
			err = row.Scan(&p.KeyID, &p.Name, at{&p.StartTime}, at{&p.FirstTime}, at{&p.LastTime}, &p.Attempts, at{&p.NextTime})
			return p, err
		}, `SELECT key_id, name, start_time, first_time, last_time, attempts, next_time FROM stray_passwords WHERE integration_uid = $1 ORDER BY key_id`, uid)
		return err
	})
	if err != nil {
		return Facts{}, fmt.Errorf("read facts of integration %s: %w", uid, err)
	}
	return out, nil
}

// Adopt takes the shard's integrations that are newer than the revision after into the list of what is due, and forgets what
// is gone for good. It returns the newest revision there is, to be given the next time; with after = -1 it looks at all of
// them, and is then right whatever was missed. Nothing is written when nothing is new.
func (s *Store) Adopt(ctx context.Context, m election.Mastership, now time.Time, after int64) (newest int64, err error) {
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MAX(revision), 0) FROM integrations WHERE shard = $1`, m.Shard).Scan(&newest)
	})
	if err != nil {
		return 0, fmt.Errorf("adopt integrations of shard %d: %w", m.Shard, err)
	}
	if newest == after {
		return newest, nil
	}
	if newest < after {
		after = -1 // another database of the registry's, or the newest one was deleted
	}
	err = s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO applications (integration_uid, shard, revision, next_time)
			SELECT uid, shard, revision, $3 FROM integrations WHERE shard = $1 AND revision > $2 AND revision <= $4
			ON CONFLICT (integration_uid) DO UPDATE SET shard = excluded.shard, revision = excluded.revision,
				next_time = excluded.next_time, touches = applications.touches + 1
			WHERE applications.revision <> excluded.revision OR applications.shard <> excluded.shard`,
			m.Shard, after, sqldb.Micros(now), newest); err != nil {
			return err
		}
		const gone = `(SELECT integration_uid FROM applications WHERE shard = $1 AND forget_time > 0
			AND NOT EXISTS (SELECT 1 FROM integrations WHERE uid = applications.integration_uid))`
		for _, table := range []string{"credential_versions", "stray_passwords", "consent_probes", "rotations", "applications"} {
			if _, err := tx.Exec(ctx, `DELETE FROM `+table+` WHERE integration_uid IN `+gone, m.Shard); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("adopt integrations of shard %d: %w", m.Shard, err)
	}
	return newest, nil
}

// Commit writes a step. ErrChanged and ErrHeld mean that it was decided on facts that are no longer true, election.ErrFenced that
// the mastership is over; nothing was written then.
func (s *Store) Commit(ctx context.Context, m election.Mastership, step Step) error {
	err := s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
		told, err := tx.write(ctx, step)
		if err != nil {
			return err
		}
		if err := s.auditMoves(ctx, tx, step); err != nil || !told {
			return err
		}
		return noteChange(ctx, tx.Tx, step.Now, step.IntegrationUID, "")
	})
	if err != nil {
		return fmt.Errorf("commit step of integration %s: %w", step.IntegrationUID, err)
	}
	return nil
}

// write writes a step, and reports whether streams must hear of it. It takes the application's row first, whether that changes or
// not, see the package's documentation.
func (tx masterTx) write(ctx context.Context, step Step) (told bool, err error) {
	c := step.Change
	var wasConsented int64
	if err := tx.QueryRow(ctx, `UPDATE applications SET due_time = $2, unlisted = $3 WHERE integration_uid = $1 RETURNING consented`,
		step.IntegrationUID, sqldb.Micros(step.DueTime), bit(step.Unlisted)).Scan(&wasConsented); err != nil {
		return false, err
	}
	if c.Application != nil {
		told = bit(c.Application.Consented) != wasConsented
		if err := tx.saveApplication(ctx, step.IntegrationUID, *c.Application); err != nil {
			return false, err
		}
	}
	if c.Intent != nil {
		if err := tx.insertIntent(ctx, *c.Intent); err != nil {
			return false, err
		}
	}
	for _, m := range c.Moves {
		told = told || m.From != m.Version.State && (given(m.From) || given(m.Version.State))
		if err := tx.move(ctx, m); err != nil {
			return false, err
		}
	}
	for _, m := range c.Rotations {
		if err := tx.moveRotation(ctx, m); err != nil {
			return false, err
		}
	}
	if c.ReplaceStrays {
		if err := tx.replaceStrays(ctx, step); err != nil {
			return false, err
		}
	}
	next := int64(never)
	if !step.NextTime.IsZero() {
		next = sqldb.Micros(step.NextTime)
	}
	_, err = tx.Exec(ctx, `UPDATE applications SET next_time = $2 WHERE integration_uid = $1 AND touches = $3`,
		step.IntegrationUID, next, step.Touches)
	return told, err
}

// given reports whether what streams get is made of versions in the state.
func given(s credential.State) bool { return s == credential.Active || s == credential.Retiring }

// replaceStrays writes what a read found, and takes the occasion to drop versions and rotations that ended long ago.
func (tx masterTx) replaceStrays(ctx context.Context, step Step) error {
	if _, err := tx.Exec(ctx, `DELETE FROM stray_passwords WHERE integration_uid = $1`, step.IntegrationUID); err != nil {
		return err
	}
	for _, p := range step.Change.Strays {
		if _, err := tx.Exec(ctx, `INSERT INTO stray_passwords (integration_uid, key_id, name, start_time, first_time, last_time, attempts, next_time)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			step.IntegrationUID, p.KeyID, p.Name, sqldb.Micros(p.StartTime), sqldb.Micros(p.FirstTime), sqldb.Micros(p.LastTime), p.Attempts, sqldb.Micros(p.NextTime)); err != nil {
			return err
		}
	}
	// Those of a batch are counted for as long as it is kept itself.
	if _, err := tx.Exec(ctx, `DELETE FROM rotations WHERE integration_uid = $1 AND end_time > 0 AND end_time < $2
			AND NOT EXISTS (SELECT 1 FROM rotation_batches WHERE id = rotations.batch_id)`,
		step.IntegrationUID, sqldb.Micros(step.Now.Add(-keepEnded))); err != nil {
		return err
	}
	// The newest stays whatever its age: the next number is counted from it.
	_, err := tx.Exec(ctx, `DELETE FROM credential_versions WHERE integration_uid = $1 AND intend_time < $2
		AND (state = 'REVOKED' OR (state = 'ABANDONED' AND (key_id = '' OR remove_time > 0)))
		AND number < (SELECT MAX(number) FROM credential_versions WHERE integration_uid = $1)`,
		step.IntegrationUID, sqldb.Micros(step.Now.Add(-keepEnded)))
	return err
}

const applicationColumns = `applications.integration_uid, applications.object_id, applications.client_id, applications.display_name,
	applications.spec_digest, applications.ensure_send_time, applications.ensure_time, applications.read_time,
	applications.write_time, applications.foreign_passwords, applications.missing_reads, applications.missing_time,
	applications.home_proofs, applications.home_time, applications.ready_time, applications.consented,
	applications.consent_time, applications.principal_object_id, applications.observe_time, applications.consent_refusals,
	applications.consent_refused_since, applications.consent_code, applications.failures, applications.failure_code,
	applications.retry_time, applications.add_failures, applications.add_code, applications.add_retry_time,
	applications.life_limit, applications.delete_time, applications.purge_time, applications.forget_time,
	applications.report_digest, applications.report_time, applications.activate_time, applications.seen_probe_time,
	applications.seen_want_time, applications.lease_end_time, applications.absences, applications.absence_time,
	applications.trust_digest, applications.trust_time, applications.trust_send_time, applications.foreign_trusts,
	applications.add_refusal, applications.unknown_trusts`

// scanApplication reads a row that begins with applicationColumns; more are further columns.
func scanApplication(row sqldb.Row, more ...any) (credential.Application, error) {
	var (
		a         credential.Application
		consented int64
		limit     int64
	)
	columns := []any{&a.IntegrationUID, &a.ObjectID, &a.ClientID, &a.DisplayName, &a.SpecDigest, at{&a.EnsureSendTime}, at{&a.EnsureTime},
		at{&a.ReadTime}, at{&a.WriteTime}, &a.ForeignPasswords, &a.MissingReads, at{&a.MissingTime}, &a.HomeProofs, at{&a.HomeTime}, at{&a.ReadyTime},
		&consented, at{&a.ConsentTime}, &a.PrincipalObjectID, at{&a.ObserveTime}, &a.ConsentRefusals, at{&a.ConsentRefusedSince},
		&a.ConsentCode, &a.Failures, &a.FailureCode, at{&a.NextTime}, &a.AddFailures, &a.AddCode, at{&a.AddNextTime}, &limit,
		at{&a.DeleteTime}, at{&a.PurgeTime}, at{&a.ForgetTime}, &a.ReportDigest, at{&a.ReportTime},
		at{&a.ActivateTime}, at{&a.SeenProbeTime}, at{&a.SeenWantTime}, at{&a.LeaseEndTime}, &a.Absences, at{&a.AbsenceTime},
		&a.TrustDigest, at{&a.TrustTime}, at{&a.TrustSendTime}, &a.ForeignTrusts, &a.AddRefusal, &a.UnknownTrusts}
	err := row.Scan(append(columns, more...)...)
	a.Consented = consented != 0
	a.LifeLimit = time.Duration(limit) * time.Microsecond
	return a, err
}

func (tx masterTx) saveApplication(ctx context.Context, uid string, a credential.Application) error {
	args := []any{uid, a.ObjectID, a.ClientID, a.DisplayName, a.SpecDigest, sqldb.Micros(a.EnsureSendTime), sqldb.Micros(a.EnsureTime),
		sqldb.Micros(a.ReadTime), sqldb.Micros(a.WriteTime), a.ForeignPasswords, a.MissingReads, sqldb.Micros(a.MissingTime), a.HomeProofs,
		sqldb.Micros(a.HomeTime), sqldb.Micros(a.ReadyTime), bit(a.Consented), sqldb.Micros(a.ConsentTime), a.PrincipalObjectID,
		sqldb.Micros(a.ObserveTime), a.ConsentRefusals, sqldb.Micros(a.ConsentRefusedSince), a.ConsentCode, a.Failures, a.FailureCode,
		sqldb.Micros(a.NextTime), a.AddFailures, a.AddCode, sqldb.Micros(a.AddNextTime), a.LifeLimit.Microseconds(),
		sqldb.Micros(a.DeleteTime), sqldb.Micros(a.PurgeTime), sqldb.Micros(a.ForgetTime), a.ReportDigest, sqldb.Micros(a.ReportTime),
		sqldb.Micros(a.ActivateTime), sqldb.Micros(a.SeenProbeTime), sqldb.Micros(a.SeenWantTime), sqldb.Micros(a.LeaseEndTime), a.Absences,
		sqldb.Micros(a.AbsenceTime), a.TrustDigest, sqldb.Micros(a.TrustTime), sqldb.Micros(a.TrustSendTime), a.ForeignTrusts,
		a.AddRefusal, a.UnknownTrusts}
	saved, err := tx.Exec(ctx, `UPDATE applications SET object_id = $2, client_id = $3, display_name = $4, spec_digest = $5,
		ensure_send_time = $6, ensure_time = $7, read_time = $8, write_time = $9, foreign_passwords = $10, missing_reads = $11,
		missing_time = $12, home_proofs = $13, home_time = $14, ready_time = $15, consented = $16, consent_time = $17,
		principal_object_id = $18, observe_time = $19, consent_refusals = $20, consent_refused_since = $21, consent_code = $22,
		failures = $23, failure_code = $24, retry_time = $25, add_failures = $26, add_code = $27, add_retry_time = $28, life_limit = $29,
		delete_time = $30, purge_time = $31, forget_time = $32, report_digest = $33, report_time = $34, activate_time = $35, seen_probe_time = $36, seen_want_time = $37,
		lease_end_time = $38, absences = $39, absence_time = $40,
		trust_digest = $41, trust_time = $42, trust_send_time = $43, foreign_trusts = $44, add_refusal = $45, unknown_trusts = $46
		WHERE integration_uid = $1`, args...)
	if err != nil {
		return fmt.Errorf("save application: %w", err)
	}
	if saved == 0 {
		return fmt.Errorf("save application: %w", ErrChanged)
	}
	return nil
}

// TouchClouds makes those of the shard's integrations due now that are in one of the clouds and have nothing to do until somebody touches them, and those that have although they
// are in none of the clouds. Nothing happens without clouds.
func (s *Store) TouchClouds(ctx context.Context, m election.Mastership, now time.Time, clouds []string) error {
	if len(clouds) == 0 {
		return nil
	}
	err := s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
		from, args := tx.Values(listed(clouds), m.Shard, sqldb.Micros(now), int64(never))
		_, err := tx.Exec(ctx, `UPDATE applications SET touches = touches + 1, next_time = $2
			WHERE shard = $1 AND forget_time = 0 AND EXISTS (SELECT 1 FROM integrations
				WHERE uid = applications.integration_uid AND (`+tx.In(`cloud`, `SELECT column1 FROM `+from+` v`)+`) = (applications.next_time = $3))`, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("make integrations of shard %d due: %w", m.Shard, err)
	}
	return nil
}

// Clouds counts the integrations by the clouds that they are in.
func (s *Store) Clouds(ctx context.Context) (map[string]int, error) {
	out := map[string]int{}
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		clear(out)
		_, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (none struct{}, err error) {
			var cloud string
			var n int
			err = row.Scan(&cloud, &n)
			out[cloud] = n
			return none, err
		}, `SELECT cloud, COUNT(*) FROM integrations GROUP BY cloud`)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count integrations by cloud: %w", err)
	}
	return out, nil
}

// touch makes an integration due now, from any replica. It does nothing for one that was never adopted.
func touch(ctx context.Context, tx sqldb.Tx, integrationUID string, now time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE applications SET touches = touches + 1, next_time = CASE WHEN next_time < $2 THEN next_time ELSE $2 END
		WHERE integration_uid = $1 AND forget_time = 0`, integrationUID, sqldb.Micros(now))
	if err != nil {
		return fmt.Errorf("touch integration: %w", err)
	}
	return nil
}
