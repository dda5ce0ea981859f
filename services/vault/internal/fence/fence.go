// Package fence is what makes a former master harmless: the row of each shard in the database.
//
// It guarantees: after Take has committed, no transaction that began with Guard under an earlier mastership commits any more, and none is open.
//
// Why it is a row that is written, first: PostgreSQL's statements judge other rows by the moment they began. A statement with WHERE EXISTS (SELECT … the epoch
// is mine) that then waits for a row lock, or that is part of a transaction still open at the take-over, lands after it. Writing the shard's row takes its lock: a take-over
// waits for the transaction, or the transaction for the take-over, after which it finds the row is not its own. For the same reason masters' transactions are short
// and make no network calls: a take-over waits for them.
package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/election"
)

// ErrShardCount means the database is divided into another number of shards than was asked for.
var ErrShardCount = errors.New("database has another number of shards")

// ErrNoShard means the database has no such shard; Configure has not run, or the number is wrong.
var ErrNoShard = errors.New("no such shard")

// ErrClock means that this replica's clock and the database server's are too far apart.
var ErrClock = errors.New("clocks differ")

// maxSkew is how far they may be apart: two replicas then differ by no more than the least margin between the end of a grant and that of the secret that it
// holds, five minutes.
const maxSkew = 150 * time.Second

// Configure divides an undivided database into shards, and makes sure that a divided one has this number: else ErrShardCount, and the replica must not start.
func Configure(ctx context.Context, tx sqldb.Tx, shards int) error {
	if shards < 1 {
		return fmt.Errorf("%w: %d cannot be", ErrShardCount, shards)
	}
	first, err := tx.Exec(ctx, `INSERT INTO shard_counts (id, shards) VALUES (1, $1) ON CONFLICT (id) DO NOTHING`, shards)
	if err != nil {
		return fmt.Errorf("write number of shards: %w", err)
	}
	if first == 0 {
		var have int
		if err := tx.QueryRow(ctx, `SELECT shards FROM shard_counts WHERE id = 1`).Scan(&have); err != nil {
			return fmt.Errorf("read number of shards: %w", err)
		}
		return compare(have, shards)
	}
	return add(ctx, tx, 0, shards, 0)
}

// compare returns ErrShardCount unless the database has as many shards as the configuration says.
func compare(have, want int) error {
	if have != want {
		return fmt.Errorf("%w: it has %d, the configuration says %d", ErrShardCount, have, want)
	}
	return nil
}

// add makes the rows of the shards from the first up to, and without, the end.
func add(ctx context.Context, tx sqldb.Tx, first, end int, epoch int64) error {
	for shard := first; shard < end; shard++ {
		if _, err := tx.Exec(ctx, `INSERT INTO shards (shard, epoch, holder, writes) VALUES ($1, $2, '', 0)`, shard, epoch); err != nil {
			return fmt.Errorf("add shard %d: %w", shard, err)
		}
	}
	return nil
}

// Fence is the fence of one database, as one replica sees it: an election.Fence.
type Fence struct {
	db     *sqldb.DB
	shards int
}

// New makes the fence of a database for a replica that believes that it has so many shards.
func New(db *sqldb.DB, shards int) *Fence { return &Fence{db: db, shards: shards} }

// Take makes the caller the shard's master. See election.Fence. ErrShardCount means that the database was divided anew since the replica started, which goes on
// serving, but must not work on shards until it is started with the right configuration.
func (f *Fence) Take(ctx context.Context, shard int, now time.Time) (m election.Mastership, err error) {
	err = f.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		// First the shard's row, which dividing anew writes too: then the number stands until this commits.
		if m, err = Take(ctx, tx, shard, now); err != nil {
			return err
		}
		return f.divided(ctx, tx)
	})
	if err != nil {
		return election.Mastership{}, err
	}
	return m, nil
}

// Ready tells whether the database answers, has the number of shards that the replica believes, and about the time that it believes. See election.Fence.
func (f *Fence) Ready(ctx context.Context, now time.Time) error {
	if _, err := f.Ahead(ctx, now); err != nil {
		return err
	}
	return f.db.ReadTx(ctx, f.divided)
}

// Ahead is how far this replica's clock, which says now, is ahead of the database server's. It is told together with ErrClock when that is too much.
func (f *Fence) Ahead(ctx context.Context, now time.Time) (time.Duration, error) {
	theirs, err := f.db.Now(ctx, now)
	if err != nil {
		return 0, err
	}
	ahead := now.Sub(theirs)
	if ahead.Abs() > maxSkew {
		return ahead, fmt.Errorf("%w: this replica's is %s ahead of the database server's, and may be %s off; set the wrong one right", ErrClock, ahead.Round(time.Second), maxSkew)
	}
	return ahead, nil
}

func (f *Fence) divided(ctx context.Context, tx sqldb.Tx) error {
	var have int
	if err := tx.QueryRow(ctx, `SELECT shards FROM shard_counts WHERE id = 1`).Scan(&have); err != nil {
		return fmt.Errorf("read number of shards: %w", err)
	}
	return compare(have, f.shards)
}

// Take makes the caller the shard's master as of the commit of tx. It waits for the transactions of former masters. The epoch is one more than the last,
// or the clock's microseconds if that is more: a database restored from a backup then still gives epochs that others have not seen.
func Take(ctx context.Context, tx sqldb.Tx, shard int, now time.Time) (election.Mastership, error) {
	m := election.Mastership{Shard: shard, Holder: uuid.NewString()}
	err := tx.QueryRow(ctx, `UPDATE shards SET epoch = CASE WHEN epoch >= $2 THEN epoch + 1 ELSE $2 END, holder = $3
		WHERE shard = $1 RETURNING epoch`, shard, sqldb.Micros(now), m.Holder).Scan(&m.Epoch)
	if errors.Is(err, sqldb.ErrNoRows) {
		return election.Mastership{}, fmt.Errorf("take shard %d: %w", shard, ErrNoShard)
	}
	if err != nil {
		return election.Mastership{}, fmt.Errorf("take shard %d: %w", shard, err)
	}
	return m, nil
}

// Guard must be the first statement of every transaction that a master makes as such. It returns election.ErrFenced if another has taken the shard; if it
// returns nil nobody takes it before tx ends.
func Guard(ctx context.Context, tx sqldb.Tx, m election.Mastership) error {
	if m.Holder == "" {
		// The zero Mastership is what the row of a shard says that nobody ever took.
		return fmt.Errorf("guard shard %d without a mastership: %w", m.Shard, election.ErrFenced)
	}
	kept, err := tx.Exec(ctx, `UPDATE shards SET writes = writes + 1 WHERE shard = $1 AND epoch = $2 AND holder = $3`, m.Shard, m.Epoch, m.Holder)
	if err != nil {
		return fmt.Errorf("guard shard %d: %w", m.Shard, err)
	}
	if kept == 0 {
		election.Fenced(ctx)
		return fmt.Errorf("guard shard %d: %w", m.Shard, election.ErrFenced)
	}
	return nil
}
