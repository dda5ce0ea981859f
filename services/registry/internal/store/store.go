// Package store keeps integrations, projects and attachments in SQL, SQLite or PostgreSQL by one query text, and every
// change of them in the order in which the changes were committed.
//
// It guarantees that a write and the changes it makes are one transaction; that revisions have no gaps, and that who has
// read all changes up to a revision will never see one of a lower revision appear; that a write which changes nothing
// makes no revision; and that what a rule forbids stays forbidden when two do it at once.
//
// The tricky ideas are two. The revision is one row, updated as the last thing before the changes are inserted: PostgreSQL
// holds its lock until the commit is visible, so whoever gets the next revision commits after. And every write locks the
// rows that its rules rest on before it reads them, by counting up their column writes: to attach locks project, then
// integration, and so cannot pass by a deletion that has just counted the attachments. To create anything locks the account
// first of all, so that two cannot both have the last place of its quota.
package store

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
)

//go:embed migrations
var migrations embed.FS

// Migrations is the schema, for sqldb.Open.
func Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		// The folder is named by the directive above; without it the package does not compile.
		return migrations
	}
	return sub
}

// maxAttempts bounds how often a write is tried that lost a race for a unique name.
const maxAttempts = 4

// Store is the registry's database. It is safe for concurrent use.
type Store struct {
	*shared

	// trial has every write undone at its end; see Trial.
	trial bool
}

// shared is what a store and its trial have in common.
type shared struct {
	db        *sqldb.DB
	quotas    quota.Config
	committed chan struct{}
	// newest is the newest position that a transaction of this process has seen; never nil.
	newest atomic.Pointer[resource.Position]
}

// New uses an opened database, and gives it its incarnation if it is new.
func New(ctx context.Context, db *sqldb.DB, quotas quota.Config) (*Store, error) {
	s := &Store{shared: &shared{db: db, quotas: quotas, committed: make(chan struct{}, 1)}}
	var at resource.Position
	err := db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO registry (id, incarnation, revision) VALUES (1, $1, 0) ON CONFLICT (id) DO NOTHING`,
			uuid.NewString())
		if err != nil {
			return err
		}
		at, err = position(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the incarnation: %w", meaning(err))
	}
	s.newest.Store(&at)
	return s, nil
}

// Trial is the same store, of which a write does all that it would do, finds everything that refuses it, and is then undone: no resource
// and no request changes, and there is no revision. It answers with what the write would have made; what it would have created has no UID,
// for that cannot be known.
func (s *Store) Trial() *Store { return &Store{shared: s.shared, trial: true} }

// uidOf is the UID to answer with for what has just been created.
func (s *Store) uidOf(uid string) string {
	if s.trial {
		return ""
	}
	return uid
}

// Incarnation tells this database from all others. It is as of the last transaction, for the database may be given another while it is
// used: what must not be mistaken about it asks the database.
func (s *Store) Incarnation() string { return s.newest.Load().Incarnation }

// Committed says, by a value soon after, that this process has committed a change. It is a hint: several changes may make
// one value, and other processes' changes make none.
func (s *Store) Committed() <-chan struct{} { return s.committed }

// Ping tells whether the database answers, and is no older than it was.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.Head(ctx)
	return err
}

// writing is a write transaction, with the changes it makes.
type writing struct {
	sqldb.Tx
	quotas quota.Config
	// begun is the newest position that was known before, at is the one that the changes make.
	begun, at resource.Position
	// now is as exact as what is stored, so that what a write returns is what a read finds.
	now     time.Time
	changes []change.Change
}

// record notes a change, to be given its revision at the end.
func (w *writing) record(c change.Change) { w.changes = append(w.changes, c) }

// errUnchanged rolls back a write that turned out to have nothing to do, or was a trial, and with it the locks it counted.
var errUnchanged = errors.New("nothing changes")

// write runs fn in a transaction, then gives its changes their revisions. fn runs again when it lost a race for a unique
// value: then it finds the winner's row, and answers accordingly.
func (s *Store) write(ctx context.Context, now time.Time, fn func(ctx context.Context, w *writing) error) error {
	var err error
	for range maxAttempts {
		var made int
		var at resource.Position
		begun := s.newest.Load()
		err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			w := &writing{Tx: tx, quotas: s.quotas, begun: *begun, now: sqldb.Time(sqldb.Micros(now))}
			if err := fn(ctx, w); err != nil {
				return err
			}
			if s.trial {
				// Before a revision is taken, for which all other writers would wait.
				return errUnchanged
			}
			made = len(w.changes)
			err := w.number(ctx)
			at = w.at
			return err
		})
		switch {
		case errors.Is(err, errUnchanged):
			return nil
		case errors.Is(err, sqldb.ErrUnique):
			continue
		case err == nil && made > 0:
			s.see(begun, at)
			select {
			case s.committed <- struct{}{}:
			default: // one is waiting to be seen already
			}
		}
		return meaning(err)
	}
	return fmt.Errorf("%w: %w", resource.ErrConflict, err)
}

// number is the last part of every write that changed something: from its first statement to the commit no other write
// can get a revision.
func (w *writing) number(ctx context.Context) error {
	if len(w.changes) == 0 {
		return nil
	}
	payloads := make([]string, len(w.changes))
	for i, c := range w.changes {
		payload, err := payloadOf(c)
		if err != nil {
			return err
		}
		payloads[i] = payload
	}
	err := w.QueryRow(ctx, `UPDATE registry SET revision = revision + $1 WHERE id = 1 RETURNING incarnation, revision`,
		len(w.changes)).Scan(&w.at.Incarnation, &w.at.Revision)
	if err != nil {
		return fmt.Errorf("take a revision: %w", err)
	}
	first := w.at.Revision - int64(len(w.changes)) + 1
	if err := follows(w.begun, resource.Position{Incarnation: w.at.Incarnation, Revision: first - 1}); err != nil {
		return err
	}
	for i, c := range w.changes {
		kind, uid := identify(c)
		_, err := w.Exec(ctx, `INSERT INTO changes (revision, kind, uid, deleted, change_time, payload) VALUES ($1, $2, $3, $4, $5, $6)`,
			first+int64(i), kind, uid, c.Deleted, sqldb.Micros(w.now), payloads[i])
		if err != nil {
			return fmt.Errorf("insert a change: %w", err)
		}
	}
	return nil
}

// read runs fn at one moment of the database, and says which.
func (s *Store) read(ctx context.Context, fn func(ctx context.Context, tx sqldb.Tx) error) (resource.Position, error) {
	var at resource.Position
	begun := s.newest.Load()
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		var err error
		if at, err = position(ctx, tx); err != nil {
			return err
		}
		if err := follows(*begun, at); err != nil {
			return err
		}
		return fn(ctx, tx)
	})
	if err != nil {
		return resource.Position{}, meaning(err)
	}
	s.see(begun, at)
	return at, nil
}

// everything is what LIKE takes for any name.
const everything = "%"

// span is a range of names: from is below all of them, to is above.
type span struct {
	from, to string
	// like narrows it further.
	like string
}

// spanBelow is the range of the names below a prefix, which ends with a slash.
func spanBelow(prefix string) span {
	const afterSlash = "0" // '/' + 1
	return span{from: prefix, to: prefix[:len(prefix)-1] + afterSlash, like: everything}
}

// after moves the beginning behind a name.
func (s span) after(name string) span {
	s.from = max(s.from, name)
	return s
}

// accountSpan is the range of the names below a parent `accounts/{account}`, the account possibly the wildcard.
func accountSpan(parent string) (span, error) {
	ids, ok := resource.SplitParent(parent, "accounts")
	switch {
	case !ok:
		return span{}, resource.NotFound(parent)
	case ids[0] == resource.Wildcard:
		return spanBelow("accounts/"), nil
	default:
		return spanBelow(parent + "/"), nil
	}
}

// meaning turns what sqldb says into what the domain says.
func meaning(err error) error {
	if errors.Is(err, sqldb.ErrUnavailable) {
		return fmt.Errorf("%w: %w", resource.ErrUnavailable, err)
	}
	return err
}

func encode(value any) (string, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("encode: %w", err)
	}
	return string(text), nil
}

func decode(text string, value any) error {
	if err := json.Unmarshal([]byte(text), value); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}
