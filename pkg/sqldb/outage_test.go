package sqldb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

// proxy stands before PostgreSQL and breaks connections where it hurts.
type proxy struct {
	folder string
	// loseCommit has the next COMMIT reach the server, and its reply nobody.
	loseCommit atomic.Bool
	// loseReply has the next message with this in it reach the server, and its reply nobody.
	loseReply atomic.Pointer[string]
	// loseStatement breaks the connection at the next statement with this in it, which does not reach the server.
	loseStatement atomic.Pointer[string]
	// swallow keeps the next statement with this in it, and says nothing.
	swallow atomic.Pointer[string]
	begins  atomic.Int64
}

func startProxy(t *testing.T, config sqldb.Config) (*proxy, sqldb.Config) {
	t.Helper()
	folder, err := os.MkdirTemp("/tmp", "proxy") //nolint:usetesting // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	p := &proxy{folder: folder}
	listener, err := net.Listen("unix", filepath.Join(folder, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	host := strings.TrimPrefix(strings.Fields(config.DSN)[0], "host=")
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", filepath.Join(host, ".s.PGSQL.5432"))
			if err != nil {
				t.Error(err)
				return
			}
			var mute atomic.Bool
			go p.replies(client, server, &mute)
			go p.requests(client, server, &mute)
		}
	}()
	config.DSN = strings.Replace(config.DSN, host, folder, 1)
	return p, config
}

func (p *proxy) replies(client, server net.Conn, mute *atomic.Bool) {
	defer func() { _ = client.Close() }()
	buffer := make([]byte, 64<<10)
	for {
		n, err := server.Read(buffer)
		if err != nil || mute.Load() {
			return
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) requests(client, server net.Conn, mute *atomic.Bool) {
	defer func() { _ = server.Close() }()
	buffer := make([]byte, 64<<10)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			return
		}
		message := bytes.ToLower(buffer[:n])
		if bytes.Contains(message, []byte("begin")) {
			p.begins.Add(1)
		}
		if text := p.loseStatement.Load(); text != nil && bytes.Contains(message, []byte(*text)) {
			p.loseStatement.Store(nil)
			_ = client.Close()
			return
		}
		if text := p.swallow.Load(); text != nil && bytes.Contains(message, []byte(*text)) {
			p.swallow.Store(nil)
			mute.Store(true)
			continue
		}
		if text := p.loseReply.Load(); text != nil && bytes.Contains(message, []byte(*text)) {
			p.loseReply.Store(nil)
			mute.Store(true)
		}
		if bytes.Contains(message, []byte("commit")) && p.loseCommit.CompareAndSwap(true, false) {
			mute.Store(true)
		}
		if _, err := io.Copy(server, bytes.NewReader(buffer[:n])); err != nil {
			return
		}
	}
}

func outage(t *testing.T) (*proxy, *sqldb.DB) {
	t.Helper()
	p, config := startProxy(t, sqldbtest.MigratedPostgresConfig(t, schema))
	db, err := sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	p.begins.Store(0)
	return p, db
}

// The reply to a COMMIT is lost. It happened, the caller is told that this is unknown, and nothing is repeated.
func TestTx_LostReplyToCommit(t *testing.T) {
	p, db := outage(t)
	p.loseCommit.Store(true)
	err := db.Tx(t.Context(), insert("a", "eu", "first", 1))
	if !errors.Is(err, sqldb.ErrUnknownOutcome) || !errors.Is(err, sqldb.ErrUnavailable) {
		t.Errorf("got %v, want unknown outcome and unavailable", err)
	}
	if n := p.begins.Load(); n != 1 {
		t.Errorf("%d transactions were begun, want one", n)
	}
	if got := balances(t, db); len(got) != 1 {
		t.Errorf("the commit reached the server, but there is %v", got)
	}
}

// The connection breaks before the COMMIT: nothing happened, and that is known.
func TestTx_LostConnection(t *testing.T) {
	p, db := outage(t)
	statement := "insert into accounts"
	p.loseStatement.Store(&statement)
	err := db.Tx(t.Context(), insert("a", "eu", "first", 1))
	if !errors.Is(err, sqldb.ErrUnavailable) || errors.Is(err, sqldb.ErrUnknownOutcome) {
		t.Errorf("got %v, want unavailable, of known outcome", err)
	}
	if got := balances(t, db); len(got) != 0 {
		t.Errorf("rows are left: %v", got)
	}
	if err := db.Tx(t.Context(), insert("a", "eu", "first", 1)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestOpen_ServerIsDown(t *testing.T) {
	config := sqldb.Config{Driver: sqldb.DriverPostgres, DSN: "host=" + t.TempDir() + " user=postgres"}
	if _, err := sqldb.Open(t.Context(), config, schema); !errors.Is(err, sqldb.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
}

// A lock that is held too long is an answer in time, not a wait.
func TestTx_LockTimeout(t *testing.T) {
	config := sqldbtest.MigratedPostgresConfig(t, schema)
	config.LockTimeout = 50 * time.Millisecond
	db, err := sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Tx(t.Context(), insert("a", "eu", "first", 1)); err != nil {
		t.Fatal(err)
	}
	touch := func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE accounts SET balance = 2 WHERE id = 'a'`)
		return err
	}
	err = db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if err := touch(ctx, tx); err != nil {
			return err
		}
		if err := db.Tx(ctx, touch); !errors.Is(err, sqldb.ErrUnavailable) {
			t.Errorf("got %v, want unavailable", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A server that goes silent, as one does that lost its network, is given up by our own clock, although the caller sets no limit.
func TestTx_SilentServer(t *testing.T) {
	const limit = 500 * time.Millisecond // which a busy machine keeps afterwards
	for _, silent := range []string{"begin", "insert into accounts"} {
		t.Run(silent, func(t *testing.T) {
			p, config := startProxy(t, sqldbtest.MigratedPostgresConfig(t, schema))
			config.StatementTimeout, config.IdleInTransactionTimeout = limit, limit
			db, err := sqldb.Open(t.Context(), config, schema)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() })
			p.swallow.Store(&silent)
			err = db.Tx(t.Context(), insert("a", "eu", "first", 1))
			if !errors.Is(err, sqldb.ErrUnavailable) || errors.Is(err, sqldb.ErrUnknownOutcome) || errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want unavailable, of known outcome, and not the caller's doing", err)
			}
			if err := db.Tx(t.Context(), insert("a", "eu", "first", 1)); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// Connections that a server closed while nobody used them are nobody's trouble.
func TestTx_ServerClosedIdleConnections(t *testing.T) {
	config := sqldbtest.MigratedPostgresConfig(t, schema)
	db, err := sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	const conns = 4
	for round := range 5 {
		// So many transactions at once are so many connections.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var all sync.WaitGroup
		var begun atomic.Int64
		together := make(chan struct{})
		for range conns {
			all.Go(func() {
				err := db.ReadTx(ctx, func(ctx context.Context, _ sqldb.Tx) error {
					if begun.Add(1) == conns {
						close(together)
					}
					select {
					case <-together:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		sqldbtest.ExecPostgres(t, config, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		id := fmt.Sprint(round)
		if err := db.Tx(t.Context(), insert(id, "eu", id, 1)); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if got := balances(t, db); len(got) != 5 {
		t.Errorf("there is %v", got)
	}
}

// A server that takes no writes is no database, also when it did before: a standby, or a primary that became one.
func TestTx_OnlyWhereWritesAreTaken(t *testing.T) {
	config := sqldbtest.MigratedPostgresConfig(t, schema)
	config.MaxConns = 1
	db, err := sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	demote := func() {
		err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// Another connection finds a server that does.
	demote()
	if err := db.Tx(t.Context(), insert("a", "eu", "first", 1)); err != nil {
		t.Errorf("with a primary elsewhere: %v", err)
	}
	// Until there is none.
	name := strings.TrimPrefix(strings.Fields(config.DSN)[2], "dbname=")
	sqldbtest.ExecPostgres(t, config, `ALTER DATABASE `+name+` SET default_transaction_read_only = on`)
	demote()
	if err := db.Tx(t.Context(), insert("b", "eu", "second", 1)); !errors.Is(err, sqldb.ErrUnavailable) {
		t.Errorf("without a primary: %v, want unavailable", err)
	}
	if _, err := sqldb.Open(t.Context(), config, schema); !errors.Is(err, sqldb.ErrUnavailable) {
		t.Errorf("open without a primary: %v, want unavailable", err)
	}
	sqldbtest.ExecPostgres(t, config, `BEGIN READ WRITE; ALTER DATABASE `+name+` RESET default_transaction_read_only; COMMIT`)
	if err := db.Tx(t.Context(), insert("b", "eu", "second", 1)); err != nil {
		t.Errorf("with a primary again: %v", err)
	}
}

// The first host is gone; the second answers.
func TestOpen_SeveralHosts(t *testing.T) {
	config := sqldbtest.MigratedPostgresConfig(t, schema)
	config.DSN = strings.Replace(config.DSN, "host=", "host="+t.TempDir()+",", 1)
	db, err := sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Tx(t.Context(), insert("a", "eu", "first", 1)), db.Close()); err != nil {
		t.Error(err)
	}
}

// Who stops while the server is gone says goodbye to nobody, and has no reason to fail.
func TestClose_WithoutAServer(t *testing.T) {
	ca, err := devca.Open(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ip := net.IPv4(127, 10, 54, 32)
	leaf, err := ca.Issue(time.Now(), "postgres", devca.Leaf{ID: "spiffe://phasekey.dev/postgres", IPs: []net.IP{ip}})
	if err != nil {
		t.Fatal(err)
	}
	server := sqldbtest.NewTLSServer(t, ip.String(), sqldbtest.Certificate{CertFile: leaf.Cert, KeyFile: leaf.Key, CAFile: ca.CAFile()})
	db, err := sqldb.Open(t.Context(), server.Config(t), schema)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Stop(t, sqldbtest.Crash)
	if err := db.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}
