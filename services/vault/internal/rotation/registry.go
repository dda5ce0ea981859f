package rotation

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
)

// StatusClient is the part of the registry's client that reports need.
type StatusClient interface {
	ReportConditions(ctx context.Context, in *registryv1.ReportConditionsRequest, opts ...grpc.CallOption) (*registryv1.ReportConditionsResponse, error)
}

// Registry reports to the registry's StatusService.
type Registry struct {
	client StatusClient
}

// NewRegistry makes a Registry.
func NewRegistry(client StatusClient) *Registry { return &Registry{client: client} }

// Report tells the registry, as the given master. Idempotent. election.ErrFenced means that the registry has heard from a later
// master, ErrUnknownIntegration that there is nothing to report on; anything else is worth repeating.
func (r *Registry) Report(ctx context.Context, m election.Mastership, report Report) error {
	request := &registryv1.ReportConditionsRequest{
		IntegrationUid:           report.IntegrationUID,
		Mastership:               &registryv1.Mastership{Shard: int32(m.Shard), Epoch: m.Epoch, Holder: m.Holder}, //nolint:gosec // shards are few
		ApplicationDisplayName:   report.ApplicationDisplayName,
		ClientId:                 report.ClientID,
		ServicePrincipalObjectId: report.PrincipalObjectID,
		ApplicationRemoved:       report.Removed,
	}
	for _, c := range report.Conditions {
		request.Conditions = append(request.Conditions, conditionToProto(c))
	}
	_, err := r.client.ReportConditions(ctx, request)
	if err == nil {
		return nil
	}
	switch rpcerr.Reason(err) {
	case reason(errorv1.ErrorReason_ERROR_REASON_REPORT_FENCED):
		err = errors.Join(election.ErrFenced, err)
	case reason(errorv1.ErrorReason_ERROR_REASON_RESOURCE_NOT_FOUND):
		err = errors.Join(ErrUnknownIntegration, err)
	}
	return fmt.Errorf("report integration %s: %w", report.IntegrationUID, err)
}

func conditionToProto(c credential.Condition) *registryv1.Condition {
	out := &registryv1.Condition{Status: registryv1.Condition_STATUS_FALSE, Reason: c.Reason, Message: c.Message}
	if c.True {
		out.Status = registryv1.Condition_STATUS_TRUE
	}
	switch c.Type {
	case credential.ApplicationReady:
		out.Type = registryv1.Condition_TYPE_APPLICATION_READY
	case credential.Consented:
		out.Type = registryv1.Condition_TYPE_CONSENTED
	case credential.CredentialReady:
		out.Type = registryv1.Condition_TYPE_CREDENTIAL_READY
	case credential.PermissionsVerified:
		out.Type = registryv1.Condition_TYPE_PERMISSIONS_VERIFIED
	}
	return out
}

// reason is an error reason as it stands on the wire.
func reason(r errorv1.ErrorReason) string { return r.String()[len("ERROR_REASON_"):] }
