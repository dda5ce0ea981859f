package year_test

import (
	"context"
	"strings"
	"sync"
	"time"

	"phasekey.dev/services/vault/internal/election"
)

// masterships are what the judge knows of masters (I5): the order in which shards were taken, which is that of the commits, since there is one connection.
type masterships struct {
	mu sync.Mutex
	// takes counts how often each shard was taken; nth says which of those a mastership came of, by holder.
	takes map[int]int
	nth   map[string]int
}

func newMasterships() masterships { return masterships{takes: map[int]int{}, nth: map[string]int{}} }

type (
	takingKey     struct{}
	mastershipKey struct{}
)

// taking is one attempt to take a shard.
type taking struct{ shard, nth int }

// watched is a fence under the eyes of the judge.
type watched struct {
	election.Fence
	judge *judge
}

// Take notes which taking of the shard the mastership came of.
func (f watched) Take(ctx context.Context, shard int, now time.Time) (election.Mastership, error) {
	t := &taking{shard: shard}
	m, err := f.Fence.Take(context.WithValue(ctx, takingKey{}, t), shard, now)
	if err == nil {
		f.judge.masters.mu.Lock()
		defer f.judge.masters.mu.Unlock()
		f.judge.masters.nth[m.Holder] = t.nth
	}
	return m, err
}

// as returns the context of work under a mastership.
func (j *judge) as(ctx context.Context, m election.Mastership) context.Context {
	ctx = election.WithFenced(ctx, func() { j.count("writes of former masters refused") })
	return context.WithValue(ctx, mastershipKey{}, m)
}

// reigns tells whether nobody has taken the shard after a mastership.
func (j *judge) reigns(m election.Mastership) bool {
	j.masters.mu.Lock()
	defer j.masters.mu.Unlock()
	return j.masters.nth[m.Holder] == j.masters.takes[m.Shard]
}

// isMasters reports whether a request is made under a mastership.
func isMasters(ctx context.Context) bool { return ctx.Value(mastershipKey{}) != nil }

// committed judges a transaction that wrote something, at the moment of its commit: no master's may follow another's taking of the shard (I5).
func (j *judge) committed(ctx context.Context, replica string) {
	j.masters.mu.Lock()
	defer j.masters.mu.Unlock()
	if t, ok := ctx.Value(takingKey{}).(*taking); ok {
		j.masters.takes[t.shard]++
		t.nth = j.masters.takes[t.shard]
		return
	}
	m, ok := ctx.Value(mastershipKey{}).(election.Mastership)
	if !ok || anybodys() {
		return
	}
	if n, newest := j.masters.nth[m.Holder], j.masters.takes[m.Shard]; n != newest {
		j.w.fail("I5: %s wrote as master %d of shard %d, which master %d had taken: %s", replica, n, m.Shard, newest, caller())
	}
}

// anybodys reports whether a write is what any replica may do: to note what a tenant said.
func anybodys() bool {
	step := caller()
	return strings.HasPrefix(step, "ClaimProbe") || strings.HasPrefix(step, "RecordProbe")
}
