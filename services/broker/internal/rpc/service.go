// Package rpc serves phasekey.broker.v1.ConsentService.
//
// It guarantees that a creation is stored before it is answered, that what a caller may not set is ignored, and that a
// watcher sees the session's newest state, not each state between. It does not check who calls: the server's chain has.
package rpc

import (
	"context"
	"log/slog"
	"time"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/follow"
)

// store keeps the sessions; its methods are as package store describes them.
type store interface {
	Replay(ctx context.Context, now time.Time, r consent.Request) (consent.Session, error)
	Create(ctx context.Context, now time.Time, s consent.Session, linkHash []byte, r consent.Request, limit int) (consent.Session, error)
	Get(ctx context.Context, name consent.Name) (consent.Session, error)
	Change(ctx context.Context, name consent.Name, decide func(consent.Session) (consent.Session, bool)) (consent.Session, error)
	Hasten(ctx context.Context, now time.Time, integrationUID string) error
}

// registry says how integrations are: consent.ErrIntegrationNotFound means that there is none.
type registry interface {
	Integration(ctx context.Context, name string) (consent.Integration, error)
}

// vault asks an integration's tenant: consent.ErrNotReady means that it cannot be asked yet, consent.ErrEntra that Entra ID does not
// answer; any other error, that the vault does not.
type vault interface {
	ProbeConsent(ctx context.Context, integration string) (consent.Proof, error)
}

// follower tells of changes of sessions, see package follow.
type follower interface {
	Follow(linkHash []byte, seen int64) *follow.Follower
}

// Config is what a Service is made from.
type Config struct {
	Store    store
	Registry registry
	Vault    vault
	Links    consent.Links
	// Origins are where sessions may lead administrators back to.
	Origins consent.Origins
	Log     *slog.Logger
	// MaxOpen is how many sessions of one integration may be open at once.
	MaxOpen int
	// Follow tells of changes of sessions.
	Follow follower
}

// Service implements ConsentService.
type Service struct {
	// A method that the API gets and the Service lacks does not compile.
	brokerv1.UnsafeConsentServiceServer

	cfg Config
}

// New returns a service; it starts nothing.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// GetConsentSession implements ConsentService.
func (s *Service) GetConsentSession(ctx context.Context, req *brokerv1.GetConsentSessionRequest) (*brokerv1.ConsentSession, error) {
	session, err := s.read(ctx, req.GetName())
	if err != nil {
		return nil, problem(err, req.GetName())
	}
	return s.reply(session), nil
}

func (s *Service) read(ctx context.Context, name string) (consent.Session, error) {
	parsed, ok := parseName(name)
	if !ok {
		return consent.Session{}, consent.ErrNotFound
	}
	return s.cfg.Store.Get(ctx, parsed)
}
