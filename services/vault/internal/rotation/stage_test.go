package rotation_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

const (
	uid    = "11111111-2222-4333-8444-555555555555"
	name   = "accounts/acme/integrations/network"
	tenant = "customer"
)

// stage is one integration in a vault of one shard, and the worker on it.
type stage struct {
	t        *testing.T
	db       *sqldb.DB
	store    *store.Store
	entra    *fakeDirectory
	registry *fakeRegistry
	log      *logtest.Transcript
	config   rotation.Config
	// metrics are the latest worker's.
	metrics  atomic.Pointer[prometheus.Registry]
	stop     context.CancelFunc
	served   chan error
	revision int64
	// incarnation is that of the registry's database.
	incarnation string
	// look is how often until looks.
	look time.Duration
}

// newStage is to be called in a bubble; nobody is master yet.
func newStage(t *testing.T) *stage {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{
		t: t, db: sqldbtest.SQLite(t, migrations), entra: newFakeDirectory(), registry: &fakeRegistry{}, log: &logtest.Transcript{}, look: time.Minute,
		incarnation: "registry",
	}
	s.store = store.New(s.db, audittest.Keys(1))
	s.tx(func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, 1) })
	s.config = rotation.Config{
		Store: s.store, Clouds: rotation.Clouds{"public": s.entra}, Keyring: fakeKeyring{}, Reporter: s.registry,
		Timing: credential.Production(), DeploymentID: "test", NamePrefix: "Phasekey", RedirectURI: "https://broker.example/callback",
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Poll: 10 * time.Minute,
	}
	if s.config.Budget, err = budget.New(budget.Config{Limits: budget.DefaultLimits(), Log: s.config.Log}); err != nil {
		t.Fatal(err)
	}
	s.want(store.Integration{Deleting: false})
	s.entra.intended = s.intended
	t.Cleanup(func() {
		if strings.Contains(s.log.String(), canary) {
			t.Error("a secret is in the log")
		}
	})
	return s
}

func (s *stage) tx(fn func(ctx context.Context, tx sqldb.Tx) error) {
	s.t.Helper()
	if err := s.db.Tx(context.WithoutCancel(s.t.Context()), fn); err != nil {
		s.t.Error(err)
	}
}

// want sets what the registry wants of the integration.
func (s *stage) want(i store.Integration) {
	s.t.Helper()
	s.revision++
	i.UID, i.Name, i.DisplayName, i.TenantID, i.Cloud, i.Revision = uid, name, "Network", tenant, "public", s.revision
	if i.RotationPeriod == 0 {
		i.RotationPeriod = 24 * time.Hour
	}
	at := store.Projection{Incarnation: s.incarnation, Revision: s.revision, Cursor: "c", BookmarkTime: time.Now()}
	i.DeliveryMaterials = []lease.Material{lease.ClientSecret}
	all := store.Wanted{
		Integrations: []store.Integration{i}, Projects: []store.Project{{UID: "p"}},
		Attachments: []store.Attachment{{UID: "a", IntegrationUID: uid, ProjectUID: "p", Reads: true}},
	}
	if err := s.store.ReplaceProjection(s.t.Context(), time.Now(), at, all); err != nil {
		s.t.Fatal(err)
	}
}

// intended fails unless the password of that name is stored as one that is about to be asked for: by then it must be, for its answer
// may be lost.
func (s *stage) intended(name string) {
	s.tx(func(ctx context.Context, tx sqldb.Tx) error {
		var stored int
		err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM credential_versions WHERE name = $1 AND state = 'INTENDED' AND send_time > 0`, name).Scan(&stored)
		if err == nil && stored != 1 {
			s.t.Errorf("password %s is asked for, and not stored as intended", name)
		}
		return err
	})
}

func (s *stage) take() (m election.Mastership) {
	s.t.Helper()
	s.tx(func(ctx context.Context, tx sqldb.Tx) (err error) {
		m, err = fence.Take(ctx, tx, 0, time.Now())
		return err
	})
	return m
}

// serve starts a worker as a new master, until end or the test's.
func (s *stage) serve(edit ...func(ctx context.Context) context.Context) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	for _, e := range edit {
		ctx = e(ctx)
	}
	s.stop, s.served = cancel, make(chan error, 1)
	served := s.served
	go func() { served <- s.serveOnce(ctx) }()
}

// serveOnce is a worker's whole time as a new master.
func (s *stage) serveOnce(ctx context.Context) error { return s.serveAs(ctx, s.take()) }

// serveAs is a worker's whole time as that master.
func (s *stage) serveAs(ctx context.Context, m election.Mastership) error {
	config := s.config
	config.Metrics = prometheus.NewRegistry()
	s.metrics.Store(config.Metrics.(*prometheus.Registry))
	w, err := rotation.New(config)
	if err != nil {
		return err
	}
	return w.Serve(ctx, m)
}

// end stops the worker and returns what Serve did.
func (s *stage) end() error {
	s.t.Helper()
	s.stop()
	return <-s.served
}

// facts are the latest.
func (s *stage) facts() store.Facts {
	s.t.Helper()
	f, err := s.store.Facts(s.t.Context(), uid)
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		s.t.Fatal(err)
	}
	return f
}

// until waits in fake time for something to be so.
func (s *stage) until(what string, limit time.Duration, so func(f store.Facts) bool) store.Facts {
	s.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(min(s.look, time.Until(end))) {
		f := s.facts()
		if so(f) {
			return f
		}
		if !time.Now().Before(end) {
			_, conditions := s.registry.last()
			s.t.Log(s.log.String())
			s.t.Fatalf("%s: not within %s; conditions %s; versions %v", what, limit, conditions, f.Versions)
		}
	}
}

func active(f store.Facts) bool {
	_, ok := f.ByState(credential.Active)
	return ok
}

func ready(f store.Facts) bool { return !f.Application.ReadyTime.IsZero() }

func forgotten(f store.Facts) bool { return !f.Application.ForgetTime.IsZero() }

// live brings the integration to an ACTIVE version.
func (s *stage) live() store.Facts {
	s.t.Helper()
	s.entra.set(func(d *fakeDirectory) { d.consented = true })
	return s.until("active", 2*time.Hour, active)
}

// alive is a stage, as edited, on which a worker has brought the integration to an ACTIVE version, and works on.
func alive(t *testing.T, edit ...func(s *stage)) (s *stage, first credential.Version) {
	t.Helper()
	s = newStage(t)
	for _, e := range edit {
		e(s)
	}
	s.serve()
	first, _ = s.live().ByState(credential.Active)
	return s, first
}

// runner makes a grant of two days, and returns what delivers the ACTIVE version's secret to one of its instances.
func (s *stage) runner() (deliver func(instance string) error) {
	s.t.Helper()
	now := time.Now()
	g, err := grant.New(now, "grant", grant.Request{Account: "acme", Project: "accounts/acme/projects/p", Phase: grant.Planning},
		grant.Resolution{IntegrationUID: uid, ProjectUID: "p"})
	if err != nil {
		s.t.Fatal(err)
	}
	g.ExpireTime = now.Add(48 * time.Hour)
	_, hash := grant.Mint()
	if _, err := s.store.CreateGrant(s.t.Context(), now, g, hash, grant.RequestKey{}, grant.Caller{}); err != nil {
		s.t.Fatal(err)
	}
	return func(instance string) error {
		active, _ := s.facts().ByState(credential.Active)
		_, err := s.store.Deliver(s.t.Context(), time.Now(), store.Delivery{
			GrantUID: g.UID, InstanceID: instance, VersionID: active.ID, Material: lease.ClientSecret, HoldLimit: g.ExpireTime, ExpireTime: g.ExpireTime,
		})
		return err
	}
}

// tidy fails unless the passwords at Entra are exactly those of versions that may have one.
func (s *stage) tidy() {
	s.t.Helper()
	var known []string
	for _, v := range s.facts().Versions {
		if v.State.HasPassword() || v.State == credential.Revoking {
			known = append(known, v.KeyID)
		}
	}
	slices.Sort(known)
	if have := s.entra.keys(); !slices.Equal(have, known) {
		s.t.Errorf("passwords at Entra are %v, known are %v", have, known)
	}
}
