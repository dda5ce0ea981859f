package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/task"
	"phasekey.dev/services/phasekey/internal/child"
)

// What --on-revoke may say.
const (
	onRevokeContinue  = "continue"
	onRevokeTerminate = "terminate"
)

// What --material may say.
const (
	materialAccessToken    = "access-token"
	materialFederatedToken = "federated-token"
	materialClientSecret   = "client-secret"
)

// materials are the vault's names for them.
var materials = map[string]typev1.Material{
	materialAccessToken:    typev1.Material_MATERIAL_ACCESS_TOKEN,
	materialFederatedToken: typev1.Material_MATERIAL_FEDERATED_TOKEN,
	materialClientSecret:   typev1.Material_MATERIAL_CLIENT_SECRET,
}

// defaultVaultID is the vault's identity where nobody has chosen another.
const defaultVaultID = "spiffe://phasekey.dev/vault"

// execFlags are exec's flags.
type execFlags struct {
	vault, vaultID, ca, cert, key string
	grantFile                     string
	grantFD                       int
	material                      string
	onRevoke                      string
	envOnly                       bool
	wait                          time.Duration
	debug                         bool
}

// newExec makes the command that runs a child.
func newExec(p Process) *cobra.Command {
	f := &execFlags{}
	c := &cobra.Command{
		Use:   "exec --vault HOST:PORT --ca FILE (--grant-file FILE | --grant-fd N) [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command with the credentials of a grant",
		Long: `Run a command with the credentials of a grant.

The command finds a managed identity in its environment, as on a machine in Azure, and asks it for tokens as often as it
likes; they are renewed for as long as it runs. Nothing is written to disk. The grant and everything called PHASEKEY_* are
taken out of the command's environment, and so are other Azure identities. Whatever runs below the command can get
tokens of this phase's access. It cannot get the grant; that holds for a grant file only if it cannot read that file, so
prefer --grant-fd.

With --material federated-token, for integrations that are federated and have no secret, Terraform's providers ask an OpenID
endpoint (ARM_OIDC_REQUEST_URL) for assertions instead, which they exchange at Entra ID for tokens of any audience.

With --material client-secret the command finds the client secret of the integration's application in its environment
instead (ARM_CLIENT_SECRET, AZURE_CLIENT_SECRET), where the integration allows that. Whatever runs below the command can then
take the secret away and use it anywhere, for any audience, with all that the application may do. The secret works at least
until the command or the grant has ended; after that, until the vault has replaced it. This is for tools that take
nothing else; access-token is what is recommended.

With --env-only there is no endpoint: the command finds the access token itself in its environment (AZURE_ACCESS_TOKEN,
AZURE_ACCESS_TOKEN_EXPIRES_ON; ARM_OIDC_TOKEN for an assertion), as it was when the command was started. It is not renewed, and no Terraform
provider takes the access token. This is for scripts, and for containers from which 127.0.0.1 is another machine.

Every flag can be given as an environment variable (--vault-id: PHASEKEY_VAULT_ID). The grant itself is never an argument or an
environment variable.

The exit code is the command's; 125 if phasekey itself failed, 126 if the command could not be started, 127 if it was not
found. A signal that ends the command ends phasekey too (a shell says 128 plus its number).`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if err := flagsFromEnv(c.Flags(), p.Env); err != nil {
				return err
			}
			return runExec(c.Context(), p, f, args)
		},
	}
	flags := c.Flags()
	// What comes after the first word that is no flag is the child's.
	flags.SetInterspersed(false)
	flags.StringVar(&f.vault, "vault", "", "the vault's listener for runners, HOST:PORT or any gRPC target")
	flags.StringVar(&f.vaultID, "vault-id", defaultVaultID, "the SPIFFE ID that the vault must have")
	flags.StringVar(&f.ca, "ca", "", "PEM file with the CA of the vault's certificate")
	flags.StringVar(&f.cert, "cert", "", "PEM file with a client certificate, for grants that are bound to one")
	flags.StringVar(&f.key, "key", "", "PEM file with the client certificate's key")
	flags.StringVar(&f.grantFile, "grant-file", "", "file with the grant; others must not be able to read it")
	flags.IntVar(&f.grantFD, "grant-fd", -1, "open descriptor (3 or higher) to read the grant from")
	flags.StringVar(&f.material, "material", materialAccessToken, "what the command gets: access-token (recommended), federated-token, or client-secret, the secret itself")
	flags.BoolVar(&f.envOnly, "env-only", false, "give the command what it gets in its environment, once; a client secret always is")
	flags.StringVar(&f.onRevoke, "on-revoke", onRevokeContinue, "when the grant ends for good: continue without new credentials, or terminate the command")
	flags.DurationVar(&f.wait, "wait", 2*time.Minute, "how long to wait for the first credential")
	flags.BoolVar(&f.debug, "debug", false, "log what happens to standard error")
	return c
}

// validate reports all that is wrong with flags and arguments.
func (f *execFlags) validate(env, args []string) error {
	var errs []error
	bad := func(wrong bool, text string) {
		if wrong {
			errs = append(errs, errors.New(text))
		}
	}
	bad(f.vault == "", "--vault is missing: where the vault's listener for runners is")
	bad(f.ca == "", "--ca is missing: the CA file that came with the vault's address")
	bad((f.cert == "") != (f.key == ""), "--cert and --key go together")
	bad(f.grantFile == "" && f.grantFD < 0, "--grant-file or --grant-fd is missing")
	bad(f.grantFile != "" && f.grantFD >= 0, "--grant-file and --grant-fd exclude each other")
	bad(f.grantFD >= 0 && f.grantFD < 3, "--grant-fd: 0, 1 and 2 are the command's own")
	bad(materials[f.material] == typev1.Material_MATERIAL_UNSPECIFIED, "--material is access-token, federated-token or client-secret")
	bad(f.onRevoke != onRevokeContinue && f.onRevoke != onRevokeTerminate, "--on-revoke is continue or terminate")
	bad(f.wait <= 0, "--wait must be positive")
	bad(len(args) == 0, "no command: put it after --")
	bad(grantInEnv(env), "PHASEKEY_GRANT is set: a grant in the environment is seen by others; use --grant-fd or --grant-file, and revoke this one")
	return errors.Join(errs...)
}

// runExec is exec.
func runExec(ctx context.Context, p Process, f *execFlags, args []string) error {
	if err := f.validate(p.Env, args); err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	switch {
	case errors.Is(err, os.ErrPermission):
		return &exitError{code: exitNotRunning, err: err}
	case err != nil:
		return &exitError{code: exitNotFound, err: err}
	}
	if err := hide(); err != nil {
		return err
	}
	grant, err := readGrant(f)
	if err != nil {
		return err
	}
	level := slog.LevelWarn
	if f.debug {
		level = slog.LevelDebug
	}
	log := obs.NewLogger(p.Stderr, level, obs.FormatText)

	source, err := mtls.Open(ctx, mtls.Config{CertFile: f.cert, KeyFile: f.key, CAFile: f.ca}, log)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	conn, err := grpcclient.Dial(grpcclient.Config{Target: f.vault, OneServer: true, TLS: source.ClientConfig(f.vaultID)})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	r, err := runner.New(runner.Config{Conn: conn, Grant: grant, Material: materials[f.material], Log: log})
	if err != nil {
		return err
	}
	x := &execution{p: p, f: f, log: log, runner: r, environment: r.ClientSecretEnvironment, path: path, args: args}
	tasks := []task.Task{{Name: "tls", Run: source.Run}, {Name: "runner", Run: x.follow}}
	switch {
	case f.material == materialClientSecret:
	case f.envOnly:
		x.environment = r.TokenEnvironment
	default:
		loopback, err := runner.Listen(ctx, runner.LoopbackConfig{Runner: r, Log: log})
		if err != nil {
			return err
		}
		defer func() { _ = loopback.Close() }()
		x.environment = loopback.Environment
		tasks = append(tasks, task.Task{Name: "loopback", Run: loopback.Run})
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, child.Forwarded()...)
	defer signal.Stop(signals)
	ended := make(chan error, 1)
	// The child is stopped first, and so before the lease is closed, after which what it holds may be removed.
	err = task.Run(ctx, log, append(tasks, task.Task{Name: "child", Grace: child.KillAfter + 5*time.Second, Run: func(ctx context.Context) error {
		ended <- x.child(ctx, signals)
		return nil
	}})...)
	select {
	case result := <-ended:
		// Whatever failed while stopping, the command has ended as it has ended.
		if err != nil {
			log.WarnContext(ctx, "not stopped cleanly", slog.Any(obs.KeyError, err))
		}
		return result
	default:
		return err
	}
}

// execution is one run of a child.
type execution struct {
	p      Process
	f      *execFlags
	log    *slog.Logger
	runner *runner.Runner
	// environment makes the child's environment of what was inherited and the first credential.
	environment func(inherited []string, c runner.Credential) []string
	path        string
	args        []string
}

// follow keeps the credential. When delivery has ended for good it stays, so that the child is not stopped with it: child
// decides about that.
func (x *execution) follow(ctx context.Context) error {
	err := x.runner.Run(ctx)
	var final *runner.FinalError
	if !errors.As(err, &final) {
		return err
	}
	<-ctx.Done()
	return nil
}

// child waits for the first credential, runs the child, and returns its exit code as an exitError.
func (x *execution) child(ctx context.Context, signals <-chan os.Signal) error {
	credential, err := x.first(ctx, signals)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() { x.watch(ctx, cancel) })
	if x.f.material == materialClientSecret {
		watching.Go(func() { x.rotations(ctx, credential) })
	} else if x.f.envOnly {
		watching.Go(func() { x.expiry(ctx, credential) })
	}
	exit, err := child.Run(ctx, child.Config{
		Path:   x.path,
		Args:   x.args,
		Env:    x.environment(x.p.Env, credential),
		Stdin:  x.p.Stdin,
		Stdout: x.p.Stdout,
		Stderr: x.p.Stderr,
		Log:    x.log,
	}, signals)
	cancel()
	watching.Wait()
	if err != nil {
		return &exitError{code: exitNotRunning, err: err}
	}
	if exit.Code == 0 {
		return nil
	}
	return &exitError{code: exit.Code, signal: exit.Signal}
}

// first waits for the first credential.
func (x *execution) first(ctx context.Context, signals <-chan os.Signal) (runner.Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, x.f.wait)
	defer cancel()
	type result struct {
		credential runner.Credential
		err        error
	}
	got := make(chan result, 1)
	go func() {
		c, err := x.runner.Credential(ctx)
		got <- result{c, err}
	}()
	for {
		select {
		case r := <-got:
			if r.err != nil {
				return runner.Credential{}, x.explain(r.err)
			}
			return r.credential, nil
		case s := <-signals:
			number, ok := s.(syscall.Signal)
			if ok && child.Ends(number) {
				cancel()
				<-got
				exit := child.BySignal(number)
				return runner.Credential{}, &exitError{code: exit.Code, signal: exit.Signal}
			}
		}
	}
}

// explain says why there is no first credential, and what to do.
func (x *execution) explain(err error) error {
	text := "no credential: " + rpcerr.Explain(err)
	if errors.Is(err, context.DeadlineExceeded) {
		text = fmt.Sprintf("no credential within %s: %s", x.f.wait, cause(err))
	}
	if h := hint(rpcerr.Reason(err)); h != "" {
		text += "\nphasekey: " + h
	}
	return &exitError{code: exitFailed, err: errors.New(text)}
}

// rotations says when the child's secret is no longer the newest. An environment cannot be changed from outside.
func (x *execution) rotations(ctx context.Context, has runner.Credential) {
	for {
		c, err := x.runner.Next(ctx, has)
		if err != nil {
			return
		}
		if c.Version != has.Version {
			x.log.InfoContext(ctx, "the secret was rotated; the command keeps the secret it was started with; it stays valid while the command runs",
				slog.Int64("version", c.Version))
		}
		has = c
	}
}

// expiry says when the child's token stops working.
func (x *execution) expiry(ctx context.Context, has runner.Credential) {
	end := time.NewTimer(time.Until(has.ExpireTime))
	defer end.Stop()
	select {
	case <-end.C:
		x.log.WarnContext(ctx, "the token that the command was started with has expired; without --env-only it would be renewed")
	case <-ctx.Done():
	}
}

// watch says when delivery has ended, and ends the child if that was asked for.
func (x *execution) watch(ctx context.Context, terminate context.CancelFunc) {
	select {
	case <-ctx.Done():
		return
	case <-x.runner.Done():
	}
	var final *runner.FinalError
	if !errors.As(x.runner.Err(), &final) {
		return
	}
	x.log.ErrorContext(ctx, "no more credentials for this command", slog.String(obs.KeyReason, final.Reason),
		slog.String("on_revoke", x.f.onRevoke), slog.String("hint", hint(final.Reason)))
	if x.f.onRevoke == onRevokeTerminate {
		terminate()
	}
}
