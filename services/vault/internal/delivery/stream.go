package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/keyring"
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
		var e *store.Entitlement
		var err error
		if s, e, err = h.enter(ctx, &r); err != nil {
			return err
		}
		made, err := h.first(ctx, &r, e, s)
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

// enter adds a stream for whoever shows a grant, and returns what its first delivery is decided by.
func (h *Hub) enter(ctx context.Context, r *Request) (*stream, *store.Entitlement, error) {
	heard := h.heard()
	e, err := h.admit(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	s, err := h.join(e.Grant, r, heard)
	return s, e, err
}

// Fetch returns a credential once, under the same lease as a stream of the same instance. Errors: as Stream.
func (h *Hub) Fetch(ctx context.Context, r Request) (Delivery, error) {
	e, err := h.admit(ctx, &r)
	if err != nil {
		return Delivery{}, err
	}
	made, err := h.first(ctx, &r, e, &stream{})
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

// grantOf is the grant that is shown, whatever its state.
func (h *Hub) grantOf(ctx context.Context, r *Request) (g grant.Grant, err error) {
	err = h.identify(r, func(token grant.Hash) (grant.Grant, error) {
		g, err = h.config.Store.GrantByToken(ctx, token)
		return g, err
	})
	return g, err
}

// identify finds the grant that is shown, whatever its state, as read reads it by the token's hash. Whoever shows it with another certificate than the one it is bound to is
// told what anybody is told who shows none: grant.ErrUnknown. What is no token at all costs nothing, and a wrong one a read of the database, until its
// source has shown too many: then nothing from there is looked at.
func (h *Hub) identify(r *Request, read func(token grant.Hash) (grant.Grant, error)) error {
	hash, err := grant.ParseToken(r.Token.Expose())
	if err != nil {
		return err
	}
	now := time.Now()
	if err := h.guard.mayGuess(now, r.Source); err != nil {
		return err
	}
	g, err := read(hash)
	if err == nil {
		if err = g.CheckCertificate(r.CertificateSHA256); err != nil {
			err = fmt.Errorf("%w: %w", grant.ErrUnknown, err)
		}
	}
	if errors.Is(err, grant.ErrUnknown) {
		h.guard.guessed(now, r.Source)
	}
	if err != nil {
		return err
	}
	return h.guard.mayCall(now, g.UID)
}

// admit reads what a delivery is decided by to whoever shows a grant that has not ended.
func (h *Hub) admit(ctx context.Context, r *Request) (e *store.Entitlement, err error) {
	err = h.identify(r, func(token grant.Hash) (grant.Grant, error) {
		e, err = h.config.Store.EntitlementByToken(ctx, token, r.InstanceID)
		if err != nil {
			return grant.Grant{}, err
		}
		if e.Grant.UseTime.IsZero() {
			r.unused = token
		}
		return e.Grant, nil
	})
	if err != nil {
		return nil, err
	}
	if err := e.Grant.Check(time.Now()); err != nil {
		return nil, err
	}
	return e, nil
}

// first makes a call's first delivery by what was read. Whether or not it can, the token has been shown, and is noted as such.
func (h *Hub) first(ctx context.Context, r *Request, e *store.Entitlement, s *stream) (*recorded, error) {
	made, err := h.firstDelivery(ctx, r, e, s)
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
	case err != nil && compromised && errors.Is(err, issuer.ErrNotReady) && now.Before(held.expireTime):
		// Taken back before there is another one, which is being made: that is what the reader has to be told, and soon.
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

// entitlement reads what a delivery is decided by; an error says why there may be none.
func (h *Hub) entitlement(ctx context.Context, grantUID, instanceID string) (*store.Entitlement, error) {
	e, err := h.config.Store.Entitlement(ctx, grantUID, instanceID)
	if err != nil {
		return nil, err
	}
	return e, e.Check(time.Now())
}

// choose finds the integration's cloud and the audience to ask for, and refuses what the integration does not give.
func (h *Hub) choose(e *store.Entitlement, r *Request) (Cloud, string, error) {
	cloud, ok := h.config.Clouds[e.Integration.Cloud]
	if !ok {
		return Cloud{}, "", fmt.Errorf("%w: %s", ErrCloudUnknown, e.Integration.Cloud)
	}
	if !lease.Allowed(e.Integration.DeliveryMaterials, e.Integration.Federated, r.Material) {
		return Cloud{}, "", &MaterialError{Material: r.Material}
	}
	switch r.Material {
	case lease.ClientSecret:
		return cloud, "", nil
	case lease.FederatedToken:
		return cloud, directory.AssertionAudience, nil
	case lease.AccessToken:
	}
	chosen, err := audience(r.Audience, cloud, e.Integration.AllowedAudiences)
	return cloud, chosen, err
}

// made is a credential that has not been recorded, and so must not leave.
type made struct {
	versionID     string
	versionNumber int64
	clientID      string
	// requestID tells tokens of one version apart; empty for a secret. leaseUID is what an assertion names.
	requestID, leaseUID              string
	token, secret                    secret.Text
	issueTime, renewTime, expireTime time.Time
	// holdLimit is when a grant that holds the secret must have ended.
	holdLimit time.Time
}

// make makes what the request wants of what there is: a token that is minted or kept, or the secret itself.
func (h *Hub) make(ctx context.Context, r *Request, e *store.Entitlement) (made, error) {
	switch r.Material {
	case lease.ClientSecret:
		return h.open(ctx, time.Now(), e)
	case lease.FederatedToken:
		return h.assert(ctx, e)
	case lease.AccessToken:
	}
	_, chosen, err := h.choose(e, r)
	if err != nil {
		return made{}, err
	}
	if len(e.Versions) == 0 {
		return made{}, issuer.ErrNotReady
	}
	versions := make([]credential.Version, len(e.Versions))
	for i := range e.Versions {
		versions[i] = e.Versions[i].Version
	}
	clientID := e.Versions[0].ClientID
	token, err := h.config.Issuer.Issue(ctx, issuer.Request{
		Cloud: e.Integration.Cloud, TenantID: e.Integration.TenantID, ClientID: clientID, Audience: chosen, Versions: versions,
		Write: e.Grant.Access() == grant.Write,
	})
	return made{
		versionID: token.VersionID, versionNumber: token.VersionNumber, clientID: clientID, requestID: token.RequestID, token: token.Text,
		issueTime: token.IssueTime, renewTime: token.RenewTime, expireTime: token.ExpireTime,
	}, err
}

// open opens the ACTIVE version's secret: never that of one that is RETIRING, which nobody new may hold, nor of one that was refused
// when it was last asked with. It is good until the grant's end; Entra is not asked.
func (h *Hub) open(ctx context.Context, now time.Time, e *store.Entitlement) (made, error) {
	v, ok := e.Active()
	if !ok || v.Federated() {
		return made{}, issuer.ErrNotReady
	}
	if v.Refusals > 0 {
		return made{}, issuer.ErrNotReady // it does not work everywhere
	}
	end, limit := e.Grant.ExpireTime, v.HoldLimit(h.config.HoldMargin)
	if longest := now.Add(h.config.LongestHold); longest.Before(limit) {
		limit = longest
	}
	if err := lease.CheckHold(end, limit); err != nil {
		return made{}, err
	}
	text, err := h.config.Keyring.Open(ctx, credential.SealedAs(v.ID), v.Sealed)
	if keyring.Lost(err) {
		// Its master hears of it, and makes another one.
		return made{}, errors.Join(fmt.Errorf("%w: open secret of %s: %w", issuer.ErrNotReady, v, err), h.config.Store.WantProbe(ctx, v.IntegrationUID, now))
	}
	if err != nil {
		return made{}, fmt.Errorf("open secret of %s: %w", v, err)
	}
	return made{
		versionID: v.ID, versionNumber: v.Number, clientID: v.ClientID, secret: text,
		issueTime: now, renewTime: end, expireTime: end, holdLimit: limit,
	}, nil
}

// deliver makes a credential and has it recorded. When the version is taken back between the two, it does so again with what
// is usable now.
func (h *Hub) deliver(ctx context.Context, r *Request, e *store.Entitlement, reason Reason) (*recorded, error) {
	for attempt := 1; ; attempt++ {
		made, err := h.attempt(ctx, r, e, reason)
		if !errors.Is(err, lease.ErrVersionGone) || attempt == versionAttempts {
			return made, err
		}
		if e, err = h.entitlement(ctx, e.Grant.UID, r.InstanceID); err != nil {
			return nil, err
		}
	}
}

func (h *Hub) attempt(ctx context.Context, r *Request, e *store.Entitlement, reason Reason) (*recorded, error) {
	o, err := h.offer(ctx, r, e, reason)
	if err != nil {
		return nil, err
	}
	var unused grant.Hash
	if reason == Initial {
		unused = r.unused
	}
	now := time.Now()
	l, err := h.config.Store.Deliver(ctx, now, store.Delivery{
		GrantUID: e.Grant.UID, InstanceID: r.InstanceID, Token: unused, VersionID: o.versionID, Material: r.Material, HoldLimit: o.holdLimit, LeaseUID: o.leaseUID,
		Reason: string(reason), Audience: o.audience, PolicyAudience: o.policyAudience, ClientRequestID: o.requestID, ExpireTime: o.expireTime, Caller: r.Caller,
	})
	if errors.Is(err, lease.ErrVersionGone) {
		h.config.Issuer.Drop(o.versionID)
	}
	if err != nil {
		return nil, err
	}
	h.count(now, reason, e.Grant.Account)
	return o.to(now, e.Grant, l), nil
}

func (h *Hub) count(now time.Time, reason Reason, account string) {
	h.deliveries.WithLabelValues(string(reason)).Inc()
	if h.config.Meter != nil {
		h.config.Meter.Count(now, account)
	}
}

// offer is a credential that has been made, for whoever is entitled to it.
type offer struct {
	made
	material lease.Material
	reason   Reason
	cloud    Cloud
	// cloudName and tenantID are the integration's, which must allow the audience if that is policyAudience.
	cloudName, tenantID, audience string
	policyAudience                bool
	// signingKey is the one that the version is under.
	signingKey string
	// consentLost is since when consent is lost.
	consentLost time.Time
}

func (h *Hub) offer(ctx context.Context, r *Request, e *store.Entitlement, reason Reason) (*offer, error) {
	cloud, chosen, err := h.choose(e, r)
	if err != nil {
		return nil, err
	}
	m, err := h.make(ctx, r, e)
	if err != nil {
		return nil, err
	}
	o := &offer{
		made: m, material: r.Material, reason: reason, cloud: cloud, cloudName: e.Integration.Cloud, tenantID: e.Integration.TenantID, audience: chosen,
		policyAudience: r.Material == lease.AccessToken && chosen != cloud.ResourceManager, consentLost: e.ConsentLostTime,
	}
	for i := range e.Versions {
		if v := &e.Versions[i]; v.ID == m.versionID {
			o.signingKey = v.SigningKey
		}
	}
	return o, nil
}

// to is its delivery by a grant to a lease, which is on record.
func (o *offer) to(now time.Time, g grant.Grant, l lease.Lease) *recorded {
	refresh := o.renewTime
	if !refresh.After(now) {
		refresh = now.Add(spread(retryEvery))
	}
	return &recorded{
		Delivery: Delivery{
			LeaseUID: l.UID, Generation: l.Generation, Version: o.versionNumber, Phase: g.Phase, Access: g.Access(),
			Reason: o.reason, IssueTime: o.issueTime, RefreshTime: refresh, ExpireTime: o.expireTime,
			GrantExpireTime: g.ExpireTime, Cloud: o.cloudName, TenantID: o.tenantID, ClientID: o.clientID,
			SubscriptionID: g.SubscriptionID, Material: o.material, Audience: o.audience, Token: o.token, Secret: o.secret,
			Environment: environment(o.tenantID, o.clientID, g.SubscriptionID, g.Access(), o.cloud),
		},
		held: holding{
			versionID: o.versionID, signingKey: o.signingKey, requestID: o.requestID, version: o.versionNumber, generation: l.Generation,
			expireTime: o.expireTime, grantExpireTime: g.ExpireTime, renewTime: refresh, end: g.ExpireTime, consentLost: o.consentLost,
		},
	}
}
