package year_test

import (
	"context"
	"strings"

	"phasekey.dev/services/vault/internal/election"
)

type mastershipKey struct{}

// as returns the context of work under a mastership.
func (w *world) as(ctx context.Context, m election.Mastership) context.Context {
	ctx = election.WithFenced(ctx, func() { w.count("writes of former masters refused") })
	return context.WithValue(ctx, mastershipKey{}, m)
}

// mastership is that under which something is done, false when it is done under none.
func mastership(ctx context.Context) (election.Mastership, bool) {
	m, ok := ctx.Value(mastershipKey{}).(election.Mastership)
	return m, ok
}

// committed tells of a master's transaction, at the moment of its commit: since there is one connection, nobody else's comes between.
func (l *life) committed(ctx context.Context) {
	if m, ok := mastership(ctx); ok && !anybodys() {
		l.r.w.journal.tell(wrote{Replica: l.r.name, Step: caller(), Shard: int64(m.Shard), Holder: m.Holder})
	}
}

// anybodys reports whether a write is what any replica may do: to note what a tenant said.
func anybodys() bool {
	step := caller()
	return strings.HasPrefix(step, "ClaimProbe") || strings.HasPrefix(step, "RecordProbe")
}

func (e taken) happen(j *judge) { j.masters[e.Shard] = e.Holder }

// happen judges a master's write: it may not follow another's taking of the shard (I5).
func (e wrote) happen(j *judge) {
	if newest := j.masters[e.Shard]; e.Holder != newest {
		j.fail("I5: %s wrote as master %s of shard %d, which master %s had taken: %s", e.Replica, e.Holder, e.Shard, newest, e.Step)
	}
}
