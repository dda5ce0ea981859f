package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/keyring/keystore"
	"phasekey.dev/services/vault/internal/store"
)

// withDatabase opens the configuration's database for a command that may run beside replicas.
func (c Config) withDatabase(ctx context.Context, do func(db *sqldb.DB) error) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	migrations, err := store.Migrations()
	if err != nil {
		return err
	}
	db, err := sqldb.Open(ctx, c.database(), migrations)
	if err != nil {
		return err
	}
	return errors.Join(do(db), db.Close())
}

// Init makes the key-encryption key's file, once, for a database without data.
func Init(ctx context.Context, cfg Config) error {
	return cfg.withDatabase(ctx, func(db *sqldb.DB) error { return keyring.Init(ctx, cfg.KEK, keystore.New(db)) })
}

// Reshard divides the database into the configuration's number of shards, while replicas run or not. Those that were started with another number take no
// shards any more, and have to be started anew. The log says what was done.
func Reshard(ctx context.Context, cfg Config, log *slog.Logger) error {
	return cfg.withDatabase(ctx, func(db *sqldb.DB) error {
		shards, were := cfg.Election.Shards, 0
		if err := db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
			were, err = fence.Reshard(ctx, tx, shards, time.Now())
			return err
		}); errors.Is(err, fence.ErrNoShard) {
			return fmt.Errorf("reshard: no replica has started on this database yet, and the first that does divides it by its election.shards: %w", err)
		} else if err != nil {
			return fmt.Errorf("reshard (to be repeated): %w", err)
		}
		if were == shards {
			log.InfoContext(ctx, "the database has this number of shards already", slog.Int("shards", shards))
			return nil
		}
		log.InfoContext(ctx, "the database was divided anew: start every replica with this number of shards", slog.Int("shards", shards), slog.Int("were", were))
		return nil
	})
}

// errSameKEK means that the key-encryption key was to be replaced by itself.
var errSameKEK = errors.New("is kek itself; name another key, whose file is made if it is not there")

// Rewrap has the key-encryption key NextKEK wrap the data keys. Afterwards KEK is of no use any more, but for older backups.
func Rewrap(ctx context.Context, cfg Config, log *slog.Logger) error {
	switch cfg.NextKEK {
	case "":
		return fmt.Errorf("--to, or next_kek: %w", confload.ErrRequired)
	case cfg.KEK:
		return fmt.Errorf("--to, or next_kek: %w", errSameKEK)
	}
	return cfg.withDatabase(ctx, func(db *sqldb.DB) error {
		n, err := keyring.Rewrap(ctx, keystore.New(db), cfg.KEK, cfg.NextKEK)
		if err != nil {
			return err
		}
		log.InfoContext(ctx, "all data keys are wrapped by the new key-encryption key: it can take the place of kek", slog.Int("rewrapped", n))
		return nil
	})
}

// Rekey adds a data key and has it seal everything; or goes on doing so if that was interrupted. Replicas may run.
func Rekey(ctx context.Context, cfg Config, log *slog.Logger) error {
	return cfg.withDatabase(ctx, func(db *sqldb.DB) error {
		keys, records := keystore.New(db), store.New(db, nil)
		ring, err := keyring.Open(ctx, keys, cfg.keks()...)
		if err != nil {
			return err
		}
		unfinished, err := ring.Outdated(ctx, records)
		if err != nil {
			return err
		}
		if unfinished {
			log.InfoContext(ctx, "an earlier run was not finished; it is gone on with", slog.Uint64(keyDataKey, uint64(ring.Current())))
		} else {
			id, err := keyring.Rekey(ctx, keys, cfg.keks()...)
			if err != nil {
				return err
			}
			if err := ring.Refresh(ctx); err != nil {
				return err
			}
			log.InfoContext(ctx, "a data key was added", slog.Uint64(keyDataKey, uint64(id)))
		}
		return ring.ResealAll(ctx, records, log)
	})
}

// Recover stores that the database was restored from a backup: every integration rotates, and only later is removed what Entra has
// from before. It tells how far that is until all have rotated, or ctx ends, which stops the telling alone: the replicas do the work.
func Recover(ctx context.Context, cfg Config, log *slog.Logger) error {
	return cfg.withDatabase(ctx, func(db *sqldb.DB) error {
		ring, err := keyring.Open(ctx, keystore.New(db), cfg.keks()...)
		if err != nil {
			return err
		}
		s := store.New(db, ring)
		r, err := s.BeginRecovery(ctx, time.Now())
		if err != nil {
			return err
		}
		log.InfoContext(ctx, "recovery has begun: every integration rotates before anything unknown is removed", slog.Int64(keyRecovery, r.Number))
		if db.Driver() == sqldb.DriverSQLite {
			return nil // no replica can run beside
		}
		for {
			waiting, err := tellRecovery(ctx, cfg, s, log)
			if err != nil || waiting == 0 {
				return err
			}
			timer := time.NewTimer(recoverInterval)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
		}
	})
}

// RecoverStatus tells how far the last recovery is.
func RecoverStatus(ctx context.Context, cfg Config, log *slog.Logger) error {
	return cfg.withDatabase(ctx, func(db *sqldb.DB) error {
		_, err := tellRecovery(ctx, cfg, store.New(db, nil), log)
		return err
	})
}

// recoverInterval is how often Recover tells how far it is.
const recoverInterval = 10 * time.Second

// tellRecovery logs how far the last recovery is, and returns how many integrations have yet to rotate.
func tellRecovery(ctx context.Context, cfg Config, s *store.Store, log *slog.Logger) (waiting int, err error) {
	p, err := s.RecoveryProgress(ctx)
	if err != nil {
		return 0, err
	}
	if p.Number == 0 {
		log.InfoContext(ctx, "there never was a recovery")
		return 0, nil
	}
	log.InfoContext(ctx, "recovery", slog.Int64(keyRecovery, p.Number), slog.Time("begun", p.Time), slog.Int("rotated", p.Rotated),
		slog.Int("waiting", p.Waiting), slog.Int("unconsented", p.Unconsented), slog.Int("unknown_passwords", p.Unknown),
		slog.Time("removed_from", p.Time.Add(cfg.Timing.LongestHold)))
	return p.Waiting, nil
}

// Log keys of the commands.
const (
	keyDataKey  = "data_key"
	keyRecovery = "recovery"
)

// openKeys opens the keyring. While the service of the key-encryption key is away it waits, and nothing is served: without
// the keys there is nothing to serve.
func (a *App) openKeys(ctx context.Context) error {
	for delay := time.Second; ; delay = min(2*delay, maxKEKDelay) {
		ring, err := keyring.Open(ctx, keystore.New(a.db), a.cfg.keks()...)
		if !errors.Is(err, keyring.ErrKEKAway) {
			a.keyring = ring
			return err
		}
		a.log.ErrorContext(ctx, "the key-encryption key's service is away; nothing is served until it is back", slog.Any(obs.KeyError, err))
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		case <-timer.C:
		}
	}
}

// maxKEKDelay is the longest wait between two attempts to open the keyring.
const maxKEKDelay = 30 * time.Second

// keks are the key-encryption keys that may wrap data keys, the one in use first.
func (c Config) keks() []string {
	if c.NextKEK == "" {
		return []string{c.KEK}
	}
	return []string{c.KEK, c.NextKEK}
}
