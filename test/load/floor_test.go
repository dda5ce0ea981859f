package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
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
	Credential       []byte // a vaultv1.Credential, the one that it always gives
	Database         *sqldb.Config
	StreamsPerClient uint32
}

// floor is a CredentialService that does nothing but send: what is left of the vault when everything is taken away that makes it one. With a database it commits
// one row before each answer.
type floor struct {
	vaultv1.UnimplementedCredentialServiceServer
	credential *vaultv1.Credential
	db         *sqldb.DB // nil: none

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
		table := []byte(`CREATE TABLE rows (writer TEXT NOT NULL, seq BIGINT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (writer, seq));`)
		f.db, err = sqldb.Open(context.Background(), *c.Database, fstest.MapFS{
			"postgres/0001_rows.sql": &fstest.MapFile{Data: table}, "sqlite/0001_rows.sql": &fstest.MapFile{Data: table},
		})
		if err != nil {
			return err
		}
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
		grpc.MaxConcurrentStreams(c.StreamsPerClient), grpc.ReadBufferSize(4<<10),
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

// insert commits a row of about the size of an audit record, with a database.
func (f *floor) insert(ctx context.Context) error {
	if f.db == nil {
		return nil
	}
	return f.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO rows (writer, seq, content) VALUES ($1, $2, $3)`, rowID(), time.Now().UnixNano(), rowContent)
		return err
	})
}

// newFloor makes a floor that gives the credential; db may be nil.
func (w *world) newFloor(t *testing.T, name string, credential *vaultv1.Credential, db *sqldb.Config) *server {
	t.Helper()
	message, err := proto.Marshal(credential)
	rigtest.Must(t, err)
	cert := w.Certificate(t, "vault")
	address := w.at(t)
	text, err := json.Marshal(floorConfig{
		Address: address, Cert: cert.CertFile, Key: cert.KeyFile, CA: cert.CAFile, Credential: message, Database: db, StreamsPerClient: streamsPerConnection,
	})
	rigtest.Must(t, err)
	file := filepath.Join(w.Dir, name+".json")
	rigtest.Must(t, os.WriteFile(file, text, 0o600))
	self, err := os.Executable()
	rigtest.Must(t, err)
	s := &server{runners: address}
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
