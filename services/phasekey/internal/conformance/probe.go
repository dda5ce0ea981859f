package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// ProbeExit is the exit code of a probe that was let go: no runner has it by itself.
const ProbeExit = 7

// question is what a probe is asked, and answer what it says. Without anything it asks for the environment.
type question struct {
	// Audience asks for a token.
	Audience string `json:"audience,omitempty"`
	// Assertion asks for an assertion.
	Assertion bool `json:"assertion,omitempty"`
}

type answer struct {
	Status      int      `json:"status,omitempty"`
	Token       string   `json:"token,omitempty"`
	Problem     string   `json:"problem,omitempty"`
	Environment []string `json:"environment,omitempty"`
}

// Probe is the command that a runner runs: it asks the runner's endpoint, as Azure's SDKs ask App Service's and Terraform's providers an OpenID
// provider, whatever it is told to by the Unix socket at an address, and returns its exit code when that is closed.
func Probe(ctx context.Context, address string, env []string) (int, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
	if err != nil {
		return 0, fmt.Errorf("probe: %w", err)
	}
	defer func() { _ = conn.Close() }()
	values := map[string]string{}
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		values[name] = value
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
	out := json.NewEncoder(conn)
	for in := json.NewDecoder(conn); ; {
		var q question
		if err := in.Decode(&q); err != nil {
			return ProbeExit, nil // it was let go
		}
		a := answer{Environment: env}
		switch {
		case q.Assertion:
			a = askProvider(ctx, client, values)
		case q.Audience != "":
			a = askEndpoint(ctx, client, values, q.Audience)
		}
		if err := out.Encode(a); err != nil {
			return ProbeExit, nil // it was let go
		}
	}
}

func askEndpoint(ctx context.Context, client *http.Client, env map[string]string, audience string) answer {
	where := env["IDENTITY_ENDPOINT"] + "?" + url.Values{"api-version": {"2019-08-01"}, "resource": {audience}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, http.NoBody)
	if err != nil {
		return answer{Problem: err.Error()}
	}
	req.Header.Set("X-IDENTITY-HEADER", env["IDENTITY_HEADER"])
	return do(client, req)
}

// askProvider asks for an assertion.
func askProvider(ctx context.Context, client *http.Client, env map[string]string) answer {
	where, err := url.Parse(env["ARM_OIDC_REQUEST_URL"])
	if err != nil {
		return answer{Problem: err.Error()}
	}
	query := where.Query()
	query.Set("audience", "api://AzureADTokenExchange")
	where.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), http.NoBody)
	if err != nil {
		return answer{Problem: err.Error()}
	}
	req.Header.Set("Authorization", "Bearer "+env["ARM_OIDC_REQUEST_TOKEN"])
	return do(client, req)
}

// do makes a request, and takes the token or the assertion from the answer.
func do(client *http.Client, req *http.Request) answer {
	resp, err := client.Do(req)
	if err != nil {
		return answer{Problem: err.Error()}
	}
	defer func() { _ = resp.Body.Close() }()
	var body struct {
		AccessToken string `json:"access_token"`
		Value       string `json:"value"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&body); err != nil && resp.StatusCode == http.StatusOK {
		return answer{Status: resp.StatusCode, Problem: "the answer is no JSON object"}
	}
	return answer{Status: resp.StatusCode, Token: body.AccessToken + body.Value}
}

// probe is the other end: a command that a runner has started. It answers one question after another.
type probe struct {
	conn net.Conn
	in   *bufio.Reader
	mu   sync.Mutex
}

// ask asks one question.
func (p *probe) ask(q question) (answer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if err := json.NewEncoder(p.conn).Encode(q); err != nil {
		return answer{}, fmt.Errorf("%w: %w", errGone, err)
	}
	line, err := p.in.ReadBytes('\n')
	if err != nil {
		return answer{}, fmt.Errorf("%w: %w", errGone, err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return answer{}, fmt.Errorf("the probe said %q: %w", line, err)
	}
	return a, nil
}

// askIf asks unless something was wrong before.
func (p *probe) askIf(before error, q question) (answer, error) {
	if before != nil {
		return answer{}, before
	}
	return p.ask(q)
}

// listenForProbes makes the socket that probes come to.
func listenForProbes(ctx context.Context, path string) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for probes: %w", err)
	}
	return ln, os.Chmod(path, 0o600)
}
