package delivery

import (
	"cmp"
	"context"
	"slices"
	"time"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

const (
	// fanOutFrom is of how many streams a credential is made and recorded together. Fewer look each for themselves, and share what the database is asked.
	fanOutFrom = 16
	// fanOutTimeout bounds a fan-out: whom it has not reached by then looks.
	fanOutTimeout = 5 * time.Second
	// fanOutsAtOnce is how many records of fan-outs are written at the same time.
	fanOutsAtOnce = 2
)

// alike is what streams have in common that can be given the same token.
type alike struct {
	integrationUID, audience, versionID string
	access                              grant.Access
}

// idler is a stream that waits, and what it holds. Whoever has taken it gives it something or wakes it.
type idler struct {
	*stream
	held *holding
}

// fan collects the streams that may be given the same.
type fan struct {
	alike map[alike][]idler
	seen  map[leaseKey]bool
}

// take takes a stream that waits for a token; of a lease's streams only one, since each delivery counts up the lease's generation.
func (f *fan) take(s *stream) bool {
	if f.seen[s.lease] {
		return false
	}
	held := s.idle.Swap(nil)
	if held == nil || s.request.Material != lease.AccessToken {
		return false
	}
	if f.alike == nil {
		f.alike, f.seen = map[alike][]idler{}, map[leaseKey]bool{}
	}
	key := alike{s.integrationUID, s.request.Audience, held.versionID, s.access}
	f.alike[key] = append(f.alike[key], idler{s, held})
	f.seen[s.lease] = true
	s.taken.Store(true)
	return true
}

// fanOuts has those that are many given what is new, and the others look.
func (h *Hub) fanOuts(ctx context.Context, f fan) {
	for _, all := range f.alike {
		if len(all) < fanOutFrom {
			lookAll(all)
			continue
		}
		// Streams of one connection mostly have come about together; and what is sent by one at about the same time is few writes, and few reads by whoever gets it.
		slices.SortFunc(all, func(a, b idler) int { return cmp.Compare(a.number, b.number) })
		h.fans.Go(func() {
			left := all // look for themselves, and say what is wrong
			err := caught.Panic(func() (err error) {
				left, err = h.fanOut(ctx, all)
				return err
			})
			lookAll(left)
			if err != nil && ctx.Err() == nil && !bearable(err) {
				h.config.Log.WarnContext(ctx, "a credential cannot be given to many streams at once", obs.KeyError, err)
			}
		})
	}
}

func lookAll(all []idler) {
	for _, i := range all {
		i.taken.Store(false)
		i.look()
	}
}

// fanOut gives streams that hold the same what is newer, as far as it is recorded, or lets them wait on where nothing is, and returns those that have to look.
func (h *Hub) fanOut(ctx context.Context, all []idler) (left []idler, err error) {
	ctx, cancel := context.WithTimeout(ctx, fanOutTimeout)
	defer cancel()
	o, ok := h.newest(ctx, all[0])
	if !ok {
		return all, nil
	}
	like := map[same]*recorded{}
	do := func(some []idler) ([]idler, error) { return h.giveAll(ctx, o, like, some) }
	if o.versionID == all[0].held.versionID {
		do = func(some []idler) ([]idler, error) { return h.keepAll(ctx, o, some) }
	}
	for len(all) > 0 {
		some := all[:min(len(all), store.MaxFanOut)]
		missed, err := do(some)
		if err != nil {
			return append(left, all...), err
		}
		left, all = append(left, missed...), all[len(some):]
	}
	return left, nil
}

// newest makes what streams that hold the same are to hold now; false when each has to look what there is for it.
func (h *Hub) newest(ctx context.Context, of idler) (*offer, bool) {
	e, err := h.config.Store.Entitlement(ctx, of.lease.grantUID, of.lease.instanceID)
	if err != nil || !e.ConsentLostTime.IsZero() {
		return nil, false
	}
	if !slices.ContainsFunc(e.Versions, func(v store.Live) bool { return v.ID == of.held.versionID }) {
		h.config.Issuer.Drop(of.held.versionID)
	}
	o, err := h.offer(ctx, of.request, e, Rotated)
	if err != nil || o.versionID == of.held.versionID {
		return o, err == nil
	}
	compromised, err := h.compromised(ctx, of.held, e)
	if compromised {
		o.reason = Compromised
	}
	return o, err == nil
}

// same is what deliveries of one offer have in common that are alike.
type same struct {
	phase          grant.Phase
	subscriptionID string
}

// toAll is its fan-out to streams.
func (o *offer) toAll(all []idler) store.FanOut {
	f := store.FanOut{
		VersionID: o.versionID, Material: o.material, Reason: string(o.reason), Audience: o.audience, PolicyAudience: o.policyAudience,
		ClientRequestID: o.requestID, ExpireTime: o.expireTime, To: make([]store.Recipient, len(all)),
	}
	for i, s := range all {
		f.To[i] = store.Recipient{GrantUID: s.lease.grantUID, InstanceID: s.lease.instanceID, Caller: s.request.Caller}
	}
	return f
}

// keepAll lets those wait on that are entitled to what they hold, which is the newest; the others are returned.
func (h *Hub) keepAll(ctx context.Context, o *offer, all []idler) (missed []idler, err error) {
	entitled, err := h.config.Store.Entitled(ctx, time.Now(), o.toAll(all))
	if err != nil {
		return nil, err
	}
	for i, s := range all {
		if !entitled[i].Grant.ExpireTime.Equal(s.held.grantExpireTime) { // there is none where it is not entitled
			missed = append(missed, s)
			continue
		}
		s.taken.Store(false)
		s.signal()
	}
	return missed, nil
}

// giveAll has a delivery recorded to all of them, and gives it to those that it reached; the others are returned. Like is what has been given of the offer, one of each.
func (h *Hub) giveAll(ctx context.Context, o *offer, like map[same]*recorded, all []idler) (missed []idler, err error) {
	select {
	case h.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	now := time.Now()
	reached, err := h.config.Store.FanOut(ctx, now, o.toAll(all))
	<-h.turns
	if err != nil {
		return nil, err
	}
	for i, s := range all {
		if reached[i].Lease.Generation == 0 {
			missed = append(missed, s)
			continue
		}
		g, l := reached[i].Grant, reached[i].Lease
		k := same{g.Phase, g.SubscriptionID}
		made := like[k]
		if made == nil {
			made = o.to(now, g, l)
			made.instead = s.held.versionID
			if o.renewTime.After(now) { // or each is to come back at another moment
				made.Alike = &Alike{}
				like[k] = made
			}
		}
		s.taken.Store(false)
		s.give(made.to(g, l))
		h.count(now, o.reason, s.account)
	}
	return missed, nil
}
