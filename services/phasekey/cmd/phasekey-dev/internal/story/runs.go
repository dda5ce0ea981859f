package story

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

func (t *teller) subscription() string { return "/subscriptions/" + t.config.World.Subscription }

// group is a resource group that no other story has made, and no earlier life of this one.
func (t *teller) group() string {
	return fmt.Sprintf("%s/resourcegroups/network-%s-%d", t.subscription(), t.memory.ID[:8], t.memory.Lives)
}

func (t *teller) plan(ctx context.Context) (string, error) {
	get, err := t.once(ctx, typev1.Phase_PHASE_PLANNING, "GET", t.subscription(), 200)
	if err != nil {
		return "", err
	}
	put, err := t.once(ctx, typev1.Phase_PHASE_PLANNING, "PUT", t.group(), 403)
	return get + ", " + put, err
}

func (t *teller) apply(ctx context.Context) (string, error) {
	return t.once(ctx, typev1.Phase_PHASE_APPLYING, "PUT", t.group(), 201)
}

// once makes a grant and has `phasekey exec` run one call to Resource Manager under it. New role assignments replicate too, so
// the call is repeated for a while until it gives the status that is wanted.
func (t *teller) once(ctx context.Context, phase typev1.Phase, method, path string, want int) (string, error) {
	_, token, err := t.grant(ctx, &vaultv1.Grant{Phase: phase})
	if err != nil {
		return "", err
	}
	c, err := t.exec(ctx, token, nil, "--want", strconv.Itoa(want), method, path)
	if err != nil {
		return "", err
	}
	seen, err := c.end()
	if err != nil {
		return "", err
	}
	t.sayf("   %s: a child of phasekey exec calls %s %s: %d, at try %d", phase, method, path, seen.Status, seen.Calls)
	return fmt.Sprintf("%s %d", method, seen.Status), nil
}

// revoke has the platform revoke a grant while a child lives on it.
func (t *teller) revoke(ctx context.Context) (seen string, err error) {
	grant, token, err := t.grant(ctx, &vaultv1.Grant{Phase: typev1.Phase_PHASE_PLANNING})
	if err != nil {
		return "", err
	}
	c, err := t.exec(ctx, token, nil, "--watch", "GET", t.subscription())
	if err != nil {
		return "", err
	}
	defer func() {
		if _, ended := c.end(); err == nil && ended != nil {
			seen, err = "", ended
		}
	}()
	if err := c.await(ctx, "waiting for the child's first calls", func(p Progress) bool { return p.Calls > 0 }); err != nil {
		return "", err
	}
	revoked := time.Now()
	if _, err := t.platform.grants.RevokeGrant(ctx, &vaultv1.RevokeGrantRequest{Name: grant.GetName()}); err != nil {
		return "", err
	}
	t.sayf("   the platform revokes %s", grant.GetName())
	if err := c.await(ctx, "waiting for the runner to stop serving", func(p Progress) bool { return p.Refused != "" }); err != nil {
		return "", err
	}
	last := c.progress()
	t.sayf("   %d ms later the child gets no token any more: %s", time.Since(revoked).Milliseconds(), last.Refused)
	reason := "another refusal"
	if strings.Contains(last.Refused, "GRANT_REVOKED") {
		reason = "GRANT_REVOKED"
	}
	if last.Failed > 0 {
		return "", fmt.Errorf("%d of %d calls failed before the grant was revoked", last.Failed, last.Calls)
	}
	return "served, then " + reason, nil
}

// inAMinute is a grant's end that the client secrets of the short periods outlive.
func inAMinute() *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(time.Minute)) }
