package grpcserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/rpcerr"
)

// flooded is a listener for strangers, over real TLS, that a test floods from one address and uses from another: both of the loopback network.
type flooded struct {
	t       *testing.T
	addr    string
	tls     *mtls.Source
	metrics *prometheus.Registry
}

const flooder, neighbour = "127.0.0.2", "127.0.0.3"

// identified makes a server's certificate, as files and opened.
func identified(t *testing.T) (mtls.Config, *mtls.Source) {
	t.Helper()
	ca, err := devca.Open(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(time.Now(), "vault", devca.Leaf{ID: serverID, DNS: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	files := mtls.Config{CAFile: ca.CAFile(), CertFile: leaf.Cert, KeyFile: leaf.Key}
	source, err := mtls.Open(t.Context(), files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return files, source
}

// strangers makes a server for strangers.
func strangers(source *mtls.Source, limits grpcserver.Limits, metrics *prometheus.Registry) (*grpcserver.Server, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	cfg := config(notetest.Service{})
	cfg.Name, cfg.Listener, cfg.TLS, cfg.AnonymousOK = "flooded", listener, source.ServerConfig(mtls.Optional), true
	cfg.Log, cfg.Limits, cfg.Metrics = slog.New(slog.DiscardHandler), limits, metrics
	return grpcserver.New(cfg)
}

func flood(t *testing.T, limits grpcserver.Limits) *flooded {
	t.Helper()
	_, source := identified(t)
	f := &flooded{t: t, tls: source, metrics: prometheus.NewRegistry()}
	srv, err := strangers(source, limits, f.metrics)
	if err != nil {
		t.Fatal(err)
	}
	f.addr = srv.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- srv.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// asServer, in the environment, makes this test binary a server with few descriptors: its certificate's files are named there.
const asServer = "TEST_AS_SERVER"

// fewDescriptors are what that server may have.
const fewDescriptors = 256

// serveWithFew says where it serves strangers, and does so until its input ends.
func serveWithFew(files string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var cfg mtls.Config
	if err := json.Unmarshal([]byte(files), &cfg); err != nil {
		return fail(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: fewDescriptors, Max: fewDescriptors}); err != nil {
		return fail(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	source, err := mtls.Open(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return fail(err)
	}
	srv, err := strangers(source, grpcserver.Limits{}, prometheus.NewRegistry())
	if err != nil {
		return fail(err)
	}
	fmt.Println(srv.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	if err := srv.Run(ctx); err != nil {
		return fail(err)
	}
	return 0
}

// floodProcess is a listener in a process of its own that may have few descriptors.
func floodProcess(t *testing.T) *flooded {
	t.Helper()
	files, source := identified(t)
	said, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(context.WithoutCancel(t.Context()), self)
	server.Env = append(os.Environ(), asServer+"="+string(said))
	server.Stderr = os.Stderr
	in, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := server.Wait(); err != nil {
			t.Errorf("the server: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return &flooded{t: t, addr: strings.TrimSpace(line), tls: source}
}

func from(source string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
}

// open opens a connection that says nothing.
func (f *flooded) open(source string) net.Conn {
	f.t.Helper()
	conn, err := from(source).DialContext(f.t.Context(), "tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// refused waits until the server has closed so many of the connections; the others say nothing.
func (f *flooded) refused(conns []net.Conn, want int) {
	f.t.Helper()
	closed := make(chan bool)
	for _, conn := range conns {
		go func() {
			_, err := conn.Read(make([]byte, 1))
			closed <- errors.Is(err, io.EOF) || !errors.Is(err, net.ErrClosed) && err != nil
		}()
	}
	for range want {
		select {
		case <-closed:
		case <-time.After(20 * time.Second):
			f.t.Fatalf("fewer than %d of %d connections were closed", want, len(conns))
		}
	}
	select {
	case <-closed:
		f.t.Errorf("more than %d of %d connections were closed", want, len(conns))
	default:
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	for range len(conns) - want {
		<-closed
	}
}

// serves checks whether a caller from there is served, on a connection of its own.
func (f *flooded) serves(source string) error {
	f.t.Helper()
	conn := f.dial(source)
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	return conn.Invoke(ctx, notetest.Method("Fetch"), notetest.Request(`parent: "accounts/acme"`), notetest.Note(""))
}

func (f *flooded) dial(source string) *grpc.ClientConn {
	f.t.Helper()
	conn, err := grpcclient.Dial(grpcclient.Config{
		Target: "passthrough:///" + f.addr, TLS: f.tls.ClientConfig(serverID),
		Dialer: func(ctx context.Context, address string) (net.Conn, error) {
			return from(source).DialContext(ctx, "tcp", address)
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return conn
}

// count is a counter's value, of all labels together.
func (f *flooded) count(name string) (n float64) {
	f.t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

func TestFlood_OfHandshakesThatNeverEnd(t *testing.T) {
	t.Parallel()
	f := flood(t, grpcserver.Limits{AnonymousHandshakes: 10})
	var conns []net.Conn
	for range 200 {
		conns = append(conns, f.open(flooder))
	}
	if err := f.serves(neighbour); err != nil {
		t.Errorf("a neighbour: %v", err)
	}
	f.refused(conns, 190)
	if n := f.count("phasekey_grpc_connections_refused_total"); n != 190 {
		t.Errorf("%v refused are counted", n)
	}
	// When they are gone, the source is as good as any.
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := f.serves(flooder)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the source itself, afterwards: %v", err)
		}
	}
}

// A process has so many descriptors, and each connection takes one. One source may not have them all, whatever else the limits allow.
func TestFlood_OfConnectionsLeavesDescriptorsToOthers(t *testing.T) {
	t.Parallel()
	f := floodProcess(t)
	for range 2 * fewDescriptors {
		f.open(flooder)
	}
	for range 10 {
		if err := f.serves(neighbour); err != nil {
			t.Errorf("a neighbour: %v", err)
		}
	}
}

// Nor may all sources together have what the process needs besides.
func TestFlood_FromEverywhereLeavesDescriptors(t *testing.T) {
	t.Parallel()
	const most = fewDescriptors / 8 * 7
	f := floodProcess(t)
	var conns []net.Conn
	for source := range 5 {
		for range 100 {
			conns = append(conns, f.open(fmt.Sprintf("127.0.1.%d", source+1)))
		}
	}
	f.refused(conns, len(conns)-most)
	// When they have gone, anybody is served.
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := f.serves(neighbour)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("afterwards: %v", err)
		}
	}
}

func TestFlood_OfConnections(t *testing.T) {
	t.Parallel()
	f := flood(t, grpcserver.Limits{AnonymousConnections: 5})
	var kept []*grpc.ClientConn
	for range 5 {
		conn := f.dial(flooder)
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := call(t, conn, "Fetch", `parent: "accounts/acme"`); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, conn)
	}
	var conns []net.Conn
	for range 100 {
		conns = append(conns, f.open(flooder))
	}
	f.refused(conns, 100)
	if err := f.serves(flooder); err == nil {
		t.Error("a sixth connection is served")
	}
	if err := f.serves(neighbour); err != nil {
		t.Errorf("a neighbour: %v", err)
	}
	for i, conn := range kept {
		if _, err := call(t, conn, "Fetch", `parent: "accounts/acme"`); err != nil {
			t.Errorf("connection %d, which was there before: %v", i, err)
		}
	}
}

func TestFlood_OfStreams(t *testing.T) {
	t.Parallel()
	f := flood(t, grpcserver.Limits{AnonymousCalls: 50})
	conn := f.dial(flooder)
	t.Cleanup(func() { _ = conn.Close() })
	open := 0
	for i := range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		stream, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			if i < 50 {
				t.Fatalf("stream %d: %v", i, err)
			}
			want(t, err, codes.ResourceExhausted, rpcerr.ReasonRateLimited)
			continue
		}
		open++
	}
	if open != 50 {
		t.Errorf("%d streams are open, want 50", open)
	}
	if err := f.serves(neighbour); err != nil {
		t.Errorf("a neighbour: %v", err)
	}
}
