package rpc

import (
	"context"
	"strconv"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/services/vault/internal/signing"
)

// rotationService implements vaultv1.RotationServiceServer.
type rotationService struct {
	vaultv1.UnsafeRotationServiceServer
	versions  versions
	rotations rotations
	pauses    pauses
	keys      signingKeys
	timing    signing.Timing
}

func (s rotationService) ListCredentialVersions(ctx context.Context, req *vaultv1.ListCredentialVersionsRequest) (*vaultv1.ListCredentialVersionsResponse, error) {
	size := pageSize(req.GetPageSize())
	before, err := parseNumberToken(versionsList, req.GetParent(), req.GetPageToken())
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
		resp.NextPageToken = pageToken(versionsList, req.GetParent(), strconv.FormatInt(found[size-1].Number, 10))
	}
	for _, v := range found {
		resp.CredentialVersions = append(resp.CredentialVersions, messageOfVersion(req.GetParent(), v))
	}
	return resp, nil
}

// parseNumberToken is the number before which a list goes on that is ordered by numbers, the highest first; 0 for its beginning.
func parseNumberToken(of list, parent, token string) (int64, error) {
	after, err := parsePageToken(of, parent, token)
	if err != nil || after == "" {
		return 0, err
	}
	before, err := strconv.ParseInt(after, 10, 64)
	if err != nil || before <= 0 {
		return 0, errPageToken
	}
	return before, nil
}
