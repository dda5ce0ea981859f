package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/services/registry/internal/integration"
)

// statusService implements registryv1.StatusServiceServer.
type statusService struct {
	registryv1.UnsafeStatusServiceServer
	store store
}

func (s statusService) ReportConditions(ctx context.Context, req *registryv1.ReportConditionsRequest) (*registryv1.ReportConditionsResponse, error) {
	report := integration.Report{
		ApplicationDisplayName: req.GetApplicationDisplayName(), ClientID: req.GetClientId(),
		ServicePrincipalObjectID: req.GetServicePrincipalObjectId(),
	}
	for i, c := range req.GetConditions() {
		kind := wordOf[integration.ConditionType](c.GetType(), prefixConditionType)
		if slices.ContainsFunc(report.Conditions, func(c integration.Condition) bool { return c.Type == kind }) {
			return nil, statusOf(invalid(fmt.Sprintf("conditions[%d].type", i), "must be there only once"))
		}
		report.Conditions = append(report.Conditions, integration.Condition{
			Type: kind, Status: wordOf[integration.ConditionStatus](c.GetStatus(), prefixConditionStatus), Reason: c.GetReason(), Message: c.GetMessage(),
		})
	}
	by := integration.Mastership{
		Shard: req.GetMastership().GetShard(), Epoch: req.GetMastership().GetEpoch(), Holder: strings.ToLower(req.GetMastership().GetHolder()),
	}
	uid := strings.ToLower(req.GetIntegrationUid())

	var err error
	if req.GetApplicationRemoved() {
		err = s.store.RemoveIntegration(ctx, time.Now(), by, uid, removable)
	} else {
		err = s.store.Report(ctx, time.Now(), by, uid, report)
	}
	if err != nil {
		return nil, statusOf(err)
	}
	return &registryv1.ReportConditionsResponse{}, nil
}

// removable refuses to forget an integration whose deletion nobody asked for.
func removable(i integration.Integration) error {
	if !i.Deleting() {
		return invalid("application_removed", "is for integrations that are being deleted")
	}
	return nil
}
