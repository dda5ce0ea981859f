package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// refusal is how a client for Node says no.
type refusal struct {
	Name, Code, Message string
	Status              int
}

// seenByNode is what node/clients.mjs prints.
type seenByNode struct {
	Subscriptions, Organizations map[string][]string
	Application                  struct {
		Name         string
		SecretLength int
		KeyIDs       []string
		SecretsShown int
		Afterwards   refusal
	}
	Refusals map[string]refusal
}

// runNode runs the script where `make setup` has put its packages.
func runNode(t *testing.T) (seen seenByNode) {
	t.Helper()
	packages, err := filepath.Abs(filepath.Join("..", "..", ".build", "node"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(packages, "installed")); err != nil {
		t.Fatalf("Node's packages are missing: run 'make setup': %v", err)
	}
	script, err := os.Open(filepath.Join("node", "clients.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = script.Close() }()
	assertion, err := azure.issuer.token()
	if err != nil {
		t.Fatal(err)
	}
	cloud, err := json.Marshal(map[string]string{
		"own": azure.own, "tenant": tenant, "clientId": azure.app.ClientID, "clientSecret": azure.app.ClientSecret,
		"certificate": azure.pemFile, "assertion": assertion, "nobody": nobody,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Modules are looked for from where a script is, but for one that is read from standard input.
	command := exec.CommandContext(ctx, "node", "--input-type=module")
	command.Dir, command.Stdin = packages, script
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CLOUD=" + string(cloud),
		"NODE_EXTRA_CA_CERTS=" + azure.caFile, "HTTPS_PROXY=" + azure.proxy, "NO_PROXY=127.0.0.1",
	}
	var out, problems bytes.Buffer
	command.Stdout, command.Stderr = &out, &problems
	if err := command.Run(); err != nil {
		t.Fatalf("node: %v\n%s", err, problems.String())
	}
	if err := json.Unmarshal(out.Bytes(), &seen); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return seen
}

func TestNode_MicrosoftsClients(t *testing.T) {
	before := azure.asked("login.instance")
	seen := runNode(t)
	for _, by := range []string{"secret", "certificate", "assertion", "byName"} {
		if got := seen.Subscriptions[by]; !slices.Equal(got, []string{subscription}) {
			t.Errorf("by %s, it sees the subscriptions %v", by, got)
		}
		if got := seen.Organizations[by]; by != "byName" && !slices.Equal(got, []string{tenant}) {
			t.Errorf("by %s, Graph knows the organizations %v", by, got)
		}
	}
	if azure.asked("login.instance") == before {
		t.Error("instance discovery was not asked for the origin")
	}
	app := seen.Application
	if app.Name != "made by Node" || app.SecretLength == 0 || app.SecretsShown != 0 || len(app.KeyIDs) != 2 || app.KeyIDs[0] != app.KeyIDs[1] {
		t.Errorf("the application was %+v", app)
	}
	notThere := refusal{Name: "Error", Code: "Request_ResourceNotFound", Status: 404}
	for what, test := range map[string]struct{ got, want refusal }{
		"a wrong secret":                      {seen.Refusals["secret"], refusal{Name: "AuthenticationRequiredError", Message: "AADSTS7000215"}},
		"an origin that no cloud is at":       {seen.Refusals["origin"], refusal{Name: "CredentialUnavailableError", Message: "endpoints_resolution_error"}},
		"a subscription that is not there":    {seen.Refusals["subscription"], refusal{Name: "RestError", Code: "SubscriptionNotFound", Status: 404}},
		"an application that is not there":    {seen.Refusals["application"], notThere},
		"an application that is not any more": {app.Afterwards, notThere},
	} {
		if g, w := test.got, test.want; g.Name != w.Name || g.Code != w.Code || g.Status != w.Status || !strings.Contains(g.Message, w.Message) {
			t.Errorf("%s: %+v", what, g)
		}
	}
}
