package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// Fetch returns a credential once, under the same lease as a stream of the same instance. Errors: as Stream.
func (h *Hub) Fetch(ctx context.Context, r Request) (Delivery, error) {
	in, err := h.admit(ctx, &r, func() error { return nil })
	if err != nil {
		return Delivery{}, err
	}
	made, err := h.first(ctx, &r, in, &stream{})
	if err != nil {
		return Delivery{}, err
	}
	return made.Delivery, nil
}

// Acknowledge notes that the instance uses nothing any more that was delivered to it before the generation, also when the grant has ended. It returns the
// numbers of the versions whose secrets are held no longer. lease.ErrNotDelivered when there was no such generation.
func (h *Hub) Acknowledge(ctx context.Context, r Request, generation int64) (released []int64, err error) {
	g, err := h.grantOf(ctx, &r)
	if err != nil {
		return nil, err
	}
	return h.config.Store.Acknowledge(ctx, time.Now(), g.UID, r.InstanceID, generation, r.Caller)
}

// CloseLease closes the instance's lease, also when the grant has ended. Its streams end with lease.ErrClosed.
func (h *Hub) CloseLease(ctx context.Context, r Request) error {
	g, err := h.grantOf(ctx, &r)
	if err != nil {
		return err
	}
	return h.config.Store.CloseLease(ctx, time.Now(), g.UID, r.InstanceID, r.Caller)
}

// enter adds a stream for whoever shows a grant.
func (h *Hub) enter(ctx context.Context, r *Request) (*stream, admitted, error) {
	heard := h.heard()
	in, err := h.admit(ctx, r, h.taking)
	if err != nil {
		return nil, admitted{}, err
	}
	s, err := h.join(in.entitlement.Grant, r, heard)
	return s, in, err
}

// grantOf is the grant that is shown, whatever its state.
func (h *Hub) grantOf(ctx context.Context, r *Request) (g grant.Grant, err error) {
	err = h.identify(r, func(token grant.Hash, permit func(*grant.Grant) error) error {
		if g, err = h.config.Store.GrantByToken(ctx, token); err != nil {
			return err
		}
		return permit(&g)
	})
	return g, err
}

// identify finds the grant that is shown, whatever its state, as by reads it by the token's hash and has it permitted. Whoever shows it with another certificate than the one it is bound to is
// told what anybody is told who shows none: grant.ErrUnknown. What is no token at all costs nothing, and a wrong one a place in what the database is asked next, until its
// source has shown too many: then nothing from there is looked at.
func (h *Hub) identify(r *Request, by func(token grant.Hash, permit func(*grant.Grant) error) error) error {
	token, err := grant.ParseToken(r.Token.Expose())
	if err != nil {
		return err
	}
	now := time.Now()
	if err := h.guard.mayGuess(now, r.Source); err != nil {
		return err
	}
	err = by(token, func(g *grant.Grant) error {
		if err := g.CheckCertificate(r.CertificateSHA256); err != nil {
			return fmt.Errorf("%w: %w", grant.ErrUnknown, err)
		}
		return h.guard.mayCall(now, g.UID)
	})
	if errors.Is(err, grant.ErrUnknown) {
		h.guard.guessed(now, r.Source)
	}
	return err
}

// admitted is a call that was let in: what its first delivery is decided by, and that delivery, where it has been made.
type admitted struct {
	entitlement *store.Entitlement
	made        *recorded
}

// admit lets in whoever shows a grant that has not ended. Nothing is delivered at once unless the replica is ready.
func (h *Hub) admit(ctx context.Context, r *Request, ready func() error) (in admitted, err error) {
	err = h.identify(r, func(token grant.Hash, permit func(*grant.Grant) error) error {
		if r.Material == lease.AccessToken {
			in, err = h.atOnce(ctx, r, token, func(g *grant.Grant) error {
				if err := permit(g); err != nil {
					return err
				}
				return ready()
			})
		} else if in.entitlement, err = h.config.Store.EntitlementByToken(ctx, token, r.InstanceID); err == nil {
			err = permit(&in.entitlement.Grant)
		}
		if err == nil && in.entitlement.Grant.UseTime.IsZero() {
			r.unused = token
		}
		return err
	})
	if err == nil && in.made == nil {
		err = in.entitlement.Grant.Check(time.Now())
	}
	return in, err
}

// errNotAtHand means that there is more to be waited for than the database.
var errNotAtHand = errors.New("not at hand")

// atOnce makes the first delivery of a call in the transaction that finds its grant, if the token is at hand and nothing is in the way. What is, and whether it passes, is for others to
// find out, by what was read.
func (h *Hub) atOnce(ctx context.Context, r *Request, token grant.Hash, permit func(*grant.Grant) error) (admitted, error) {
	now := time.Now()
	var found *store.Entitlement
	var o *offer
	l, err := h.config.Store.DeliverByToken(ctx, now, token, r.InstanceID, func(e *store.Entitlement) (store.Delivery, error) {
		if found == nil {
			if err := permit(&e.Grant); err != nil {
				return store.Delivery{}, err
			}
		}
		found = e
		if err := e.Check(now); err != nil {
			return store.Delivery{}, err
		}
		var err error
		if o, err = h.atHand(r, e); err != nil {
			return store.Delivery{}, err
		}
		return o.delivery(), nil
	})
	switch {
	case err == nil:
		h.count(now, o.reason, found.Grant.Account)
		return admitted{found, o.to(now, found.Grant, l)}, nil
	case ctx.Err() != nil, errors.Is(err, sqldb.ErrUnavailable), errors.Is(err, grant.ErrUnknown), found == nil:
		return admitted{}, err
	default:
		return admitted{entitlement: found}, nil
	}
}

// first is a call's first delivery: it makes it, if that has not been done. Whether or not it can, the token of whoever was let in has been shown, and is noted as such.
func (h *Hub) first(ctx context.Context, r *Request, in admitted, s *stream) (*recorded, error) {
	if in.made != nil {
		return in.made, nil
	}
	made, err := h.firstDelivery(ctx, r, in.entitlement, s)
	if err != nil && r.unused != (grant.Hash{}) && !errors.Is(err, grant.ErrUnknown) {
		if err := h.config.Store.UseGrant(ctx, time.Now(), r.unused); err != nil {
			return nil, err
		}
	}
	return made, err
}

// firstDelivery makes it, having waited until the copy of the registry has reached the grant.
func (h *Hub) firstDelivery(ctx context.Context, r *Request, e *store.Entitlement, s *stream) (*recorded, error) {
	err := e.Check(time.Now())
	if err == nil {
		return h.deliver(ctx, r, e, Initial)
	}
	grantUID := e.Grant.UID
	patience := time.NewTimer(projectionWait)
	defer patience.Stop()
	for errors.Is(err, grant.ErrBehind) {
		again := time.NewTimer(projectionEvery)
		select {
		case <-again.C:
		case <-s.wake:
			if why := s.why.Load(); why != nil {
				return nil, *why
			}
		case <-patience.C:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		again.Stop()
		if e, err = h.entitlement(ctx, grantUID, r.InstanceID); err == nil {
			return h.deliver(ctx, r, e, Initial)
		}
	}
	return nil, err
}

// entitlement reads what a delivery is decided by; an error says why there may be none.
func (h *Hub) entitlement(ctx context.Context, grantUID, instanceID string) (*store.Entitlement, error) {
	e, err := h.config.Store.Entitlement(ctx, grantUID, instanceID)
	if err != nil {
		return nil, err
	}
	return e, e.Check(time.Now())
}
