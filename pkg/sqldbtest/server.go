package sqldbtest

import (
	"context"
	"os"
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

// Server is a PostgreSQL of the test's own, to be stopped and started. It keeps what it has committed, however its process ends; the
// machine must not.
type Server struct{ *server }

// NewServer starts a server that ends with the test.
func NewServer(t testing.TB) *Server {
	t.Helper()
	s, err := launch("fsync = off\n")
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

// Start starts the server anew, and waits until it answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := s.run(ctx); err != nil {
		t.Fatal(err)
	}
}
