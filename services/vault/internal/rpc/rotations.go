package rpc

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
)

// rotations keeps what is asked for about rotation; see store.Store.
type rotations interface {
	RequestRotation(ctx context.Context, now time.Time, r credential.RotationRequest, caller grant.Caller) (credential.RotationStatus, error)
	Rotation(ctx context.Context, integration, id string) (credential.RotationStatus, error)
	Rotations(ctx context.Context, integration, before string, limit int) ([]credential.RotationStatus, error)
	RequestBatch(ctx context.Context, now time.Time, r credential.BatchRequest, caller grant.Caller) (credential.Batch, error)
	Batch(ctx context.Context, scope, id string) (credential.Batch, error)
	Batches(ctx context.Context, scope, before string, limit int) ([]credential.Batch, error)
}

func (s rotationService) RotateIntegration(ctx context.Context, req *vaultv1.RotateIntegrationRequest) (*vaultv1.RotateIntegrationResponse, error) {
	asked := credential.RotationRequest{
		Integration: req.GetName(), Reason: rotationReasonOf(req.GetReason()), Immediately: req.GetImmediately(),
		RequestID: strings.ToLower(req.GetRequestId()),
	}
	if asked.Immediately && asked.Reason != credential.Compromised {
		return nil, rpcerr.Invalid("immediately", "is for what is compromised: a gap in service has no other use")
	}
	now := clock()
	r, err := s.rotations.RequestRotation(ctx, now, asked, callerOf(ctx))
	if err != nil {
		return nil, statusAbout(err, req.GetName())
	}
	return &vaultv1.RotateIntegrationResponse{Rotation: messageOfRotation(now, req.GetName(), r)}, nil
}

func (s rotationService) GetRotation(ctx context.Context, req *vaultv1.GetRotationRequest) (*vaultv1.Rotation, error) {
	integration, id, _ := strings.Cut(req.GetName(), rotationsSegment)
	r, err := s.rotations.Rotation(ctx, integration, id)
	if err != nil {
		return nil, statusAbout(err, req.GetName())
	}
	return messageOfRotation(clock(), integration, r), nil
}

func (s rotationService) ListRotations(ctx context.Context, req *vaultv1.ListRotationsRequest) (*vaultv1.ListRotationsResponse, error) {
	size := pageSize(req.GetPageSize())
	before, err := s.pages.after(rotationsList, req.GetParent(), req.GetPageToken())
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.rotations.Rotations(ctx, req.GetParent(), before, size+1)
	if err != nil {
		return nil, statusAbout(err, req.GetParent())
	}
	resp := &vaultv1.ListRotationsResponse{}
	if len(found) > size {
		found = found[:size]
		resp.NextPageToken = s.pages.behind(rotationsList, req.GetParent(), found[size-1].ID)
	}
	now := clock()
	for _, r := range found {
		resp.Rotations = append(resp.Rotations, messageOfRotation(now, req.GetParent(), r))
	}
	return resp, nil
}

func (s rotationService) RotateAllIntegrations(ctx context.Context, req *vaultv1.RotateAllIntegrationsRequest) (*vaultv1.RotateAllIntegrationsResponse, error) {
	b, err := s.rotations.RequestBatch(ctx, clock(), credential.BatchRequest{
		Scope: req.GetParent(), Reason: rotationReasonOf(req.GetReason()), TenantID: strings.ToLower(req.GetTenantId()), Cloud: req.GetCloud(),
		RequestID: strings.ToLower(req.GetRequestId()),
	}, callerOf(ctx))
	if err != nil {
		return nil, statusOf(err)
	}
	return &vaultv1.RotateAllIntegrationsResponse{RotationBatch: messageOfBatch(b)}, nil
}

func (s rotationService) GetRotationBatch(ctx context.Context, req *vaultv1.GetRotationBatchRequest) (*vaultv1.RotationBatch, error) {
	scope, id, _ := strings.Cut(req.GetName(), batchesSegment)
	b, err := s.rotations.Batch(ctx, scope, id)
	if err != nil {
		return nil, statusAbout(err, req.GetName())
	}
	return messageOfBatch(b), nil
}

func (s rotationService) ListRotationBatches(ctx context.Context, req *vaultv1.ListRotationBatchesRequest) (*vaultv1.ListRotationBatchesResponse, error) {
	size := pageSize(req.GetPageSize())
	before, err := s.pages.after(batchesList, req.GetParent(), req.GetPageToken())
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.rotations.Batches(ctx, req.GetParent(), before, size+1)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &vaultv1.ListRotationBatchesResponse{}
	if len(found) > size {
		found = found[:size]
		resp.NextPageToken = s.pages.behind(batchesList, req.GetParent(), found[size-1].ID)
	}
	for _, b := range found {
		resp.RotationBatches = append(resp.RotationBatches, messageOfBatch(b))
	}
	return resp, nil
}

const (
	rotationsSegment = "/rotations/"
	batchesSegment   = "/rotationBatches/"
)

func rotationReasonOf(r vaultv1.Rotation_Reason) credential.RotationReason {
	return credential.RotationReason(strings.TrimPrefix(r.String(), prefixReason))
}

func messageOfRotationReason(r credential.RotationReason) vaultv1.Rotation_Reason {
	return vaultv1.Rotation_Reason(vaultv1.Rotation_Reason_value[prefixReason+string(r)])
}

// messageOfRotation is a rotation of the integration of that resource name.
func messageOfRotation(now time.Time, integration string, r credential.RotationStatus) *vaultv1.Rotation {
	message := &vaultv1.Rotation{
		Name:         integration + rotationsSegment + r.ID,
		Reason:       messageOfRotationReason(r.Reason),
		Immediately:  r.Immediately,
		State:        vaultv1.Rotation_State(vaultv1.Rotation_State_value[prefixState+string(r.State)]),
		StateReason:  r.StateReason,
		OldVersion:   versionName(integration, r.UpTo),
		NewVersion:   versionName(integration, r.New),
		Proofs:       count(r.Proofs),
		Exposure:     messageOfExposure(credential.ExposureOf(now, r)),
		Creator:      r.Creator,
		CreateTime:   timestamp(r.CreateTime),
		ActivateTime: timestamp(r.ActivateTime),
		RemoveTime:   timestamp(r.RemoveTime),
		EndTime:      timestamp(r.EndTime),
	}
	if r.BatchScope != "" {
		message.RotationBatch = r.BatchScope + batchesSegment + r.BatchID
	}
	return message
}

func versionName(integration string, number int64) string {
	if number == 0 {
		return ""
	}
	return fmt.Sprint(integration, "/credentialVersions/", number)
}

func messageOfExposure(e credential.Exposure) *vaultv1.Exposure {
	return &vaultv1.Exposure{
		EndTime: timestamp(e.EndTime), RemovalLag: durationpb.New(e.RemovalLag), TokenLife: durationpb.New(e.TokenLife), Remedies: e.Remedies,
	}
}

func messageOfBatch(b credential.Batch) *vaultv1.RotationBatch {
	return &vaultv1.RotationBatch{
		Name:                 b.Scope + batchesSegment + b.ID,
		Reason:               messageOfRotationReason(b.Reason),
		TenantId:             b.TenantID,
		Cloud:                b.Cloud,
		TotalCount:           count(b.Total),
		WaitingCount:         count(b.Waiting),
		RunningCount:         count(b.Running),
		AwaitingConsentCount: count(b.AwaitingConsent),
		CompletedCount:       count(b.Completed),
		AbandonedCount:       count(b.Abandoned),
		Creator:              b.Creator,
		CreateTime:           timestamp(b.CreateTime),
		EndTime:              timestamp(b.EndTime),
	}
}

func count(n int) int32 { return int32(min(n, math.MaxInt32)) } //nolint:gosec // fits
