// Package upstream asks the registry and the vault, over gRPC, and answers in the broker's own words.
//
// It guarantees that an integration is said not to exist only when the registry itself said so, with its reason: a
// proxy's NOT_FOUND, or a server that does not know the method, is no answer. The vault's NOT_FOUND is none either, for
// the vault learns of integrations later than the registry; who asked will ask again.
package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/broker/internal/consent"
)

// publicCloud is what an integration that names no cloud lives in.
const publicCloud = "public"

// Registry asks the registry.
type Registry struct {
	client registryv1.IntegrationServiceClient
}

// NewRegistry asks over a connection, which the caller closes.
func NewRegistry(conn grpc.ClientConnInterface) *Registry {
	return &Registry{client: registryv1.NewIntegrationServiceClient(conn)}
}

// Integration returns an integration; consent.ErrIntegrationNotFound if there is none, consent.ErrUnavailable if the
// registry does not answer.
func (r *Registry) Integration(ctx context.Context, name string) (consent.Integration, error) {
	found, err := r.client.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
	if status.Code(err) == codes.NotFound && rpcerr.Reason(err) == rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_RESOURCE_NOT_FOUND) {
		return consent.Integration{}, consent.ErrIntegrationNotFound
	}
	if err != nil {
		return consent.Integration{}, failed(ctx, err, "read integration "+name)
	}
	out := consent.Integration{
		Name:            found.GetName(),
		UID:             found.GetUid(),
		TenantID:        found.GetTenantId(),
		Cloud:           found.GetCloud(),
		DisplayName:     found.GetDisplayName(),
		SubscriptionID:  found.GetDefaultSubscriptionId(),
		ClientID:        found.GetClientId(),
		ApplicationName: found.GetApplicationDisplayName(),
		Deleting:        found.GetState() == registryv1.Integration_STATE_DELETING || found.GetDeleteTime() != nil,
	}
	if out.Cloud == "" {
		out.Cloud = publicCloud
	}
	for _, c := range found.GetConditions() {
		switch c.GetType() { //nolint:exhaustive // the others are of no matter here
		case registryv1.Condition_TYPE_APPLICATION_READY:
			out.Ready = c.GetStatus() == registryv1.Condition_STATUS_TRUE
		case registryv1.Condition_TYPE_CONSENTED:
			out.Standing = standing(c, found.GetServicePrincipalObjectId())
		}
	}
	return out, nil
}

// notYet is the reason of the condition CONSENTED before anybody has consented.
const notYet = "AwaitingConsent"

func standing(c *registryv1.Condition, principal string) consent.Standing {
	if c.GetLastTransitionTime() == nil {
		return consent.Standing{}
	}
	at := c.GetLastTransitionTime().AsTime()
	switch {
	case c.GetStatus() == registryv1.Condition_STATUS_TRUE && principal != "":
		return consent.Standing{Time: at, Holds: true, PrincipalObjectID: principal}
	case c.GetStatus() == registryv1.Condition_STATUS_FALSE && c.GetReason() == notYet:
		return consent.Standing{Time: at}
	case c.GetStatus() == registryv1.Condition_STATUS_FALSE:
		return consent.Standing{Time: at, Loss: cmp.Or(c.GetReason(), "ConsentLost")}
	default:
		return consent.Standing{} // not known now: as it was
	}
}

// Vault asks the vault.
type Vault struct{ client vaultv1.AccessServiceClient }

// NewVault asks over a connection, which the caller closes.
func NewVault(conn grpc.ClientConnInterface) *Vault {
	return &Vault{client: vaultv1.NewAccessServiceClient(conn)}
}

// ProbeConsent has the vault ask an integration's tenant for a token, and returns what the tenant said. Any error means
// that there is no answer.
func (v *Vault) ProbeConsent(ctx context.Context, integration string) (consent.Proof, error) {
	answer, err := v.client.ProbeConsent(ctx, &vaultv1.ProbeConsentRequest{Integration: integration})
	if err != nil {
		return consent.Proof{}, failed(ctx, why(err), "probe consent of "+integration)
	}
	if !answer.GetConsented() {
		return consent.Proof{Refusal: fmt.Sprintf("AADSTS%d", answer.GetAadstsCode()), Time: answer.GetProbeTime().AsTime(), Age: answer.GetAge().AsDuration()}, nil
	}
	if answer.GetServicePrincipalObjectId() == "" {
		return consent.Proof{}, fmt.Errorf("probe consent of %s: %w", integration, ErrNoPrincipal)
	}
	return consent.Proof{
		Consented: true, PrincipalObjectID: answer.GetServicePrincipalObjectId(), Time: answer.GetProbeTime().AsTime(), Age: answer.GetAge().AsDuration(),
	}, nil
}

// CheckPermissions has the vault look which roles an integration's principal has in its default subscription; it returns that
// principal too. consent.ErrNotReady means that it cannot look yet; any other error, that there is no answer.
func (v *Vault) CheckPermissions(ctx context.Context, integration string) (principal string, p consent.Permissions, err error) {
	answer, err := v.client.CheckPermissions(ctx, &vaultv1.CheckPermissionsRequest{Integration: integration})
	if err != nil {
		return "", p, failed(ctx, why(err), "check permissions of "+integration)
	}
	if len(answer.GetScopes()) != 1 {
		return "", p, fmt.Errorf("check permissions of %s: %w: %d scopes", integration, consent.ErrUnavailable, len(answer.GetScopes()))
	}
	seen := answer.GetScopes()[0]
	return answer.GetServicePrincipalObjectId(), consent.Permissions{Read: level(seen.GetRead()), Write: level(seen.GetWrite()), Denied: seen.GetDenied()}, nil
}

func level(l vaultv1.ScopePermissions_Level) consent.Level {
	switch l {
	case vaultv1.ScopePermissions_LEVEL_NONE:
		return consent.None
	case vaultv1.ScopePermissions_LEVEL_PARTIAL:
		return consent.Partial
	case vaultv1.ScopePermissions_LEVEL_FULL:
		return consent.Full
	default:
		return ""
	}
}

// why adds to the vault's error, in our words, which of those behind it has no answer.
func why(err error) error {
	if status.Code(err) != codes.Unavailable {
		return err
	}
	switch rpcerr.Reason(err) {
	case rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY):
		return fmt.Errorf("%w: %w", consent.ErrNotReady, err)
	case rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_ENTRA_UNAVAILABLE):
		return fmt.Errorf("%w: %w", consent.ErrEntra, err)
	default:
		return err
	}
}

// ErrNoPrincipal means that the vault calls an integration consented and does not say for which principal.
var ErrNoPrincipal = errors.New("consented without a service principal's object ID")

// failed keeps the callers of this service from mistaking another server's status for ours: what was not answered is
// unavailable, but for a caller that went away itself.
func failed(ctx context.Context, err error, doing string) error {
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%s: %w", doing, cause)
	}
	return fmt.Errorf("%s: %w: %w", doing, consent.ErrUnavailable, err)
}

// Connected waits until a connection is ready, and fails when it is not by the end of ctx or cannot be made now.
func Connected(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return fmt.Errorf("%s: %w: connection is %s", conn.Target(), consent.ErrUnavailable, state)
		case connectivity.Idle:
			conn.Connect()
		case connectivity.Connecting:
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("%s: %w: connection is %s", conn.Target(), consent.ErrUnavailable, state)
		}
	}
}
