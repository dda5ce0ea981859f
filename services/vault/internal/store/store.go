// Package store is the vault's database: what the registry wants (the projection), what Entra has (applications and
// credential versions), and what was delivered to whom (grants, leases, audit).
//
// It guarantees that a replica that is no longer master changes nothing of what masters write. The rows are written through
// a masterTx, and the one way to have one is asMaster, whose transaction begins with the fence. It guarantees too what the
// schema says: one ACTIVE version an integration, no version revoked that is held; and that a version's holders are as many as the
// leases that were given its secret and have not been released since. It decides nothing else.
//
// Rows are locked in one order, everywhere: the shard's fence; the projection and its copies; a grant, its leases, its holdings; the
// application; versions, the older first; rotations; an audit writer; the counter of changes. Records of fan-outs come after a grant, in their order. So PostgreSQL never finds two transactions that
// wait for each other. Several grants are taken in the order of their UIDs. A grant's row stands for its leases and holdings: whoever has it
// finds them as they stay. Whoever
// lowers a version's holders, and every master's step, takes the application's row before any version's.
//
// The tricky idea is touches. Whoever learns something that a master should act on, on any replica, brings the integration's
// next_time forward. The master, which at that moment may be about to write a later one, decided without knowing; so it
// writes its own only if nobody has touched the row since it read it.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/uuid"

	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
)

//go:embed migrations
var files embed.FS

// ErrChanged means that a row was not as the caller had read it; nothing was written. Read again and decide anew.
var ErrChanged = errors.New("changed meanwhile")

// ErrHeld means that a version is still held by a lease; nothing was written.
var ErrHeld = errors.New("credential version is held")

// Store is the vault's database. It is safe for concurrent use.
type Store struct {
	db *sqldb.DB
	// keys authenticate audit records; writer names this process in them: each process numbers and chains its own.
	keys       audit.Keys
	writer     string
	deliveries queue[*ordered]
	// entitlements and holders are what deliveries to runner instances are decided by, by their grants and by the tokens they show.
	entitlements *lookup[instance, *Entitlement]
	holders      *lookup[holder, *Entitlement]
}

// New returns a store on an open database that has Migrations. Without keys nothing can be recorded, and so nothing done that has to be.
func New(db *sqldb.DB, keys audit.Keys) *Store {
	s := &Store{
		db: db, keys: keys, writer: uuid.NewString(),
		entitlements: newLookup(db, grant.ErrNotFound, entitlements),
		holders:      newLookup(db, grant.ErrUnknown, entitlementsByToken),
	}
	s.deliveries.take, s.deliveries.do = takeDeliveries, s.deliver
	return s
}

// PageKey returns what this database's page tokens are sealed with, at all replicas.
func (s *Store) PageKey(ctx context.Context) (key secret.Text, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		key, err = pagetoken.Key(ctx, tx)
		return err
	})
	return key, err
}

// Migrations are the schema's, for sqldb.Open.
func Migrations() (fs.FS, error) {
	out, err := fs.Sub(files, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	return out, nil
}

// masterTx is a transaction that began with the fence. Only asMaster makes one.
type masterTx struct{ sqldb.Tx }

// asMaster runs fn in a transaction whose first statement is the fence, so that it commits only if m is the shard's newest
// mastership; else election.ErrFenced. fn must not wait for anything but the database: a take-over waits for it.
func (s *Store) asMaster(ctx context.Context, m election.Mastership, fn func(ctx context.Context, tx masterTx) error) error {
	return s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		if err := fence.Guard(ctx, tx, m); err != nil {
			return err
		}
		return fn(ctx, masterTx{tx})
	})
}
