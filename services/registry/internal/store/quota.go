package store

import (
	"context"
	"fmt"

	"phasekey.dev/services/registry/internal/quota"
)

// lockAccount makes everybody else wait who creates in the account. It comes before any other lock of the transaction, and before
// what it is to protect is read.
func (w *writing) lockAccount(ctx context.Context, account string) error {
	_, err := w.Exec(ctx, `INSERT INTO accounts (account, writes) VALUES ($1, 1) ON CONFLICT (account) DO UPDATE SET writes = accounts.writes + 1`, account)
	if err != nil {
		return fmt.Errorf("lock account: %w", err)
	}
	return nil
}

// checkQuota refuses one more resource of a kind in an account that this transaction has locked. It counts the resources there are, by their
// names, so that no counter can drift; and no more of them than the limit.
func (w *writing) checkQuota(ctx context.Context, account string, kind quota.Kind) error {
	names := spanBelow("accounts/" + account + "/")
	var have int
	err := w.QueryRow(ctx, `SELECT COUNT(*) FROM (SELECT 1 FROM `+string(kind)+` WHERE name > $1 AND name < $2 LIMIT $3) AS counted`,
		names.from, names.to, w.quotas.Limit(account, kind)).Scan(&have)
	if err != nil {
		return fmt.Errorf("count %s: %w", kind, err)
	}
	return w.quotas.Check(account, kind, have)
}
