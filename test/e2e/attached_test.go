package e2e

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/logtest"
)

// What the registry says reaches the runs that rest on it, through everything in between: a run whose project loses the label that attached
// its integration is ended, and so is one whose attachment is deleted.
func TestAttachments_EndRunsThatRestOnThem(t *testing.T) {
	t.Parallel()
	path, err := binary("phasekey")
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, t.TempDir())
	world := worldOf(t, d)
	command := func(args ...string) *exec.Cmd {
		c := exec.CommandContext(t.Context(), path, args...)
		c.Dir = d.dir
		return c
	}
	phasekey := func(args ...string) string {
		t.Helper()
		out, err := command(append(args, "--contexts-file", filepath.Join(d.dir, "contexts.yaml"))...).CombinedOutput()
		if err != nil {
			t.Fatalf("phasekey %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	client, integrations := httpsClient(t, d), registryv1.NewIntegrationServiceClient(dial(t, d, d.at.Registry, "platform"))
	for _, name := range []string{"by-label", "by-hand"} {
		phasekey("integrations", "create", name, "--tenant", world.CustomerTenant, "--subscription", world.Subscription, "--label", "autoattach:cloud", "--wait")
	}
	phasekey("integrations", "update", "by-label", "--auto-attach")
	phasekey("projects", "set", "labelled", "--label", "cloud")
	phasekey("projects", "set", "attached")
	phasekey("attachments", "create", "attached", "by-hand")
	for _, name := range []string{"by-label", "by-hand"} {
		if err := d.approve(t.Context(), world, client, integrations, account+"/integrations/"+name); err != nil {
			t.Fatal(err)
		}
		phasekey("integrations", "wait", name)
	}
	for _, tt := range []struct {
		project string
		end     []string
	}{
		{"labelled", []string{"projects", "set", "labelled", "--label", "other"}},
		{"attached", []string{"attachments", "delete", "attached", "by-hand", "--yes"}},
	} {
		phasekey("grants", "create", tt.project, "--run", tt.project, "--phase", "planning", "--token-file", filepath.Join(d.dir, tt.project))
		run := command("exec", "--vault", d.at.VaultRunners, "--ca", filepath.Join(d.dir, "tls", "ca.pem"), "--grant-file", tt.project,
			"--on-revoke", "terminate", "--", "sleep", "60")
		out := &logtest.Transcript{}
		run.Stdout, run.Stderr = out, out
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- run.Wait() }()
		for waited := time.Now(); !strings.Contains(phasekey("leases", "list", "--filter", `state = OPEN AND run = "`+tt.project+`"`), "OPEN"); {
			if time.Since(waited) > 30*time.Second {
				t.Fatalf("%s: nothing is delivered\n%s", tt.project, out)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("%s: the run ended by itself: %v\n%s", tt.project, err, out)
		default:
		}
		phasekey(tt.end...)
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !strings.Contains(out.String(), "DETACHED") {
				t.Errorf("%s: %v\n%s", tt.project, err, out)
			}
		case <-time.After(15 * time.Second):
			t.Errorf("%s: the run goes on\n%s", tt.project, out)
			t.Error(run.Process.Kill(), <-ended)
		}
	}
}
