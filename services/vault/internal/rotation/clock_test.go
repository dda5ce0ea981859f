package rotation_test

import (
	"context"
	"testing"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

// TestProber_ClaimsByTheDatabasesClock has a replica whose clock is an hour ahead of the database's ask. Others, whose clocks are right, must be able to ask
// when the spacing is over, and their answers must count.
func TestProber_ClaimsByTheDatabasesClock(t *testing.T) {
	t.Parallel()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	config := sqldbtest.MigratedPostgresConfig(t, migrations)
	const behind = time.Hour
	sqldbtest.ClockBehind(t, config, behind)
	db, err := sqldb.Open(t.Context(), config, migrations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	entra := newFakeDirectory()
	entra.consented = true
	entra.apps["a"] = &fakeApp{object: "o", passwords: map[string]*fakePassword{}}
	keyring := fakeKeyring{}
	sealed, err := keyring.Seal(credential.SealedAs("v"), secret.New("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if err := fence.Configure(ctx, tx, 1); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO applications (integration_uid, shard, next_time, client_id, ready_time) VALUES ('i', 0, 0, 'client-o', 1)`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time,
			end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since,
			attempts, next_time, reason) VALUES ('v', 'i', 1, 'STAGED', 'n', 'k', $1, 0, 0, 0, 0, $2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '')`,
			sealed, sqldb.Micros(time.Now().Add(24*time.Hour)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	vault := store.New(db, audittest.Keys(1))
	if err := vault.ReplaceProjection(t.Context(), time.Now(), store.Projection{Incarnation: "registry", Revision: 1, Cursor: "c", BookmarkTime: time.Now()}, store.Wanted{
		Integrations: []store.Integration{{UID: "i", Name: name, TenantID: tenant, Cloud: "public", Revision: 1}},
	}); err != nil {
		t.Fatal(err)
	}
	prober := rotation.NewProber(rotation.ProberConfig{
		Store: vault, Clouds: rotation.Clouds{"public": entra}, Keyring: keyring, Timing: credential.Production(), Timeout: 8 * time.Second,
	})
	probe, err := prober.Probe(t.Context(), name)
	if err != nil || probe.Finding != credential.SecretRefused {
		t.Fatalf("Probe: %+v, %v", probe, err)
	}
	right := time.Now().Add(-behind / 2) // half an hour later by a clock that is right
	for column, at := range map[string]int64{"claim_time": 0, "busy_until": 0, "time": 0, "next_time": 0} {
		table := "consent_probes"
		if column == "next_time" {
			table = "applications"
		}
		if err := db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			return tx.QueryRow(ctx, `SELECT `+column+` FROM `+table).Scan(&at)
		}); err != nil {
			t.Fatal(err)
		}
		if sqldb.Time(at).After(right) {
			t.Errorf("%s is in the future of the others: %s", column, sqldb.Time(at))
		}
	}
}
