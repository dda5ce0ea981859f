package rpc

import (
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// The domain's words are the enums', without their prefixes.
const (
	prefixPhase  = "PHASE_"
	prefixAccess = "ACCESS_"
	prefixReason = "REASON_"
	prefixState  = "STATE_"

	prefixMaterial = "MATERIAL_"
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

// materialOf is an access token when nothing is said.
func materialOf(m typev1.Material) lease.Material {
	if m == typev1.Material_MATERIAL_UNSPECIFIED {
		return lease.AccessToken
	}
	return lease.Material(strings.TrimPrefix(m.String(), prefixMaterial))
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
	message := &vaultv1.Credential{
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
		Environment:       d.Environment,
	}
	switch d.Material {
	case lease.AccessToken:
		message.Material = &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: d.Audience, Token: d.Token.Expose()}}
	case lease.ClientSecret:
		message.Material = &vaultv1.Credential_ClientSecret{ClientSecret: &vaultv1.ClientSecret{Secret: d.Secret.Expose()}}
	case lease.FederatedToken:
		message.Material = &vaultv1.Credential_FederatedToken{FederatedToken: &vaultv1.FederatedToken{Token: d.Token.Expose()}}
	}
	return message
}

// fieldCredential is the number of StreamCredentialsResponse.credential.
const fieldCredential = 1

// ownBytes is for what a delivery has alone.
const ownBytes = 80

// encodedDelivery is the stream's message of a delivery that has others alike: what it has alone, and then what it has in common with them.
func encodedDelivery(d delivery.Delivery) (grpcserver.Encoded, error) {
	rest, err := d.Alike.Encoded(func() ([]byte, error) {
		alike := d
		alike.LeaseUID, alike.Generation, alike.GrantExpireTime = "", 0, time.Time{}
		return proto.Marshal(messageOfDelivery(alike))
	})
	if err != nil {
		return nil, err
	}
	own := &vaultv1.Credential{Lease: d.LeaseUID, Generation: d.Generation, GrantExpireTime: timestamp(d.GrantExpireTime)}
	head := protowire.AppendTag(make([]byte, 0, ownBytes), fieldCredential, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(proto.Size(own)+len(rest))) //nolint:gosec // lengths
	head, err = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(head, own)
	return grpcserver.Encoded{head, rest}, err
}

// messageOfVersion is a version of the integration of that resource name. Its secret is not in it.
func messageOfVersion(integration string, v credential.Version) *vaultv1.CredentialVersion {
	message := &vaultv1.CredentialVersion{
		Name:             fmt.Sprint(integration, "/credentialVersions/", v.Number),
		State:            vaultv1.CredentialVersion_State(vaultv1.CredentialVersion_State_value[prefixState+string(v.State)]),
		Reason:           v.Reason,
		KeyId:            v.KeyID,
		EntraDisplayName: v.Name,
		Proofs:           int32(min(v.Proofs, math.MaxInt32)),  //nolint:gosec // fits
		Holders:          int32(min(v.Holders, math.MaxInt32)), //nolint:gosec // fits
		CreateTime:       timestamp(v.IntendTime),
		AddTime:          timestamp(v.AddTime),
		ActivateTime:     timestamp(v.ActivateTime),
		RetireTime:       timestamp(v.RetireTime),
		RemoveTime:       timestamp(v.RemoveTime),
		ExpireTime:       timestamp(v.EndTime),
	}
	if v.Federated() {
		message.SigningKey = signingKeyPrefix + v.SigningKey
	}
	return message
}

// timestamp is absent for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
