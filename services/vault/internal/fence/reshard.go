package fence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/election"
)

// Shards is how many shards the database has, which stays so until tx ends. ErrNoShard before Configure. Whoever writes a row's shard must have asked in the same transaction.
func Shards(ctx context.Context, tx sqldb.Tx) (shards int, err error) {
	// A write: a reader would not keep Reshard from changing it.
	err = tx.QueryRow(ctx, `UPDATE shard_counts SET shards = shards WHERE id = 1 RETURNING shards`).Scan(&shards)
	if errors.Is(err, sqldb.ErrNoRows) {
		err = ErrNoShard
	}
	if err != nil {
		return 0, fmt.Errorf("read number of shards: %w", err)
	}
	return shards, nil
}

// sharded are the tables whose rows belong to a shard, by the column of the integration's UID.
var sharded = []struct{ table, uid string }{{"integrations", "uid"}, {"applications", "integration_uid"}, {"rotation_queue", "integration_uid"}}

// Reshard divides the database into another number of shards, and returns how many there were. It fences every master: each shard gets an epoch that is greater than any there
// has been, and no holder. Asked for the number there is it changes nothing, so a Reshard of unknown outcome is repeated.
//
// It is one transaction, in which masters and what follows the registry wait. Replicas may run meanwhile. One that believes in the former number takes no shard any more (see Fence), and goes on
// serving until it is started anew.
func Reshard(ctx context.Context, tx sqldb.Tx, shards int, now time.Time) (were int, err error) {
	if shards < 1 {
		return 0, fmt.Errorf("%w: %d cannot be", ErrShardCount, shards)
	}
	// The shards' rows keep masters out, the number whoever follows the registry.
	if _, err := tx.Exec(ctx, `UPDATE shards SET writes = writes`); err != nil {
		return 0, fmt.Errorf("stop masters: %w", err)
	}
	if were, err = Shards(ctx, tx); err != nil || were == shards {
		return were, err
	}
	var epoch int64
	if err := tx.QueryRow(ctx, `SELECT MAX(epoch) FROM shards`).Scan(&epoch); err != nil {
		return 0, fmt.Errorf("read epochs: %w", err)
	}
	// Also the shards that are gone had epochs, and may come back another day.
	epoch = max(epoch+1, sqldb.Micros(now))
	for _, change := range []struct {
		statement string
		args      []any
	}{
		{`DELETE FROM shards WHERE shard >= $1`, []any{shards}},
		{`UPDATE shards SET epoch = $1, holder = ''`, []any{epoch}},
		{`UPDATE shard_counts SET shards = $1 WHERE id = 1`, []any{shards}},
	} {
		if _, err := tx.Exec(ctx, change.statement, change.args...); err != nil {
			return 0, fmt.Errorf("divide shards: %w", err)
		}
	}
	if err := add(ctx, tx, were, shards, epoch); err != nil {
		return 0, err
	}
	for _, rows := range sharded {
		if err := divide(ctx, tx, rows.table, rows.uid, shards); err != nil {
			return 0, fmt.Errorf("divide %s: %w", rows.table, err)
		}
	}
	return were, nil
}

// batch is how many rows one statement moves.
const batch = 1000

// divide writes the shard of every row of a table.
func divide(ctx context.Context, tx sqldb.Tx, table, column string, shards int) error {
	uids, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (uid string, err error) {
		err = row.Scan(&uid)
		return uid, err
	}, `SELECT `+column+` FROM `+table)
	if err != nil {
		return err
	}
	of := make([][]any, shards)
	for _, uid := range uids {
		shard := election.ShardOf(uid, shards)
		of[shard] = append(of[shard], uid)
	}
	for shard, all := range of {
		for some := range slices.Chunk(all, batch) {
			var in strings.Builder
			for i := range some {
				fmt.Fprintf(&in, ", $%d", i+2)
			}
			if _, err := tx.Exec(ctx, `UPDATE `+table+` SET shard = $1 WHERE `+column+` IN (`+in.String()[2:]+`)`,
				append([]any{shard}, some...)...); err != nil {
				return err
			}
		}
	}
	return nil
}
