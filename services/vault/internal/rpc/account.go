package rpc

import (
	"context"
	"strings"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/services/vault/internal/grant"
)

// accountService implements vaultv1.AccountServiceServer.
type accountService struct {
	vaultv1.UnsafeAccountServiceServer
	accounts accountStore
	hub      hub
	changed  func()
}

func (s accountService) GetAccount(ctx context.Context, req *vaultv1.GetAccountRequest) (*vaultv1.Account, error) {
	account := strings.TrimPrefix(req.GetName(), accounts)
	of, usage, err := s.accounts.Usage(ctx, clock(), account)
	if err != nil {
		return nil, statusOf(err)
	}
	message := messageOfAccount(of)
	message.Usage = &vaultv1.Account_Usage{
		LiveGrantCount: usage.LiveGrants, OpenLeaseCount: usage.OpenLeases, HeldSecretCount: usage.HeldSecrets,
		ReplicaStreamCount: int64(s.hub.Streams(account)), IntegrationCount: usage.Integrations,
		DayDeliveryCount: usage.DayDeliveries, MonthDeliveryCount: usage.MonthDeliveries,
	}
	return message, nil
}

func (s accountService) FreezeAccount(ctx context.Context, req *vaultv1.FreezeAccountRequest) (*vaultv1.FreezeAccountResponse, error) {
	account := strings.TrimPrefix(req.GetName(), accounts)
	of, err := s.accounts.FreezeAccount(ctx, clock(), account, req.GetReason(), callerOf(ctx))
	if err != nil {
		return nil, statusOf(err)
	}
	s.changed()
	for after, more := "", true; more; more = after != "" {
		if after, err = s.accounts.ReleaseFrozen(ctx, clock(), account, after, revokeAtOnce); err != nil {
			return nil, statusOf(err)
		}
	}
	return &vaultv1.FreezeAccountResponse{Account: messageOfAccount(of)}, nil
}

func (s accountService) UnfreezeAccount(ctx context.Context, req *vaultv1.UnfreezeAccountRequest) (*vaultv1.UnfreezeAccountResponse, error) {
	account := strings.TrimPrefix(req.GetName(), accounts)
	if err := s.accounts.UnfreezeAccount(ctx, clock(), account, callerOf(ctx)); err != nil {
		return nil, statusOf(err)
	}
	return &vaultv1.UnfreezeAccountResponse{Account: messageOfAccount(grant.Account{ID: account})}, nil
}

func messageOfAccount(a grant.Account) *vaultv1.Account {
	message := &vaultv1.Account{
		Name: accounts + a.ID, State: vaultv1.Account_STATE_ACTIVE, FreezeReason: a.FreezeReason, FreezeTime: timestamp(a.FreezeTime),
	}
	if a.Frozen() {
		message.State = vaultv1.Account_STATE_FROZEN
	}
	return message
}
