package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof" // profiles
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/test/internal/rigtest"
)

// floorCommand is this test binary's first argument when it is to be the floor.
const floorCommand = "floor"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == floorCommand {
		if err := serveFloor(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// floorConfig is what the floor is told.
type floorConfig struct {
	Address          string
	Cert, Key, CA    string // of files
	Profiles         string // address, empty for none
	Credential       []byte // a vaultv1.Credential, the one that it always gives
	Database         *sqldb.Config
	Together         bool // what is inserted at the same time is one commit
	StreamsPerClient uint32
}

// floor is a CredentialService that does nothing but send: what is left of the vault when everything is taken away that makes it one. With a database it commits
// one row before each answer, by one statement.
type floor struct {
	vaultv1.UnimplementedCredentialServiceServer
	credential *vaultv1.Credential
	commit     func(ctx context.Context, rows []*insertion) error // nil: none
	together   chan *insertion                                    // nil: each by itself

	mu     sync.Mutex
	pushed chan struct{}
}

func serveFloor(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var c floorConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	f := &floor{credential: &vaultv1.Credential{}, pushed: make(chan struct{})}
	if err := proto.Unmarshal(c.Credential, f.credential); err != nil {
		return err
	}
	if c.Database != nil {
		if f.commit, err = committing(*c.Database); err != nil {
			return err
		}
		if c.Together {
			f.together = make(chan *insertion, maxTogether)
			go f.commitTogether()
		}
	}
	if c.Profiles != "" {
		go func() { _ = http.ListenAndServe(c.Profiles, nil) }()
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("no CA")
	}
	ln, err := net.Listen("tcp", c.Address)
	if err != nil {
		return err
	}
	// As pkg/grpcserver's.
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"h2"},
			Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
		})),
		grpc.MaxConcurrentStreams(c.StreamsPerClient), grpc.ReadBufferSize(4<<10), grpc.StaticStreamWindowSize(64<<10), grpc.StaticConnWindowSize(64<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	)
	vaultv1.RegisterCredentialServiceServer(server, f)
	go f.obey()
	return server.Serve(ln)
}

// obey pushes the credential to all streams for each line of standard input.
func (f *floor) obey() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		f.mu.Lock()
		close(f.pushed)
		f.pushed = make(chan struct{})
		f.mu.Unlock()
	}
}

func (f *floor) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pushed
}

func (f *floor) StreamCredentials(_ *vaultv1.StreamCredentialsRequest, stream grpc.ServerStreamingServer[vaultv1.StreamCredentialsResponse]) error {
	for {
		pushed := f.next()
		if err := f.insert(stream.Context()); err != nil {
			return err
		}
		if err := stream.Send(&vaultv1.StreamCredentialsResponse{Credential: f.credential}); err != nil {
			return err
		}
		select {
		case <-pushed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (f *floor) FetchCredential(ctx context.Context, _ *vaultv1.FetchCredentialRequest) (*vaultv1.FetchCredentialResponse, error) {
	if err := f.insert(ctx); err != nil {
		return nil, err
	}
	return &vaultv1.FetchCredentialResponse{Credential: f.credential}, nil
}

// insertion is a row of about the size of an audit record.
type insertion struct {
	writer string
	seq    int64
	done   chan error
}

// insert commits a row, with a database.
func (f *floor) insert(ctx context.Context) error {
	if f.commit == nil {
		return nil
	}
	row := &insertion{writer: rowID(), seq: time.Now().UnixNano()}
	if f.together == nil {
		return f.commit(ctx, []*insertion{row})
	}
	row.done = make(chan error, 1)
	f.together <- row
	return <-row.done
}

// maxTogether is as many as the vault does together.
const maxTogether = 64

// commitTogether commits what waits, and while it does so others gather.
func (f *floor) commitTogether() {
	for first := range f.together {
		rows := []*insertion{first}
		for more := true; more && len(rows) < maxTogether; {
			select {
			case row := <-f.together:
				rows = append(rows, row)
			default:
				more = false
			}
		}
		err := f.commit(context.Background(), rows)
		for _, row := range rows {
			row.done <- err
		}
	}
}

// committing makes a table, and returns what inserts rows into it, by one statement that is a transaction of its own: with PostgreSQL a message and its answer, which is as little as a
// commit takes.
func committing(c sqldb.Config) (func(ctx context.Context, rows []*insertion) error, error) {
	table := []byte(`CREATE TABLE rows (writer TEXT NOT NULL, seq BIGINT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (writer, seq));`)
	db, err := sqldb.Open(context.Background(), c, fstest.MapFS{
		"postgres/0001_rows.sql": &fstest.MapFile{Data: table}, "sqlite/0001_rows.sql": &fstest.MapFile{Data: table},
	})
	if err != nil {
		return nil, err
	}
	if c.Driver == sqldb.DriverSQLite {
		return func(ctx context.Context, rows []*insertion) error {
			values := sqldb.NewValues("tit")
			for _, r := range rows {
				values.Add(r.writer, r.seq, rowContent)
			}
			return db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
				from, args := tx.Values(values)
				_, err := tx.Exec(ctx, `INSERT INTO rows (writer, seq, content) SELECT * FROM `+from+` v`, args...)
				return err
			})
		}, nil
	}
	pool, err := sql.Open("pgx", c.DSN)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	pool.SetMaxOpenConns(postgresConns)
	pool.SetMaxIdleConns(postgresConns)
	return func(ctx context.Context, rows []*insertion) error {
		if len(rows) == 1 {
			_, err := pool.ExecContext(ctx, `INSERT INTO rows (writer, seq, content) VALUES ($1, $2, $3)`, rows[0].writer, rows[0].seq, rowContent)
			return err
		}
		writers, seqs := make([]string, len(rows)), make([]int64, len(rows))
		for i, r := range rows {
			writers[i], seqs[i] = r.writer, r.seq
		}
		_, err := pool.ExecContext(ctx, `INSERT INTO rows (writer, seq, content) SELECT w, s, $3 FROM unnest(CAST($1 AS TEXT[]), CAST($2 AS BIGINT[])) AS v (w, s)`, writers, seqs, rowContent)
		return err
	}, nil
}

// postgresConns is as many connections as the vault has.
const postgresConns = 16

// newFloor makes a floor that gives the credential. With a database it commits a row before each answer, and may commit many together.
func (w *world) newFloor(t *testing.T, name string, credential *vaultv1.Credential, db *sqldb.Config, together bool) *server {
	t.Helper()
	message, err := proto.Marshal(credential)
	rigtest.Must(t, err)
	cert := w.Certificate(t, "vault")
	address := w.at(t)
	s := &server{runners: address}
	if db == nil || db.Driver == sqldb.DriverPostgres {
		s.profiles = w.at(t)
	}
	text, err := json.Marshal(floorConfig{
		Address: address, Cert: cert.CertFile, Key: cert.KeyFile, CA: cert.CAFile, Profiles: s.profiles, Credential: message, Database: db, Together: together,
		StreamsPerClient: streamsPerConnection,
	})
	rigtest.Must(t, err)
	file := filepath.Join(w.Dir, name+".json")
	rigtest.Must(t, os.WriteFile(file, text, 0o600))
	self, err := os.Executable()
	rigtest.Must(t, err)
	s.Process = rigtest.Process{Name: name, Answers: []string{address}, Command: []string{self, floorCommand, file}}
	t.Cleanup(func() { s.Kill(t) })
	return s
}

// push has a floor push to all of its streams.
func (s *server) push(t *testing.T) {
	t.Helper()
	_, err := s.Input.Write([]byte("push\n"))
	rigtest.Must(t, err)
}
