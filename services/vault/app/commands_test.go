package app_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/app"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/keyring/keystore"
	"phasekey.dev/services/vault/internal/store"
)

func (p *place) logger() *slog.Logger { return obs.NewLogger(p.log, slog.LevelDebug, obs.FormatText) }

func (p *place) copyDatabase(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, beside := range []string{"-wal", "-shm"} {
		if err := os.Remove(to + beside); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	p.write(t, to, string(data))
}

// A backup that is older than the first activation: the vault knows of no password, and all that Entra has is used by somebody.
func TestRecover_RotatesBeforeAnythingUnknownGoes(t *testing.T) {
	p := newPlace(t)
	sim, customer := p.withEntra(t)
	registry := p.withRegistry(t, customer)
	timing := &p.config.Timing
	timing.ReconcileInterval, timing.Retiring, timing.LongestHold, timing.WriteSpacing = 300*time.Millisecond, 500*time.Millisecond, 6*time.Second, 20*time.Millisecond
	backup := filepath.Join(t.TempDir(), "backup")
	p.copyDatabase(t, p.config.Database.Path, backup)

	_, stop := p.start(t)
	ready := registry.reported(t, registryv1.Condition_TYPE_APPLICATION_READY)
	if _, err := sim.Consent(t.Context(), entrasim.Consent{
		Tenant: customer, ClientID: ready.GetClientId(), RedirectURI: p.config.RedirectURI, UserName: administrator,
	}); err != nil {
		t.Fatal(err)
	}
	registry.reported(t, registryv1.Condition_TYPE_CREDENTIAL_READY)
	stop()
	passwords := func() []entrasim.Credential {
		t.Helper()
		all, err := sim.Credentials(ready.GetClientId(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	lost := passwords()
	if len(lost) != 1 || !lost[0].Removed.IsZero() {
		t.Fatalf("before the restore there are %+v", lost)
	}

	p.copyDatabase(t, backup, p.config.Database.Path)
	began := time.Now()
	if err := app.Recover(t.Context(), p.config, p.logger()); err != nil {
		t.Fatal(err)
	}
	_, stop = p.start(t)
	registry.reported(t, registryv1.Condition_TYPE_CREDENTIAL_READY)
	proven := time.Now()
	// Reports have to be taken, or the vault's turns end with them.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for {
			select {
			case <-registry.reports:
			case <-ctx.Done():
				return
			}
		}
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		all, now := passwords(), time.Now()
		unknown := slices.ContainsFunc(all, func(one entrasim.Credential) bool { return one.KeyID == lost[0].KeyID && one.Removed.IsZero() })
		if len(all) == 0 || unknown && len(all) < 2 {
			t.Fatalf("there are %+v", all)
		}
		if !unknown {
			if now.Before(began.Add(timing.LongestHold)) || now.Before(proven.Add(timing.Retiring)) {
				t.Errorf("removed %s after the restore, %s after another was proven", now.Sub(began), now.Sub(proven))
			}
			break
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("what nobody can use any more stays")
		}
	}
	stop()
	if err := app.RecoverStatus(t.Context(), p.config, p.logger()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(p.log.String(), "rotated=1 waiting=0 unconsented=0") {
		t.Error("the status does not say that it is done")
	}
}

func TestRewrap_ThenEitherConfigurationStartsUntilTheOldKeyIsGone(t *testing.T) {
	p := newPlace(t)
	try := func() error {
		vault, err := p.open(t)
		if err == nil {
			err = vault.Close()
		}
		return err
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	if err := app.Rewrap(t.Context(), p.config, p.logger()); err == nil || !strings.Contains(err.Error(), "--to, or next_kek: required") {
		t.Errorf("without a next key: %v", err)
	}
	former := p.config.KEK
	p.config.NextKEK = former
	if err := app.Rewrap(t.Context(), p.config, p.logger()); err == nil || !strings.Contains(err.Error(), "is kek itself") {
		t.Errorf("by itself: %v", err)
	}
	p.config.NextKEK = "file://" + filepath.Join(t.TempDir(), "next")
	if err := try(); err != nil {
		t.Errorf("with a next key that is not there yet: %v", err)
	}
	for range 2 {
		if err := app.Rewrap(t.Context(), p.config, p.logger()); err != nil {
			t.Fatal(err)
		}
	}
	if err := try(); err != nil {
		t.Errorf("with both: %v", err)
	}
	p.config.KEK, p.config.NextKEK = p.config.NextKEK, ""
	if err := try(); err != nil {
		t.Errorf("with the new one: %v", err)
	}
	p.config.KEK = former
	if err := try(); !errors.Is(err, keyring.ErrUnwrap) {
		t.Errorf("with the former one: %v", err)
	}
}

// withRecord has a database in which one version's text is sealed.
func (p *place) withRecord(t *testing.T) (check func(t *testing.T)) {
	t.Helper()
	const id = "aaaaaaaa-0000-4000-8000-00000000000a"
	open := func(t *testing.T, do func(db *sqldb.DB, ring *keyring.Keyring)) {
		t.Helper()
		migrations, err := store.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		db, err := sqldb.Open(t.Context(), p.config.Database, migrations)
		if err != nil {
			t.Fatal(err)
		}
		ring, err := keyring.Open(t.Context(), keystore.New(db), p.config.KEK)
		if err != nil {
			t.Fatal(err)
		}
		do(db, ring)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	open(t, func(db *sqldb.DB, ring *keyring.Keyring) {
		sealed, err := ring.Seal(credential.SealedAs(id), secret.New("text"))
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO credential_versions
				(id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time, end_time, propagate_time,
				 prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since, attempts, next_time, reason)
				VALUES ($1, 'uid', 1, 'ACTIVE', '', '', $2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '')`, id, sealed)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
	return func(t *testing.T) {
		t.Helper()
		open(t, func(db *sqldb.DB, ring *keyring.Keyring) {
			all, err := store.New(db, audittest.Keys(1)).Sealed(t.Context(), "", 10)
			if err != nil || len(all) != 1 {
				t.Fatalf("%v, %v", all, err)
			}
			if text, err := ring.Open(t.Context(), all[0].Identity, all[0].Sealed); err != nil || text.Expose() != "text" {
				t.Errorf("after all the text is %d bytes, %v", len(text.Expose()), err)
			}
			if outdated, err := ring.Outdated(t.Context(), store.New(db, audittest.Keys(1))); err != nil || outdated {
				t.Errorf("an older key seals it: %v", err)
			}
		})
	}
}

func TestRekey_SealsEverythingAndGoesOnAfterAnInterruption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		check := p.withRecord(t)
		if err := app.Rekey(t.Context(), p.config, obs.NewLogger(p.log, slog.LevelInfo, obs.FormatJSON)); err != nil {
			t.Fatal(err)
		}
		check(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := app.Rekey(ctx, p.config, p.logger()); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if err := app.Rekey(t.Context(), p.config, p.logger()); err != nil {
			t.Fatal(err)
		}
		check(t)
		for _, want := range []string{`"data_key":2`, `"wait":"59s"`, "data_key=3"} {
			if !strings.Contains(p.log.String(), want) {
				t.Errorf("the log lacks %q", want)
			}
		}
	})
}

// kms is a service with the key-encryption key, at appkms://, which may be away.
type kms struct{ away atomic.Bool }

var errAway = errors.New("away")

func (k *kms) OpenKeeperURL(context.Context, *url.URL) (*secrets.Keeper, error) {
	return secrets.NewKeeper(k), nil
}

func (k *kms) Encrypt(_ context.Context, b []byte) ([]byte, error) {
	if k.away.Load() {
		return nil, errAway
	}
	return bytes.Clone(b), nil
}

func (k *kms) Decrypt(ctx context.Context, b []byte) ([]byte, error) { return k.Encrypt(ctx, b) }
func (k *kms) Close() error                                          { return nil }
func (k *kms) ErrorAs(error, any) bool                               { return false }
func (k *kms) ErrorCode(error) gcerrors.ErrorCode                    { return gcerrors.DeadlineExceeded }

func TestNew_WaitsForTheKeysService(t *testing.T) {
	p, service := newPlace(t), &kms{}
	secrets.DefaultURLMux().RegisterKeeper("appkms", service)
	p.config.KEK = "appkms://key"
	service.away.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := app.New(ctx, p.config, p.logger()); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, keyring.ErrKEKAway) {
		t.Fatalf("while it is away and nobody waits longer: %v", err)
	}
	time.AfterFunc(200*time.Millisecond, func() { service.away.Store(false) })
	vault, err := p.open(t)
	if err != nil {
		t.Fatalf("once it is back: %v", err)
	}
	if err := vault.Close(); err != nil {
		t.Error(err)
	}
}
