package fault

import (
	"context"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/test/internal/rigtest"
)

// tool is one of PostgreSQL's programs.
func tool(t *testing.T, name string) string {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	rigtest.Must(t, err)
	if len(found) == 0 {
		t.Fatalf("PostgreSQL's %s is not installed: run 'make setup'", name)
	}
	return found[len(found)-1]
}

func execute(t *testing.T, name string, arguments ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, arguments...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// TestRestore_OfEverythingFromDumps does what docs/operations.md says of a restore, with what PostgreSQL has for it. The backup knows neither the passwords that are in
// use by then, nor the integration that was made since.
func TestRestore_OfEverythingFromDumps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onboard(t)
	dumps := make([]string, len(w.databases))
	for n, dsn := range w.databases {
		dumps[n] = filepath.Join(t.TempDir(), "dump")
		execute(t, tool(t, "pg_dump"), "--format=custom", "--file="+dumps[n], dsn)
	}
	w.rotated(t, again)
	w.rotated(t, again)
	made := registryv1.NewIntegrationServiceClient(w.registry)
	_, err := made.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{
		Parent: account, IntegrationId: "since", Integration: &registryv1.Integration{DisplayName: "Since", TenantId: w.integrations[0].tenant},
	})
	rigtest.Must(t, err)
	for _, v := range w.vaults {
		v.Stop(t)
	}
	// What runs have by now works on, whoever knows of it. Until now what was replaced was removed in its time.
	stay := w.passwordsStay(t)
	w.registryd.Stop(t)
	for n, dsn := range w.databases {
		execute(t, tool(t, "pg_restore"), "--clean", "--if-exists", "--single-transaction", "--dbname="+dsn, dumps[n])
	}
	execute(t, rigtest.Binary(t, "registryd"), "restored", "--config", filepath.Join(w.Dir, "registry.yaml"))
	recovery := &rigtest.Process{Name: "vaultd recover", Command: []string{rigtest.Binary(t, "vaultd"), "recover", "--config", filepath.Join(w.Dir, "vault-1.yaml")}}
	recovery.Start(t)
	t.Cleanup(func() { recovery.Kill(t) })
	rigtest.Await(t, rigtest.StartTimeout, func(context.Context) error {
		if len(records(recovery, "recovery")) == 0 {
			return notYet("the recovery has not begun:\n%s", recovery.Output.Tail())
		}
		return nil
	})
	began := time.Now()
	w.registryd.Start(t)
	for _, v := range w.vaults {
		v.Start(t)
	}
	w.rotated(t, again)
	ctx, cancel := context.WithTimeout(t.Context(), again)
	defer cancel()
	if err := recovery.Ended(ctx); err != nil {
		t.Errorf("every integration has rotated, and vaultd recover: %v\n%s", err, recovery.Output.Tail())
	}
	t.Logf("every integration has rotated %s after the start", time.Since(began).Round(time.Second))
	events, err := w.vaults[0].audit.ListAuditEvents(t.Context(), &vaultv1.ListAuditEventsRequest{Parent: "accounts/-", Filter: "kind = RecoveryBegun"})
	rigtest.Must(t, err)
	if n := len(events.GetAuditEvents()); n != 1 {
		t.Errorf("the audit has %d recoveries: %v", n, events)
	}
	// By then a vault that did not know of the restore would have found what it does not know, and removed it.
	w.rotated(t, again)
	w.rotated(t, again)
	stay()
	if _, err := made.GetIntegration(t.Context(), &registryv1.GetIntegrationRequest{Name: account + "/integrations/since"}); err == nil {
		t.Error("what was made since the backup is there: it was not restored")
	}
}

// passwordsStay fails the test, when what it returns is called, for every password that stood before and does not then.
func (w *world) passwordsStay(t *testing.T) (stay func()) {
	t.Helper()
	before := map[string][]password{}
	for _, i := range w.integrations {
		before[i.name] = w.standing(t, i)
	}
	return func() {
		t.Helper()
		for _, i := range w.integrations {
			now := map[string]bool{}
			for _, p := range w.standing(t, i) {
				now[p.KeyID] = true
			}
			for _, p := range before[i.name] {
				if !now[p.KeyID] {
					t.Errorf("%s: the password %s, which a run may hold, was removed", i.name, p.KeyID)
				}
			}
		}
	}
}

// standing are the passwords of an integration's application that were not removed.
func (w *world) standing(t *testing.T, i *integration) (out []password) {
	t.Helper()
	var all []password
	rigtest.Must(t, w.Admin(t.Context(), http.MethodGet, "credentials?clientId="+i.clientID, nil, &all))
	for _, p := range all {
		if p.Removed.IsZero() {
			out = append(out, p)
		}
	}
	return out
}
