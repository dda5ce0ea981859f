package rpc

import (
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	"phasekey.dev/services/broker/internal/consent"
)

// reply is a session as callers see it, with the link while it is open.
func (s *Service) reply(session consent.Session) *brokerv1.ConsentSession {
	out := &brokerv1.ConsentSession{
		Name:                     session.Name.String(),
		Integration:              session.Integration,
		ExpireTime:               timestamppb.New(session.ExpireTime),
		State:                    state(session.State),
		ReturnUri:                session.ReturnURI,
		ConsentUri:               s.cfg.Links.URI(session),
		ServicePrincipalObjectId: session.PrincipalObjectID,
		LastRefusal:              session.LastRefusal,
		LastCallback:             session.LastCallback,
		CreateTime:               timestamppb.New(session.CreateTime),
	}
	if session.State == consent.Completed {
		out.CompleteTime = timestamppb.New(session.EndTime)
	}
	return out
}

func state(s consent.State) brokerv1.ConsentSession_State {
	switch s {
	case consent.WaitingForApplication:
		return brokerv1.ConsentSession_STATE_WAITING_FOR_APPLICATION
	case consent.AwaitingConsent:
		return brokerv1.ConsentSession_STATE_AWAITING_CONSENT
	case consent.Completed:
		return brokerv1.ConsentSession_STATE_COMPLETED
	case consent.Expired:
		return brokerv1.ConsentSession_STATE_EXPIRED
	default:
		return brokerv1.ConsentSession_STATE_UNSPECIFIED
	}
}

// parseName takes accounts/{account}/consentSessions/{id} apart.
func parseName(name string) (consent.Name, bool) {
	account, id, ok := strings.Cut(strings.TrimPrefix(name, "accounts/"), "/consentSessions/")
	return consent.Name{Account: account, ID: id}, ok
}

// parseAccount takes accounts/{account} apart.
func parseAccount(name string) (string, bool) {
	account, ok := strings.CutPrefix(name, "accounts/")
	return account, ok && account != "" && !strings.Contains(account, "/")
}

// accountOf returns the account of accounts/{account}/integrations/{id}.
func accountOf(integration string) (string, bool) {
	account, _, ok := strings.Cut(strings.TrimPrefix(integration, "accounts/"), "/integrations/")
	return account, ok
}
