package conformance_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/phasekey/internal/command"
	"phasekey.dev/services/phasekey/internal/conformance"
)

// The arguments that make this test binary another program.
const (
	asPhasekey = "as-phasekey"
	asWrong    = "as-wrong"
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == asPhasekey:
		os.Exit(command.Main(command.Process{Args: os.Args[2:], Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
	case len(os.Args) > 1 && os.Args[1] == "conformance-probe":
		// As the command itself has it run.
		os.Exit(command.Main(command.Process{Args: os.Args[1:], Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
	case len(os.Args) > 2 && os.Args[1] == asWrong:
		code, err := runWrong(os.Args[2], os.Args[3:])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// judge has a runner judged.
func judge(t *testing.T, only []string, runner ...string) []conformance.Result {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	results, err := conformance.Run(t.Context(), conformance.Config{
		Runner: append([]string{self}, runner...), Probe: []string{self, asPhasekey, "conformance-probe"},
		Env: os.Environ(), Only: only, Parallel: 12,
	})
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func TestConformance_OursGetsAllRight(t *testing.T) {
	t.Parallel()
	results := judge(t, nil, asPhasekey, "exec", "--debug")
	if len(results) < 30 {
		t.Errorf("%d situations", len(results))
	}
	for _, r := range results {
		if r.Wrong != "" {
			t.Errorf("%s: %s", r.Situation, r.Wrong)
		}
	}
}

// Each mistake is found in the situations that are there for it, and in no other of those that are played.
func TestConformance_FindsMistakes(t *testing.T) {
	bystanders := []string{"first-delivery", "refresh"}
	for mistake, wrong := range map[string][]string{
		"none":                    {},
		"comes-back-at-once":      {"unavailable", "storm-of-ends"},
		"proxy-is-final":          {"proxy-403", "not-final"},
		"nothing-is-final":        {"final-grant-revoked", "final-grant-unknown", "final-detached"},
		"another-instance":        {"drain", "first-delivery"},
		"leaves-too-early":        {"leave"},
		"leaves-at-once":          {"leave-in-turn"},
		"leaves-never":            {"leave"},
		"one-instance-for-all":    {"new-instance", "first-delivery"},
		"newest-by-arrival":       {"order"},
		"expired-is-used":         {"expiry", "assertion-expiry"},
		"asks-for-tokens":         {"assertion", "secret"},
		"first-assertion-for-all": {"assertion", "refresh"},
		"any-material-will-do":    {"other-material"},
		"acknowledges-at-once":    {"secret-rotation"},
		"secret-in-log":           {"secret", "secret-rotation"},
		"lease-left-open":         {"first-delivery", "terminated"},
		"no-trust-needed":         {"wrong-identity", "wrong-ca"},
		"unknown-material-ends":   {"unknown-material"},
		"grant-in-environment":    {"environment"},
		"grant-in-log":            {"first-delivery", "refresh"},
		"fetches-as-another":      {"other-audience"},
		"hides-the-exit-code":     {"first-delivery"},
		"starts-without-delivery": {"first-delivery"},
	} {
		t.Run(mistake, func(t *testing.T) {
			t.Parallel()
			for _, r := range judge(t, append(slices.Clone(wrong), bystanders...), asWrong, mistake) {
				if want := slices.Contains(wrong, r.Situation); (r.Wrong != "") != want {
					t.Errorf("%s: wrong %q, want it wrong: %t", r.Situation, r.Wrong, want)
				}
			}
		})
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		code int
		args []string
		want []string
	}{
		{"right", 0, []string{"--only", "refresh", "--", self, asPhasekey, "exec"}, []string{"SITUATION", "refresh", "ok"}},
		{"right, for programs", 0, []string{"-o", "json", "--only", "refresh", "--", self, asPhasekey, "exec"}, []string{`"situation": "refresh"`}},
		{"wrong", 1, []string{"--only", "drain,refresh", "--", self, asWrong, "another-instance"}, []string{"WRONG", "another instance", "1 of 2 situations wrong"}},
		{"list", 0, []string{"--list"}, []string{"ABOUT", "proxy-403", "final-grant-revoked"}},
		{"no runner", 1, nil, []string{"put its command after --"}},
		{"no such situation", 1, []string{"--only", "party", "--", "true"}, []string{`"party"`}},
		{"no such output", 1, []string{"-o", "xml", "--", "true"}, []string{"table or json"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			run := exec.CommandContext(t.Context(), self, append([]string{asPhasekey, "conformance"}, tt.args...)...)
			out, err := run.CombinedOutput()
			if got := run.ProcessState.ExitCode(); got != tt.code {
				t.Errorf("exit code %d (%v), want %d", got, err, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in:\n%s", want, out)
				}
			}
		})
	}
}

// The protocol's page names every situation and every final reason.
func TestProtocolPage(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/runner-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for reason, code := range runner.FinalReasons() {
		if !strings.Contains(string(page), "`"+reason+"`") {
			t.Errorf("it does not name %s (%s)", reason, code)
		}
	}
	for _, s := range conformance.Names() {
		if !strings.HasPrefix(s.Situation, "final-") && !strings.Contains(string(page), "`"+s.Situation+"`") {
			t.Errorf("it does not name %s", s.Situation)
		}
	}
}

func TestRun_RefusesUnknownSituations(t *testing.T) {
	_, err := conformance.Run(t.Context(), conformance.Config{Runner: []string{"true"}, Only: []string{"no-such"}})
	if err == nil || !strings.Contains(err.Error(), "no-such") {
		t.Errorf("got %v", err)
	}
}

func TestConformance_JudgesWhatIsNoRunner(t *testing.T) {
	t.Parallel()
	results, err := conformance.Run(t.Context(), conformance.Config{Runner: []string{"false"}, Probe: []string{"false"}, Only: []string{"refresh"}})
	if err != nil || len(results) != 1 || !strings.Contains(results[0].Wrong, "no stream was opened") {
		t.Errorf("got %+v, %v", results, err)
	}
}

// runWrong is a runner with one mistake: ours, with a connection that lies to it.
func runWrong(mistake string, args []string) (int, error) {
	dashes := slices.Index(args, "--")
	if dashes < 8 || len(args) == dashes+1 {
		return 1, errors.New("arguments")
	}
	vault, ca, child := args[1], args[5], args[dashes+1:]
	material := typev1.Material_MATERIAL_ACCESS_TOKEN
	if i := slices.Index(args[:dashes], "--material"); i >= 0 {
		material = map[string]typev1.Material{
			"federated-token": typev1.Material_MATERIAL_FEDERATED_TOKEN, "client-secret": typev1.Material_MATERIAL_CLIENT_SECRET,
		}[args[i+1]]
	}
	raw, err := io.ReadAll(os.NewFile(3, "grant"))
	if err != nil {
		return 1, err
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return 1, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	w := &wrong{mistake: mistake, instance: rand.Text(), others: rand.Text()}
	transport := &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost",
		VerifyConnection: func(c tls.ConnectionState) error {
			if id := c.PeerCertificates[0].URIs; len(id) != 1 || id[0].String() != conformance.VaultID {
				return errors.New("another identity")
			}
			return nil
		},
	}
	if mistake == "no-trust-needed" {
		transport = &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	}
	conn, err := grpc.NewClient("passthrough:///"+vault, grpc.WithTransportCredentials(credentials.NewTLS(transport)),
		grpc.WithStreamInterceptor(w.stream), grpc.WithUnaryInterceptor(w.unary),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		return 1, err
	}
	defer func() { _ = conn.Close() }()
	if mistake == "grant-in-log" {
		fmt.Println("the grant is", string(raw))
	}
	r, err := runner.New(runner.Config{Conn: conn, Grant: secret.New(string(raw)), Material: material, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	following, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running sync.WaitGroup
	run := func(run func(context.Context) error) {
		running.Go(func() {
			if err := run(following); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
	}
	defer func() {
		cancel()
		running.Wait()
	}()
	run(r.Run)
	environment := r.ClientSecretEnvironment
	if material != typev1.Material_MATERIAL_CLIENT_SECRET {
		loopback, err := runner.Listen(ctx, runner.LoopbackConfig{Runner: r, Wait: time.Second, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return 1, err
		}
		run(loopback.Run)
		environment = loopback.Environment
	}
	var held runner.Credential
	if mistake != "starts-without-delivery" {
		if held, err = r.Credential(ctx); err != nil {
			return 1, err
		}
	}
	command := exec.CommandContext(ctx, child[0], child[1:]...)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.Env = environment(os.Environ(), held)
	if mistake == "secret-in-log" {
		fmt.Println("the secret is", held.ClientSecret.Expose())
	}
	if mistake == "grant-in-environment" {
		command.Env = append(command.Env, "GRANT="+string(raw))
	}
	err = command.Run()
	var exit *exec.ExitError
	switch {
	case mistake == "hides-the-exit-code":
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	default:
		return 0, err
	}
}

// wrong makes the mistakes.
type wrong struct {
	mistake, instance, others string
}

// lie makes of the vault's error what the mistake takes it for.
func (w *wrong) lie(err error) error {
	final := rpcerr.New(codes.PermissionDenied, "GRANT_REVOKED", "taken for final")
	code := codes.OK
	if st, ok := rpcerr.FromError(err); ok {
		code = st.Code()
	}
	switch refused := code == codes.PermissionDenied || code == codes.Unauthenticated; {
	case w.mistake == "nothing-is-final" && refused:
		return rpcerr.New(codes.Unavailable, "", "taken for an outage")
	case w.mistake == "proxy-is-final" && refused:
		return final
	default:
		return err
	}
}

func (w *wrong) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if w.mistake == "lease-left-open" && strings.HasSuffix(method, "CloseLease") {
		return nil
	}
	if fetch, ok := req.(*vaultv1.FetchCredentialRequest); ok && w.mistake == "fetches-as-another" {
		fetch.InstanceId = w.others
	}
	return w.lie(invoke(ctx, method, req, reply, conn, opts...))
}

func (w *wrong) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	again := func() (grpc.ClientStream, error) { return open(ctx, desc, conn, method, opts...) }
	s, err := again()
	acknowledge := func(instance string, generation int64) {
		_, _ = vaultv1.NewCredentialServiceClient(conn).AcknowledgeCredential(ctx, &vaultv1.AcknowledgeCredentialRequest{InstanceId: instance, Generation: generation}, opts...)
	}
	return &wrongStream{ClientStream: s, wrong: w, again: again, over: ctx.Done(), acknowledge: acknowledge}, w.lie(err)
}

type wrongStream struct {
	grpc.ClientStream
	*wrong
	again       func() (grpc.ClientStream, error)
	acknowledge func(instance string, generation int64)
	over        <-chan struct{}
	request     any
	first       *vaultv1.Credential
}

func (s *wrongStream) SendMsg(m any) error {
	if req, ok := m.(*vaultv1.StreamCredentialsRequest); ok {
		switch s.mistake {
		case "another-instance":
			req.InstanceId = rand.Text()
		case "one-instance-for-all":
			req.InstanceId = "always-the-same"
		case "asks-for-tokens":
			req.Material = typev1.Material_MATERIAL_ACCESS_TOKEN
		}
	}
	s.request = m
	return s.ClientStream.SendMsg(m)
}

// arrivals counts the messages of all streams.
var arrivals int64

func (s *wrongStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	// It opens the next stream itself, without a pause, until somebody answers.
	for n := 0; err != nil && s.mistake == "comes-back-at-once" && n < 1000; n++ {
		select {
		case <-s.over:
			return err
		default:
		}
		next, opened := s.again()
		if opened != nil || next.SendMsg(s.request) != nil || next.CloseSend() != nil {
			continue
		}
		s.ClientStream = next
		err = next.RecvMsg(m)
	}
	if err != nil {
		return s.lie(err)
	}
	resp, ok := m.(*vaultv1.StreamCredentialsResponse)
	if !ok {
		return nil
	}
	if resp.GetLeaveWindow() != nil {
		switch s.mistake {
		case "leaves-too-early":
			return rpcerr.New(codes.Unavailable, rpcerr.ReasonDraining, "taken for the end")
		case "leaves-at-once":
			resp.LeaveWindow = durationpb.New(0)
		case "leaves-never":
			return s.RecvMsg(m)
		}
		return nil
	}
	switch s.mistake {
	case "newest-by-arrival":
		arrivals++
		resp.GetCredential().Generation = arrivals
	case "expired-is-used":
		resp.GetCredential().ExpireTime = timestamppb.New(time.Now().Add(time.Hour))
	case "first-assertion-for-all":
		if s.first == nil {
			s.first = proto.CloneOf(resp.GetCredential())
		}
		resp.GetCredential().Material = s.first.GetMaterial()
	case "any-material-will-do":
		if c := resp.GetCredential(); c.GetAccessToken() != nil && s.request.(*vaultv1.StreamCredentialsRequest).GetMaterial() == typev1.Material_MATERIAL_FEDERATED_TOKEN {
			c.Material = &vaultv1.Credential_FederatedToken{FederatedToken: &vaultv1.FederatedToken{Token: c.GetAccessToken().GetToken()}}
		}
	case "acknowledges-at-once":
		s.acknowledge(s.request.(*vaultv1.StreamCredentialsRequest).GetInstanceId(), resp.GetCredential().GetGeneration())
	case "unknown-material-ends":
		if resp.GetCredential().GetMaterial() == nil {
			return rpcerr.New(codes.PermissionDenied, "GRANT_REVOKED", "taken for final")
		}
	}
	return nil
}
