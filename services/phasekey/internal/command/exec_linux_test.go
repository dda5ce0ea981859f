package command_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/runner/runnertest"
	"phasekey.dev/services/phasekey/internal/command"
)

const (
	grantCanary = "pk_grant_canary_0123456789"
	tokenCanary = "token_canary_0123456789"
	// secretCanary begins the client secrets of all versions.
	secretCanary = "secret_canary_"
)

// The variables that make this test binary something else than the tests.
const (
	asPhasekey = "TEST_AS_PHASEKEY"
	asChild    = "TEST_AS_CHILD"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asShell) != "":
		os.Exit(shell(os.Args[1:]))
	case os.Getenv(asPhasekey) != "":
		// The child that it runs is this binary too, and not phasekey again.
		_ = os.Unsetenv(asPhasekey)
		os.Exit(command.Main(command.Process{
			Args: os.Args[1:], Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		}))
	case os.Getenv(asChild) != "":
		os.Exit(child(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// child is what the tests have phasekey run. It says on standard output what it sees.
func child(args []string) int {
	switch args[0] {
	case "exit":
		code, _ := strconv.Atoi(args[1])
		return code
	case "kill":
		number, _ := strconv.Atoi(args[1])
		_ = syscall.Kill(os.Getpid(), syscall.Signal(number))
		select {}
	case "environment":
		for _, entry := range os.Environ() {
			fmt.Println(entry)
		}
	case "group":
		fmt.Println(syscall.Getpgrp() == os.Getpid(), syscall.Getpgrp() == os.Getppid())
	case "peek": // looks into its parent
		fmt.Println(peek(os.Getppid()))
	case "machine": // asks once as go-azure-sdk does
		fmt.Println(askMachine())
	case "audience": // asks once for another audience
		status, token := ask(os.Getenv("IDENTITY_ENDPOINT"), args[1], http.Header{"X-Identity-Header": {os.Getenv("IDENTITY_HEADER")}})
		fmt.Println(status, strings.TrimPrefix(token, tokenCanary))
	case "restless": // asks all the time, until the end of input
		return restless()
	case "copy":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "terminal":
		return tellTerminal()
	case "token":
		status, token := askToken()
		fmt.Println(status, token == tokenCanary)
	case "secret": // says each time a line comes which secret it has, until the end of input
		buf := make([]byte, 1)
		for {
			if _, err := os.Stdin.Read(buf); err != nil {
				return 7
			}
			one, two := os.Getenv("ARM_CLIENT_SECRET"), os.Getenv("AZURE_CLIENT_SECRET")
			fmt.Println("the secret of version", strings.TrimPrefix(one, secretCanary), one == two && strings.HasPrefix(one, secretCanary))
		}
	case "names": // prints the names in its environment, of which the values may be secret
		for _, entry := range os.Environ() {
			name, _, _ := strings.Cut(entry, "=")
			fmt.Println(name)
		}
	case "until": // prints the status of a token each time a line comes, until the end of input
		buf := make([]byte, 1)
		for {
			if _, err := os.Stdin.Read(buf); err != nil {
				return 7
			}
			status, _ := askToken()
			fmt.Println(status)
		}
	case "signals": // says which signals come; TERM ends it with 9
		got := make(chan os.Signal, 8)
		signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
		fmt.Println("ready")
		for s := range got {
			fmt.Println(s)
			if s == syscall.SIGTERM {
				return 9
			}
		}
	}
	return 0
}

// peek says what it sees of another process.
func peek(pid int) string {
	_, memory := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	_, environment := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if errors.Is(memory, os.ErrPermission) && errors.Is(environment, os.ErrPermission) {
		return "neither its memory nor its environment"
	}
	return fmt.Sprintf("its memory (%v) or its environment (%v)", memory, environment)
}

// askToken asks the endpoint as App Service's clients do.
func askToken() (int, string) {
	return ask(os.Getenv("IDENTITY_ENDPOINT"), "https://management.azure.com", http.Header{"X-Identity-Header": {os.Getenv("IDENTITY_HEADER")}})
}

// askMachine asks it as a virtual machine's clients do, which show no secret.
func askMachine() int {
	status, _ := ask(os.Getenv("ARM_MSI_ENDPOINT"), "https://management.azure.com", http.Header{"Metadata": {"true"}})
	return status
}

func ask(endpoint, resource string, header http.Header) (int, string) {
	req, err := http.NewRequest(http.MethodGet, endpoint+"?api-version=2019-08-01&resource="+resource, http.NoBody) //nolint:noctx // a child of a test
	if err != nil {
		return 0, err.Error()
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	var body struct {
		AccessToken string `json:"access_token"`
	}
	_ = json.NewDecoder(resp.Body).Decode(&body)
	return resp.StatusCode, body.AccessToken
}

// setting is a vault and how to reach it.
type setting struct {
	t     *testing.T
	vault *runnertest.Vault
	addr  string
	ca    string
	grant string
}

func newSetting(t *testing.T) *setting {
	t.Helper()
	s := &setting{t: t, vault: runnertest.New(grantCanary), grant: filepath.Join(t.TempDir(), "grant")}
	s.addr, s.ca = s.vault.TCP(t)
	if err := os.WriteFile(s.grant, []byte(grantCanary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// credential is what the vault delivers.
func credential() *vaultv1.Credential {
	now := time.Now()
	return &vaultv1.Credential{
		Lease: "lease", Generation: 1, CredentialVersion: 1,
		Phase: typev1.Phase_PHASE_PLANNING, Access: typev1.Access_ACCESS_READ, Reason: vaultv1.Credential_REASON_INITIAL,
		IssueTime: timestamppb.New(now), RefreshTime: timestamppb.New(now.Add(45 * time.Minute)),
		ExpireTime: timestamppb.New(now.Add(time.Hour)), GrantExpireTime: timestamppb.New(now.Add(2 * time.Hour)),
		TenantId: "tenant", ClientId: "client", SubscriptionId: "subscription",
		Material: &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: "https://management.azure.com", Token: tokenCanary}},
	}
}

// secretCredential is what the vault delivers to who asked for the secret.
func secretCredential(generation, version int64) *vaultv1.Credential {
	c := credential()
	c.Generation, c.CredentialVersion = generation, version
	c.RefreshTime, c.ExpireTime = c.GetGrantExpireTime(), c.GetGrantExpireTime()
	c.Material = &vaultv1.Credential_ClientSecret{ClientSecret: &vaultv1.ClientSecret{Secret: fmt.Sprint(secretCanary, version)}}
	return c
}

// flags are those that every run needs.
func (s *setting) flags() []string {
	return []string{"exec", "--debug", "--vault", s.addr, "--vault-id", runnertest.ID, "--ca", s.ca, "--grant-file", s.grant}
}

// run is phasekey while it runs.
type run struct {
	*exec.Cmd
	t        *testing.T
	in       io.WriteCloser
	out, err lines
}

// lines is an output that can be waited on.
type lines struct {
	mu      sync.Mutex
	b       bytes.Buffer
	arrived chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Write(p)
	select {
	case l.arrived <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// waitFor waits until a text has been written.
func (l *lines) waitFor(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for !strings.Contains(l.String(), text) {
		select {
		case <-l.arrived:
		case <-timeout:
			t.Fatalf("no %q in:\n%s", text, l)
		}
	}
}

// start runs phasekey with these arguments, as a process of its own.
func start(t *testing.T, env []string, files []*os.File, args ...string) *run {
	t.Helper()
	return begin(t, "", env, files, args...)
}

// startIn runs it in a folder.
func startIn(t *testing.T, dir string, env []string, args ...string) *run {
	t.Helper()
	return begin(t, dir, env, nil, args...)
}

func begin(t *testing.T, dir string, env []string, files []*os.File, args ...string) *run {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{Cmd: exec.CommandContext(t.Context(), self, args...), t: t}
	r.out.arrived, r.err.arrived = make(chan struct{}, 1), make(chan struct{}, 1)
	r.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "PHASEKEY_") }),
		append(env, asPhasekey+"=1", asChild+"=1")...)
	r.ExtraFiles, r.Dir = files, dir
	// What is sent to its group is not for the tests.
	r.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.Stdout, r.Stderr = &r.out, &r.err
	if r.in, err = r.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// end waits for the end, checks the exit code, and looks for secrets in all that was written.
func (r *run) end(code int) {
	r.t.Helper()
	_ = r.Wait()
	if got := r.ProcessState.ExitCode(); got != code {
		r.t.Errorf("exit code %d, want %d; %s\nstdout:\n%s\nstderr:\n%s", got, code, r.ProcessState, &r.out, &r.err)
	}
	for _, out := range []string{r.out.String(), r.err.String()} {
		if strings.Contains(out, grantCanary) || strings.Contains(out, tokenCanary) || strings.Contains(out, secretCanary) {
			r.t.Errorf("secret in the output:\n%s", out)
		}
	}
}

// endBy waits for the end, by a signal.
func (r *run) endBy(s syscall.Signal) {
	r.t.Helper()
	r.end(-1)
	if status, ok := r.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != s || status.CoreDump() {
		r.t.Errorf("it ended with %s, want %s and no core file", r.ProcessState, s)
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExec_ExitCodes(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	directory := t.TempDir()
	plain := filepath.Join(directory, "plain")
	if err := os.WriteFile(plain, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		code int
		args []string
	}{
		{"success", 0, []string{self(t), "exit", "0"}},
		{"failure", 3, []string{self(t), "exit", "3"}},
		{"not found", 127, []string{"no-such-command-here"}},
		{"not executable", 126, []string{plain}},
		{"no command", 125, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, nil, nil, append(append(s.flags(), "--"), tt.args...)...)
			r.end(tt.code)
		})
	}
}

func TestExec_Child(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	t.Run("has a token", func(t *testing.T) {
		r := start(t, nil, nil, append(s.flags(), "--", self(t), "token")...)
		r.end(0)
		if got := r.out.String(); got != "200 true\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("has a group of its own", func(t *testing.T) {
		r := start(t, nil, nil, append(s.flags(), "--", self(t), "group")...)
		r.end(0)
		if got := r.out.String(); got != "true false\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("has our standard input", func(t *testing.T) {
		r := start(t, nil, nil, append(s.flags(), "--", self(t), "copy")...)
		_, _ = io.WriteString(r.in, "through and through")
		_ = r.in.Close()
		r.end(0)
		if got := r.out.String(); got != "through and through" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("does not see the grant, nor how we were called", func(t *testing.T) {
		env := []string{"PHASEKEY_VAULT=" + s.addr, "PHASEKEY_VAULT_ID=" + runnertest.ID, "PHASEKEY_CA=" + s.ca,
			"PHASEKEY_GRANT_FILE=" + s.grant, "ARM_CLIENT_SECRET=inherited", "KEPT=yes"}
		r := start(t, env, nil, "exec", "--", self(t), "environment")
		r.end(0)
		out := r.out.String()
		for _, absent := range []string{"PHASEKEY_", grantCanary, tokenCanary, "inherited", s.grant} {
			if strings.Contains(out, absent) {
				t.Errorf("%q is in its environment", absent)
			}
		}
		for _, present := range []string{"KEPT=yes\n", "ARM_CLIENT_ID=client\n", "ARM_USE_MSI=true\n", "ARM_RESOURCE_PROVIDER_REGISTRATIONS=none\n"} {
			if !strings.Contains(out, present) {
				t.Errorf("%q is not in its environment", present)
			}
		}
	})
}

// grantPipe is a pipe from which the grant is read.
func grantPipe(t *testing.T) *os.File {
	t.Helper()
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = from.Close() })
	_, _ = io.WriteString(to, grantCanary)
	_ = to.Close()
	return from
}

func TestExec_GrantFromADescriptor(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	from := grantPipe(t)
	r := start(t, nil, []*os.File{from}, "exec", "--vault", s.addr, "--vault-id", runnertest.ID, "--ca", s.ca, "--grant-fd", "3", "--", self(t), "token")
	r.end(0)
	if got := r.out.String(); got != "200 true\n" {
		t.Errorf("got %q", got)
	}
}

func TestExec_Signals(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	r := start(t, nil, nil, append(s.flags(), "--", self(t), "signals")...)
	r.out.waitFor(t, "ready")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM} {
		if err := r.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		r.out.waitFor(t, sig.String())
	}
	r.end(9)
}

func TestExec_DiesWithItsParent(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	r := start(t, nil, nil, append(s.flags(), "--", self(t), "signals")...)
	r.out.waitFor(t, "ready")
	_ = r.Process.Kill()
	r.out.waitFor(t, syscall.SIGTERM.String())
	r.end(-1)
}

func TestExec_Revocation(t *testing.T) {
	revoked := runnertest.Error(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED)
	t.Run("continue", func(t *testing.T) {
		s := newSetting(t)
		r := start(t, nil, nil, append(s.flags(), "--", self(t), "until")...)
		stream := s.vault.Accept(t)
		stream.Send(credential())
		_, _ = io.WriteString(r.in, "x")
		r.out.waitFor(t, "200\n")
		stream.End(revoked)
		r.err.waitFor(t, "no more credentials")
		_, _ = io.WriteString(r.in, "x")
		r.out.waitFor(t, "403\n")
		_ = r.in.Close()
		r.end(7)
	})
	t.Run("terminate", func(t *testing.T) {
		s := newSetting(t)
		r := start(t, nil, nil, append(s.flags(), "--on-revoke", "terminate", "--", self(t), "signals")...)
		stream := s.vault.Accept(t)
		stream.Send(credential())
		r.out.waitFor(t, "ready")
		stream.End(revoked)
		r.out.waitFor(t, syscall.SIGTERM.String())
		r.end(9)
	})
}

func TestExec_ClientSecret(t *testing.T) {
	t.Run("is what the command was started with, until it has ended", func(t *testing.T) {
		s := newSetting(t)
		r := start(t, []string{"PHASEKEY_MATERIAL=client-secret"}, nil, append(s.flags(), "--", self(t), "secret")...)
		stream := s.vault.Accept(t)
		if got := stream.Request.GetMaterial(); got != typev1.Material_MATERIAL_CLIENT_SECRET {
			t.Errorf("it asked for %v", got)
		}
		stream.Send(secretCredential(1, 1))
		_, _ = io.WriteString(r.in, "x")
		r.out.waitFor(t, "the secret of version 1 true\n")
		// The grant was extended: the secret is the same.
		stream.Send(secretCredential(2, 1))
		rotated := secretCredential(3, 2)
		rotated.Reason = vaultv1.Credential_REASON_ROTATED
		stream.Send(rotated)
		r.err.waitFor(t, "the command keeps the secret it was started with; it stays valid while the command runs")
		_, _ = io.WriteString(r.in, "x")
		r.out.waitFor(t, strings.Repeat("the secret of version 1 true\n", 2))
		if n := len(s.vault.Closes()); n != 0 {
			t.Errorf("the lease was closed %d times while the command ran", n)
		}
		_ = r.in.Close()
		r.end(7)
		if closes := s.vault.Closes(); len(closes) != 1 || closes[0].GetInstanceId() != stream.Request.GetInstanceId() {
			t.Errorf("closed %v when the command had ended", closes)
		}
		if n := strings.Count(r.err.String(), "was rotated"); n != 1 || !strings.Contains(r.err.String(), "level=INFO") {
			t.Errorf("told %d times of one rotation:\n%s", n, &r.err)
		}
	})
	t.Run("comes without an endpoint", func(t *testing.T) {
		s := newSetting(t)
		s.vault.Always(secretCredential(1, 1))
		env := []string{"IDENTITY_ENDPOINT=http://inherited", "ARM_CLIENT_SECRET=inherited", "KEPT=yes"}
		r := start(t, env, nil, append(s.flags(), "--material", "client-secret", "--", self(t), "names")...)
		r.end(0)
		names := strings.Fields(r.out.String())
		for _, name := range names {
			if strings.HasPrefix(name, "IDENTITY_") || strings.HasPrefix(name, "MSI_") || strings.HasPrefix(name, "PHASEKEY_") || name == "ARM_MSI_ENDPOINT" {
				t.Errorf("%s is in its environment", name)
			}
		}
		for _, name := range []string{"ARM_CLIENT_ID", "ARM_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "ARM_USE_MSI", "KEPT"} {
			if !slices.Contains(names, name) {
				t.Errorf("%s is not in its environment", name)
			}
		}
	})
	t.Run("is lost by revocation, and the command told to end", func(t *testing.T) {
		s := newSetting(t)
		r := start(t, nil, nil, append(s.flags(), "--material", "client-secret", "--on-revoke", "terminate", "--", self(t), "signals")...)
		stream := s.vault.Accept(t)
		stream.Send(secretCredential(1, 1))
		r.out.waitFor(t, "ready")
		stream.End(runnertest.Error(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED))
		r.out.waitFor(t, syscall.SIGTERM.String())
		r.end(9)
	})
	t.Run("a policy that is withdrawn does not end the command", func(t *testing.T) {
		s := newSetting(t)
		r := start(t, nil, nil, append(s.flags(), "--material", "client-secret", "--on-revoke", "terminate", "--", self(t), "secret")...)
		stream := s.vault.Accept(t)
		stream.Send(secretCredential(1, 1))
		_, _ = io.WriteString(r.in, "x")
		r.out.waitFor(t, "version 1 true\n")
		stream.End(runnertest.Error(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_MATERIAL_NOT_ALLOWED))
		s.vault.Accept(t).End(runnertest.Error(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_MATERIAL_NOT_ALLOWED))
		_, _ = io.WriteString(r.in, "x")
		r.out.waitFor(t, strings.Repeat("the secret of version 1 true\n", 2))
		_ = r.in.Close()
		r.end(7)
	})
}

func TestExec_HelpSaysWhatASecretMeans(t *testing.T) {
	r := start(t, nil, nil, "exec", "--help")
	r.end(0)
	for _, want := range []string{"--material", "take the secret away", "for any audience", "access-token is what is recommended"} {
		if !strings.Contains(r.out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &r.out)
		}
	}
}

func TestExec_BeforeTheFirstCredential(t *testing.T) {
	for _, tt := range []struct {
		reason errorv1.ErrorReason
		code   codes.Code
		says   string
	}{
		{errorv1.ErrorReason_ERROR_REASON_MATERIAL_NOT_ALLOWED, codes.PermissionDenied, "add this one to its delivery materials"},
		{errorv1.ErrorReason_ERROR_REASON_HOLD_TOO_LONG, codes.FailedPrecondition, "have the platform make a shorter grant"},
		{errorv1.ErrorReason_ERROR_REASON_GRANT_UNKNOWN, codes.Unauthenticated, "the vault does not know this grant"},
		{errorv1.ErrorReason_ERROR_REASON_INVALID_FIELDS, codes.InvalidArgument, ""},
	} {
		reason := strings.TrimPrefix(tt.reason.String(), "ERROR_REASON_")
		t.Run(reason+" is not waited out", func(t *testing.T) {
			s := newSetting(t)
			// Longer than the test may take: a wait would be seen.
			r := start(t, nil, nil, append(s.flags(), "--wait", "1h", "--material", "client-secret", "--", self(t), "exit", "0")...)
			s.vault.Accept(t).End(runnertest.Error(tt.code, tt.reason))
			r.end(125)
			for _, want := range []string{reason, tt.says} {
				if !strings.Contains(r.err.String(), want) {
					t.Errorf("no %q in:\n%s", want, &r.err)
				}
			}
		})
	}
	t.Run("a final reason says what to do", func(t *testing.T) {
		s := newSetting(t)
		r := start(t, nil, nil, append(s.flags(), "--", self(t), "exit", "0")...)
		s.vault.Accept(t).End(runnertest.Error(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_DETACHED))
		r.end(125)
		for _, want := range []string{"DETACHED", "attach it again"} {
			if !strings.Contains(r.err.String(), want) {
				t.Errorf("no %q in:\n%s", want, &r.err)
			}
		}
	})
	t.Run("a wait that was too long says why", func(t *testing.T) {
		s := newSetting(t)
		r := start(t, nil, nil, append(s.flags(), "--wait", "1s", "--", self(t), "exit", "0")...)
		s.vault.Accept(t).End(runnertest.Error(codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_CONSENT_MISSING))
		s.vault.Accept(t)
		r.end(125)
		for _, want := range []string{"no credential within 1s", "CONSENT_MISSING", "consent session"} {
			if !strings.Contains(r.err.String(), want) {
				t.Errorf("no %q in:\n%s", want, &r.err)
			}
		}
	})
	t.Run("a vault with another identity is not spoken to", func(t *testing.T) {
		s := newSetting(t)
		s.vault.Always(credential())
		r := start(t, nil, nil, append(s.flags(), "--vault-id", "spiffe://phasekey.test/other", "--wait", "1s", "--", self(t), "exit", "0")...)
		r.end(125)
		if !strings.Contains(r.err.String(), "unexpected SPIFFE ID") {
			t.Errorf("stderr:\n%s", &r.err)
		}
	})
	t.Run("a signal ends the wait", func(t *testing.T) {
		s := newSetting(t)
		r := start(t, nil, nil, append(s.flags(), "--", self(t), "exit", "0")...)
		s.vault.Accept(t)
		_ = r.Process.Signal(syscall.SIGTERM)
		r.endBy(syscall.SIGTERM)
	})
}

func TestExec_RefusesBadInput(t *testing.T) {
	s := newSetting(t)
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	base := []string{"exec", "--vault", s.addr, "--ca", s.ca}
	for _, tt := range []struct {
		name string
		env  []string
		args []string
		want []string
	}{
		{"nothing", nil, []string{"exec"}, []string{"--vault is missing", "--ca is missing", "--grant-file or --grant-fd", "no command"}},
		{"a grant for everybody", nil, append(base, "--grant-file", write("g", grantCanary, 0o644), "--", "true"), []string{"chmod 600"}},
		{"an empty grant", nil, append(base, "--grant-file", write("g", "\n", 0o600), "--", "true"), []string{"empty"}},
		{"two grants", nil, append(base, "--grant-file", write("g", grantCanary+"\n"+grantCanary, 0o600), "--", "true"), []string{"no grant"}},
		{"a huge grant", nil, append(base, "--grant-file", write("g", strings.Repeat(grantCanary, 1000), 0o600), "--", "true"), []string{"no grant"}},
		{"no such file", nil, append(base, "--grant-file", "/nowhere", "--", "true"), []string{"/nowhere"}},
		{"no such descriptor", nil, append(base, "--grant-fd", "77", "--", "true"), []string{"descriptor 77"}},
		{"standard input", nil, append(base, "--grant-fd", "0", "--", "true"), []string{"--grant-fd"}},
		{"both", nil, append(base, "--grant-fd", "3", "--grant-file", s.grant, "--", "true"), []string{"exclude"}},
		{"a grant in the environment", []string{"PHASEKEY_GRANT=" + grantCanary}, append(base, "--grant-file", s.grant, "--", "true"), []string{"PHASEKEY_GRANT"}},
		{"a certificate without its key", nil, append(base, "--grant-file", s.grant, "--cert", "c", "--", "true"), []string{"go together"}},
		{"an unknown choice", nil, append(base, "--grant-file", s.grant, "--on-revoke", "panic", "--", "true"), []string{"continue or terminate"}},
		{"an unknown material", nil, append(base, "--grant-file", s.grant, "--material", "password", "--", "true"), []string{"access-token, federated-token or client-secret"}},
		{"an empty material", []string{"PHASEKEY_MATERIAL="}, append(base, "--grant-file", s.grant, "--", "true"), []string{"access-token, federated-token or client-secret"}},
		{"an unknown choice in the environment", []string{"PHASEKEY_WAIT=soon"}, append(base, "--grant-file", s.grant, "--", "true"), []string{"PHASEKEY_WAIT"}},
		{"an unknown flag", nil, append(base, "--grant", grantCanary[:4], "--", "true"), []string{"--grant"}},
		{"a CA that is none", nil, []string{"exec", "--vault", s.addr, "--ca", s.grant, "--grant-file", s.grant, "--", "true"}, []string{"no certificate"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, tt.env, nil, tt.args...)
			r.end(125)
			for _, want := range tt.want {
				if !strings.Contains(r.err.String(), want) {
					t.Errorf("no %q in:\n%s", want, &r.err)
				}
			}
		})
	}
}

func TestVersion(t *testing.T) {
	r := start(t, nil, nil, "version")
	r.end(0)
	if !strings.HasPrefix(r.out.String(), "phasekey ") {
		t.Errorf("got %q", &r.out)
	}
}
