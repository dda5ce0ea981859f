package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
)

// RequestRotation has the integration's versions replaced, see credential.Admit, and its master act at once. Errors: sqldb.ErrNoRows
// when the registry has not told of such an integration, credential.ErrDeleting, credential.ErrNotAdopted, a credential.PauseError,
// and grant.ErrRequestIDReused.
func (s *Store) RequestRotation(ctx context.Context, now time.Time, r credential.RotationRequest, caller grant.Caller) (credential.RotationStatus, error) {
	id, err := uuid.NewV7() // in the order of creation, so that lists are
	if err != nil {
		return credential.RotationStatus{}, fmt.Errorf("name rotation: %w", err)
	}
	var out credential.RotationStatus
	request := func(ctx context.Context, tx sqldb.Tx) error {
		integration, err := scanIntegration(tx.QueryRow(ctx, `SELECT `+integrationColumns+` FROM integrations WHERE name = $1`, r.Integration))
		if err != nil {
			return err
		}
		contents := fmt.Sprintf("%s %t", r.Reason, r.Immediately)
		earlier, err := repeated(ctx, tx, now, r.Integration, r.RequestID, contents)
		if err != nil {
			return err
		}
		if earlier != "" {
			out, err = readRotation(ctx, tx, integration.UID, earlier)
			return err
		}
		if integration.Deleting {
			return credential.ErrDeleting
		}
		if r.Reason == credential.Scheduled {
			if err := checkPause(ctx, tx, now, r.Integration); err != nil {
				return err
			}
		}
		asked := credential.Rotation{Reason: r.Reason, Immediately: r.Immediately}
		answer, err := s.askRotation(ctx, tx, now, id.String(), integration, asked, caller)
		if err != nil {
			return err
		}
		if err := remember(ctx, tx, now, r.Integration, r.RequestID, contents, answer.ID); err != nil {
			return err
		}
		out, err = readRotation(ctx, tx, integration.UID, answer.ID)
		return err
	}
	err = s.db.Tx(ctx, request)
	if sqldb.UniqueOn(err, "rotation_requests", "scope", "request_id") {
		// The same request came first, at the same moment. It is there now.
		err = s.db.Tx(ctx, request)
	}
	if err != nil {
		return credential.RotationStatus{}, fmt.Errorf("request rotation of %s: %w", r.Integration, err)
	}
	return out, nil
}

// askRotation takes a request on, or finds the rotation that answers it. It takes the application's row, so that nothing is intended
// or asked for meanwhile.
func (s *Store) askRotation(ctx context.Context, tx sqldb.Tx, now time.Time, id string, integration Integration, asked credential.Rotation,
	caller grant.Caller,
) (credential.Rotation, error) {
	touched, err := tx.Exec(ctx, `UPDATE applications SET touches = touches + 1, next_time = CASE WHEN next_time < $2 THEN next_time ELSE $2 END
		WHERE integration_uid = $1 AND forget_time = 0`, integration.UID, sqldb.Micros(now))
	if err != nil {
		return credential.Rotation{}, fmt.Errorf("touch integration: %w", err)
	}
	if touched == 0 {
		return credential.Rotation{}, credential.ErrNotAdopted
	}
	open, err := openRotations(ctx, tx, integration.UID)
	if err != nil {
		return credential.Rotation{}, err
	}
	var active, newest int64
	if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(CASE WHEN state = 'ACTIVE' THEN number END), 0), COALESCE(MAX(number), 0)
		FROM credential_versions WHERE integration_uid = $1`, integration.UID).Scan(&active, &newest); err != nil {
		return credential.Rotation{}, fmt.Errorf("read numbers of versions: %w", err)
	}
	answer, changed, made := credential.Admit(now, id, asked, open, active, newest)
	for _, c := range changed {
		if _, err := tx.Exec(ctx, `UPDATE rotations SET immediately = $2, state = $3, state_reason = $4, end_time = $5 WHERE id = $1`,
			c.ID, bit(c.Immediately), string(c.State), c.StateReason, sqldb.Micros(c.EndTime)); err != nil {
			return credential.Rotation{}, fmt.Errorf("change rotation %s: %w", c.ID, err)
		}
	}
	if made {
		_, err = tx.Exec(ctx, `INSERT INTO rotations (`+rotationColumns+`, integration_uid, creator)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
			answer.ID, string(answer.Reason), bit(answer.Immediately), answer.UpTo, answer.BatchID, string(answer.State), answer.StateReason,
			answer.New, sqldb.Micros(answer.CreateTime), sqldb.Micros(answer.ActivateTime), sqldb.Micros(answer.RemoveTime),
			sqldb.Micros(answer.EndTime), sqldb.Micros(answer.AskTime), integration.UID, caller.Identity)
	} else {
		_, err = tx.Exec(ctx, `UPDATE rotations SET ask_time = $2 WHERE id = $1`, answer.ID, sqldb.Micros(answer.AskTime))
	}
	if err != nil {
		return credential.Rotation{}, fmt.Errorf("store rotation %s: %w", answer.ID, err)
	}
	reason := string(asked.Reason)
	if asked.Immediately {
		reason += " IMMEDIATELY"
	}
	return answer, s.audit(ctx, tx, AuditEvent{
		Time: now, Kind: RotationRequested, Caller: caller, Account: accountOf(integration.Name), IntegrationUID: integration.UID, Reason: reason,
	})
}

// Rotation returns one rotation of the integration of that resource name; sqldb.ErrNoRows when there is none.
func (s *Store) Rotation(ctx context.Context, integration, id string) (credential.RotationStatus, error) {
	var out credential.RotationStatus
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		uid, err := uidOf(ctx, tx, integration)
		if err != nil {
			return err
		}
		out, err = readRotation(ctx, tx, uid, id)
		return err
	})
	if err != nil {
		return credential.RotationStatus{}, fmt.Errorf("read rotation %s of %s: %w", id, integration, err)
	}
	return out, nil
}

// Rotations returns at most limit rotations of the integration of that resource name, the newest first; with a before only those that
// are older than the one of that ID. sqldb.ErrNoRows when there is no such integration.
func (s *Store) Rotations(ctx context.Context, integration, before string, limit int) ([]credential.RotationStatus, error) {
	var out []credential.RotationStatus
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		uid, err := uidOf(ctx, tx, integration)
		if err != nil {
			return err
		}
		out, err = sqldb.Collect(ctx, tx, scanShownRotation,
			shownRotations+` WHERE r.integration_uid = $1 AND ($2 = '' OR r.id < $2) ORDER BY r.id DESC LIMIT $3`, uid, before, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list rotations of %s: %w", integration, err)
	}
	return out, nil
}

func uidOf(ctx context.Context, tx sqldb.Tx, integration string) (uid string, err error) {
	err = tx.QueryRow(ctx, `SELECT uid FROM integrations WHERE name = $1`, integration).Scan(&uid)
	return uid, err
}

// accountOf is the account's ID in a resource name.
func accountOf(name string) string {
	account, _, _ := strings.Cut(strings.TrimPrefix(name, "accounts/"), "/")
	return account
}

func readRotation(ctx context.Context, tx sqldb.Tx, integrationUID, id string) (credential.RotationStatus, error) {
	return scanShownRotation(tx.QueryRow(ctx, shownRotations+` WHERE r.integration_uid = $1 AND r.id = $2`, integrationUID, id))
}

const rotationColumns = `id, reason, immediately, up_to, batch_id, state, state_reason, new_number, create_time, activate_time, remove_time, end_time, ask_time`

// shownRotations selects what scanShownRotation reads.
const shownRotations = `SELECT r.id, r.reason, r.immediately, r.up_to, r.batch_id, r.state, r.state_reason, r.new_number, r.create_time,
	r.activate_time, r.remove_time, r.end_time, r.ask_time, r.creator,
	COALESCE((SELECT scope FROM rotation_batches WHERE id = r.batch_id), ''),
	COALESCE((SELECT proofs FROM credential_versions WHERE integration_uid = r.integration_uid AND number = r.new_number), 0),
	COALESCE((SELECT MAX(end_time) FROM credential_versions WHERE integration_uid = r.integration_uid AND number <= r.up_to
		AND state IN ('STAGED', 'PROPAGATING', 'ACTIVE', 'RETIRING', 'REVOKING')), 0),
	COALESCE((SELECT signing_key FROM credential_versions WHERE integration_uid = r.integration_uid AND number <= r.up_to AND signing_key <> ''
		AND state <> 'ABANDONED' AND (revoke_time = 0 OR revoke_time >= r.create_time) ORDER BY number DESC LIMIT 1), '')
	FROM rotations r`

func scanShownRotation(row sqldb.Row) (credential.RotationStatus, error) {
	var r credential.RotationStatus
	var err error
	r.Rotation, err = scanRotation(row, &r.Creator, &r.BatchScope, &r.Proofs, at{&r.OldEndTime}, &r.SigningKey)
	return r, err
}

// scanRotation reads a row that begins with rotationColumns; more are further columns.
func scanRotation(row sqldb.Row, more ...any) (credential.Rotation, error) {
	var r credential.Rotation
	var immediately int64
	columns := []any{&r.ID, &r.Reason, &immediately, &r.UpTo, &r.BatchID, &r.State, &r.StateReason, &r.New, at{&r.CreateTime},
		at{&r.ActivateTime}, at{&r.RemoveTime}, at{&r.EndTime}, at{&r.AskTime}}
	err := row.Scan(append(columns, more...)...)
	r.Immediately = immediately != 0
	return r, err
}

func openRotations(ctx context.Context, tx sqldb.Tx, integrationUID string) ([]credential.Rotation, error) {
	return sqldb.Collect(ctx, tx, func(row sqldb.Row) (credential.Rotation, error) { return scanRotation(row) },
		`SELECT `+rotationColumns+` FROM rotations WHERE integration_uid = $1 AND end_time = 0 ORDER BY id`, integrationUID)
}

// moveRotation writes how far a rotation is. ErrChanged when it is no longer as it was read: somebody asked for more meanwhile.
func (tx masterTx) moveRotation(ctx context.Context, m credential.RotationMove) error {
	r := m.Rotation
	moved, err := tx.Exec(ctx, `UPDATE rotations SET state = $3, state_reason = $4, new_number = $5, activate_time = $6, remove_time = $7,
		end_time = $8 WHERE id = $1 AND state = $2`, r.ID, string(m.From), string(r.State), r.StateReason, r.New,
		sqldb.Micros(r.ActivateTime), sqldb.Micros(r.RemoveTime), sqldb.Micros(r.EndTime))
	if err != nil {
		return fmt.Errorf("move rotation %s: %w", r.ID, err)
	}
	if moved == 0 {
		return fmt.Errorf("move rotation %s: %w", r.ID, ErrChanged)
	}
	return nil
}

// repeated is the result of an earlier request of the same ID; empty when there was none.
func repeated(ctx context.Context, tx sqldb.Tx, now time.Time, scope, requestID, contents string) (result string, err error) {
	if requestID == "" {
		return "", nil
	}
	var was string
	err = tx.QueryRow(ctx, `SELECT contents, result FROM rotation_requests WHERE scope = $1 AND request_id = $2 AND create_time > $3`,
		scope, requestID, sqldb.Micros(now.Add(-grant.RequestIDLife))).Scan(&was, &result)
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("look for request: %w", err)
	case was != contents:
		return "", grant.ErrRequestIDReused
	}
	return result, nil
}

// remember keeps a request's result for its repeats, and forgets those whose time is over.
func remember(ctx context.Context, tx sqldb.Tx, now time.Time, scope, requestID, contents, result string) error {
	if requestID == "" {
		return nil
	}
	if _, err := tx.Exec(ctx, `DELETE FROM rotation_requests WHERE create_time <= $1`, sqldb.Micros(now.Add(-grant.RequestIDLife))); err != nil {
		return fmt.Errorf("forget old requests: %w", err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO rotation_requests (scope, request_id, contents, result, create_time) VALUES ($1, $2, $3, $4, $5)`,
		scope, requestID, contents, result, sqldb.Micros(now)); err != nil {
		return fmt.Errorf("remember request: %w", err)
	}
	return nil
}
