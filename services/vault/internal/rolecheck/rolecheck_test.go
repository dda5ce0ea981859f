package rolecheck_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/permission"
	"phasekey.dev/services/vault/internal/rolecheck"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	name         = "accounts/acme/integrations/net"
	subscription = "3fe2a1c4-0000-4000-8000-00000000000a"
	scope        = "/subscriptions/" + subscription
	group        = scope + "/resourceGroups/network"
)

// azure is an Entra ID and a Resource Manager that answer as they are told, after a second.
type azure struct {
	mu     sync.Mutex
	seen   permission.Seen
	refuse error // of a token
	away   error // of Resource Manager
	tokens []issuer.Request
	asked  []string
}

func (a *azure) set(change func(*azure)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

func (a *azure) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.asked)
}

func (a *azure) Issue(_ context.Context, request issuer.Request) (issuer.Token, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens = append(a.tokens, request)
	return issuer.Token{Text: secret.New("token")}, a.refuse
}

func (a *azure) See(ctx context.Context, token secret.Text, scope, principal string) (permission.Seen, error) {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return permission.Seen{}, ctx.Err()
	case <-timer.C:
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, scope+" "+principal)
	return a.seen, a.away
}

// role is what is seen with a role in the subscription.
func role(actions ...string) permission.Seen {
	return permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{
		{Role: "a role", Scope: scope, Permissions: []permission.Permission{{Actions: actions}}},
	}}
}

type stage struct {
	t       *testing.T
	db      *sqldb.DB
	store   *store.Store
	azure   *azure
	checker *rolecheck.Checker
}

// inBubble runs a test with one integration that has consent, a proven version and a default subscription.
func inBubble(t *testing.T, test func(s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		migrations, err := store.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		s := &stage{t: t, db: sqldbtest.SQLite(t, migrations), azure: &azure{}}
		s.store = store.New(s.db, audittest.Keys(1))
		if err := s.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, 1) }); err != nil {
			t.Fatal(err)
		}
		s.want(store.Integration{DefaultSubscriptionID: subscription})
		s.exec(`INSERT INTO applications (integration_uid, shard, next_time, client_id, consented, principal_object_id) VALUES ('uid', 0, 0, 'client', 1, 'oid')`)
		s.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time,
			end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since,
			attempts, next_time, reason) VALUES ('v1', 'uid', 1, 'ACTIVE', 'v1', '', 'sealed', 0, 0, 0, 0, $1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '')`,
			sqldb.Micros(time.Now().Add(24*time.Hour)))
		s.checker = s.another()
		test(s)
	})
}

// another is another replica's.
func (s *stage) another() *rolecheck.Checker {
	s.t.Helper()
	checker, err := rolecheck.New(rolecheck.Config{
		Store: s.store, Issuer: s.azure, Log: slog.New(slog.DiscardHandler),
		Clouds: map[string]rolecheck.Cloud{"public": {Viewer: s.azure, Audience: "https://rm.example"}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return checker
}

func (s *stage) want(i store.Integration) {
	s.t.Helper()
	i.UID, i.Name, i.TenantID = "uid", name, "tenant"
	if i.Cloud == "" {
		i.Cloud = "public"
	}
	now := time.Now()
	if err := s.store.ReplaceProjection(s.t.Context(), now, store.Projection{Incarnation: "registry", Revision: now.UnixMicro(), BookmarkTime: now},
		store.Wanted{Integrations: []store.Integration{i}}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) exec(query string, args ...any) {
	s.t.Helper()
	if err := s.db.Tx(s.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) found() permission.Check {
	s.t.Helper()
	facts, err := s.store.Facts(s.t.Context(), "uid")
	if err != nil {
		s.t.Fatal(err)
	}
	return facts.Permissions
}

func TestCheck_LooksWithTheIntegrationsOwnToken(t *testing.T) {
	inBubble(t, func(s *stage) {
		s.azure.set(func(a *azure) { a.seen = role("*/read") })
		got, err := s.checker.Check(s.t.Context(), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := rolecheck.Result{PrincipalObjectID: "oid", Time: got.Time, Verdicts: []permission.Verdict{permission.Judge(scope, "oid", role("*/read"))}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		token := s.azure.tokens[0]
		if token.Cloud != "public" || token.TenantID != "tenant" || token.ClientID != "client" || token.Audience != "https://rm.example" ||
			len(token.Versions) != 1 || token.Versions[0].ID != "v1" {
			t.Errorf("the token: %+v", token)
		}
		if diff := cmp.Diff(permission.Check{Time: got.Time, SubscriptionID: subscription, PrincipalObjectID: "oid", Read: permission.Full, Write: permission.None}, s.found()); diff != "" {
			t.Errorf("stored (-want +got):\n%s", diff)
		}
		// Elsewhere nothing is stored.
		s.azure.set(func(a *azure) { a.seen = role("*") })
		if got, err := s.checker.Check(s.t.Context(), name, []string{group}); err != nil || got.Verdicts[0].Write != permission.Full || s.found().Write != permission.None {
			t.Errorf("another scope: %+v, error %v, stored %+v", got, err, s.found())
		}
	})
}

func TestCheck_AsksOnceForAll(t *testing.T) {
	inBubble(t, func(s *stage) {
		s.azure.set(func(a *azure) { a.seen = role("*/read") })
		ctx, cancel := context.WithCancel(s.t.Context())
		var first sync.WaitGroup
		first.Go(func() {
			if _, err := s.checker.Check(ctx, name, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("whoever went away: %v", err)
			}
		})
		synctest.Wait()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if got, err := s.checker.Check(s.t.Context(), name, nil); err != nil || got.Verdicts[0].Read != permission.Full {
					t.Errorf("%+v, error %v", got, err)
				}
			})
		}
		synctest.Wait()
		cancel() // the others wait for another
		first.Wait()
		all.Wait()
		if n := s.azure.count(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(9 * time.Second)
		if _, err := s.checker.Check(s.t.Context(), name, []string{scope}); err != nil || s.azure.count() != 1 {
			t.Errorf("within ten seconds: error %v, asked %d times", err, s.azure.count())
		}
		time.Sleep(time.Second)
		if _, err := s.checker.Check(s.t.Context(), name, nil); err != nil || s.azure.count() != 2 {
			t.Errorf("after ten seconds: error %v, asked %d times", err, s.azure.count())
		}
	})
}

func TestCheck_SaysWhyThereIsNoAnswer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*stage)
		scopes []string
		want   error
	}{
		{"another integration", func(s *stage) { s.exec(`DELETE FROM integrations`) }, nil, sqldb.ErrNoRows},
		{"being deleted", func(s *stage) { s.want(store.Integration{Deleting: true}) }, nil, rotation.ErrDeleting},
		{"no subscription", func(s *stage) { s.want(store.Integration{}) }, nil, rolecheck.ErrNoSubscription},
		{"no proven version", func(s *stage) { s.exec(`UPDATE credential_versions SET state = 'PROPAGATING'`) }, nil, rotation.ErrNotReady},
		{"no principal", func(s *stage) { s.exec(`UPDATE applications SET principal_object_id = ''`) }, nil, rotation.ErrNotReady},
		{"no consent yet", func(s *stage) {
			s.exec(`UPDATE credential_versions SET state = 'STAGED'`)
			s.exec(`UPDATE applications SET consented = 0, principal_object_id = ''`)
		}, nil, issuer.ErrConsentMissing},
		{"no application yet", func(s *stage) {
			s.exec(`DELETE FROM credential_versions`)
			s.exec(`UPDATE applications SET client_id = '', consented = 0, principal_object_id = ''`)
		}, nil, rotation.ErrNotReady},
		{"another cloud", func(s *stage) { s.want(store.Integration{Cloud: "elsewhere", DefaultSubscriptionID: subscription}) }, nil, rotation.ErrNoCloud},
		{"consent was lost", func(s *stage) { s.azure.refuse = issuer.ErrConsentMissing }, nil, issuer.ErrConsentMissing},
		{"Resource Manager is away", func(s *stage) { s.azure.away = errors.New("503") }, []string{group}, rotation.ErrEntra},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(s *stage) {
				tc.change(s)
				if _, err := s.checker.Check(s.t.Context(), name, tc.scopes); !errors.Is(err, tc.want) {
					t.Errorf("error %v", err)
				}
				if got := s.found(); got != (permission.Check{}) {
					t.Errorf("stored %+v", got)
				}
			})
		})
	}
}

func TestRun_LooksFromTimeToTimeByOneReplica(t *testing.T) {
	inBubble(t, func(s *stage) {
		s.azure.set(func(a *azure) { a.seen = permission.Seen{Visibility: permission.Denied} })
		ctx, cancel := context.WithCancel(s.t.Context())
		var replicas sync.WaitGroup
		for range 2 {
			checker := s.another()
			replicas.Go(func() {
				if err := checker.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Minute)
		if n, got := s.azure.count(), s.found(); n != 1 || got.Read != permission.None || got.Time.IsZero() {
			t.Errorf("after a minute: asked %d times, found %+v", n, got)
		}
		s.azure.set(func(a *azure) { a.seen = role("*") })
		time.Sleep(10 * time.Minute)
		if n, got := s.azure.count(), s.found(); n != 2 || got.Write != permission.Full {
			t.Errorf("without a role, it is looked again soon: asked %d times, found %+v", n, got)
		}
		time.Sleep(3 * time.Hour)
		if n := s.azure.count(); n < 4 || n > 7 {
			t.Errorf("with a role, it is looked again each hour: asked %d times", n)
		}
		s.azure.set(func(a *azure) { a.away = fmt.Errorf("503") })
		before := s.found()
		time.Sleep(3 * time.Hour)
		if got := s.found(); got != before {
			t.Errorf("while it is away: %+v, and was %+v", got, before)
		}
		cancel()
		replicas.Wait()
	})
}
