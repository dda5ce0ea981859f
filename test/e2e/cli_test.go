package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// updateCLI has the test write into docs/cli.md what the commands print now.
var updateCLI = flag.Bool("update-cli", false, "rewrite the transcripts of docs/cli.md")

// varying is what differs from run to run, and what stands for it when transcripts are compared.
var varying = []struct {
	shape *regexp.Regexp
	as    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<uuid>"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "<etag>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "<time>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<address>"},
	{regexp.MustCompile(`/consent/[A-Za-z0-9_-]{43}`), "/consent/<link>"},
	{regexp.MustCompile(`phasekey \S+ \(.*\)`), "phasekey <version>"},
	{regexp.MustCompile(`(?m)^[A-Za-z0-9_-]{22,43}  `), "<key>  "},
	{regexp.MustCompile(`\b[A-Z0-9]{26}\b`), "<instance>"},
	{regexp.MustCompile(`consentSessions/[a-z0-9]+`), "consentSessions/<id>"},
	{regexp.MustCompile(`pkg_[0-9A-Za-z]+`), "<token>"},
	{regexp.MustCompile(`\([0-9a-f]{8}\)`), "(<short>)"},
	{regexp.MustCompile(`\b(in )?\d+[smhd]\b`), "<age>"},
	{regexp.MustCompile(`\S*/tls/`), "<folder>/tls/"},
	{regexp.MustCompile(`[ \t]+`), " "},
	{regexp.MustCompile(`(?m) $`), ""},
}

func steady(text string) string {
	for _, v := range varying {
		text = v.shape.ReplaceAllString(text, v.as)
	}
	return text
}

// matches reports whether a transcript is what was printed; a line of … stands for any lines.
func matches(expected, printed string) bool {
	parts := strings.Split(regexp.QuoteMeta(steady(expected)), "\n")
	for i, part := range parts {
		if part == "…" {
			parts[i] = `(?s:.*)`
		}
	}
	return regexp.MustCompile(`^` + strings.Join(parts, "\n") + `$`).MatchString(steady(printed))
}

// transcriptOf parts a console block into its commands, each with what it printed.
func transcriptOf(block string) (steps [][2]string) {
	for line := range strings.SplitSeq(strings.TrimSuffix(block, "\n"), "\n") {
		last := len(steps) - 1
		switch {
		case strings.HasPrefix(line, "$ "):
			steps = append(steps, [2]string{strings.TrimPrefix(line, "$ "), ""})
		case last >= 0 && steps[last][1] == "" && strings.HasSuffix(steps[last][0], "\\"):
			steps[last][0] += "\n" + strings.TrimPrefix(line, "> ")
		case last >= 0:
			steps[last][1] += line + "\n"
		}
	}
	return steps
}

// Every command that docs/cli.md shows does what it shows there.
func TestCLIGuide_IsATranscript(t *testing.T) {
	t.Parallel()
	path, err := binary("phasekey")
	if err != nil {
		t.Fatal(err)
	}
	const guide = "../../docs/cli.md"
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, t.TempDir())
	world := worldOf(t, d)
	here := t.TempDir()
	for name, target := range map[string]string{".bin": filepath.Dir(path), ".build/dev": d.dir} {
		at := filepath.Join(here, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, at); err != nil {
			t.Fatal(err)
		}
	}
	client, wanted := httpsClient(t, d), registryv1.NewIntegrationServiceClient(dial(t, d, d.at.Registry, "platform"))
	const stop = "\n#the end of "
	var exports, shown []string
	updated := string(text)
	for _, block := range blocks(string(text)) {
		if block[0] != "console" {
			continue
		}
		var again strings.Builder
		for _, step := range transcriptOf(block[1]) {
			command, expected := step[0], step[1]
			again.WriteString("$ " + strings.ReplaceAll(command, "\n", "\n> ") + "\n")
			if strings.HasPrefix(command, "export ") {
				if strings.HasPrefix(command, "export TENANT=") {
					command = "export TENANT=" + world.CustomerTenant + " SUBSCRIPTION=" + world.Subscription + " RUNNERS=" + d.at.VaultRunners + " ADMIN=" + d.at.SimulatorAdmin
				}
				exports = append(exports, command)
				continue
			}
			shown = append(shown, command)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			approved := make(chan error, 1)
			if strings.HasPrefix(command, "phasekey consent start ") && !strings.Contains(command, "--wait=false") {
				go func() {
					approved <- d.approve(ctx, world, client, wanted, "accounts/acme/integrations/"+strings.Fields(command)[3])
				}()
			} else {
				approved <- nil
			}
			shell := exec.CommandContext(ctx, "/bin/bash", "-c", strings.Join(append(exports, command), "\n"))
			shell.Dir = here
			printed, _ := shell.CombinedOutput() // the exit code is what the guide says in words
			if err := <-approved; err != nil {
				t.Error(err)
			}
			cancel()
			switch {
			case matches(expected, string(printed)):
				again.WriteString(expected)
			case *updateCLI:
				again.WriteString(strings.ReplaceAll(string(printed), d.dir, "/home/ada/phasekey/.build/dev"))
			default:
				t.Errorf("$ %s\nprints\n%s\nand not\n%s", command, printed, expected)
			}
		}
		updated = strings.Replace(updated, "```console\n"+block[1], "```console\n"+stop+again.String(), 1)
	}
	updated = strings.ReplaceAll(updated, stop, "")
	if *updateCLI && !t.Failed() {
		if err := os.WriteFile(guide, []byte(updated), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	everyCommand(t, path, nil, strings.Join(shown, "\n"))
}

// everyCommand fails for a command that the guide does not show.
func everyCommand(t *testing.T, path string, words []string, shown string) {
	t.Helper()
	help, err := exec.CommandContext(t.Context(), path, append(words, "--help")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, list, below := strings.Cut(string(help), "Available Commands:\n")
	if !below {
		if name := strings.Join(append([]string{"phasekey"}, words...), " "); !strings.Contains(shown, name+" ") && !strings.HasSuffix(shown, name) && !strings.Contains(shown, name+"\n") {
			t.Errorf("docs/cli.md does not show `%s`", name)
		}
		return
	}
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.SplitSeq(list, "\n") {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" || len(words) == 0 && (name == "help" || name == "completion") {
			continue
		}
		everyCommand(t, path, append(append([]string{}, words...), name), shown)
	}
}

// approve lets the simulated customer's administrator consent to an integration, as soon as that is possible.
func (d *dev) approve(ctx context.Context, w world, client *http.Client, integrations registryv1.IntegrationServiceClient, name string) error {
	for {
		wanted, err := integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
		if err != nil {
			return err
		}
		if wanted.GetState() == registryv1.Integration_STATE_AWAITING_CONSENT {
			body, err := json.Marshal(map[string]any{
				"tenant": w.CustomerTenant, "clientId": wanted.GetClientId(), "userName": w.Administrator,
				"redirectUri": "https://" + d.at.BrokerHTTPS + "/consent/callback",
			})
			if err != nil {
				return err
			}
			response, err := client.Post(d.at.SimulatorAdmin+"/consents", "application/json", bytes.NewReader(body))
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, response.Body)
			if closed := response.Body.Close(); err != nil || closed != nil {
				return closed
			}
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
