package rpc

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
)

// The domain's words are the enums', without their prefixes.
const (
	prefixPhase  = "PHASE_"
	prefixAccess = "ACCESS_"
	prefixReason = "REASON_"
)

func phaseOf(p typev1.Phase) grant.Phase {
	return grant.Phase(strings.TrimPrefix(p.String(), prefixPhase))
}

func messageOfPhase(p grant.Phase) typev1.Phase {
	return typev1.Phase(typev1.Phase_value[prefixPhase+string(p)])
}

func accessOf(a typev1.Access) grant.Access {
	return grant.Access(strings.TrimPrefix(a.String(), prefixAccess))
}

func messageOfAccess(a grant.Access) typev1.Access {
	return typev1.Access(typev1.Access_value[prefixAccess+string(a)])
}

// messageOfGrant is a grant with its token: the only answer that has it.
func messageOfGrant(now time.Time, g grant.Grant, token secret.Text) *vaultv1.Grant {
	message := messageOfGrantWithoutToken(now, g)
	message.Token = token.Expose()
	return message
}

func messageOfGrantWithoutToken(now time.Time, g grant.Grant) *vaultv1.Grant {
	return &vaultv1.Grant{
		Name:              g.Name(),
		Project:           g.Project,
		Phase:             messageOfPhase(g.Phase),
		Run:               g.Run,
		ExpireTime:        timestamp(g.ExpireTime),
		CertificateSha256: g.CertificateSHA256,
		Access:            messageOfAccess(g.Access()),
		Integration:       g.Integration,
		SubscriptionId:    g.SubscriptionID,
		State:             messageOfState(g.State(now)),
		CreateTime:        timestamp(g.CreateTime),
		RevokeTime:        timestamp(g.RevokeTime),
	}
}

func messageOfState(s grant.State) vaultv1.Grant_State {
	switch s {
	case grant.Active:
		return vaultv1.Grant_STATE_ACTIVE
	case grant.Expired:
		return vaultv1.Grant_STATE_EXPIRED
	case grant.Revoked:
		return vaultv1.Grant_STATE_REVOKED
	}
	return vaultv1.Grant_STATE_UNSPECIFIED
}

func messageOfDelivery(d delivery.Delivery) *vaultv1.Credential {
	return &vaultv1.Credential{
		Lease:             d.LeaseUID,
		Generation:        d.Generation,
		CredentialVersion: d.Version,
		Phase:             messageOfPhase(d.Phase),
		Access:            messageOfAccess(d.Access),
		Reason:            vaultv1.Credential_Reason(vaultv1.Credential_Reason_value[prefixReason+string(d.Reason)]),
		IssueTime:         timestamp(d.IssueTime),
		RefreshTime:       timestamp(d.RefreshTime),
		ExpireTime:        timestamp(d.ExpireTime),
		GrantExpireTime:   timestamp(d.GrantExpireTime),
		Cloud:             d.Cloud,
		TenantId:          d.TenantID,
		ClientId:          d.ClientID,
		SubscriptionId:    d.SubscriptionID,
		Material:          &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: d.Audience, Token: d.Token.Expose()}},
		Environment:       d.Environment,
	}
}

// timestamp is absent for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
