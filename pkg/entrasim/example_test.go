package entrasim_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"phasekey.dev/pkg/entrasim"
)

// Example begins with the five lines of the README.
func Example() {
	sim, _ := entrasim.New(entrasim.Config{Seed: 1, Lags: entrasim.Lag(0, 10*time.Second)})
	home, _ := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Home"})
	app, _ := sim.CreatePlatform(entrasim.NewPlatform{Tenant: home.ID})
	options := azcore.ClientOptions{Transport: &http.Client{Transport: sim.Transport()}}
	cred, _ := azidentity.NewClientSecretCredential(home.ID, app.ClientID, app.ClientSecret, &azidentity.ClientSecretCredentialOptions{ClientOptions: options})

	token, err := cred.GetToken(context.Background(), policy.TokenRequestOptions{Scopes: []string{"https://graph.microsoft.com/.default"}})
	fmt.Println(err, sim.TokenState(token.Token).Works)
	// Output: <nil> true
}

func TestReadme_BeginsWithTheExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(readme), "```go\n")
	block, _, found := strings.Cut(block, "```")
	if !found || strings.Count(block, "\n") != 5 {
		t.Fatalf("the README does not begin with five lines of Go:\n%s", block)
	}
	if !strings.Contains(string(example), "\t"+strings.ReplaceAll(strings.TrimSpace(block), "\n", "\n\t")+"\n") {
		t.Errorf("the example does not have the README's lines:\n%s", block)
	}
}
