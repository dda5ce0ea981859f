// Package roles looks which Azure roles a principal was given after consent, for the page that asks for them.
//
// It guarantees that the vault is asked at most once in ten seconds for one session by one replica, however many look at its page; and
// that what is stored is of the principal that the session was completed with. It looks only while somebody does.
package roles

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"phasekey.dev/pkg/limit"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/internal/consent"
)

// perSecond is how often one session is looked at.
const perSecond = 0.1

// timeout bounds one look.
const timeout = 8 * time.Second

// store keeps the sessions; its method is as package store describes it.
type store interface {
	RecordPermissions(ctx context.Context, name consent.Name, p consent.Permissions) error
}

// vault says which roles an integration's principal has, and which principal that is.
type vault interface {
	CheckPermissions(ctx context.Context, integration string) (principal string, p consent.Permissions, err error)
}

// Looker looks. It is safe for concurrent use.
type Looker struct {
	store store
	vault vault
	log   *slog.Logger
	looks *limit.Buckets[consent.Name]
}

// New makes a Looker.
func New(in store, ask vault, log *slog.Logger) *Looker {
	return &Looker{store: in, vault: ask, log: log, looks: limit.NewBuckets(func(consent.Name) consent.Name { return consent.Name{} })}
}

// Look looks for a session's roles, unless that is of no use, or was done moments ago. That there is no answer is logged, and no error:
// the page shows what is known.
func (l *Looker) Look(ctx context.Context, session consent.Session) error {
	now := time.Now()
	if !consent.LooksForRoles(now, session) {
		return nil
	}
	if _, ok := l.looks.Take(now, session.Name, perSecond, 1); !ok {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	principal, found, err := l.vault.CheckPermissions(asking, session.Integration)
	switch {
	case errors.Is(err, consent.ErrNotReady):
		return nil // the credential is being proven, which takes some minutes after consent
	case err != nil:
		if ctx.Err() == nil {
			l.log.InfoContext(ctx, "roles cannot be looked at", slog.String(obs.KeyResource, session.Name.String()), slog.Any(obs.KeyError, err))
		}
		return nil
	case principal != session.PrincipalObjectID:
		return nil // another integration has its name, or consent was given anew
	}
	return l.store.RecordPermissions(ctx, session.Name, found)
}
