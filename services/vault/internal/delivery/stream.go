package delivery

import (
	"context"
	"errors"
	"slices"
	"time"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

const (
	// projectionWait is how long a call waits until the copy of the registry has reached its grant; projectionEvery is how
	// often it looks.
	projectionWait  = 10 * time.Second
	projectionEvery = 200 * time.Millisecond
	// stepTimeout bounds one attempt to renew what a stream holds; endTimeout the one at the grant's end.
	stepTimeout = 45 * time.Second
	endTimeout  = time.Second
	// retryEvery is how often a stream tries again whose renewal failed while what it holds is valid.
	retryEvery = 5 * time.Second
	// versionAttempts is how often a delivery is made anew because its version was taken back in the meantime.
	versionAttempts = 3
)

// holding is what a stream knows of what its reader has. The credential itself is not kept: nobody asks for it again.
type holding struct {
	versionID string
	// signingKey is the one that the version is under; empty for a client secret's.
	signingKey string
	requestID  string
	// version is the version's number, generation the delivery's.
	version, generation         int64
	expireTime, grantExpireTime time.Time
	// renewTime is when to look for a newer one.
	renewTime time.Time
	// end is the grant's, as far as is known; the reader may have yet to be told of a later one.
	end time.Time
	// consentLost is since when consent was lost at the time of the delivery.
	consentLost time.Time
}

// recorded is a delivery that is on record, so that it may leave.
type recorded struct {
	Delivery
	held holding
	// instead is of which version a fan-out found the stream to hold something.
	instead string
}

// follows reports whether it is to follow what a stream holds. What is older than that, or instead of something else, was on its way while the stream found something newer by itself.
func (d *recorded) follows(held *holding) bool {
	return d.Generation > held.generation && d.instead == held.versionID
}

// to is the same by another grant to another lease.
func (d *recorded) to(g grant.Grant, l lease.Lease) *recorded {
	other := *d
	other.LeaseUID, other.Generation, other.GrantExpireTime = l.UID, l.Generation, g.ExpireTime
	other.held.generation, other.held.grantExpireTime, other.held.end = l.Generation, g.ExpireTime, g.ExpireTime
	return &other
}

// pass sends it, and returns what the reader has then.
func (d *recorded) pass(send func(Delivery) error) (*holding, error) {
	if err := send(d.Delivery); err != nil {
		return nil, err
	}
	held := d.held
	return &held, nil
}

// retry puts off the next look, but not beyond the end of what is held.
func (held *holding) retry(now time.Time) {
	held.renewTime = now.Add(spread(retryEvery))
	if held.expireTime.After(now) && held.expireTime.Before(held.renewTime) {
		held.renewTime = held.expireTime
	}
}

// Stream sends a credential at once, and a newer one whenever something changed or the last one gets old, until the grant
// ends, the entitlement is lost, the replica drains or ctx ends; the error says which and is never nil. send may block: what
// happens meanwhile is seen afterwards. leave asks the reader, once, to read from another replica instead, and to begin with that within a time: this one
// drains, and ends the stream later if the reader does not.
//
// A client secret is sent anew when another version is ACTIVE, or the grant was extended; the lease holds each that it was sent.
//
// Errors: those of grant and lease that are final, and the others of grant, lease, issuer and this package; a
// sqldb.ErrUnavailable.
func (h *Hub) Stream(ctx context.Context, r Request, send func(Delivery) error, leave func(within time.Duration) error) error {
	var s *stream
	defer func() {
		if s != nil {
			h.leave(s)
		}
	}()
	// Ten thousand streams wait here, so this goroutine's stack is kept small: see caught.Apart.
	var held *holding
	err := caught.Apart(func() error {
		var in admitted
		var err error
		if s, in, err = h.enter(ctx, &r); err != nil {
			return err
		}
		made, err := h.first(ctx, &r, in, s)
		if err == nil {
			held, err = made.pass(send)
		}
		return err
	})
	for err == nil {
		var due bool
		if due, err = s.wait(ctx, held); err != nil {
			break
		}
		if window := s.window.Swap(nil); window != nil {
			if err = caught.Apart(func() error { return leave(*window) }); err != nil {
				break
			}
		}
		if given := s.given.Swap(nil); given != nil && given.follows(held) {
			due = false
			// It is made, and there is room on this stack for sending it.
			if held, err = given.pass(send); err != nil {
				break
			}
		}
		if due || s.stale.Load() {
			err = caught.Apart(func() (err error) {
				held, err = h.look(ctx, &r, s, held, send)
				return err
			})
		}
	}
	return err
}

// look has something newer delivered, if there is, and returns what the reader has then.
func (h *Hub) look(ctx context.Context, r *Request, s *stream, held *holding, send func(Delivery) error) (*holding, error) {
	s.stale.Store(false) // before it looks: what happens from here on wakes it again
	newer, err := h.renew(ctx, r, s, held)
	now := time.Now()
	switch {
	case err == nil && newer != nil:
		return newer.pass(send)
	case err == nil:
		return held, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !bearable(err):
		return nil, err
	case !now.Before(held.end), !now.Before(held.expireTime):
		// Whether the grant was extended cannot be found out here. That it ended would be final, and may be wrong; whoever comes back is given
		// nothing before somebody knows.
		return nil, err
	}
	held.retry(now)
	return held, nil
}

// wait returns when the stream was woken, or, which is due, what is held gets old or the grant's end has come; an error when it is over.
func (s *stream) wait(ctx context.Context, held *holding) (due bool, err error) {
	at := held.renewTime
	if held.end.Before(at) {
		at = held.end
	}
	t := time.AfterFunc(time.Until(at), s.signal)
	defer t.Stop()
	s.idle.Store(held)
	defer s.idle.Store(nil)
	if s.window.Load() == nil && s.why.Load() == nil { // of which it may have been told before it waited
		select {
		case <-s.wake:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	if why := s.why.Load(); why != nil {
		return false, *why
	}
	return !time.Now().Before(at), nil
}

// bearable reports whether a stream that could not renew stays up on what it holds, because nobody said that it may not.
func bearable(err error) bool {
	return errors.Is(err, sqldb.ErrUnavailable) || errors.Is(err, issuer.ErrEntra) || errors.Is(err, context.DeadlineExceeded)
}

// renew looks whether there is something newer than what is held, and has it delivered; nil when there is
// not. Of held it changes only what the reader does not see.
func (h *Hub) renew(ctx context.Context, r *Request, s *stream, held *holding) (*recorded, error) {
	now := time.Now()
	limit := now.Add(stepTimeout)
	if end := later(held.end, now).Add(endTimeout); end.Before(limit) {
		limit = end
	}
	ctx, cancel := context.WithDeadline(ctx, limit)
	defer cancel()

	e, err := h.entitlement(ctx, s.lease.grantUID, r.InstanceID)
	if err != nil {
		return nil, err
	}
	held.end = e.Grant.ExpireTime
	usable := slices.ContainsFunc(e.Versions, func(v store.Live) bool { return v.ID == held.versionID })
	if !usable {
		h.config.Issuer.Drop(held.versionID)
	}
	if _, _, err := h.choose(e, r); err != nil {
		return nil, err
	}
	if !e.ConsentLostTime.IsZero() && !e.ConsentLostTime.Equal(held.consentLost) {
		// Told once, by the stream's end: what is held may be good for a while yet, and whoever comes back is given what there is.
		return nil, issuer.ErrConsentMissing
	}
	extended := !e.Grant.ExpireTime.Equal(held.grantExpireTime)
	fit := versionsFor(e, r.Material)
	rotated := len(fit) == 0 || fit[0].ID != held.versionID
	due := !now.Before(held.renewTime)
	if !extended && !rotated && !due {
		return nil, nil
	}
	newest, err := h.make(ctx, r, e)
	compromised := false
	if err != nil || newest.versionID != held.versionID {
		var unknown error
		if compromised, unknown = h.compromised(ctx, held, e); unknown != nil {
			return nil, unknown
		}
	}
	switch {
	case err != nil && usable && r.Material == lease.ClientSecret && (errors.Is(err, issuer.ErrNotReady) || errors.Is(err, lease.ErrHoldTooLong)):
		// That nothing newer can be held is no reason to let go of what is. But the reader has yet to be told of what is new, and that the
		// ACTIVE version works again makes no change.
		due = due || errors.Is(err, issuer.ErrNotReady)
	case err != nil && compromised && (len(e.Versions) == 0 || errors.Is(err, issuer.ErrNotReady)) && now.Before(held.expireTime):
		// Taken back before there is another one, which is being made, or waits for consent: that is what the reader has to be told, and soon.
		held.retry(now)
		return nil, nil
	case err != nil:
		return nil, err
	case newest.versionID != held.versionID && compromised:
		return h.deliver(ctx, r, e, Compromised)
	case newest.versionID != held.versionID:
		return h.deliver(ctx, r, e, Rotated)
	case extended, newest.requestID != held.requestID:
		return h.deliver(ctx, r, e, Refresh)
	}
	if due {
		held.retry(now)
	}
	return nil, nil
}

// compromised reports whether somebody said that what is held is in other hands: the version, or the key that signs for it.
func (h *Hub) compromised(ctx context.Context, held *holding, e *store.Entitlement) (bool, error) {
	if held.version <= e.Compromised || held.signingKey == "" {
		return held.version <= e.Compromised, nil
	}
	return h.config.Store.SigningKeyCompromised(ctx, held.signingKey)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
