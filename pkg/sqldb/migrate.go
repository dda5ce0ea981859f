package sqldb

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// migration is one file: NNNN_name.sql.
type migration struct {
	version  int64
	name     string
	text     string
	checksum string
}

var migrationFile = regexp.MustCompile(`^(\d{4})_([a-z0-9_]+)\.sql$`)

func readMigrations(files fs.FS, folder string) ([]migration, error) {
	entries, err := fs.ReadDir(files, folder)
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	var steps []migration
	for _, entry := range entries { // sorted by name, therefore by version
		match := migrationFile.FindStringSubmatch(entry.Name())
		if match == nil {
			return nil, fmt.Errorf("migration %s/%s: name must be NNNN_name.sql", folder, entry.Name())
		}
		text, err := fs.ReadFile(files, path.Join(folder, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		version, err := strconv.ParseInt(match[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("migration %s/%s: %w", folder, entry.Name(), err)
		}
		if len(steps) > 0 && steps[len(steps)-1].version == version {
			return nil, fmt.Errorf("migration %s/%s: version %d is there twice", folder, entry.Name(), version)
		}
		sum := sha256.Sum256(text)
		steps = append(steps, migration{version, match[2], string(text), hex.EncodeToString(sum[:])})
	}
	return steps, nil
}

const createMigrations = `CREATE TABLE IF NOT EXISTS schema_migrations (
	version  BIGINT NOT NULL PRIMARY KEY,
	name     TEXT   NOT NULL,
	checksum TEXT   NOT NULL,
	applied  BIGINT NOT NULL
)`

// migrating is how an engine migrates.
type migrating struct {
	// begin are the statements that, run first in a transaction, keep other processes' migrations out until it ends, and limit how long it waits for
	// other locks; none where beginning the transaction does.
	begin []string
	// pause is about how long all others have the locks for which a migration has waited in vain, before it tries again.
	pause time.Duration
}

// migrationAttempts is how often a migration waits in vain before it is given up.
const migrationAttempts = 10

// migrate brings the schema up to steps and names the migrations it does not know.
func migrate(ctx context.Context, pool *sql.DB, how migrating, steps []migration) (newer []string, err error) {
	for blocked := 0; ; {
		done, unknown, err := migrateOne(ctx, pool, how, steps)
		switch {
		case lockHeld(err):
			blocked++
			if blocked == migrationAttempts {
				return nil, fmt.Errorf("%w: %w", ErrBlocked, err)
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(how.pause + rand.N(how.pause)): //nolint:gosec // spreads contenders, guards nothing
			}
		case done || err != nil:
			return unknown, err
		}
	}
}

// migrateOne applies the first migration that is missing, in a transaction. The lock is taken for each one anew, so what is missing is read under it each time.
func migrateOne(ctx context.Context, pool *sql.DB, how migrating, steps []migration) (done bool, newer []string, err error) {
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return false, nil, fmt.Errorf("begin migration: %w", classify(ctx, err))
	}
	defer func() { _ = tx.Rollback() }()
	for _, statement := range how.begin {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return false, nil, fmt.Errorf("lock migrations: %w", classify(ctx, err))
		}
	}
	if _, err := tx.ExecContext(ctx, createMigrations); err != nil {
		return false, nil, fmt.Errorf("create schema_migrations: %w", classify(ctx, err))
	}
	applied, err := Collect(ctx, Tx{tx: tx}, func(row Row) (migration, error) {
		var m migration
		err := row.Scan(&m.version, &m.name, &m.checksum)
		return m, err
	}, `SELECT version, name, checksum FROM schema_migrations ORDER BY version`)
	if err != nil {
		return false, nil, fmt.Errorf("read schema_migrations: %w", err)
	}
	next, newer, err := compare(steps, applied)
	if err != nil {
		return false, nil, err
	}
	if next == nil {
		return true, newer, classify(ctx, tx.Commit()) // the table itself may be new
	}
	if _, err := tx.ExecContext(ctx, next.text); err != nil {
		return false, nil, fmt.Errorf("apply migration %04d_%s: %w", next.version, next.name, classify(ctx, err))
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO schema_migrations (version, name, checksum, applied) VALUES ($1, $2, $3, $4)`,
		next.version, next.name, next.checksum, Micros(time.Now())); err != nil {
		return false, nil, fmt.Errorf("record migration %04d_%s: %w", next.version, next.name, classify(ctx, err))
	}
	if err := tx.Commit(); err != nil {
		return false, nil, fmt.Errorf("commit migration %04d_%s: %w", next.version, next.name, classify(ctx, err))
	}
	return false, nil, nil
}

// compare gives the first step that was not applied, if any, and names those applied that are beyond the steps.
func compare(steps, applied []migration) (next *migration, newer []string, err error) {
	known := make(map[int64]migration, len(steps))
	last := int64(0)
	for _, step := range steps {
		known[step.version] = step
		last = step.version
	}
	var problems []error
	highest := int64(0)
	for _, have := range applied {
		highest = have.version
		want, ok := known[have.version]
		switch {
		case !ok && have.version > last:
			newer = append(newer, fmt.Sprintf("%04d_%s", have.version, have.name))
		case !ok:
			problems = append(problems, fmt.Errorf("%w: applied migration %04d_%s is not known", ErrSchema, have.version, have.name))
		case want.checksum != have.checksum:
			problems = append(problems, fmt.Errorf("%w: migration %04d_%s was applied with another text", ErrSchema, have.version, have.name))
		}
	}
	for i, step := range steps {
		if slices.ContainsFunc(applied, func(have migration) bool { return have.version == step.version }) {
			continue
		}
		if step.version < highest {
			problems = append(problems, fmt.Errorf("%w: migration %04d_%s is missing although %04d was applied", ErrSchema, step.version, step.name, highest))
		}
		if next == nil {
			next = &steps[i]
		}
	}
	if len(problems) > 0 {
		return nil, nil, errors.Join(problems...)
	}
	return next, newer, nil
}
