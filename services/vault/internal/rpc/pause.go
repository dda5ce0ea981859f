package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
)

// pauses keeps pauses of rotation; see store.Store.
type pauses interface {
	PauseRotation(ctx context.Context, p credential.Pause, caller grant.Caller) error
	ResumeRotation(ctx context.Context, now time.Time, scope string, caller grant.Caller) error
	Pauses(ctx context.Context, now time.Time, scope, after string, limit int) ([]credential.Pause, error)
}

func (s rotationService) PauseRotation(ctx context.Context, req *vaultv1.PauseRotationRequest) (*vaultv1.PauseRotationResponse, error) {
	now, caller := clock(), callerOf(ctx)
	p := credential.Pause{
		Scope: req.GetScope(), Reason: req.GetReason(), Creator: caller.Identity, CreateTime: now,
		ExpireTime: now.Add(req.GetTtl().AsDuration()).Truncate(time.Microsecond),
	}
	if err := s.pauses.PauseRotation(ctx, p, caller); err != nil {
		return nil, statusOf(err)
	}
	return &vaultv1.PauseRotationResponse{RotationPause: messageOfPause(p)}, nil
}

func (s rotationService) ResumeRotation(ctx context.Context, req *vaultv1.ResumeRotationRequest) (*vaultv1.ResumeRotationResponse, error) {
	if err := s.pauses.ResumeRotation(ctx, clock(), req.GetScope(), callerOf(ctx)); err != nil {
		return nil, statusOf(err)
	}
	return &vaultv1.ResumeRotationResponse{}, nil
}

func (s rotationService) ListRotationPauses(ctx context.Context, req *vaultv1.ListRotationPausesRequest) (*vaultv1.ListRotationPausesResponse, error) {
	size := pageSize(req.GetPageSize())
	after, err := s.pages.after(pausesList, req.GetParent(), req.GetPageToken())
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.pauses.Pauses(ctx, clock(), req.GetParent(), after, size+1)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &vaultv1.ListRotationPausesResponse{}
	if len(found) > size {
		found = found[:size]
		resp.NextPageToken = s.pages.behind(pausesList, req.GetParent(), found[size-1].Scope)
	}
	for _, p := range found {
		resp.RotationPauses = append(resp.RotationPauses, messageOfPause(p))
	}
	return resp, nil
}

func messageOfPause(p credential.Pause) *vaultv1.RotationPause {
	return &vaultv1.RotationPause{
		Scope: p.Scope, Reason: p.Reason, Creator: p.Creator, CreateTime: timestamp(p.CreateTime), ExpireTime: timestamp(p.ExpireTime),
	}
}

// pauseDetails says which pause is in the way.
func pauseDetails(err error) []proto.Message {
	if refusal := (*credential.PauseError)(nil); errors.As(err, &refusal) {
		return []proto.Message{
			rpcerr.Metadata("scope", refusal.Pause.Scope), rpcerr.Metadata("expireTime", refusal.Pause.ExpireTime.UTC().Format(time.RFC3339)),
		}
	}
	return nil
}
