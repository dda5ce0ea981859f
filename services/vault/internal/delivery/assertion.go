package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/store"
)

// versionsFor are the versions of which a material can be made, the ACTIVE one first.
func versionsFor(e *store.Entitlement, m lease.Material) []store.Live {
	if m == lease.AccessToken {
		return e.Versions
	}
	return slices.DeleteFunc(slices.Clone(e.Versions), func(v store.Live) bool { return v.Federated() != (m == lease.FederatedToken) })
}

// assert signs an assertion for the grant's access, which names the lease: the one that there is, or the one that its delivery will open. It is renewed with
// half of its life left, for whoever has it may begin anything with it until the next comes.
func (h *Hub) assert(ctx context.Context, e *store.Entitlement) (made, error) {
	versions := versionsFor(e, lease.FederatedToken)
	if len(versions) == 0 || h.config.Signer == nil {
		return made{}, issuer.ErrNotReady
	}
	leaseUID := e.Lease.UID
	if leaseUID == "" {
		leaseUID = uuid.NewString()
	}
	v, g := versions[0], e.Grant
	got, err := h.config.Signer.Assert(ctx, v.SigningKey, signer.Claims{
		Subject: directory.Subject(g.IntegrationUID, g.Access() == grant.Write),
		Run:     g.Run, Phase: string(g.Phase), Project: g.Project, Lease: leaseUID,
	})
	if errors.Is(err, signer.ErrKeyGone) {
		return made{}, fmt.Errorf("%w: %w", issuer.ErrNotReady, err)
	}
	if err != nil {
		return made{}, err
	}
	half := got.ExpireTime.Sub(got.IssueTime) / 2
	return made{
		versionID: v.ID, versionNumber: v.Number, clientID: v.ClientID, requestID: got.ID, leaseUID: leaseUID, token: got.Text,
		issueTime: got.IssueTime, renewTime: got.IssueTime.Add(half - spread(half/10)), expireTime: got.ExpireTime,
	}, nil
}
