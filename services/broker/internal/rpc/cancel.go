package rpc

import (
	"context"
	"log/slog"
	"time"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/internal/consent"
)

// CancelConsentSession implements ConsentService.
func (s *Service) CancelConsentSession(ctx context.Context, req *brokerv1.CancelConsentSessionRequest) (*brokerv1.CancelConsentSessionResponse, error) {
	name, ok := parseName(req.GetName())
	if !ok {
		return nil, problem(consent.ErrNotFound, req.GetName())
	}
	var changed bool
	session, err := s.cfg.Store.Change(ctx, name, func(found consent.Session) (next consent.Session, _ bool) {
		next, changed = consent.Cancel(time.Now(), found)
		return next, changed
	})
	if err != nil {
		return nil, problem(err, req.GetName())
	}
	if changed {
		s.cfg.Log.InfoContext(ctx, "consent session cancelled", slog.String(obs.KeyResource, req.GetName()), slog.String(keyIntegration, session.Integration))
	}
	return &brokerv1.CancelConsentSessionResponse{ConsentSession: s.reply(session)}, nil
}
