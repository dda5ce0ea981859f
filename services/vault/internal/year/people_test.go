package year_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// customers consent as soon as they can, and now and then take it back for some hours.
func (w *world) customers(ctx context.Context) {
	dice := w.luck.dice("customers")
	until := map[string]time.Time{} // when those consent again who have withdrawn consent
	for ctx.Err() == nil {
		for _, i := range w.registry.living() {
			if time.Now().After(until[i.UID]) {
				w.consent(ctx, i)
			}
		}
		sleep(ctx, 10*time.Minute)
		if time.Since(w.start) < 24*time.Hour || dice.IntN(100) != 0 {
			continue
		}
		all := w.registry.living()
		i := all[dice.IntN(len(all))]
		client := w.registry.reported(i.UID).ClientID
		if w.journal.tell(consented{i.UID, false}); dice.IntN(2) == 0 {
			w.count("consent withdrawn")
			_ = w.sim.RemovePrincipal(i.TenantID, client) // there may be none yet
			until[i.UID] = time.Now().Add(time.Hour + time.Duration(dice.Int64N(int64(6*time.Hour))))
			continue
		} else {
			w.count("principal disabled")
			if w.sim.EnablePrincipal(i.TenantID, client, false) == nil {
				sleep(ctx, time.Hour+time.Duration(dice.Int64N(int64(6*time.Hour))))
				_ = w.sim.EnablePrincipal(i.TenantID, client, true) // it is there
			}
		}
		w.journal.tell(consented{i.UID, true})
	}
}

// comeAndGo has now and then an integration deleted, and another made.
func (w *world) comeAndGo(ctx context.Context) {
	dice := w.luck.dice("come and go")
	for ctx.Err() == nil {
		sleep(ctx, 24*time.Hour+time.Duration(dice.Int64N(int64(48*time.Hour))))
		all := w.registry.living()
		i := all[dice.IntN(len(all))]
		if ctx.Err() != nil || w.registry.reported(i.UID).ClientID == "" {
			continue
		}
		w.registry.remove(ctx, i)
		w.registry.add(ctx)
	}
}

// consent gives consent where it is asked for.
func (w *world) consent(ctx context.Context, i *integration) {
	client := w.registry.reported(i.UID).ClientID
	if client == "" {
		return
	}
	if _, err := w.sim.Principal(i.TenantID, client); err == nil || !errors.Is(err, entrasim.ErrNotFound) {
		return
	}
	_, err := w.sim.Consent(ctx, entrasim.Consent{Tenant: i.TenantID, ClientID: client, RedirectURI: redirectURI, UserName: i.administrator})
	if err == nil {
		w.journal.tell(consented{i.UID, true})
	}
}

// runner has one job after another.
func (w *world) runner(ctx context.Context, name string) {
	dice := w.luck.dice(name)
	for n := 0; ctx.Err() == nil; n++ {
		sleep(ctx, time.Duration(dice.Int64N(int64(90*time.Minute))))
		all := w.registry.living()
		j := &job{w: w, name: fmt.Sprintf("%s/%d", name, n), dice: dice, hand: make(chan struct{}, 1), integration: all[dice.IntN(len(all))]}
		j.run(ctx)
	}
}

// job is one phase of a run, and the runner that works on it.
type job struct {
	w           *world
	name        string
	dice        *rand.Rand
	integration *integration

	request delivery.Request
	end     time.Time // the grant's
	slow    bool
	// hand has one place: what is received is received one after another.
	hand chan struct{}
	held *delivery.Delivery
	// grant is the UID of what it has to show.
	grant string
}

func (j *job) run(ctx context.Context) {
	w, i := j.w, j.integration
	now := time.Now()
	material, longest := lease.AccessToken, 20*time.Hour
	if j.dice.IntN(3) == 0 {
		material = lease.ClientSecret
		if w.registry.federated(i) {
			material, longest = lease.FederatedToken, 2*time.Hour // it is renewed every few minutes
		}
	}
	j.end = now.Add(10*time.Minute + time.Duration(j.dice.Int64N(int64(longest))))
	token, hash := grant.Mint()
	g, err := grant.New(now, uuid.NewString(), grant.Request{
		Account: account, Project: i.project.Name, Phase: []grant.Phase{grant.Planning, grant.Applying}[j.dice.IntN(2)], Run: j.name, ExpireTime: j.end,
	}, grant.Resolution{
		Integration: i.Name, IntegrationUID: i.UID, ProjectUID: i.project.UID, SubscriptionID: i.DefaultSubscriptionID, Incarnation: "registry",
	})
	if err != nil {
		w.fail("grant: %v", err)
		return
	}
	if _, err := w.store.CreateGrant(ctx, now, g, hash, grant.RequestKey{}, grant.Caller{}); err != nil {
		if ctx.Err() == nil && !w.leaving(i.UID) {
			w.fail("create grant: %v", err)
		}
		return
	}
	defer w.journal.tell(over{j.name})
	j.grant = g.UID
	j.request = delivery.Request{Token: token, InstanceID: j.name, Material: material}
	j.slow = j.dice.IntN(6) == 0
	// A job ends before its grant does, most of the time.
	length := time.Until(j.end)
	if j.dice.IntN(4) != 0 {
		length = time.Duration(j.dice.Int64N(int64(length)))
	}
	working, done := context.WithTimeout(ctx, length)
	defer done()
	for working.Err() == nil {
		if final := j.stream(working); final {
			return
		}
		sleep(working, time.Second+time.Duration(j.dice.Int64N(int64(20*time.Second))))
	}
	if j.dice.IntN(3) == 0 {
		return // vanished: nobody says anything
	}
	j.close(ctx)
}

// stream follows one stream at some replica until it breaks, and tells whether there is nothing to come back for.
func (j *job) stream(ctx context.Context) (final bool) {
	life := j.w.replicas[j.dice.IntN(len(j.w.replicas))].current()
	if life == nil {
		return false
	}
	// The handler runs in the replica's life, and ends with the runner's connection.
	handling, hangUp := context.WithCancel(life.ctx)
	defer hangUp()
	stop := context.AfterFunc(ctx, hangUp)
	defer stop()
	if j.dice.IntN(5) == 0 { // this connection is bad
		breaks := time.AfterFunc(time.Duration(j.dice.Int64N(int64(2*time.Hour))), hangUp)
		defer breaks.Stop()
	}
	reads := time.Duration(0)
	if j.slow {
		reads = time.Duration(j.dice.Int64N(int64(time.Hour)))
	}
	ended := make(chan error, 1)
	go func() {
		ended <- life.hub.Stream(handling, j.request, func(d delivery.Delivery) error {
			if life.pass(true) != nil {
				return errDead
			}
			// A handler that was given up on may still come by.
			j.hand <- struct{}{}
			defer func() { <-j.hand }()
			if handling.Err() != nil {
				return errDead
			}
			j.receive(d)
			j.use(ctx, j.held)
			j.held = &d
			j.use(ctx, j.held)
			sleep(handling, reads)
			return nil
		}, func(time.Duration) error { return nil })
	}()
	var err error
	select {
	case err = <-ended:
	case <-life.silence():
		hangUp()
		// The handler ends when its process goes on, and nobody hears of it: ended has room for one.
		return false
	}
	for _, end := range []error{grant.ErrExpired, grant.ErrRevoked, grant.ErrDetached, grant.ErrIntegrationDeleted, lease.ErrClosed, grant.ErrUnknown, lease.ErrHoldTooLong, delivery.ErrMaterialNotAllowed} {
		if errors.Is(err, end) {
			if errors.Is(err, grant.ErrExpired) && time.Now().Before(j.end.Add(-time.Second)) {
				j.w.fail("%s was told that its grant has expired, %s before its end", j.name, time.Until(j.end))
			}
			return true
		}
	}
	return false
}

// receive tells what it was given, at the moment it has it.
func (j *job) receive(d delivery.Delivery) {
	e := receipt{
		Job: j.name, Integration: j.integration.UID, Grant: j.grant, Lease: d.LeaseUID, Generation: d.Generation, Version: d.Version, Client: d.ClientID,
		Material: d.Material, Reason: d.Reason, Issue: d.IssueTime, Expire: d.ExpireTime, GrantExpire: d.GrantExpireTime, Slow: j.slow,
	}
	if d.Material == lease.FederatedToken {
		e.Key = keyOf(d.Token.Expose())
	}
	j.w.follow()
	j.w.journal.tell(e)
}

// close says that the job is over.
func (j *job) close(ctx context.Context) {
	life := j.w.replicas[j.dice.IntN(len(j.w.replicas))].current()
	if life == nil {
		return
	}
	// From here on nothing is claimed of what it holds, whether or not this is heard.
	j.w.journal.tell(released{j.name})
	_ = life.hub.CloseLease(life.ctx, j.request) // the grant's end does it otherwise
	_ = ctx
}
