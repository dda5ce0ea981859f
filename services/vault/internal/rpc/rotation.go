package rpc

import (
	"context"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/services/vault/internal/signingkey"
)

// rotationService implements vaultv1.RotationServiceServer.
type rotationService struct {
	vaultv1.UnsafeRotationServiceServer
	versions  versions
	rotations rotations
	pauses    pauses
	keys      signingKeys
	timing    signingkey.Timing
	pages     pages
}

func (s rotationService) ListCredentialVersions(ctx context.Context, req *vaultv1.ListCredentialVersionsRequest) (*vaultv1.ListCredentialVersionsResponse, error) {
	size := pageSize(req.GetPageSize())
	before, err := s.pages.number(versionsList, req.GetParent(), req.GetPageToken())
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.versions.CredentialVersions(ctx, req.GetParent(), before, size+1)
	if err != nil {
		return nil, statusAbout(err, req.GetParent())
	}
	resp := &vaultv1.ListCredentialVersionsResponse{}
	if len(found) > size {
		found = found[:size]
		resp.NextPageToken = s.pages.behindNumber(versionsList, req.GetParent(), found[size-1].Number)
	}
	for _, v := range found {
		resp.CredentialVersions = append(resp.CredentialVersions, messageOfVersion(req.GetParent(), v))
	}
	return resp, nil
}
