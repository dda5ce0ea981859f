// Package standing looks whether consent still holds, for the page of a session that was completed.
//
// It guarantees that the registry is asked at most once in an interval for one session by one replica, however many look at its page, and
// that the customer's tenant is asked only where the registry says that consent was lost. It looks only while somebody does, so a
// session that nobody looks at says what was so when somebody did.
package standing

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"phasekey.dev/pkg/limit"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/internal/consent"
)

// timeout bounds one look: a page waits for it.
const timeout = 4 * time.Second

// keyLoss is why consent was lost.
const keyLoss = "loss"

// store keeps the sessions; its method is as package store describes it.
type store interface {
	Change(ctx context.Context, name consent.Name, decide func(consent.Session) (consent.Session, bool)) (consent.Session, error)
}

// registry says how integrations are.
type registry interface {
	Integration(ctx context.Context, name string) (consent.Integration, error)
}

// vault asks an integration's tenant. Any error means that there is no answer.
type vault interface {
	ProbeConsent(ctx context.Context, integration string) (consent.Proof, error)
}

// Config is what a Looker is made from.
type Config struct {
	Store    store
	Registry registry
	Vault    vault
	// Interval is how often one session is looked at.
	Interval time.Duration
	Log      *slog.Logger
}

// Looker looks. It is safe for concurrent use.
type Looker struct {
	cfg   Config
	looks *limit.Buckets[consent.Name]
}

// New makes a Looker.
func New(cfg Config) *Looker {
	return &Looker{cfg: cfg, looks: limit.NewBuckets(func(consent.Name) consent.Name { return consent.Name{} })}
}

// Look returns a session as it is after a look whether consent still holds, unless that is of no use, or was done moments ago. That there is
// no answer is logged, and no error: the session says what is known.
func (l *Looker) Look(ctx context.Context, session consent.Session) (consent.Session, error) {
	if session.State != consent.Completed {
		return session, nil
	}
	if _, ok := l.looks.Take(time.Now(), session.Name, 1/l.cfg.Interval.Seconds(), 1); !ok {
		return session, nil
	}
	found, proof, err := l.ask(ctx, session)
	if err != nil {
		if ctx.Err() == nil {
			l.cfg.Log.InfoContext(ctx, "it cannot be looked whether consent holds", slog.String(obs.KeyResource, session.Name.String()), slog.Any(obs.KeyError, err))
		}
		return session, nil
	}
	now := time.Now()
	var before consent.Session
	after, err := l.cfg.Store.Change(ctx, session.Name, func(s consent.Session) (consent.Session, bool) {
		before = s
		if s.Version != session.Version {
			return s, false // somebody else had a word meanwhile, which may be newer than this one
		}
		return consent.Stand(now, s, found, proof)
	})
	if err != nil {
		return session, err
	}
	if before.Lost() != after.Lost() {
		l.cfg.Log.InfoContext(ctx, "consent was lost or is there again", slog.String(obs.KeyResource, after.Name.String()), slog.String(keyLoss, after.Loss))
	}
	return after, nil
}

// ask asks the registry, and the tenant too when consent is said to be lost: it may be there again, and nobody waits for the vault's next question.
func (l *Looker) ask(ctx context.Context, session consent.Session) (consent.Integration, *consent.Proof, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found, err := l.cfg.Registry.Integration(ctx, session.Integration)
	switch {
	case errors.Is(err, consent.ErrIntegrationNotFound):
		return consent.Integration{}, nil, nil
	case err != nil:
		return found, nil, err
	}
	if next, _ := consent.Stand(time.Now(), session, found, nil); session.Outlives(found) || !next.Lost() {
		return found, nil, nil
	}
	proof, err := l.cfg.Vault.ProbeConsent(ctx, session.Integration)
	switch {
	case errors.Is(err, consent.ErrNotReady):
		return found, nil, nil
	case err != nil:
		l.cfg.Log.InfoContext(ctx, "the tenant cannot be asked", slog.String(obs.KeyResource, session.Name.String()), slog.Any(obs.KeyError, err))
		return found, nil, nil
	}
	return found, &proof, nil
}
