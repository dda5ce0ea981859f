package rotation_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

// TestWorker_NoticesThatItsDatabaseFailedOver has another PostgreSQL take over under a master, by whose mastership nothing is wrong.
func TestWorker_NoticesThatItsDatabaseFailedOver(t *testing.T) {
	t.Parallel()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	server := sqldbtest.NewServer(t)
	db, err := sqldb.Open(t.Context(), server.Config(t), migrations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	vault := store.New(db, audittest.Keys(1))
	var m election.Mastership
	if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		if err := fence.Configure(ctx, tx, 1); err != nil {
			return err
		}
		m, err = fence.Take(ctx, tx, 0, time.Now())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.FollowTimeline(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	takeOver := server.Standby(t)
	log := slog.New(slog.DiscardHandler)
	permits, err := budget.New(budget.Config{Limits: budget.DefaultLimits(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	metrics := prometheus.NewRegistry()
	w, err := rotation.New(rotation.Config{
		Store: vault, Clouds: rotation.Clouds{"public": newFakeDirectory()}, Keyring: fakeKeyring{}, Reporter: &fakeRegistry{}, Budget: permits,
		Timing: credential.Production(), DeploymentID: "test", NamePrefix: "Phasekey", Log: log, Metrics: metrics, Poll: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- w.Serve(ctx, m) }()
	takeOver()
	if err := <-served; !errors.Is(err, election.ErrFenced) {
		t.Errorf("it worked on: %v", err)
	}
	if n := gathered(t, metrics)["phasekey_vault_database_failovers_total"]; n != 1 {
		t.Errorf("%v fail-overs are counted", n)
	}
}

// TestWorker_GoesOnAfterAReshard divides the database anew, under a master that is replacing a compromised secret.
func TestWorker_GoesOnAfterAReshard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		r := s.request(credential.Compromised, false)
		s.look = time.Second
		s.until("another secret", time.Minute, func(f store.Facts) bool { _, ok := f.ByState(credential.Propagating); return ok })
		const shards = 7
		s.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := fence.Reshard(ctx, tx, shards, time.Now())
			return err
		})
		if err := <-s.served; !errors.Is(err, election.ErrFenced) {
			t.Errorf("the master of before worked on: %v", err)
		}
		if got := s.rotation(r.ID); got.State != credential.RotationPropagating || !s.entra.works(first.KeyID) {
			t.Errorf("without a master it is %+v", got)
		}
		w, err := rotation.New(s.config)
		if err != nil {
			t.Fatal(err)
		}
		for shard := range shards {
			var m election.Mastership
			s.tx(func(ctx context.Context, tx sqldb.Tx) (err error) {
				m, err = fence.Take(ctx, tx, shard, time.Now())
				return err
			})
			go func() { _ = w.Serve(t.Context(), m) }()
		}
		got := s.untilRotation(r.ID, credential.RotationCompleted, 25*time.Minute)
		if v, _ := s.facts().ByState(credential.Active); got.New != 2 || v.Number != 2 || !s.entra.works(v.KeyID) || s.entra.works(first.KeyID) {
			t.Errorf("it is %+v, and versions are %v", got, s.facts().Versions)
		}
		if n := s.entra.count("add"); n != 2 {
			t.Errorf("%d passwords were made in all, want 2", n)
		}
		s.tidy()
	})
}
