package operator

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/services/phasekey/internal/contexts"
)

// Whoever presses Tab is told nothing of a deployment that is not there, and not kept waiting by one that says nothing.
func TestCompletion_IsSilentWhereItFails(t *testing.T) {
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca, err := devca.Open(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mine, err := ca.Issue(time.Now(), "operator", devca.Leaf{ID: "spiffe://phasekey.dev/operator"})
	if err != nil {
		t.Fatal(err)
	}
	file := contexts.File{Contexts: map[string]contexts.Context{}}
	for name, at := range map[string]contexts.Context{
		"silent":     {Registry: silent.Addr().String(), Vault: silent.Addr().String(), Account: "acme"},
		"closed":     {Registry: closed.Addr().String(), Vault: closed.Addr().String(), Account: "acme"},
		"nowhere":    {Broker: silent.Addr().String(), Account: "acme"},
		"no-account": {Registry: silent.Addr().String(), Vault: silent.Addr().String()},
	} {
		at.CAFile, at.CertFile, at.KeyFile = ca.CAFile(), mine.Cert, mine.Key
		if err := file.Set(name, at); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "contexts.yaml")
	if err := file.Save(path); err != nil {
		t.Fatal(err)
	}
	for _, context := range []string{"silent", "closed", "nowhere", "no-account", "unheard-of"} {
		for _, line := range [][]string{
			{"integrations", "get"}, {"attachments", "delete", "network"}, {"grants", "revoke"}, {"grants", "revoke", "--integration"}, {"leases", "list", "--grant"},
		} {
			t.Run(strings.Join(append([]string{context}, line...), " "), func(t *testing.T) {
				t.Parallel()
				var out, said bytes.Buffer
				root := &cobra.Command{Use: "phasekey"}
				root.AddCommand(Commands(func(string) (string, bool) { return "", false })...)
				root.SetOut(&out)
				root.SetErr(&said)
				words := append([]string{cobra.ShellCompRequestCmd, line[0], line[1], "--contexts-file", path, "--context", context}, line[2:]...)
				root.SetArgs(append(words, ""))
				if err := root.ExecuteContext(t.Context()); err != nil {
					t.Fatal(err)
				}
				if out.String() != ":4\n" || said.String() != "Completion ended with directive: ShellCompDirectiveNoFileComp\n" {
					t.Errorf("proposes %q, and says %q", out.String(), said.String())
				}
			})
		}
	}
}
