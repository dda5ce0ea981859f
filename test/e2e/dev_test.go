// Package e2e tests the built commands as whole processes. It needs what `make build` and `make setup` put into .bin.
package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"phasekey.dev/pkg/logtest"
)

// binary is the path of a built command.
func binary(name string) (string, error) {
	path, err := filepath.Abs(filepath.Join("..", "..", ".bin", name))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not built: run 'make build setup': %w", name, err)
	}
	return path, nil
}

// leaks are the shapes of everything that must never be printed: client secrets, tokens and assertions, grants, private keys,
// links to consent pages and the states that go through Entra ID.
var leaks = map[string]*regexp.Regexp{
	"client secret": regexp.MustCompile(`[A-Za-z0-9]{3}8Q~[A-Za-z0-9._~-]{34}`),
	"JWT":           regexp.MustCompile(`eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}`),
	"grant":         regexp.MustCompile(`pkg_[0-9A-Za-z]{20,}`),
	"private key":   regexp.MustCompile(`PRIVATE KEY`),
	"consent link":  regexp.MustCompile(`/consent/[A-Za-z0-9_-]{43}`),
	"consent state": regexp.MustCompile(`[?&]state=[A-Za-z0-9_-]{20}`),
}

// leaked names what a text shows that it must not.
func leaked(text string) []string {
	var out []string
	for what, shape := range leaks {
		if at := shape.FindStringIndex(text); at != nil {
			line := text[strings.LastIndexByte(text[:at[0]], '\n')+1 : at[0]]
			out = append(out, fmt.Sprintf("%s after %q", what, line))
		}
	}
	return out
}

// endpoints is the folder's endpoints.json.
type endpoints struct {
	Registry       string `json:"registry"`
	Broker         string `json:"broker"`
	Vault          string `json:"vault"`
	VaultRunners   string `json:"vault_runners"`
	BrokerHTTPS    string `json:"broker_https"`
	Login          string `json:"login"`
	SimulatorAdmin string `json:"simulator_admin"`
	HomeTenant     string `json:"home_tenant"`
}

// dev is a running phasekey-dev.
type dev struct {
	dir     string
	at      endpoints
	command *exec.Cmd
	out     *logtest.Transcript
	ended   chan error
	// interrupt is Ctrl-C. The second call returns what the first did.
	interrupt func() error
}

// startDev runs phasekey-dev on a folder and waits until it is up.
func startDev(ctx context.Context, dir string) (*dev, error) {
	path, err := binary("phasekey-dev")
	if err != nil {
		return nil, err
	}
	d := &dev{dir: dir, out: &logtest.Transcript{}, ended: make(chan error, 1)}
	d.interrupt = sync.OnceValue(d.stop)
	d.command = exec.Command(path, "--dir", dir, "--log-level", "debug")
	d.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.command.Stderr = d.out
	stdout, err := d.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.command.Start(); err != nil {
		return nil, err
	}
	up := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(io.TeeReader(stdout, d.out))
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "Ctrl-C stops it") {
				close(up)
			}
		}
		d.ended <- errors.Join(lines.Err(), d.command.Wait())
	}()
	select {
	case <-up:
	case err := <-d.ended:
		return nil, fmt.Errorf("phasekey-dev ended: %w\n%s", err, d.out)
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), d.command.Process.Kill())
	}
	text, err := os.ReadFile(filepath.Join(dir, "endpoints.json"))
	if err == nil {
		err = json.Unmarshal(text, &d.at)
	}
	if err != nil {
		return nil, errors.Join(err, d.command.Process.Kill())
	}
	return d, nil
}

// errSlow means that it did not stop within five seconds.
var errSlow = errors.New("phasekey-dev did not stop within five seconds")

func (d *dev) stop() error {
	if err := d.command.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case err := <-d.ended:
		return err
	case <-time.After(5 * time.Second):
		return errors.Join(errSlow, d.command.Process.Kill())
	}
}
