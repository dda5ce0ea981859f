package election_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/services/vault/internal/election"
)

// The database is divided by this function: were it to change, two masters would work on one integration.
func TestShardOf_NeverChanges(t *testing.T) {
	for uid, want := range map[string]int{"": 5, "a": 4, "0b9e6e0e-1c8c-4d3c-9d5a-1f7a3f1f0001": 5} {
		if got := election.ShardOf(uid, 8); got != want {
			t.Errorf("%q is in shard %d, was in %d", uid, got, want)
		}
	}
}

func TestShardOf_Spreads(t *testing.T) {
	const shards, each = 7, 2000
	var counts [shards]int
	for range shards * each {
		counts[election.ShardOf(uuid.NewString(), shards)]++
	}
	for shard, n := range counts {
		if n < each*8/10 || n > each*12/10 {
			t.Errorf("shard %d has %d of about %d", shard, n, each)
		}
	}
}

func TestLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	limited := election.WithLeft(ctx, func() time.Duration { return time.Minute })
	if got := election.Left(limited); got != time.Minute {
		t.Errorf("limited: %v", got)
	}
	if got := election.Left(ctx); got != math.MaxInt64 {
		t.Errorf("without limit: %v", got)
	}
	cancel()
	if got := election.Left(limited) + election.Left(ctx); got != 0 {
		t.Errorf("ended: %v", got)
	}
}
