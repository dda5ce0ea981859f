package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/redistest"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/hint"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// replica is one of several vaults on one database, and, where there are hints, on one Redis.
type replica struct {
	hub   *delivery.Hub
	hints *hint.Hints // nil without
}

// changed is what a vault does after it has changed something.
func (r *replica) changed() {
	r.hub.Nudge()
	if r.hints != nil {
		r.hints.Notify()
	}
}

// listener is a stream on one of the replicas.
type listener struct {
	replica int
	mu      sync.Mutex
	reasons []delivery.Reason
	err     error
	at      time.Time // of the last thing that happened
}

func (l *listener) note(do func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = time.Now()
	do()
}

// reach is several replicas, each with two streams by one grant of a run, and one by another.
type reach struct {
	t         *testing.T
	db        *sqldb.DB
	stores    []*store.Store
	replicas  []*replica
	revision  int64
	listeners []*listener
}

const replicas = 3

func withReplicas(t *testing.T, hinted bool, test func(r *reach)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		migrations, err := store.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		r := &reach{t: t, db: sqldbtest.SQLite(t, migrations)}
		err = r.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			return fence.Configure(ctx, tx, 1)
		})
		if err != nil {
			t.Fatal(err)
		}
		var redis *redistest.Redis
		if hinted {
			redis = redistest.Mini(t)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		run := func(what string, run func(context.Context) error) {
			running.Go(func() {
				if err := run(ctx); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		for range replicas {
			s := store.New(r.db, audittest.Keys(1))
			one := &replica{}
			cfg := delivery.Config{
				LongestHold: 24 * time.Hour,
				Store:       s, Issuer: &fakeIssuer{kept: map[string]issuer.Token{}}, Log: slog.New(slog.DiscardHandler), Keyring: fakeKeyring{},
				Clouds: map[string]delivery.Cloud{"public": {ResourceManager: arm}}, HoldMargin: 5 * time.Minute,
			}
			if hinted {
				one.hints = hint.New(redis.Link(t), "test", slog.New(slog.DiscardHandler))
				cfg.Hints = one.hints.Heard()
				// Whatever comes within a second comes by a hint.
				cfg.Poll = 10 * time.Second
				run("hints", one.hints.Run)
			}
			one.hub = delivery.New(cfg)
			run("hub", one.hub.Run)
			r.stores, r.replicas = append(r.stores, s), append(r.replicas, one)
		}
		r.furnish()
		for i := range replicas {
			r.listen(ctx, &running, i, "g1", fmt.Sprint("instance-", i))
		}
		r.listen(ctx, &running, 0, "other", "instance-0")
		// Not in step with the polls.
		time.Sleep(1300 * time.Millisecond)
		synctest.Wait()
		for _, l := range r.listeners {
			if len(l.reasons) != 1 || l.err != nil {
				t.Fatalf("a stream has begun with %v, %v", l.reasons, l.err)
			}
		}
		test(r)
		stop()
		running.Wait()
	})
}

func (r *reach) exec(query string, args ...any) {
	r.t.Helper()
	err := r.db.Tx(r.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *reach) projection() store.Projection {
	r.revision++
	return store.Projection{Incarnation: "registry", Revision: r.revision, Cursor: "c", BookmarkTime: time.Now()}
}

func (r *reach) furnish() {
	r.t.Helper()
	integration := func(uid string) store.Integration {
		return store.Integration{UID: uid, Name: "accounts/acme/integrations/" + uid, TenantID: "tenant", Cloud: "public"}
	}
	project := func(uid string) store.Project {
		return store.Project{UID: uid, Name: "accounts/acme/projects/" + uid}
	}
	attachment := func(uid string) store.Attachment {
		return store.Attachment{UID: "att-" + uid, IntegrationUID: uid, ProjectUID: uid, Reads: true, Writes: true}
	}
	if err := r.stores[0].ReplaceProjection(r.t.Context(), time.Now(), r.projection(), store.Wanted{
		Integrations: []store.Integration{integration("uid"), integration("other")},
		Projects:     []store.Project{project("uid"), project("other")},
		Attachments:  []store.Attachment{attachment("uid"), attachment("other")},
	}); err != nil {
		r.t.Fatal(err)
	}
	for _, uid := range []string{"uid", "other"} {
		r.exec(`INSERT INTO applications (integration_uid, shard, next_time, client_id, consented, consent_time) VALUES ($1, 0, 0, 'client', 1, 1)`, uid)
		r.version(uid, 1, "ACTIVE")
		account := map[string]string{"uid": "acme", "other": "other"}[uid]
		g, err := grant.New(time.Now(), map[string]string{"uid": "g1", "other": "other"}[uid],
			grant.Request{Account: account, Project: "accounts/acme/projects/" + uid, Phase: grant.Planning, Run: "run-" + uid},
			grant.Resolution{Integration: "accounts/acme/integrations/" + uid, IntegrationUID: uid, ProjectUID: uid, SubscriptionID: "sub", Incarnation: "registry", Revision: 1})
		if err != nil {
			r.t.Fatal(err)
		}
		_, hash := grant.Mint()
		if _, err := r.stores[0].CreateGrant(r.t.Context(), time.Now(), g, hash, grant.RequestKey{}, grant.Caller{}); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *reach) version(integrationUID string, number int, state string) {
	r.t.Helper()
	r.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time,
		start_time, end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals,
		refused_since, attempts, next_time, reason) VALUES ($1, $2, $3, $4, $1, '', NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '')`,
		fmt.Sprint(integrationUID, "-v", number), integrationUID, number, state)
}

// listen opens a stream on a replica.
func (r *reach) listen(ctx context.Context, running *sync.WaitGroup, at int, grantUID, instance string) {
	r.t.Helper()
	token, hash := grant.Mint()
	r.exec(`UPDATE grants SET token_hash = $1, use_time = 0 WHERE uid = $2`, hash[:], grantUID)
	l := &listener{replica: at}
	r.listeners = append(r.listeners, l)
	running.Go(func() {
		err := r.replicas[at].hub.Stream(ctx, delivery.Request{Token: token, InstanceID: instance, Material: lease.AccessToken}, func(d delivery.Delivery) error {
			l.note(func() { l.reasons = append(l.reasons, d.Reason) })
			return nil
		}, stays)
		l.note(func() { l.err = err })
	})
	synctest.Wait()
}

// Whatever happens on one replica reaches every stream that it concerns on every other one, and no other stream: within a second with hints,
// within ten without.
func TestReach_EveryCauseEveryReplica(t *testing.T) {
	registry := func(change store.Wanted) func(r *reach) error {
		return func(r *reach) error {
			return r.stores[1].AdvanceProjection(r.t.Context(), time.Now(), r.projection(), change)
		}
	}
	// commit is what the shard's master writes.
	commit := func(change string) func(r *reach) error {
		return func(r *reach) error {
			r.exec(change)
			r.note()
			return nil
		}
	}
	for _, tt := range []struct {
		name string
		do   func(r *reach) error
		// reason is why another credential comes, err why the stream ends.
		reason delivery.Reason
		err    error
		// alone says that it concerns the last replica's stream, and no other by the same grant.
		alone bool
	}{
		{name: "rotation", reason: delivery.Rotated, do: func(r *reach) error {
			r.version("uid", 2, "PROPAGATING")
			r.exec(`UPDATE credential_versions SET state = 'RETIRING' WHERE id = 'uid-v1'`)
			return commit(`UPDATE credential_versions SET state = 'ACTIVE' WHERE id = 'uid-v2'`)(r)
		}},
		{name: "compromise", reason: delivery.Compromised, do: func(r *reach) error {
			if _, err := r.stores[1].RequestRotation(r.t.Context(), time.Now(), credential.RotationRequest{
				Integration: "accounts/acme/integrations/uid", Reason: credential.Compromised,
			}, grant.Caller{}); err != nil {
				return err
			}
			r.version("uid", 2, "PROPAGATING")
			r.exec(`UPDATE credential_versions SET state = 'REVOKING' WHERE id = 'uid-v1'`)
			return commit(`UPDATE credential_versions SET state = 'ACTIVE' WHERE id = 'uid-v2'`)(r)
		}},
		{name: "detachment", err: grant.ErrDetached, do: registry(store.Wanted{GoneAttachments: []store.Attachment{
			{UID: "att-uid", IntegrationUID: "uid", ProjectUID: "uid"},
		}})},
		{name: "deletion of the project", err: grant.ErrIntegrationDeleted, do: registry(store.Wanted{GoneProjects: []string{"uid"}})},
		{name: "deletion of the integration", err: grant.ErrIntegrationDeleted, do: func(r *reach) error {
			return registry(store.Wanted{Integrations: []store.Integration{{
				UID: "uid", Name: "accounts/acme/integrations/uid", TenantID: "tenant", Cloud: "public", Deleting: true, Revision: r.revision + 1,
			}}})(r)
		}},
		{name: "revocation", err: grant.ErrRevoked, do: func(r *reach) error {
			_, err := r.stores[1].RevokeGrant(r.t.Context(), time.Now(), "acme", "g1", grant.Caller{})
			return err
		}},
		{name: "revocation of a lease", err: lease.ErrClosed, alone: true, do: func(r *reach) error {
			e, err := r.stores[1].Entitlement(r.t.Context(), "g1", fmt.Sprint("instance-", replicas-1))
			if err != nil {
				return err
			}
			_, err = r.stores[1].RevokeLease(r.t.Context(), time.Now(), "acme", "g1", e.Lease.UID, grant.Caller{})
			return err
		}},
		{name: "revocation of the run", err: grant.ErrRevoked, do: func(r *reach) error {
			_, _, err := r.stores[1].RevokeGrants(r.t.Context(), time.Now(), "acme", grant.Scope{Run: "run-uid"}, 10, grant.Caller{})
			return err
		}},
		{name: "freezing of the account", err: grant.ErrAccountFrozen, do: func(r *reach) error {
			_, err := r.stores[1].FreezeAccount(r.t.Context(), time.Now(), "acme", "a test", grant.Caller{})
			return err
		}},
		{name: "extension", reason: delivery.Refresh, do: func(r *reach) error {
			_, err := r.stores[1].ExtendGrant(r.t.Context(), time.Now(), "acme", "g1", time.Now().Add(2*time.Hour), grant.Caller{})
			return err
		}},
		{name: "loss of consent", err: issuer.ErrConsentMissing, do: commit(`UPDATE applications SET consented = 0, consent_time = 2 WHERE integration_uid = 'uid'`)},
	} {
		for _, hinted := range []bool{true, false} {
			within, how := time.Second, "with hints"
			if !hinted {
				within, how = 10*time.Second, "without hints"
			}
			t.Run(tt.name+" "+how, func(t *testing.T) {
				withReplicas(t, hinted, func(r *reach) {
					began := time.Now()
					if err := tt.do(r); err != nil {
						t.Fatal(err)
					}
					r.replicas[1].changed()
					time.Sleep(within)
					synctest.Wait()
					for i, l := range r.listeners {
						l.mu.Lock()
						news := l.reasons[1:]
						switch {
						case i == replicas || tt.alone && i != replicas-1:
							if len(news) != 0 || l.err != nil {
								t.Errorf("stream %d, which it does not concern, heard %v, %v", i, news, l.err)
							}
						case tt.err != nil && !errors.Is(l.err, tt.err):
							t.Errorf("replica %d: %v, %v; want %v", l.replica, news, l.err, tt.err)
						case tt.err == nil && (l.err != nil || len(news) != 1 || news[0] != tt.reason):
							t.Errorf("replica %d: %v, %v; want %v", l.replica, news, l.err, tt.reason)
						case l.at.Sub(began) > within:
							t.Errorf("replica %d heard after %s", l.replica, l.at.Sub(began))
						}
						l.mu.Unlock()
					}
				})
			})
		}
	}
}

// note tells of a change of the integration, as a master's commit does.
func (r *reach) note() {
	r.t.Helper()
	r.exec(`UPDATE change_counter SET seq = seq + 1`)
	r.exec(`INSERT INTO changes (seq, integration_uid, grant_uid, time) SELECT seq, 'uid', '', 0 FROM change_counter`)
}

// Consent that is lost is told once: whoever comes back is given what there is, and hears when it is lost again.
func TestReach_LossOfConsentIsToldOnce(t *testing.T) {
	withReplicas(t, false, func(r *reach) {
		lose := func(at int) {
			r.exec(`UPDATE applications SET consented = 0, consent_time = $1 WHERE integration_uid = 'uid'`, at)
			r.note()
			time.Sleep(3 * time.Second)
			synctest.Wait()
		}
		lose(2)
		ctx, cancel := context.WithCancel(r.t.Context())
		defer cancel()
		var running sync.WaitGroup
		r.listen(ctx, &running, 2, "g1", "instance-2")
		back := r.listeners[len(r.listeners)-1]
		check := func(when string, want error) {
			t.Helper()
			back.mu.Lock()
			defer back.mu.Unlock()
			if len(back.reasons) != 1 || !errors.Is(back.err, want) {
				t.Errorf("%s: %v, %v; want %v", when, back.reasons, back.err, want)
			}
		}
		r.note()
		time.Sleep(3 * time.Second)
		check("come back", nil)
		r.exec(`UPDATE applications SET consented = 1, consent_time = 3 WHERE integration_uid = 'uid'`)
		r.note()
		time.Sleep(3 * time.Second)
		check("consent is back", nil)
		lose(4)
		check("lost again", issuer.ErrConsentMissing)
		cancel()
		running.Wait()
	})
}
