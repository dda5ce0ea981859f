package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
)

// Live is a version that may be delivered from, and what it takes to ask for a token with it.
type Live struct {
	credential.Version
	// ClientID is the application's.
	ClientID string
	// TenantID is the customer's.
	TenantID string
	// Cloud is the name of the cloud that both are in.
	Cloud string
}

// CredentialVersions returns at most limit versions of the integration of that resource name, whatever their states, the newest
// first; with a positive before only those with lower numbers. sqldb.ErrNoRows when the registry has not told of such an
// integration, or told that it is gone.
func (s *Store) CredentialVersions(ctx context.Context, integration string, before int64, limit int) ([]credential.Version, error) {
	if before <= 0 {
		before = math.MaxInt64
	}
	var out []credential.Version
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		var uid string
		if err := tx.QueryRow(ctx, `SELECT uid FROM integrations WHERE name = $1`, integration).Scan(&uid); err != nil {
			return err
		}
		out, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (credential.Version, error) { return scanVersion(row) },
			`SELECT `+versionColumns+` FROM credential_versions WHERE integration_uid = $1 AND number < $2 ORDER BY number DESC LIMIT $3`,
			uid, before, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list credential versions of %s: %w", integration, err)
	}
	return out, nil
}

// liveVersions adds to a batch what reads each integration's ACTIVE version, if there is one, and after it those that are RETIRING, the newest first. Which selects the
// integrations' UIDs.
func liveVersions(tx sqldb.Tx, b *sqldb.Batch, which string, args ...any) *[]Live {
	found := new([]Live)
	sqldb.Into(b, found, func(row sqldb.Row) (l Live, err error) {
		l.Version, err = scanVersion(row, &l.ClientID, &l.TenantID, &l.Cloud)
		return l, err
	}, `SELECT `+versionColumns+`, applications.client_id, integrations.tenant_id, integrations.cloud
		FROM credential_versions
		JOIN applications ON applications.integration_uid = credential_versions.integration_uid
		JOIN integrations ON integrations.uid = credential_versions.integration_uid
		WHERE `+tx.In(`credential_versions.integration_uid`, which)+` AND credential_versions.state IN ('ACTIVE', 'RETIRING')
		ORDER BY credential_versions.state, credential_versions.number DESC`, args...)
	return found
}

const versionColumns = `credential_versions.id, credential_versions.integration_uid, credential_versions.number,
	credential_versions.state, credential_versions.name, credential_versions.key_id, credential_versions.sealed,
	credential_versions.intend_time, credential_versions.send_time, credential_versions.add_time,
	credential_versions.start_time, credential_versions.end_time, credential_versions.propagate_time,
	credential_versions.prove_time, credential_versions.activate_time, credential_versions.retire_time,
	credential_versions.revoke_time, credential_versions.remove_time, credential_versions.proofs,
	credential_versions.probe_time, credential_versions.refusals, credential_versions.refused_since,
	credential_versions.attempts, credential_versions.next_time, credential_versions.holders, credential_versions.reason,
	credential_versions.recovery, credential_versions.signing_key, credential_versions.remove_code`

// scanVersion reads a row that begins with versionColumns; more are further columns.
func scanVersion(row sqldb.Row, more ...any) (credential.Version, error) {
	var v credential.Version
	columns := []any{&v.ID, &v.IntegrationUID, &v.Number, &v.State, &v.Name, &v.KeyID, &v.Sealed,
		at{&v.IntendTime}, at{&v.SendTime}, at{&v.AddTime}, at{&v.StartTime}, at{&v.EndTime}, at{&v.PropagateTime},
		at{&v.ProveTime}, at{&v.ActivateTime}, at{&v.RetireTime}, at{&v.RevokeTime}, at{&v.RemoveTime}, &v.Proofs,
		at{&v.ProbeTime}, &v.Refusals, at{&v.RefusedSince}, &v.Attempts, at{&v.NextTime}, &v.Holders, &v.Reason, &v.Recovery, &v.SigningKey, &v.RemoveCode}
	err := row.Scan(append(columns, more...)...)
	return v, err
}

// at scans microseconds into a time.
type at struct{ t *time.Time }

// Scan implements sql.Scanner.
func (a at) Scan(value any) error {
	micros, ok := value.(int64)
	if !ok {
		return fmt.Errorf("scan %T as a time", value)
	}
	*a.t = sqldb.Time(micros)
	return nil
}

// insertIntent adds a version that is new.
func (tx masterTx) insertIntent(ctx context.Context, v credential.Version) error {
	if v.Federated() {
		if err := tx.useKey(ctx, v.SigningKey); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `INSERT INTO credential_versions
		(id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time, end_time, propagate_time,
		 prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since, attempts, next_time, reason, recovery, signing_key)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27)`,
		v.ID, v.IntegrationUID, v.Number, string(v.State), v.Name, v.KeyID, v.Sealed,
		sqldb.Micros(v.IntendTime), sqldb.Micros(v.SendTime), sqldb.Micros(v.AddTime), sqldb.Micros(v.StartTime), sqldb.Micros(v.EndTime),
		sqldb.Micros(v.PropagateTime), sqldb.Micros(v.ProveTime), sqldb.Micros(v.ActivateTime), sqldb.Micros(v.RetireTime),
		sqldb.Micros(v.RevokeTime), sqldb.Micros(v.RemoveTime), v.Proofs, sqldb.Micros(v.ProbeTime), v.Refusals,
		sqldb.Micros(v.RefusedSince), v.Attempts, sqldb.Micros(v.NextTime), v.Reason, v.Recovery, v.SigningKey)
	if err != nil {
		return fmt.Errorf("insert credential version %d: %w", v.Number, err)
	}
	return nil
}

// move writes a version's new row over one that is still in the state the move was decided in. A version that goes to
// REVOKING must not be held (ErrHeld), unless the move says so.
func (tx masterTx) move(ctx context.Context, m credential.Move) error {
	v := m.Version
	if m.From != v.State && !credential.Allowed(m.From, v.State) {
		return fmt.Errorf("%s from %s: no such transition", v, m.From)
	}
	moved, err := tx.Exec(ctx, `UPDATE credential_versions SET state = $3, key_id = $4, sealed = $5, send_time = $6, add_time = $7,
		start_time = $8, end_time = $9, propagate_time = $10, prove_time = $11, activate_time = $12, retire_time = $13, revoke_time = $14,
		remove_time = $15, proofs = $16, probe_time = $17, refusals = $18, refused_since = $19, attempts = $20, next_time = $21, reason = $22,
		remove_code = $23
		WHERE id = $1 AND state = $2 AND ($24 = 0 OR holders = 0)`,
		v.ID, string(m.From), string(v.State), v.KeyID, v.Sealed, sqldb.Micros(v.SendTime), sqldb.Micros(v.AddTime),
		sqldb.Micros(v.StartTime), sqldb.Micros(v.EndTime), sqldb.Micros(v.PropagateTime), sqldb.Micros(v.ProveTime),
		sqldb.Micros(v.ActivateTime), sqldb.Micros(v.RetireTime), sqldb.Micros(v.RevokeTime), sqldb.Micros(v.RemoveTime), v.Proofs,
		sqldb.Micros(v.ProbeTime), v.Refusals, sqldb.Micros(v.RefusedSince), v.Attempts, sqldb.Micros(v.NextTime), v.Reason, v.RemoveCode,
		bit(m.From != credential.Revoking && v.State == credential.Revoking && !m.DespiteHolders))
	if err != nil {
		return fmt.Errorf("move %s: %w", v, err)
	}
	if moved == 1 {
		return nil
	}
	var state string
	err = tx.QueryRow(ctx, `SELECT state FROM credential_versions WHERE id = $1`, v.ID).Scan(&state)
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return fmt.Errorf("move %s: %w", v, err)
	}
	if state == string(m.From) {
		return fmt.Errorf("move %s: %w", v, ErrHeld)
	}
	return fmt.Errorf("move %s: %w", v, ErrChanged)
}
