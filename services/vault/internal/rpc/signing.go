package rpc

import (
	"context"
	"slices"
	"strings"
	"time"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/signingkey"
)

// signingKeys keeps the keys by which the vault signs; see store.Store.
type signingKeys interface {
	SigningKeys(ctx context.Context) ([]signingkey.Key, error)
	WantSigningKey(ctx context.Context, now time.Time, caller grant.Caller) error
	DropSigningKey(ctx context.Context, now time.Time, id string, caller grant.Caller) error
}

const signingKeyPrefix = "signingKeys/"

func (s rotationService) RotateSigningKeys(ctx context.Context, req *vaultv1.RotateSigningKeysRequest) (*vaultv1.RotateSigningKeysResponse, error) {
	name, compromised := req.GetSigningKey(), req.GetReason() == vaultv1.Rotation_REASON_COMPROMISED
	var err error
	switch {
	case compromised && name == "":
		return nil, rpcerr.Invalid("signing_key", "is required for a compromise: ListSigningKeys shows which there are")
	case !compromised && name != "":
		return nil, rpcerr.Invalid("signing_key", "is for a compromise alone: otherwise it is always the newest that signs")
	case compromised:
		err = s.keys.DropSigningKey(ctx, clock(), strings.TrimPrefix(name, signingKeyPrefix), callerOf(ctx))
	default:
		name = signingKeyPrefix + "-"
		err = s.keys.WantSigningKey(ctx, clock(), callerOf(ctx))
	}
	if err != nil {
		return nil, statusAbout(err, name)
	}
	all, err := s.keys.SigningKeys(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &vaultv1.RotateSigningKeysResponse{}
	for _, k := range all {
		if k.State != signingkey.Removed {
			resp.SigningKeys = append(resp.SigningKeys, s.messageOfKey(k, all))
		}
	}
	return resp, nil
}

func (s rotationService) ListSigningKeys(ctx context.Context, req *vaultv1.ListSigningKeysRequest) (*vaultv1.ListSigningKeysResponse, error) {
	before, err := s.pages.number(signingKeysList, "", req.GetPageToken())
	if err != nil {
		return nil, statusOf(err)
	}
	all, err := s.keys.SigningKeys(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	// They are few, and the newest stand first.
	found := slices.DeleteFunc(slices.Clone(all), func(k signingkey.Key) bool { return before > 0 && k.Number >= before })
	resp := &vaultv1.ListSigningKeysResponse{}
	if size := pageSize(req.GetPageSize()); len(found) > size {
		found = found[:size]
		resp.NextPageToken = s.pages.behindNumber(signingKeysList, "", found[size-1].Number)
	}
	for _, k := range found {
		resp.SigningKeys = append(resp.SigningKeys, s.messageOfKey(k, all))
	}
	return resp, nil
}

// messageOfKey is a key, with when it will sign or be removed as the others are.
func (s rotationService) messageOfKey(k signingkey.Key, all []signingkey.Key) *vaultv1.SigningKey {
	switch k.State {
	case signingkey.Published:
		k.SignTime = signingkey.SignTime(all, s.timing)
	case signingkey.Retired:
		k.RemoveTime = signingkey.RemoveTime(k, s.timing)
	case signingkey.Signing, signingkey.Removed:
	}
	return &vaultv1.SigningKey{
		Name:        signingKeyPrefix + k.ID,
		State:       vaultv1.SigningKey_State(vaultv1.SigningKey_State_value[prefixState+string(k.State)]),
		Reason:      k.Reason,
		PublishTime: timestamp(k.PublishTime),
		SignTime:    timestamp(k.SignTime),
		ReplaceTime: timestamp(k.ReplaceTime),
		RetireTime:  timestamp(k.RetireTime),
		RemoveTime:  timestamp(k.RemoveTime),
	}
}
