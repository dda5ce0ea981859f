package rotation

import (
	"context"
	"errors"
	"time"

	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
)

// permit takes what an action needs of the budget of its cloud's Graph, before anything is committed for it. It returns when to
// ask again if there is none: the turn ends then, so that it keeps no place from those who need none.
func (t *turn) permit(ctx context.Context, action credential.Action) time.Time {
	kind := budget.Write
	switch action.(type) {
	case credential.Ensure, credential.EnsureTrust, credential.Untrust, credential.Add, credential.Remove, credential.Sweep, credential.Delete, credential.Purge:
	case credential.Read:
		kind = budget.Read
	default:
		return time.Time{}
	}
	class := budget.Upkeep
	_, adds := action.(credential.Add)
	if t.facts.Application.ActivateTime.IsZero() || t.facts.Wanted.Deleting || adds && t.facts.Batched() {
		class = budget.Change
	}
	at := t.w.config.Budget.Take(ctx, t.cloud.HomeTenantID(), kind, class, t.uid)
	t.held = t.held || kind == budget.Write && !at.IsZero()
	return at
}

// graph is call for a request to Graph. When that asks to come back later, it asks everybody: its limits are the
// application's that makes all others. What the token service says about an integration's own application is not heard
// here.
func (t *turn) graph(ctx context.Context, op string, request func(ctx context.Context) error) (refused, err error) {
	refused, err = t.call(ctx, op, request)
	e := refusal(refused)
	throttled := e.Class == directory.Throttled || e.RetryAfter > 0 && (e.Class == directory.Transient || e.Class == directory.OutcomeUnknown)
	if throttled {
		t.w.config.Budget.Throttled(ctx, t.cloud.HomeTenantID(), e.RetryAfter)
	}
	if op == (credential.Read{}).Op() {
		return refused, err
	}
	t.held = throttled || errors.Is(err, errMastershipShort)
	if err == nil && !throttled {
		// Done or refused: it had its turn, and what comes next is due from now on.
		t.due, t.facts.DueTime = time.Now(), time.Time{}
	}
	return refused, err
}
