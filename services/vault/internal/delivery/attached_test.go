package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// labelled is a hub on a real database, of which the registry says that the integration "uid" is attached by itself to the project
// "network" by the label "prod"; and a stream for each access.
type labelled struct {
	t        *testing.T
	store    *store.Store
	hints    chan string
	revision int64
	// err is what the stream of an access ended with.
	ended map[grant.Phase]chan error
}

func withLabels(t *testing.T, test func(l *labelled)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		migrations, err := store.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		db := sqldbtest.SQLite(t, migrations)
		if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, 1) }); err != nil {
			t.Fatal(err)
		}
		l := &labelled{t: t, store: store.New(db, audittest.Keys(1)), hints: make(chan string), ended: map[grant.Phase]chan error{}}
		all := store.Wanted{
			Integrations: []store.Integration{l.integration("uid", "prod"), l.integration("zzz")},
			Projects:     []store.Project{l.project("prod")},
		}
		if err := l.store.ReplaceProjection(t.Context(), time.Now(), l.next(), all); err != nil {
			t.Fatal(err)
		}
		err = db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO applications (integration_uid, shard, next_time, client_id) VALUES ('uid', 0, 0, 'client')`); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time,
				start_time, end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals,
				refused_since, attempts, next_time, reason) VALUES ('v1', 'uid', 1, 'ACTIVE', 'v1', '', NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '')`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		hub := delivery.New(delivery.Config{
			LongestHold: 24 * time.Hour,
			Store:       l.store, Issuer: &fakeIssuer{kept: map[string]issuer.Token{}}, Hints: l.hints, Log: slog.New(slog.DiscardHandler),
			Clouds: map[string]delivery.Cloud{"public": {ResourceManager: arm}}, Keyring: fakeKeyring{}, HoldMargin: 5 * time.Minute,
		})
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- hub.Run(ctx) }()
		for _, phase := range []grant.Phase{grant.Planning, grant.Applying} {
			l.open(ctx, hub, phase)
		}
		test(l)
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		synctest.Wait()
	})
}

// open opens a stream and waits for its first message.
func (l *labelled) open(ctx context.Context, hub *delivery.Hub, phase grant.Phase) {
	l.t.Helper()
	g, err := grant.New(time.Now(), "g-"+string(phase), grant.Request{Account: "acme", Project: "accounts/acme/projects/network", Phase: phase, Run: "r"},
		grant.Resolution{IntegrationUID: "uid", ProjectUID: "network", SubscriptionID: "sub", Incarnation: "registry", Revision: 1})
	if err != nil {
		l.t.Fatal(err)
	}
	token, hash := grant.Mint()
	if _, err := l.store.CreateGrant(l.t.Context(), time.Now(), g, hash, grant.RequestKey{}, grant.Caller{}); err != nil {
		l.t.Fatal(err)
	}
	ended, taken := make(chan error, 1), 0
	l.ended[phase] = ended
	go func() {
		ended <- hub.Stream(ctx, delivery.Request{Token: token, InstanceID: "instance", Material: lease.AccessToken}, func(delivery.Delivery) error {
			taken++
			return nil
		}, stays)
	}()
	synctest.Wait()
	if taken != 1 {
		l.t.Fatalf("%s: %d messages", phase, taken)
	}
}

func (l *labelled) integration(uid string, auto ...string) store.Integration {
	return store.Integration{UID: uid, Name: "accounts/acme/integrations/" + uid, TenantID: "tenant", Cloud: "public", AutoLabels: auto, Revision: l.revision + 1}
}

func (l *labelled) project(labels ...string) store.Project {
	return store.Project{UID: "network", Name: "accounts/acme/projects/network", Labels: labels, Revision: l.revision + 1}
}

func (l *labelled) attachment(integration string, reads, writes bool) store.Attachment {
	return store.Attachment{UID: "att-" + integration, IntegrationUID: integration, ProjectUID: "network", Reads: reads, Writes: writes, Revision: l.revision + 1}
}

func (l *labelled) next() store.Projection {
	l.revision++
	return store.Projection{Incarnation: "registry", Revision: l.revision, Cursor: fmt.Sprint(l.revision), BookmarkTime: time.Now()}
}

// hear has the vault hear of a change, and its hub of a hint.
func (l *labelled) hear(changed store.Wanted) {
	l.t.Helper()
	if err := l.store.AdvanceProjection(l.t.Context(), time.Now(), l.next(), changed); err != nil {
		l.t.Fatal(err)
	}
	l.hints <- "changed"
	synctest.Wait()
}

// expect checks that a stream is up (nil), or how it ended.
func (l *labelled) expect(step string, phase grant.Phase, want error) {
	l.t.Helper()
	select {
	case err := <-l.ended[phase]:
		if want == nil || !errors.Is(err, want) {
			l.t.Errorf("%s: %s ended with %v, want %v", step, phase, err, want)
		}
		l.ended[phase] <- err
	default:
		if want != nil {
			l.t.Errorf("%s: %s goes on, want %v", step, phase, want)
		}
	}
}

// A live grant rests on what its own integration gives, and hears at once when that changes, whatever comes before it for others.
func TestHub_StreamsFollowLabels(t *testing.T) {
	type step struct {
		name        string
		hear        func(l *labelled) store.Wanted
		read, write error
	}
	integrations := func(all ...store.Integration) store.Wanted { return store.Wanted{Integrations: all} }
	projects := func(all ...store.Project) store.Wanted { return store.Wanted{Projects: all} }
	attachments := func(all ...store.Attachment) store.Wanted { return store.Wanted{Attachments: all} }
	detached := grant.ErrDetached
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"the project's label goes", []step{
			{"another one comes", func(l *labelled) store.Wanted { return projects(l.project("eu", "prod")) }, nil, nil},
			{"it goes", func(l *labelled) store.Wanted { return projects(l.project("eu")) }, detached, detached},
		}},
		{"the project goes", []step{
			{"it goes", func(*labelled) store.Wanted { return store.Wanted{GoneProjects: []string{"network"}} }, grant.ErrIntegrationDeleted, grant.ErrIntegrationDeleted},
		}},
		{"the integration's label goes", []step{
			{"another one comes", func(l *labelled) store.Wanted { return integrations(l.integration("uid", "prod", "eu")) }, nil, nil},
			{"it goes", func(l *labelled) store.Wanted { return integrations(l.integration("uid", "eu")) }, detached, detached},
		}},
		{"auto_attach is switched off", []step{
			{"off", func(l *labelled) store.Wanted { return integrations(l.integration("uid")) }, detached, detached},
		}},
		{"the label moves to another that both name", []step{
			{"the integration names it too", func(l *labelled) store.Wanted { return integrations(l.integration("uid", "prod", "eu")) }, nil, nil},
			{"the project has it instead", func(l *labelled) store.Wanted { return projects(l.project("eu")) }, nil, nil},
			{"the integration names no other", func(l *labelled) store.Wanted { return integrations(l.integration("uid", "eu")) }, nil, nil},
			{"and not that", func(l *labelled) store.Wanted { return integrations(l.integration("uid", "prod")) }, detached, detached},
		}},
		{"others come before it", []step{
			{"by name", func(l *labelled) store.Wanted { return integrations(l.integration("aaa", "prod")) }, nil, nil},
			{"by an attachment", func(l *labelled) store.Wanted { return attachments(l.attachment("zzz", true, true)) }, nil, nil},
			{"and it goes nevertheless", func(l *labelled) store.Wanted { return projects(l.project()) }, detached, detached},
		}},
		{"attached for READ, and detached", []step{
			{"attached for both", func(l *labelled) store.Wanted { return attachments(l.attachment("uid", true, true)) }, nil, nil},
			{"detached, and labels give it", func(l *labelled) store.Wanted {
				return store.Wanted{GoneAttachments: []store.Attachment{l.attachment("uid", true, true)}}
			}, nil, nil},
			{"attached for READ", func(l *labelled) store.Wanted { return attachments(l.attachment("uid", true, false)) }, nil, detached},
			{"the label goes", func(l *labelled) store.Wanted { return projects(l.project()) }, nil, detached},
			{"detached", func(l *labelled) store.Wanted {
				return store.Wanted{GoneAttachments: []store.Attachment{l.attachment("uid", true, false)}}
			}, detached, detached},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withLabels(t, func(l *labelled) {
				for _, s := range tt.steps {
					l.hear(s.hear(l))
					l.expect(s.name, grant.Planning, s.read)
					l.expect(s.name, grant.Applying, s.write)
				}
			})
		})
	}
}
