package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

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
	switch {
	case len(e.Versions) == 0 && !e.ConsentLostTime.IsZero():
		return made{}, issuer.ErrConsentMissing // there will be none before consent is back
	case len(e.Versions) == 0:
		return made{}, issuer.ErrNotReady
	}
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
	token, err := h.config.Issuer.Issue(ctx, tokenRequest(e, chosen, e.Versions))
	return madeOf(token, e), err
}

// tokenRequest asks for a token of one of the versions.
func tokenRequest(e *store.Entitlement, audience string, of []store.Live) issuer.Request {
	versions := make([]credential.Version, len(of))
	for i := range of {
		versions[i] = of[i].Version
	}
	return issuer.Request{
		Cloud: e.Integration.Cloud, TenantID: e.Integration.TenantID, ClientID: of[0].ClientID, Audience: audience, Versions: versions,
		Write: e.Grant.Access() == grant.Write,
	}
}

func madeOf(token issuer.Token, e *store.Entitlement) made {
	return made{
		versionID: token.VersionID, versionNumber: token.VersionNumber, clientID: e.Versions[0].ClientID, requestID: token.RequestID, token: token.Text,
		issueTime: token.IssueTime, renewTime: token.RenewTime, expireTime: token.ExpireTime,
	}
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
	d := o.delivery()
	d.GrantUID, d.InstanceID, d.Token = e.Grant.UID, r.InstanceID, unused
	l, err := h.config.Store.Deliver(ctx, now, d)
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
	// caller is who asked for it.
	caller grant.Caller
}

// delivery is what is recorded of it.
func (o *offer) delivery() store.Delivery {
	return store.Delivery{
		VersionID: o.versionID, Material: o.material, HoldLimit: o.holdLimit, LeaseUID: o.leaseUID, Reason: string(o.reason), Audience: o.audience,
		PolicyAudience: o.policyAudience, ClientRequestID: o.requestID, ExpireTime: o.expireTime, Caller: o.caller,
	}
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
	return offered(r, e, reason, cloud, chosen, m), nil
}

// atHand is a call's first offer, if nothing has to be waited for to make it: else errNotAtHand.
func (h *Hub) atHand(r *Request, e *store.Entitlement) (*offer, error) {
	cloud, chosen, err := h.choose(e, r)
	if err != nil {
		return nil, err
	}
	if len(e.Versions) == 0 {
		return nil, errNotAtHand
	}
	token, ok := h.config.Issuer.Kept(tokenRequest(e, chosen, e.Versions[:1]))
	if !ok {
		return nil, errNotAtHand
	}
	return offered(r, e, Initial, cloud, chosen, madeOf(token, e)), nil
}

func offered(r *Request, e *store.Entitlement, reason Reason, cloud Cloud, audience string, m made) *offer {
	o := &offer{
		made: m, material: r.Material, reason: reason, cloud: cloud, cloudName: e.Integration.Cloud, tenantID: e.Integration.TenantID, audience: audience,
		policyAudience: r.Material == lease.AccessToken && audience != cloud.ResourceManager, consentLost: e.ConsentLostTime, caller: r.Caller,
	}
	for i := range e.Versions {
		if v := &e.Versions[i]; v.ID == m.versionID {
			o.signingKey = v.SigningKey
		}
	}
	return o
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
