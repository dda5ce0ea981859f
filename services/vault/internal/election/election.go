// Package election decides which replica of the vault works on which shard of the integrations.
//
// Read this first: at times two replicas both believe that they are master of one shard. A Redis that lost its memory, or failed over, gives a lock out twice; a
// process that was paused wakes up and does not know it. No lock can prevent that, and this package does not try. Its locks give liveness: mostly there is
// exactly one master, soon after any failure there is one again. Safety is the database's: taking a shard puts a new epoch and holder into the shard's row, and
// every transaction of a master begins by writing to that row under its own epoch and holder (package fence). Whoever was replaced finds no such row and gets
// ErrFenced. So of two masters that believe, one is effective: the last that took the shard in the database.
//
// What a master sends elsewhere, past the database, is not fenced. It should be decided by a committed transaction first, and sent only with enough
// mastership Left.
package election

import (
	"context"
	"errors"
	"hash/fnv"
	"math"
	"time"
)

// ErrFenced means another replica took the shard: the mastership is over, whatever the lock says. Serve returns it (wrapped or not) to say so.
var ErrFenced = errors.New("fenced: the shard has another master")

// ErrLost is the cause with which the context of a mastership ends that was not renewed in time or was taken away.
var ErrLost = errors.New("mastership lost")

// ErrResigned is the cause with which the context of a mastership ends that its elector gives up: it is stopping, or leaves the shard to another replica.
var ErrResigned = errors.New("mastership resigned")

// Mastership is the right to work on a shard, as the database knows it.
type Mastership struct {
	Shard int
	// Epoch grows with every mastership of the shard, also across a restored database.
	Epoch int64
	// Holder is unique to this mastership. A database that failed over may give one epoch out twice; no holder comes twice.
	Holder string
}

// Fence takes shards in the database.
type Fence interface {
	// Take makes the caller the shard's master and fences whoever was. It waits for open transactions of the former master. After an error the
	// shard may have been taken nevertheless; taking it again is right. Safe for concurrent use.
	Take(ctx context.Context, shard int, now time.Time) (Mastership, error)
	// Ready tells whether the caller could take a shard and work on it now: the database answers, is divided as the caller believes, and its clock is not far
	// from the caller's, which says now. It takes nothing. Safe for concurrent use.
	Ready(ctx context.Context, now time.Time) error
}

// Serve works on one shard until ctx ends, which it does with the mastership; context.Cause tells why (ErrLost, ErrResigned). It must then return soon: the shard is
// passed on only when it has. Returning earlier gives the shard up for a while: with ErrFenced, longer. It is called concurrently for different
// shards, never for one shard before the last call for it has returned.
type Serve func(ctx context.Context, m Mastership) error

// Elector makes this replica master of shards.
type Elector interface {
	// Run competes for shards, calls serve for each that is taken, and gives up what it holds when ctx ends, once every serve has returned. Failures of
	// the lock service or the database only delay it: it returns nil after ctx ended, and an error only for what waiting does not mend. To be called once.
	Run(ctx context.Context, serve Serve) error
}

// ShardOf is the shard of an integration among shards. It must never change: the database is divided by it.
func ShardOf(uid string, shards int) int {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(uid))            // never fails
	return int(hash.Sum32() % uint32(shards)) //nolint:gosec // the number of shards is small and positive
}

type fencedKey struct{}

// WithFenced returns a context whose Fenced calls note. For what counts them.
func WithFenced(ctx context.Context, note func()) context.Context {
	return context.WithValue(ctx, fencedKey{}, note)
}

// Fenced notes that a write under the mastership of ctx was refused. For the fence.
func Fenced(ctx context.Context) {
	if note, ok := ctx.Value(fencedKey{}).(func()); ok {
		note()
	}
}

type leftKey struct{}

// WithLeft returns a context that answers Left by left. For electors.
func WithLeft(ctx context.Context, left func() time.Duration) context.Context {
	return context.WithValue(ctx, leftKey{}, left)
}

// Left is how much of its mastership the context given to Serve has for certain, were it not renewed again: by the monotonic and by the wall clock, whichever leaves less. It is zero or
// less once it is over. A call that cannot be fenced must not begin with less left than it may take. A mastership that does not expire has all the time in the world.
func Left(ctx context.Context) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	left, ok := ctx.Value(leftKey{}).(func() time.Duration)
	if !ok {
		return math.MaxInt64
	}
	return left()
}
