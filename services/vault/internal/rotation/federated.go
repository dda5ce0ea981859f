package rotation

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
)

// trusts are the federated credentials that a federated integration's application shall have; none where the vault is no issuer.
func (w *Worker) trusts(uid string) []directory.Trust {
	if w.config.Signer == nil {
		return nil
	}
	return directory.Trusts(w.config.DeploymentID, w.config.Signer.Issuer(), uid)
}

// followKeys makes the shard's federated integrations due when other signing keys sign than before: a new one has versions begun under it, and
// those under one that is gone are over.
func (s *shift) followKeys(ctx context.Context, now time.Time) error {
	if s.w.config.Signer == nil {
		return nil
	}
	trust, err := s.w.config.Store.Trust(ctx)
	if err != nil || slices.Equal(trust.Usable, s.signingKeys) {
		return err
	}
	if err := s.w.config.Store.TouchFederated(ctx, s.m, now); err != nil {
		return err
	}
	s.signingKeys = trust.Usable
	return nil
}

func (t *turn) ensureTrust(ctx context.Context) error {
	if err := t.apply(ctx, t.facts.Trusting(time.Now())); err != nil {
		return err
	}
	left := 0
	return t.request(ctx, credential.EnsureTrust{}, func(ctx context.Context) (err error) {
		left, err = t.cloud.EnsureTrust(ctx, t.facts.Application.ObjectID, t.w.trusts(t.uid))
		return err
	}, func(now time.Time) credential.Change { return t.facts.Trusted(now, left) }, t.failed)
}

func (t *turn) untrust(ctx context.Context) error {
	var names []string
	for _, trust := range directory.Trusts(t.w.config.DeploymentID, "", t.uid) {
		names = append(names, trust.Name)
	}
	left := 0
	return t.request(ctx, credential.Untrust{}, func(ctx context.Context) (err error) {
		left, err = t.cloud.RemoveTrust(ctx, t.facts.Application.ObjectID, names)
		return err
	}, func(now time.Time) credential.Change { return t.facts.Untrusted(now, left) }, t.failed)
}

func (t *turn) begin(ctx context.Context) error {
	return t.apply(ctx, t.facts.Begun(time.Now(), uuid.NewString()))
}
