package story

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

const (
	// soon is a rotation period for which every credential is overdue; ordinary is the one that integrations have otherwise.
	soon     = 2 * time.Second
	ordinary = 24 * time.Hour
	// heldFor is how long the story watches a secret being held that would have been removed without it.
	heldFor = 4 * time.Second
)

// rotate shows a rotation that a running child does not notice, but for its next token being another one.
func (t *teller) rotate(ctx context.Context) (seen string, err error) {
	i := t.read
	if err := t.settle(ctx, i); err != nil {
		return "", err
	}
	_, token, err := t.grant(ctx, &vaultv1.Grant{Phase: typev1.Phase_PHASE_PLANNING})
	if err != nil {
		return "", err
	}
	c, err := t.exec(ctx, token, nil, "--watch", "GET", t.subscription())
	if err != nil {
		return "", err
	}
	defer func() { _, _ = c.end() }()
	if err := c.await(ctx, "waiting for the child's first token", func(p Progress) bool { return p.Tokens > 0 }); err != nil {
		return "", err
	}
	old, err := t.active(ctx, i)
	if err != nil {
		return "", err
	}
	err = t.renew(ctx, i, old, func(was, is *vaultv1.CredentialVersion) bool {
		return is.GetState() == vaultv1.CredentialVersion_STATE_ACTIVE
	})
	if err != nil {
		return "", err
	}
	if err := c.await(ctx, "waiting for the push to the open stream", func(p Progress) bool { return p.Tokens > 1 }); err != nil {
		return "", err
	}
	t.sayf("   the child has been given another token, unasked")
	err = t.renew(ctx, i, old, func(was, is *vaultv1.CredentialVersion) bool {
		return was.GetState() == vaultv1.CredentialVersion_STATE_REVOKED
	})
	if err != nil {
		return "", err
	}
	left, err := t.gone(ctx, i, old)
	if err != nil {
		return "", err
	}
	last, err := c.end()
	if err != nil {
		return "", err
	}
	t.sayf("   the child made %d calls", last.Calls)
	return fmt.Sprintf("%d calls failed, %d tokens, %d secret left", last.Failed, last.Tokens, left), nil
}

// hold shows that a client secret which a child was given stays until the child has ended.
func (t *teller) hold(ctx context.Context) (seen string, err error) {
	i := t.write
	if _, err := t.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
		Integration: &registryv1.Integration{Name: i.resource(), DeliveryMaterials: []typev1.Material{
			typev1.Material_MATERIAL_ACCESS_TOKEN, typev1.Material_MATERIAL_CLIENT_SECRET,
		}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"delivery_materials"}},
	}); err != nil {
		return "", err
	}
	t.sayf("   %s allows CLIENT_SECRET", i.resource())
	c, old, err := t.holder(ctx, i)
	if err != nil {
		return "", err
	}
	defer func() { _, _ = c.end() }()
	err = t.renew(ctx, i, old, func(was, is *vaultv1.CredentialVersion) bool {
		return was.GetState() == vaultv1.CredentialVersion_STATE_RETIRING && time.Since(was.GetRetireTime().AsTime()) > heldFor
	})
	if err != nil {
		return "", err
	}
	held := "not held"
	if was, err := t.version(ctx, i, old); err != nil {
		return "", err
	} else if was.GetHolders() == 1 && was.GetState() == vaultv1.CredentialVersion_STATE_RETIRING {
		held = "held"
		t.sayf("   version %s was replaced %s ago, and stays: %d lease holds it", number(was), time.Since(was.GetRetireTime().AsTime()).Round(100*time.Millisecond), was.GetHolders())
	}
	last, err := c.end()
	if err != nil {
		return "", err
	}
	t.sayf("   the child has ended after %d calls with the old secret; its lease is closed", last.Calls)
	err = t.renew(ctx, i, old, func(was, is *vaultv1.CredentialVersion) bool {
		return was.GetState() == vaultv1.CredentialVersion_STATE_REVOKED
	})
	if err != nil {
		return "", err
	}
	if _, err := t.gone(ctx, i, old); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d calls failed, %s, then removed", last.Failed, held), nil
}

// holder starts a child that is given the client secret, and says which version it holds.
func (t *teller) holder(ctx context.Context, i *integration, flags ...string) (_ *child, held string, err error) {
	_, token, err := t.grant(ctx, &vaultv1.Grant{Phase: typev1.Phase_PHASE_APPLYING, ExpireTime: inAMinute()})
	if err != nil {
		return nil, "", err
	}
	c, err := t.exec(ctx, token, append([]string{"--material", "client-secret"}, flags...), "--watch", "GET", t.subscription())
	if err != nil {
		return nil, "", err
	}
	err = c.await(ctx, "waiting for the child's first call", func(p Progress) bool { return p.Calls > 0 })
	if err == nil {
		err = t.versions(ctx, i, func(v *vaultv1.CredentialVersion) {
			if v.GetHolders() > 0 {
				held = v.GetName()
			}
		})
	}
	if err == nil && held == "" {
		err = fmt.Errorf("no version of %s is held", i.id)
	}
	if err != nil {
		_, ended := c.end()
		return nil, "", errors.Join(err, ended)
	}
	return c, held, nil
}

// versions visits an integration's versions, the newest first.
func (t *teller) versions(ctx context.Context, i *integration, visit func(*vaultv1.CredentialVersion)) error {
	for page := ""; ; {
		list, err := t.platform.rotation.ListCredentialVersions(ctx, &vaultv1.ListCredentialVersionsRequest{Parent: i.resource(), PageToken: page})
		if err != nil {
			return err
		}
		for _, v := range list.GetCredentialVersions() {
			visit(v)
		}
		if page = list.GetNextPageToken(); page == "" {
			return nil
		}
	}
}

// active names the version that is delivered from.
func (t *teller) active(ctx context.Context, i *integration) (name string, err error) {
	err = until(ctx, look, "waiting for an active version of "+i.id, func(ctx context.Context) (bool, error) {
		err := t.versions(ctx, i, func(v *vaultv1.CredentialVersion) {
			if v.GetState() == vaultv1.CredentialVersion_STATE_ACTIVE {
				name = v.GetName()
			}
		})
		return name != "", err
	})
	return name, err
}

func (t *teller) version(ctx context.Context, i *integration, name string) (found *vaultv1.CredentialVersion, err error) {
	err = t.versions(ctx, i, func(v *vaultv1.CredentialVersion) {
		if v.GetName() == name {
			found = v
		}
	})
	return found, err
}

// settle ends a rotation that an earlier life may have left under way: a version that became active only while the child starts
// would be one more than the child is to see.
func (t *teller) settle(ctx context.Context, i *integration) error {
	if err := t.rotateEvery(ctx, i, ordinary); err != nil {
		return err
	}
	return until(ctx, look, "waiting for an earlier rotation of "+i.id, func(ctx context.Context) (bool, error) {
		settled := true
		err := t.versions(ctx, i, func(v *vaultv1.CredentialVersion) {
			switch v.GetState() {
			case vaultv1.CredentialVersion_STATE_INTENDED, vaultv1.CredentialVersion_STATE_STAGED, vaultv1.CredentialVersion_STATE_PROPAGATING:
				settled = false
			default: // it is in use, or was
			}
		})
		return settled, err
	})
}

func (t *teller) rotateEvery(ctx context.Context, i *integration, period time.Duration) error {
	_, err := t.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
		Integration: &registryv1.Integration{Name: i.resource(), RotationPeriod: durationpb.New(period)},
		UpdateMask:  &fieldmaskpb.FieldMask{Paths: []string{"rotation_period"}},
	})
	return err
}

// renew has the version old replaced, by a rotation period for which it is overdue, and tells what happens until it is
// enough. One that comes to nothing is followed by another.
func (t *teller) renew(ctx context.Context, i *integration, old string, enough func(was, is *vaultv1.CredentialVersion) bool) error {
	period := time.Duration(0)
	return until(ctx, look, "waiting for the rotation of "+i.id, func(ctx context.Context) (bool, error) {
		var was, is *vaultv1.CredentialVersion
		err := t.versions(ctx, i, func(v *vaultv1.CredentialVersion) {
			t.milestones(i, v)
			switch {
			case v.GetName() == old:
				was = v
			case was == nil && is == nil && v.GetState() != vaultv1.CredentialVersion_STATE_ABANDONED:
				is = v // the newest, and newer than the old one
			}
		})
		if err != nil {
			return false, err
		}
		want := ordinary
		if is == nil {
			want = soon
		}
		if want != period {
			period = want
			if err := t.rotateEvery(ctx, i, want); err != nil {
				return false, err
			}
		}
		return was != nil && is != nil && enough(was, is), nil
	})
}

// milestones tells, once each, what has come of a version, and how long ago if the story did not look then.
func (t *teller) milestones(i *integration, v *vaultv1.CredentialVersion) {
	for _, m := range []struct {
		at   *timestamppb.Timestamp
		what string
	}{
		{v.GetCreateTime(), "intended, as " + v.GetEntraDisplayName()},
		{v.GetAddTime(), "added at Entra ID, key " + v.GetKeyId()},
		{v.GetActivateTime(), fmt.Sprintf("active, after %d proofs in a row", v.GetProofs())},
		{v.GetRetireTime(), "retiring"},
		{now(v.GetState() == vaultv1.CredentialVersion_STATE_REVOKING), "revoking"},
		{v.GetRemoveTime(), "removed at Entra ID"},
		{now(v.GetState() == vaultv1.CredentialVersion_STATE_ABANDONED), "abandoned: " + v.GetReason()},
	} {
		line := fmt.Sprintf("%s version %s: %s", i.id, number(v), m.what)
		if m.at == nil || t.told[line] {
			continue
		}
		t.told[line] = true
		if v.GetCreateTime().AsTime().Before(t.start) {
			continue // an earlier life's
		}
		if ago := time.Since(m.at.AsTime()).Round(100 * time.Millisecond); ago > time.Second {
			line += fmt.Sprintf(" (%s ago)", ago)
		}
		t.sayf("   %s", line)
	}
}

// now is the time at which the story sees what has no time of its own; nil for what is not so.
func now(so bool) *timestamppb.Timestamp {
	if !so {
		return nil
	}
	return timestamppb.Now()
}

// number is a version's, the last segment of its name.
func number(v *vaultv1.CredentialVersion) string {
	return v.GetName()[strings.LastIndexByte(v.GetName(), '/')+1:]
}

// gone waits until no replica takes a removed version's secret any more, and nothing but the active one's is left at Entra ID. It
// says how many there are.
func (t *teller) gone(ctx context.Context, i *integration, name string) (left int, err error) {
	removed, err := t.version(ctx, i, name)
	if err != nil {
		return 0, err
	}
	err = until(ctx, look, "waiting for the old secret of "+i.id+" to work nowhere", func(ctx context.Context) (bool, error) {
		works, err := t.customer.works(ctx, i.clientID, removed.GetKeyId())
		if err != nil || works {
			return false, err
		}
		name, err := t.active(ctx, i)
		if err != nil {
			return false, err
		}
		active, err := t.version(ctx, i, name)
		if err != nil {
			return false, err
		}
		events, err := t.customer.journal(ctx, i.clientID)
		live := passwords(events)
		left = len(live)
		return left == 1 && live[active.GetKeyId()], err
	})
	if err == nil {
		t.sayf("   no replica of Entra ID takes the old secret any more; the application has the active one alone")
	}
	return left, err
}
