package sqldbtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"phasekey.dev/pkg/sqldb"
)

// Ending is how a PostgreSQL server ends.
type Ending string

// The endings there are.
const (
	// Crash ends the server as a failure of its process would: nothing is written any more, and the next start recovers from the log.
	Crash Ending = "crash"
	// Shutdown cuts off whoever is connected, and ends in order.
	Shutdown Ending = "shutdown"
)

// Server is a PostgreSQL of the test's own, to be stopped and started. It keeps what it has committed, however it ends.
type Server struct{ *server }

// NewServer starts a server that ends with the test.
func NewServer(t testing.TB) *Server {
	t.Helper()
	return newServer(t, "", nil)
}

// NewDurableServer is NewServer whose commits wait for the disk, with memory for more than a test's data: to measure with.
func NewDurableServer(t testing.TB) *Server {
	t.Helper()
	return newServer(t, "shared_buffers = 256MB\nautovacuum = on\n", nil)
}

// Certificate is what a server shows who it is by: PEM files of a certificate, its key, and the CA that its clients trust.
type Certificate struct{ CertFile, KeyFile, CAFile string }

// NewTLSServer is NewServer, for programs that come over TCP and TLS: to a loopback address, which the certificate names.
func NewTLSServer(t testing.TB, ip string, certificate Certificate) *Server {
	t.Helper()
	return newServer(t, fmt.Sprintf("listen_addresses = '%s'\nport = %d\nssl = on\n", ip, tcpPort), func(s *server) error {
		s.remote = fmt.Sprintf("host=%s port=%d user=postgres sslmode=verify-full sslrootcert=%s", ip, tcpPort, certificate.CAFile)
		return errors.Join(
			s.copyIn(certificate.CertFile, "server.crt"), s.copyIn(certificate.KeyFile, "server.key"),
			appendTo(filepath.Join(s.folder, "data", "pg_hba.conf"), "hostssl all all 127.0.0.0/8 trust\n"),
		)
	})
}

// tcpPort is PostgreSQL's own, by which it names its socket too.
const tcpPort = 5432

// copyIn puts a file among the server's data, for nobody else to read, as PostgreSQL wants it.
func (s *server) copyIn(file, name string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	to := filepath.Join(s.folder, "data", name)
	if err := os.WriteFile(to, text, 0o600); err != nil || s.owner == nil {
		return err
	}
	return os.Chown(to, int(s.owner.Uid), int(s.owner.Gid))
}

func newServer(t testing.TB, settings string, prepare func(s *server) error) *Server {
	t.Helper()
	s, err := launch(settings, prepare)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end := func() error { return s.end("") }
		if s.keeper == nil {
			end = func() error { return os.RemoveAll(s.folder) }
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return &Server{s}
}

// Config makes an empty database.
func (s *Server) Config(t testing.TB) sqldb.Config {
	t.Helper()
	name, err := s.create("template1")
	if err != nil {
		t.Fatal(err)
	}
	return s.config(name)
}

// Stop ends the server, and waits until it has ended.
func (s *Server) Stop(t testing.TB, how Ending) {
	t.Helper()
	if err := s.end(how); err != nil {
		t.Fatal(err)
	}
}

// Standby makes a copy of what the server has by now. What it returns has the copy take over, without all that was committed since: on another timeline, as
// where an asynchronous standby is promoted.
func (s *Server) Standby(t testing.TB) (takeOver func()) {
	t.Helper()
	do := func(command string, args ...string) {
		t.Helper()
		if output, err := exec.CommandContext(t.Context(), command, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, output)
		}
	}
	data, standby := filepath.Join(s.folder, "data"), filepath.Join(s.folder, "standby")
	s.Stop(t, Shutdown)
	do("cp", "-a", data, standby)
	s.Start(t)
	return func() {
		t.Helper()
		s.Stop(t, Crash)
		do("rm", "-rf", data)
		do("mv", standby, data)
		do("cp", "-a", filepath.Join(data, "PG_VERSION"), filepath.Join(data, "recovery.signal")) // an owner's file, of whatever contents
		if err := appendTo(filepath.Join(data, "postgresql.conf"), "restore_command = 'false'\nhot_standby = off\n"); err != nil {
			t.Fatal(err)
		}
		s.Start(t)
	}
}

// Start starts the server anew, and waits until it answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := s.run(ctx); err != nil {
		t.Fatal(err)
	}
}
