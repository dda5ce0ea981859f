package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/signingkey"
)

// keepSigningKeys is how long the rows of removed signing keys are kept, for people.
const keepSigningKeys = 90 * 24 * time.Hour

// SigningKeysRotated: somebody wants the signing key replaced, or dropped it as compromised; Reason says which.
const SigningKeysRotated AuditKind = "SigningKeysRotated"

// SigningKeys returns all signing keys that are known, the newest first; those that were removed long ago are forgotten.
func (s *Store) SigningKeys(ctx context.Context) ([]signingkey.Key, error) {
	var out []signingkey.Key
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = signingKeys(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read signing keys: %w", err)
	}
	return out, nil
}

// SigningFacts reads what a decision about the signing keys is made from.
func (s *Store) SigningFacts(ctx context.Context) (signingkey.Facts, error) {
	var out signingkey.Facts
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out = signingkey.Facts{}
		if out.Keys, err = signingKeys(ctx, tx); err != nil {
			return err
		}
		if len(out.Keys) > 0 {
			out.LastNumber = out.Keys[0].Number
		}
		out.Used, err = sqldb.Collect(ctx, tx, scanUID, `SELECT DISTINCT signing_key FROM credential_versions WHERE `+signs)
		return err
	})
	if err != nil {
		return signingkey.Facts{}, fmt.Errorf("read signing keys and their use: %w", err)
	}
	return out, nil
}

// signs are the versions that may be asked with.
const signs = `signing_key <> '' AND state IN ('INTENDED', 'STAGED', 'PROPAGATING', 'ACTIVE', 'RETIRING')`

// AddSigningKey adds a key that is new, and forgets those that were removed long ago. election.ErrFenced when m is over; ErrChanged when there is
// a PUBLISHED key already, or one of this number.
func (s *Store) AddSigningKey(ctx context.Context, m election.Mastership, now time.Time, k signingkey.Key) error {
	err := s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM signing_keys WHERE state = 'REMOVED' AND remove_time < $1 AND number < $2`,
			sqldb.Micros(now.Add(-keepSigningKeys)), k.Number-1); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO signing_keys (`+signingColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
			k.ID, k.Number, string(k.State), k.Public, k.Sealed, sqldb.Micros(k.PublishTime), sqldb.Micros(k.SignTime), sqldb.Micros(k.ReplaceTime),
			sqldb.Micros(k.RetireTime), sqldb.Micros(k.RemoveTime), k.Reason)
		return err
	})
	if sqldb.UniqueOn(err, "signing_keys", "state") || sqldb.UniqueOn(err, "signing_keys", "number") {
		err = errors.Join(ErrChanged, err)
	}
	if err != nil {
		return fmt.Errorf("add signing key %d: %w", k.Number, err)
	}
	return nil
}

// MoveSigningKey writes a key's new row over one that is still in the state the move was decided in; else ErrChanged. A key that a version
// names which may be asked with is not RETIRED: ErrChanged too.
func (s *Store) MoveSigningKey(ctx context.Context, m election.Mastership, move signingkey.Move) error {
	k := move.Key
	err := s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
		if !signingkey.Allowed(move.From, k.State) {
			return fmt.Errorf("%s from %s: no such transition", k.State, move.From)
		}
		// First its row, which whoever makes a version under it writes too: what is counted afterwards stands until the commit.
		n, err := tx.Exec(ctx, `UPDATE signing_keys SET uses = uses + 1 WHERE id = $1 AND state = $2`, k.ID, string(move.From))
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrChanged
		}
		n, err = tx.Exec(ctx, `UPDATE signing_keys SET state = $2, sealed = CASE WHEN $2 = 'REMOVED' THEN NULL ELSE sealed END,
				sign_time = $3, retire_time = $4, remove_time = $5, reason = $6
			WHERE id = $1 AND ($2 <> 'RETIRED' OR NOT EXISTS (SELECT 1 FROM credential_versions WHERE signing_key = $1 AND `+signs+`))`,
			k.ID, string(k.State), sqldb.Micros(k.SignTime), sqldb.Micros(k.RetireTime), sqldb.Micros(k.RemoveTime), k.Reason)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrChanged
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("move signing key %s to %s: %w", k.ID, k.State, err)
	}
	return nil
}

// WantSigningKey notes that the newest key that signs is to be replaced by the next one, from any replica. One that is to be replaced already stays so;
// signingkey.ErrNotFound while none signs.
func (s *Store) WantSigningKey(ctx context.Context, now time.Time, caller grant.Caller) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `UPDATE signing_keys SET replace_time = CASE WHEN replace_time = 0 THEN $1 ELSE replace_time END WHERE state = 'SIGNING'
			AND number = (SELECT MAX(number) FROM signing_keys WHERE state = 'SIGNING')`, sqldb.Micros(now))
		if err != nil {
			return err
		}
		if n == 0 {
			return signingkey.ErrNotFound
		}
		return s.audit(ctx, tx, AuditEvent{Time: now, Kind: SigningKeysRotated, Caller: caller, Reason: "Scheduled"})
	})
	if err != nil {
		return fmt.Errorf("have the signing key replaced: %w", err)
	}
	return nil
}

// DropSigningKey removes a key at once, from any replica, because somebody may have it. One that is removed stays so; signingkey.ErrNotFound when there
// never was one of that ID.
func (s *Store) DropSigningKey(ctx context.Context, now time.Time, id string, caller grant.Caller) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `UPDATE signing_keys SET sealed = NULL, reason = CASE WHEN state = 'REMOVED' THEN reason ELSE $3 END,
				remove_time = CASE WHEN state = 'REMOVED' THEN remove_time ELSE $2 END, state = 'REMOVED'
			WHERE id = $1`, id, sqldb.Micros(now), signingkey.Compromised)
		if err != nil {
			return err
		}
		if n == 0 {
			return signingkey.ErrNotFound
		}
		return s.audit(ctx, tx, AuditEvent{Time: now, Kind: SigningKeysRotated, Caller: caller, Reason: signingkey.Compromised + " " + id})
	})
	if err != nil {
		return fmt.Errorf("drop signing key %s: %w", id, err)
	}
	return nil
}

// SigningKeyCompromised reports whether somebody dropped the key because it may be in other hands.
func (s *Store) SigningKeyCompromised(ctx context.Context, id string) (bool, error) {
	var out bool
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM signing_keys WHERE id = $1 AND reason = $2)`, id, signingkey.Compromised).Scan(&out)
	})
	if err != nil {
		return false, fmt.Errorf("read signing key %s: %w", id, err)
	}
	return out, nil
}

const signingColumns = `id, number, state, public, sealed, publish_time, sign_time, replace_time, retire_time, remove_time, reason`

func signingKeys(ctx context.Context, tx sqldb.Tx) ([]signingkey.Key, error) {
	return sqldb.Collect(ctx, tx, func(row sqldb.Row) (k signingkey.Key, err error) {
		err = row.Scan(&k.ID, &k.Number, &k.State, &k.Public, &k.Sealed, at{&k.PublishTime}, at{&k.SignTime}, at{&k.ReplaceTime},
			at{&k.RetireTime}, at{&k.RemoveTime}, &k.Reason)
		return k, err
	}, `SELECT `+signingColumns+` FROM signing_keys ORDER BY number DESC`)
}

// Trust is what federated versions stand on, but for the federated credentials.
func (s *Store) Trust(ctx context.Context) (credential.Trust, error) {
	var out credential.Trust
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = readTrust(ctx, tx)
		return err
	})
	if err != nil {
		return credential.Trust{}, fmt.Errorf("read keys that sign: %w", err)
	}
	return out, nil
}

// TouchFederated makes the shard's federated integrations due now, and those that have versions under a signing key still.
func (s *Store) TouchFederated(ctx context.Context, m election.Mastership, now time.Time) error {
	err := s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
		_, err := tx.Exec(ctx, `UPDATE applications SET touches = touches + 1, next_time = CASE WHEN next_time < $2 THEN next_time ELSE $2 END
			WHERE shard = $1 AND forget_time = 0 AND (
				integration_uid IN (SELECT uid FROM integrations WHERE shard = $1 AND credential_kind = 'FEDERATED')
				OR integration_uid IN (SELECT integration_uid FROM credential_versions WHERE `+signs+`))`, m.Shard, sqldb.Micros(now))
		return err
	})
	if err != nil {
		return fmt.Errorf("make federated integrations of shard %d due: %w", m.Shard, err)
	}
	return nil
}

// readTrust reads the keys that sign.
func readTrust(ctx context.Context, tx sqldb.Tx) (credential.Trust, error) {
	var out credential.Trust
	keys, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (k signingkey.Key, err error) {
		err = row.Scan(&k.ID, at{&k.SignTime})
		return k, err
	}, `SELECT id, sign_time FROM signing_keys WHERE state = 'SIGNING' ORDER BY number DESC`)
	if err != nil {
		return out, err
	}
	for i, k := range keys {
		if i == 0 {
			out.Key, out.KeyTime = k.ID, k.SignTime
		}
		out.Usable = append(out.Usable, k.ID)
	}
	return out, nil
}

// useKey has a version be under a key that signs; else ErrChanged. Until the commit the key is not RETIRED.
func (tx masterTx) useKey(ctx context.Context, id string) error {
	n, err := tx.Exec(ctx, `UPDATE signing_keys SET uses = uses + 1 WHERE id = $1 AND state = 'SIGNING'`, id)
	if err != nil {
		return fmt.Errorf("use signing key %s: %w", id, err)
	}
	if n == 0 {
		return fmt.Errorf("use signing key %s: %w", id, ErrChanged)
	}
	return nil
}
