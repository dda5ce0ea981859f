package story

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/phasekey/cmd/phasekey-dev/internal/stack"
)

// grant makes one for the story's project.
func (t *teller) grant(ctx context.Context, g *vaultv1.Grant) (*vaultv1.Grant, secret.Text, error) {
	g.Project, g.Run = project, "demo"
	made, err := t.platform.grants.CreateGrant(ctx, &vaultv1.CreateGrantRequest{Parent: account, RequestId: uuid.NewString(), Grant: g})
	if err != nil {
		return nil, secret.Text{}, err
	}
	t.sayf("   %s: grant %s, pinned to %s", made.GetPhase(), made.GetName(), made.GetIntegration())
	token := secret.New(made.GetToken())
	made.Token = ""
	return made, token, nil
}

// child is this program's `arm` command under `phasekey exec`. Whoever started it must end it.
type child struct {
	command *exec.Cmd
	stdin   io.Closer
	stderr  *bounded
	// ended is closed when it has ended. How, is err, which is there to read from then on.
	ended   chan struct{}
	err     error
	changed chan struct{} // holds one

	mu   sync.Mutex
	seen Progress
}

// exec starts `phasekey exec` with flags of its own and the arguments of `arm`. When ctx ends it is told to terminate.
func (t *teller) exec(ctx context.Context, token secret.Text, flags []string, arm ...string) (*child, error) {
	tls := t.config.Dir + "/tls/"
	args := append([]string{
		"exec", "--vault", t.config.Endpoints.VaultRunners, "--vault-id", stack.ID("vault"), "--ca", tls + "ca.pem", "--grant-fd", "3",
	}, flags...)
	args = append(args, "--", t.config.Self, "arm", "--resource-manager", t.config.Endpoints.ResourceManager,
		"--login", t.config.Endpoints.Login, "--ca", tls+"ca.pem")
	c := &child{stderr: &bounded{}, ended: make(chan struct{}), changed: make(chan struct{}, 1)}
	c.command = exec.CommandContext(ctx, t.config.Phasekey, append(args, arm...)...) //nolint:gosec // our own programs
	c.command.Cancel = func() error { return c.command.Process.Signal(syscall.SIGTERM) }
	c.command.WaitDelay = 2 * time.Second
	c.command.Stderr = c.stderr
	stdout, err := c.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if c.stdin, err = c.command.StdinPipe(); err != nil {
		return nil, err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.command.ExtraFiles = []*os.File{reader}
	_, err = io.WriteString(writer, token.Expose())
	err = errors.Join(err, writer.Close())
	if err == nil {
		err = c.command.Start()
	}
	if err = errors.Join(err, reader.Close()); err != nil {
		return nil, fmt.Errorf("phasekey exec: %w", err)
	}
	go c.follow(stdout)
	return c, nil
}

// follow takes in what the child says, until it has ended.
func (c *child) follow(stdout io.Reader) {
	defer close(c.ended)
	lines := bufio.NewScanner(stdout)
	var problem error
	for lines.Scan() {
		var p Progress
		if problem = json.Unmarshal(lines.Bytes(), &p); problem != nil {
			problem = fmt.Errorf("what ran under phasekey exec said %q: %w", lines.Text(), problem)
			break
		}
		c.mu.Lock()
		c.seen = p
		c.mu.Unlock()
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
	problem = errors.Join(problem, lines.Err())
	_, _ = io.Copy(io.Discard, stdout)
	if err := c.command.Wait(); err != nil {
		problem = errors.Join(problem, fmt.Errorf("phasekey exec: %w: %s", err, c.stderr.text()))
	}
	c.err = problem
}

// progress is what the child has said last.
func (c *child) progress() Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// await waits until the child has said something that is enough. That it ends before is an error.
func (c *child) await(ctx context.Context, what string, enough func(Progress) bool) error {
	for {
		if enough(c.progress()) {
			return nil
		}
		select {
		case <-c.changed:
		case <-c.ended:
			if enough(c.progress()) {
				return nil
			}
			return fmt.Errorf("%s: the child ended before: %w", what, errors.Join(c.err, errors.New(c.stderr.text())))
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
	}
}

// end has the child end by closing what it reads from, and returns what it has said in all. It may be called again.
func (c *child) end() (Progress, error) {
	_ = c.stdin.Close() // is closed already when the child has ended by itself
	<-c.ended
	return c.progress(), c.err
}

// bounded keeps the end of what is written.
type bounded struct {
	mu   sync.Mutex
	kept []byte
}

const maxKept = 16 << 10

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept = append(b.kept, p...)
	b.kept = b.kept[max(0, len(b.kept)-maxKept):]
	return len(p), nil
}

func (b *bounded) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(bytes.TrimSpace(b.kept))
}
