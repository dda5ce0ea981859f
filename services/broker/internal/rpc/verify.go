package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	"phasekey.dev/services/broker/internal/consent"
)

// VerifyConsent implements ConsentService.
func (s *Service) VerifyConsent(ctx context.Context, req *brokerv1.VerifyConsentRequest) (*brokerv1.VerifyConsentResponse, error) {
	proof, err := s.verify(ctx, req.GetIntegration())
	if err != nil {
		return nil, problem(err, req.GetIntegration())
	}
	return &brokerv1.VerifyConsentResponse{
		Consented: proof.Consented, ServicePrincipalObjectId: proof.PrincipalObjectID, Refusal: proof.Refusal,
		VerifyTime: timestamppb.New(proof.Time),
	}, nil
}

func (s *Service) verify(ctx context.Context, integration string) (consent.Proof, error) {
	// The registry says it first: the vault learns of integrations, and of their end, later.
	found, err := s.cfg.Registry.Integration(ctx, integration)
	switch {
	case err != nil:
		return consent.Proof{}, err
	case found.Deleting:
		return consent.Proof{}, consent.ErrIntegrationDeleting
	case !found.Ready:
		return consent.Proof{}, consent.ErrNotReady
	}
	proof, err := s.cfg.Vault.ProbeConsent(ctx, integration)
	if err != nil {
		return consent.Proof{}, err
	}
	// Whoever waits at a session's page need not wait for its next round.
	return proof, s.cfg.Store.Hasten(ctx, time.Now(), found.UID)
}
