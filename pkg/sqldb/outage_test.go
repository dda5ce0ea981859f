package sqldb_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

// proxy stands before PostgreSQL and breaks connections where it hurts.
type proxy struct {
	folder string
	// loseCommit has the next COMMIT reach the server, and its reply nobody.
	loseCommit atomic.Bool
	// loseStatement breaks the connection at the next statement with this in it, which does not reach the server.
	loseStatement atomic.Pointer[string]
	begins        atomic.Int64
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
