// Package store keeps integrations, projects and attachments in SQL, SQLite or PostgreSQL by one query text, and every
// change of them in the order in which the changes were committed.
//
// It guarantees that a write and the changes it makes are one transaction; that revisions have no gaps, and that who has
// read all changes up to a revision will never see one of a lower revision appear; that a write which changes nothing,
// or nothing but the message of a condition, makes no revision; and that what a rule forbids stays forbidden when two do it at once.
//
// The tricky ideas are two. The revision is one row, updated as the last thing before the changes get their revisions: PostgreSQL
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
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/pkg/secret"
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
	pageKey   secret.Text
	committed chan struct{}
	// newest is the newest position that a transaction of this process has seen; never nil.
	newest atomic.Pointer[resource.Position]
}

// New uses an opened database, and gives it its incarnation, and the key of its page tokens, if it has none.
func New(ctx context.Context, db *sqldb.DB, quotas quota.Config) (*Store, error) {
	s := &Store{shared: &shared{db: db, quotas: quotas, committed: make(chan struct{}, 1)}}
	var at resource.Position
	err := db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO registry (id, incarnation, revision) VALUES (1, $1, 0) ON CONFLICT (id) DO NOTHING`,
			uuid.NewString())
		if err != nil {
			return err
		}
		if at, err = position(ctx, tx); err != nil {
			return err
		}
		s.pageKey, err = pagetoken.Key(ctx, tx)
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

// Incarnation tells this database from all others. It is as of the last transaction, for the database may be given another while it is
// used: what must not be mistaken about it asks the database.
func (s *Store) Incarnation() string { return s.newest.Load().Incarnation }

// Committed says, by a value soon after, that this process has committed a change. It is a hint: several changes may make
// one value, and other processes' changes make none.
func (s *Store) Committed() <-chan struct{} { return s.committed }

// PageKey is what this database's page tokens are sealed with, at all replicas.
func (s *Store) PageKey() secret.Text { return s.pageKey }

// Ping tells whether the database answers, and is no older than it was.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.Head(ctx)
	return err
}

// view is a transaction, and the position of the database when it began.
type view struct {
	sqldb.Tx
	at resource.Position
}

// viewed finds out the position of a transaction, and refuses a database that has gone back since begun, the newest that was known before.
func viewed(ctx context.Context, tx sqldb.Tx, begun *resource.Position) (view, error) {
	at, err := position(ctx, tx)
	if err != nil {
		return view{}, err
	}
	return view{Tx: tx, at: at}, follows(*begun, at)
}

// writing is a write transaction, with the changes it makes.
type writing struct {
	view
	quotas quota.Config
	// now is as exact as what is stored, so that what a write returns is what a read finds.
	now     time.Time
	changes []change.Change
}

// record notes a change, to be given its revision at the end.
func (w *writing) record(c change.Change) { w.changes = append(w.changes, c) }

var (
	// errUnchanged rolls back a write that turned out to have nothing to do, or was a trial, and with it the locks it counted.
	errUnchanged = errors.New("nothing changes")
	// errRenewed means that the database got another incarnation while it was written to: etags were judged by the former one.
	errRenewed = errors.New("the database got another incarnation")
)

// write runs fn in a transaction, then gives its changes their revisions. fn runs again when it lost a race for a unique
// value: then it finds the winner's row, and answers accordingly.
func (s *Store) write(ctx context.Context, now time.Time, fn func(ctx context.Context, w *writing) error) error {
	var made int
	var at resource.Position
	var begun *resource.Position
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		begun = s.newest.Load()
		v, err := viewed(ctx, tx, begun)
		if err != nil {
			return err
		}
		w := &writing{view: v, quotas: s.quotas, now: sqldb.Time(sqldb.Micros(now))}
		at = w.at
		if err := fn(ctx, w); err != nil {
			return another(err)
		}
		if s.trial {
			// Before a revision is taken, for which all other writers would wait.
			return errUnchanged
		}
		made = len(w.changes)
		at, err = w.number(ctx)
		return another(err)
	})
	switch {
	case errors.Is(err, errUnchanged):
		s.see(begun, at)
		return nil
	case errors.Is(err, sqldb.ErrUnique), errors.Is(err, errRenewed):
		return fmt.Errorf("%w: %w", resource.ErrConflict, err)
	case err != nil:
		return meaning(err)
	}
	s.see(begun, at)
	if made > 0 {
		select {
		case s.committed <- struct{}{}:
		default: // one is waiting to be seen already
		}
	}
	return nil
}

// another has a write run again that another write has overtaken.
func another(err error) error {
	if errors.Is(err, sqldb.ErrUnique) || errors.Is(err, errRenewed) {
		return sqldb.Again(err)
	}
	return err
}

// number is the last part of every write that changed something: from when it takes the revisions to the commit no other write
// can get one. So all that can be done before is: many changes are inserted under provisional revisions, and moved. It gives the
// position that the changes make.
func (w *writing) number(ctx context.Context) (resource.Position, error) {
	if len(w.changes) == 0 {
		return w.at, nil
	}
	// No two writes use the same, which would wait for each other, nor is it anybody's revision ever.
	first := -rand.Int64N(math.MaxInt64/2) - int64(len(w.changes)) //nolint:gosec // tells contenders apart, guards nothing
	rows := make([][]any, len(w.changes))
	for i, c := range w.changes {
		payload, err := payloadOf(c)
		if err != nil {
			return w.at, err
		}
		kind, uid := identify(c)
		rows[i] = []any{first + int64(i), kind, uid, c.Deleted, sqldb.Micros(w.now), payload}
	}
	if len(rows) <= atOnce {
		at, first, err := w.takeRevisions(ctx)
		if err != nil {
			return w.at, err
		}
		for i, row := range rows {
			row[0] = first + int64(i)
		}
		return at, w.insertChanges(ctx, rows)
	}
	for batch := range slices.Chunk(rows, atOnce) {
		if err := w.insertChanges(ctx, batch); err != nil {
			return w.at, err
		}
	}
	at, numbered, err := w.takeRevisions(ctx)
	if err != nil {
		return w.at, err
	}
	_, err = w.Exec(ctx, `UPDATE changes SET revision = revision + $1 WHERE revision >= $2 AND revision < $3`, numbered-first, first, first+int64(len(rows)))
	if err != nil {
		return w.at, fmt.Errorf("number the changes: %w", err)
	}
	return at, nil
}

// takeRevisions takes as many as there are changes, of which it gives the first, and the position that they make.
func (w *writing) takeRevisions(ctx context.Context) (at resource.Position, first int64, err error) {
	err = w.QueryRow(ctx, `UPDATE registry SET revision = revision + $1 WHERE id = 1 RETURNING incarnation, revision`,
		len(w.changes)).Scan(&at.Incarnation, &at.Revision)
	if err != nil {
		return at, 0, fmt.Errorf("take a revision: %w", err)
	}
	if at.Incarnation != w.at.Incarnation {
		return at, 0, errRenewed
	}
	first = at.Revision - int64(len(w.changes)) + 1
	return at, first, follows(w.at, resource.Position{Incarnation: at.Incarnation, Revision: first - 1})
}

func (w *writing) insertChanges(ctx context.Context, rows [][]any) error {
	places, args := rowsOf(rows)
	if _, err := w.Exec(ctx, `INSERT INTO changes (revision, kind, uid, deleted, change_time, payload) VALUES `+places, args...); err != nil {
		return fmt.Errorf("insert changes: %w", err)
	}
	return nil
}

// atOnce is how many rows a statement has at most that has many: few enough for SQLite, which looks every parameter up among those before it.
const atOnce = 200

// rowsOf are rows of equal length as SQL has them, ($1, $2), ($3, $4) and so on, and their values.
func rowsOf(rows [][]any) (places string, args []any) {
	var text strings.Builder
	for _, row := range rows {
		for i := range row {
			switch {
			case i > 0:
				text.WriteString(", ")
			case len(args) > 0:
				text.WriteString("), (")
			}
			text.WriteString("$" + strconv.Itoa(len(args)+i+1))
		}
		args = append(args, row...)
	}
	return "(" + text.String() + ")", args
}

// read runs fn at one moment of the database, and says which.
func (s *Store) read(ctx context.Context, fn func(ctx context.Context, v view) error) (resource.Position, error) {
	var at resource.Position
	begun := s.newest.Load()
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		v, err := viewed(ctx, tx, begun)
		if err != nil {
			return err
		}
		at = v.at
		return fn(ctx, v)
	})
	if err != nil {
		return resource.Position{}, meaning(err)
	}
	s.see(begun, at)
	return at, nil
}

// span is a range of names: from is below all of them, to is above.
type span struct {
	from, to string
}

// spanBelow is the range of the names below a prefix, which ends with a slash.
func spanBelow(prefix string) span {
	const afterSlash = "0" // '/' + 1
	return span{from: prefix, to: prefix[:len(prefix)-1] + afterSlash}
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
