package sqldbtest

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver named pgx

	"phasekey.dev/pkg/sqldb"
)

const startTimeout = time.Minute

// server is a private PostgreSQL: its files, its socket and its log are in one folder.
type server struct {
	programs string
	owner    *syscall.Credential
	folder   string
	volatile bool
	remote   string // how others than admin connect, but for the database; empty for the socket
	admin    *sql.DB

	keeper *exec.Cmd      // nil while the server does not run
	orders io.WriteCloser // the keeper's standard input: held, for once collected it would be closed

	mu        sync.Mutex
	templates map[string]string // digest of migrations → database
	made      int
}

// start makes the process's one server. A package has no end to hook into, and a server per test costs seconds, hence one for all; its keeper (see launch)
// is what ends it.
var start = sync.OnceValues(func() (*server, error) {
	s, err := launch("fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n", nil)
	if err == nil {
		s.volatile = true
	}
	return s, err
})

// PostgresConfig makes an empty database on the private server, dropped when the test ends.
func PostgresConfig(t testing.TB) sqldb.Config {
	t.Helper()
	s := running(t)
	return s.fresh(t, "template1")
}

// MigratedPostgresConfig makes a database on the private server in which the migrations have run, dropped when the test ends. It is copied from a
// template made once, which is cheaper than migrating each time.
func MigratedPostgresConfig(t testing.TB, migrations fs.FS) sqldb.Config {
	t.Helper()
	s := running(t)
	template, err := s.template(migrations)
	if err != nil {
		t.Fatal(err)
	}
	return s.fresh(t, template)
}

func running(t testing.TB) *server {
	t.Helper()
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *server) fresh(t testing.TB, template string) sqldb.Config {
	t.Helper()
	name, err := s.create(template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// FORCE: a test of lost connections may leave some.
		if _, err := s.admin.ExecContext(context.WithoutCancel(t.Context()), `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Error(err)
		}
	})
	return s.config(name)
}

// ClockBehind has a PostgreSQL database's clock be behind the machine's by so much, as far as those can tell that ask clock_timestamp() and connect from now on. Asked
// again, whoever is connected is told the new time.
func ClockBehind(t testing.TB, config sqldb.Config, behind time.Duration) {
	t.Helper()
	ExecPostgres(t, config, `CREATE SCHEMA IF NOT EXISTS clock`)
	ExecPostgres(t, config, fmt.Sprintf(`CREATE OR REPLACE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql
		AS 'SELECT pg_catalog.clock_timestamp() - interval ''%f seconds'''`, behind.Seconds()))
	// Any other schema comes after pg_catalog, unless the path says otherwise.
	ExecPostgres(t, config, `DO 'BEGIN EXECUTE format(''ALTER DATABASE %I SET search_path = clock, pg_catalog, public'', current_database()); END'`)
}

func (s *server) config(database string) sqldb.Config {
	if s.remote != "" {
		return sqldb.Config{Driver: sqldb.DriverPostgres, Volatile: s.volatile, DSN: s.remote + " dbname=" + database}
	}
	c := sqldb.Config{Driver: sqldb.DriverPostgres, Volatile: s.volatile, DSN: fmt.Sprintf("host=%s user=postgres dbname=%s", s.folder, database)}
	if s.volatile { // the one for all tests
		// A machine may stand still for seconds while a transaction is open, or waits for another.
		c.LockTimeout, c.IdleInTransactionTimeout = time.Minute, time.Minute
	}
	return c
}

func (s *server) create(template string) (name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	name = "test_" + strconv.Itoa(s.made)
	if _, err := s.admin.Exec(`CREATE DATABASE ` + name + ` TEMPLATE ` + template); err != nil {
		return "", fmt.Errorf("create database from %s: %w", template, err)
	}
	return name, nil
}

// template gives the name of a database in which these migrations have run.
func (s *server) template(migrations fs.FS) (string, error) {
	digest, err := digestOf(migrations, sqldb.DriverPostgres)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	name, ok := s.templates[digest]
	s.mu.Unlock()
	if ok {
		return name, nil
	}
	name, err = s.create("template1")
	if err != nil {
		return "", err
	}
	db, err := sqldb.Open(context.Background(), s.config(name), migrations)
	if err != nil {
		return "", err
	}
	if err := db.Close(); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.templates[digest] = name // if another test did the same meanwhile, either will do
	return name, nil
}

func digestOf(migrations fs.FS, driver string) (string, error) {
	sum := sha256.New()
	names, err := fs.Glob(migrations, driver+"/*.sql")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		text, err := fs.ReadFile(migrations, name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// keeper runs the server and waits for a line of standard input that says how to end it. Standard input ends without one when the test's process does, even by SIGKILL:
// nothing else holds the other end of that pipe. Then nobody needs the data any more.
const keeper = `
"$1/postgres" -D "$2/data" -k "$2" >>"$2/log" 2>&1 </dev/null &
how=
read -r how
case "$how" in
` + string(Shutdown) + `) kill -INT $! ;;
*) kill -QUIT $! ;;
esac
wait
[ -n "$how" ] || rm -rf "$2"
`

// launch makes and starts a server with these settings. Prepare, unless it is nil, is called before the start.
func launch(settings string, prepare func(s *server) error) (_ *server, err error) {
	s := &server{templates: map[string]string{}}
	if s.programs, err = findPrograms(); err != nil {
		return nil, err
	}
	if s.owner, err = serverOwner(); err != nil {
		return nil, err
	}
	// Not under TMPDIR: a socket's path has at most 107 bytes, and every folder on the way must be open to the owner.
	if s.folder, err = os.MkdirTemp("/tmp", "pg"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(s.folder)
		}
	}()
	if s.owner != nil {
		if err := os.Chown(s.folder, int(s.owner.Uid), int(s.owner.Gid)); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	initdb := exec.CommandContext(ctx, filepath.Join(s.programs, "initdb"), "--pgdata="+filepath.Join(s.folder, "data"), "--username=postgres",
		"--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
	initdb.Dir = s.folder
	initdb.Env = environment()
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	if output, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, output)
	}
	settings = `
listen_addresses = ''
unix_socket_permissions = 0700
shared_buffers = 32MB
max_connections = 200
autovacuum = off
` + settings
	if err := appendTo(filepath.Join(s.folder, "data", "postgresql.conf"), settings); err != nil {
		return nil, err
	}
	if prepare != nil {
		if err := prepare(s); err != nil {
			return nil, err
		}
	}
	return s, s.run(ctx)
}

// run starts the server, which is not running, and waits until it answers.
func (s *server) run(ctx context.Context) (err error) {
	s.keeper = exec.Command("/bin/sh", "-c", keeper, "keeper", s.programs, s.folder)
	s.keeper.Dir = s.folder
	s.keeper.Env = environment()
	// A group of its own, so that Ctrl-C at a terminal reaches the test and not the server, which would answer with a slow, orderly end.
	s.keeper.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner, Setpgid: true}
	if s.orders, err = s.keeper.StdinPipe(); err != nil {
		return err
	}
	if err := s.keeper.Start(); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		log, _ := os.ReadFile(filepath.Join(s.folder, "log"))
		return fmt.Errorf("start PostgreSQL: %w\n%s", errors.Join(err, s.end("")), log)
	}
	return nil
}

// end ends the server as the keeper is told, and waits until it has.
func (s *server) end(how Ending) error {
	var errs []error
	if s.admin != nil {
		errs = append(errs, s.admin.Close())
		s.admin = nil
	}
	if how != "" {
		_, err := io.WriteString(s.orders, string(how)+"\n")
		errs = append(errs, err)
	}
	// Waiting closes the pipe, once the keeper has ended.
	if how == "" {
		errs = append(errs, s.orders.Close())
	}
	errs = append(errs, s.keeper.Wait())
	s.keeper = nil
	return errors.Join(errs...)
}

func appendTo(name, text string) error {
	file, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := file.WriteString(text); err != nil {
		_ = file.Close()
		return err
	}
	return file.Close()
}

// connect waits until the server answers.
func (s *server) connect(ctx context.Context) error {
	admin, err := sql.Open("pgx", fmt.Sprintf("host=%s user=postgres dbname=postgres", s.folder))
	if err != nil {
		return err
	}
	for {
		if err = admin.PingContext(ctx); err == nil {
			s.admin = admin
			return nil
		}
		select {
		case <-ctx.Done():
			_ = admin.Close()
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// environment is this process's without what would point PostgreSQL's programs elsewhere.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "PG") || strings.HasPrefix(variable, "LC_") || strings.HasPrefix(variable, "LANG")
	})
}

var errNoPostgres = errors.New("PostgreSQL's programs are not here: apt-get install postgresql")

// findPrograms gives the folder that holds initdb and postgres: the newest of Debian's, or the one in the path.
func findPrograms() (string, error) {
	folders, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	slices.SortFunc(folders, func(a, b string) int { return version(b) - version(a) })
	if inPath, err := exec.LookPath("initdb"); err == nil {
		folders = append(folders, filepath.Dir(inPath))
	}
	for _, folder := range folders {
		if executable(folder, "initdb") && executable(folder, "postgres") {
			return folder, nil
		}
	}
	return "", errNoPostgres
}

func version(folder string) int {
	number, _ := strconv.Atoi(filepath.Base(filepath.Dir(folder))) // 0 for what is no number: last
	return number
}

func executable(folder, name string) bool {
	_, err := exec.LookPath(filepath.Join(folder, name))
	return err == nil
}

// serverOwner is whom the server runs as: nil for this process's user, or postgres when that is root, which PostgreSQL refuses to run as.
func serverOwner() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", errNoPostgres, err)
	}
	uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, fmt.Errorf("user postgres: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
