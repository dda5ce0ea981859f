package store

import (
	"context"
	"fmt"
	"strings"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/signingkey"
)

// Sealed lists what is stored encrypted: texts of versions by the versions' IDs, then signing keys by signingkey.SealedAs. See keyring.Records.
func (s *Store) Sealed(ctx context.Context, after string, limit int) ([]keyring.Record, error) {
	var out []keyring.Record
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (r keyring.Record, err error) {
			err = row.Scan(&r.ID, &r.Sealed)
			if r.Identity = r.ID; !isSigningKey(r.ID) {
				r.Identity = credential.SealedAs(r.ID)
			}
			return r, err
		}, `SELECT id, sealed FROM credential_versions WHERE sealed IS NOT NULL AND id > $1
			UNION ALL SELECT $3 || id, sealed FROM signing_keys WHERE sealed IS NOT NULL AND $3 || id > $1
			ORDER BY 1 LIMIT $2`, after, limit, signingkey.SealedAs(""))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list what is sealed: %w", err)
	}
	return out, nil
}

func isSigningKey(id string) bool { return strings.HasPrefix(id, signingkey.SealedAs("")) }

// Reseal replaces a version's, or a signing key's, encrypted text by another of the same, in a transaction of its own: no row is locked while another is waited for. The master may write the
// version at the same time: whoever comes second finds what is there, and a master writes back at worst what it had read. See keyring.Records.
func (s *Store) Reseal(ctx context.Context, record keyring.Record, sealed []byte) (bool, error) {
	var n int64
	table, id := "credential_versions", record.ID
	if isSigningKey(id) {
		table, id = "signing_keys", strings.TrimPrefix(id, signingkey.SealedAs(""))
	}
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		n, err = tx.Exec(ctx, `UPDATE `+table+` SET sealed = $3 WHERE id = $1 AND sealed = $2`, id, record.Sealed, sealed)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("seal record %s anew: %w", record.ID, err)
	}
	return n == 1, nil
}
