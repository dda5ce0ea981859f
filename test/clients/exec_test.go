package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armsubscriptions"
	"github.com/hashicorp/go-azure-sdk/sdk/auth"
	"github.com/hashicorp/go-azure-sdk/sdk/claims"
	sdk "github.com/hashicorp/go-azure-sdk/sdk/client"
	"github.com/hashicorp/go-azure-sdk/sdk/client/resourcemanager"
	"github.com/hashicorp/go-azure-sdk/sdk/environments"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/runner/runnertest"
)

// asChild makes this test binary a program that knows nothing but its environment: go-azure-sdk set up as the azurerm provider
// sets it up, with the token for Graph that it reads who it is from, or azidentity.
const (
	asChild        = "CLIENTS_AS_CHILD"
	childAzurerm   = "azurerm"
	childSDK       = "azidentity"
	grantCanary    = "pk_grant_canary_0123456789"
	childsAttempts = 3
)

// beChild asks Resource Manager for the subscriptions, each time as a program that has just been started, and says what it saw.
func beChild(kind string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list := map[string]func(context.Context) ([]string, error){childAzurerm: listAsAzurerm, childSDK: listAsSDK}[kind]
	for range childsAttempts {
		ids, err := list(ctx)
		if err != nil {
			fmt.Println("failed:", err)
			return 1
		}
		fmt.Println("sees", ids)
	}
	return 0
}

// listAsAzurerm configures go-azure-sdk by the variables that the azurerm provider reads.
func listAsAzurerm(ctx context.Context) (ids []string, err error) {
	env := os.Getenv
	environment := environments.AzurePublic()
	oidc, msi := env("ARM_USE_OIDC") == "true", env("ARM_USE_MSI") == "true"
	credentials := auth.Credentials{
		Environment: *environment, TenantID: env("ARM_TENANT_ID"), ClientID: env("ARM_CLIENT_ID"),
		EnableAuthenticatingUsingClientSecret:      true,
		ClientSecret:                               env("ARM_CLIENT_SECRET"),
		EnableAuthenticationUsingOIDC:              oidc,
		OIDCAssertionToken:                         env("ARM_OIDC_TOKEN"),
		EnableAuthenticationUsingGitHubOIDC:        oidc,
		OIDCTokenRequestURL:                        env("ARM_OIDC_REQUEST_URL"),
		OIDCTokenRequestToken:                      env("ARM_OIDC_REQUEST_TOKEN"),
		EnableAuthenticatingUsingManagedIdentity:   msi,
		CustomManagedIdentityEndpoint:              env("ARM_MSI_ENDPOINT"),
		EnableAuthenticatingUsingAzureCLI:          env("ARM_USE_CLI") != "false",
		EnableAuthenticatingUsingClientCertificate: true,
	}
	graphs, err := auth.NewAuthorizerFromCredentials(ctx, credentials, environment.MicrosoftGraph)
	if err != nil {
		return nil, err
	}
	token, err := graphs.Token(ctx, &http.Request{})
	if err != nil {
		return nil, fmt.Errorf("building account: %w", err)
	}
	who, err := claims.ParseClaims(token)
	if err != nil {
		return nil, err
	}
	if who.ObjectId == "" || who.TenantId != env("ARM_TENANT_ID") || who.AppId != env("ARM_CLIENT_ID") {
		return nil, fmt.Errorf("the token is of application %q, object %q, tenant %q", who.AppId, who.ObjectId, who.TenantId)
	}
	authorizer, err := auth.NewAuthorizerFromCredentials(ctx, credentials, environment.ResourceManager)
	if err != nil {
		return nil, err
	}
	client, err := resourcemanager.NewClient(environment.ResourceManager, "subscriptions", "2022-12-01")
	if err != nil {
		return nil, err
	}
	client.SetAuthorizer(authorizer)
	request, err := client.NewRequest(ctx, sdk.RequestOptions{
		ContentType: "application/json; charset=utf-8", ExpectedStatusCodes: []int{http.StatusOK}, HttpMethod: http.MethodGet, Path: "/subscriptions",
	})
	if err != nil {
		return nil, err
	}
	response, err := request.Execute(ctx)
	if err != nil {
		return nil, err
	}
	var seen struct {
		Value []struct{ SubscriptionID string }
	}
	err = response.Unmarshal(&seen)
	for _, s := range seen.Value {
		ids = append(ids, s.SubscriptionID)
	}
	return ids, err
}

// listAsSDK leaves it all to the default credential.
func listAsSDK(ctx context.Context) (ids []string, err error) {
	// The SDK's own pool would keep connections between attempts, which a fresh program has none of.
	transport := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	credential, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: transport}})
	if err != nil {
		return nil, err
	}
	client, err := armsubscriptions.NewClient(credential, nil)
	if err != nil {
		return nil, err
	}
	for pages := client.NewListPager(nil); pages.More(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range page.Value {
			ids = append(ids, *s.SubscriptionID)
		}
	}
	return ids, nil
}

// phasekey is the built command.
var phasekey = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(azure.pemFile), "phasekey") // which is removed at the end
	build := exec.Command("go", "build", "-o", path, "./cmd/phasekey")
	build.Dir = filepath.Join("..", "..", "services", "phasekey")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build phasekey: %w: %s", err, out)
	}
	return path, nil
})

// delivered is what a vault delivers to the application's runner, of a material.
func delivered(t *testing.T, material typev1.Material) *vaultv1.Credential {
	t.Helper()
	now := time.Now()
	c := &vaultv1.Credential{
		Lease: "lease", Generation: 1, CredentialVersion: 1, Phase: typev1.Phase_PHASE_PLANNING, Access: typev1.Access_ACCESS_READ,
		IssueTime: timestamppb.New(now), RefreshTime: timestamppb.New(now.Add(45 * time.Minute)),
		ExpireTime: timestamppb.New(now.Add(time.Hour)), GrantExpireTime: timestamppb.New(now.Add(time.Hour)),
		TenantId: tenant, ClientId: azure.app.ClientID, SubscriptionId: subscription, Environment: map[string]string{"ARM_ENVIRONMENT": "public"},
	}
	switch material {
	case typev1.Material_MATERIAL_CLIENT_SECRET:
		c.Material = &vaultv1.Credential_ClientSecret{ClientSecret: &vaultv1.ClientSecret{Secret: azure.app.ClientSecret}}
	case typev1.Material_MATERIAL_FEDERATED_TOKEN:
		assertion, err := azure.issuer.token()
		if err != nil {
			t.Fatal(err)
		}
		c.Material = &vaultv1.Credential_FederatedToken{FederatedToken: &vaultv1.FederatedToken{Token: assertion}}
	default:
		c.Material = &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: resourceManager, Token: minted(t, resourceManager)}}
	}
	return c
}

// minted is a token, as the vault would have it made.
func minted(t *testing.T, audience string) string {
	t.Helper()
	client := &http.Client{Transport: azure.sim.Transport()}
	resp, err := client.PostForm(login+"/"+tenant+"/oauth2/v2.0/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {azure.app.ClientID}, "client_secret": {azure.app.ClientSecret}, "scope": {audience + "/.default"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var granted struct {
		Token string `json:"access_token"`
	}
	if err := read(resp, &granted); err != nil {
		t.Fatal(err)
	}
	return granted.Token
}

// What runs under `phasekey exec` knows nothing but its environment, and reaches Resource Manager; nothing that it, or phasekey, writes
// at debug level has a token, an assertion, a secret, the grant or the endpoint's guard in it.
func TestExec_ChildrenReachResourceManager(t *testing.T) {
	program, err := phasekey()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind, material string
		as             typev1.Material
		flags          []string
	}{
		// The integration allows Graph's audience.
		{childAzurerm, "access-token", typev1.Material_MATERIAL_ACCESS_TOKEN, nil},
		{childAzurerm, "federated-token", typev1.Material_MATERIAL_FEDERATED_TOKEN, nil},
		{childAzurerm, "federated-token", typev1.Material_MATERIAL_FEDERATED_TOKEN, []string{"--env-only"}},
		{childAzurerm, "client-secret", typev1.Material_MATERIAL_CLIENT_SECRET, nil},
		{childSDK, "access-token", typev1.Material_MATERIAL_ACCESS_TOKEN, nil},
		{childSDK, "client-secret", typev1.Material_MATERIAL_CLIENT_SECRET, nil},
	} {
		t.Run(strings.Join(append([]string{tt.kind, tt.material}, tt.flags...), " "), func(t *testing.T) {
			vault := runnertest.New(grantCanary)
			address, ca := vault.TCP(t)
			c := delivered(t, tt.as)
			vault.Always(c)
			forGraph := proto.CloneOf(c)
			forGraph.Material = &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: graph, Token: minted(t, graph)}}
			vault.OnFetch(func(asked *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
				if asked.GetAudience() != graph {
					return nil, fmt.Errorf("asked for %s", asked.GetAudience())
				}
				return forGraph, nil
			})
			reader, writer, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.WriteString(writer, grantCanary)
			if err = errors.Join(err, writer.Close()); err != nil {
				t.Fatal(err)
			}
			args := slices.Concat([]string{"exec", "--debug", "--vault", address, "--vault-id", runnertest.ID, "--ca", ca, "--grant-fd", "3", "--material", tt.material}, tt.flags,
				// What the endpoint's guard is, is said once, by a shell, to be searched for.
				[]string{"--", "sh", "-c", `echo "guard $IDENTITY_HEADER$ARM_OIDC_REQUEST_TOKEN" >&4; exec "$0"`, self})
			command := exec.CommandContext(t.Context(), program, args...)
			said, says, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = said.Close() }()
			var out bytes.Buffer
			command.Stdout, command.Stderr, command.ExtraFiles = &out, &out, []*os.File{reader, says}
			command.Env = append(os.Environ(), asChild+"="+tt.kind)
			err = command.Run()
			_, _ = reader.Close(), says.Close()
			guard, _ := io.ReadAll(said)
			if want := strings.Repeat(fmt.Sprintf("sees [%s]\n", subscription), childsAttempts); err != nil || !strings.Contains(out.String(), "sees") ||
				strings.Count(out.String(), "sees ["+subscription+"]") != childsAttempts {
				t.Fatalf("%v; it said:\n%s\nwant:\n%s", err, &out, want)
			}
			secrets := []string{grantCanary, azure.app.ClientSecret, c.GetAccessToken().GetToken(), forGraph.GetAccessToken().GetToken(), c.GetFederatedToken().GetToken(), strings.TrimSpace(strings.TrimPrefix(string(guard), "guard "))}
			if endpoint := tt.flags == nil && tt.material != "client-secret"; endpoint != (secrets[5] != "") {
				t.Errorf("the guard is %d bytes long", len(secrets[5]))
			}
			for i, secret := range secrets {
				if secret != "" && strings.Contains(out.String(), secret) {
					t.Errorf("secret %d is in the output:\n%s", i, &out)
				}
			}
		})
	}
}

// azurerm reads who it is from a token for Graph, whatever it is to do. Where the integration does not allow that, what it ends with says what to do.
func TestExec_AzurermIsToldThatGraphIsNotAllowed(t *testing.T) {
	program, err := phasekey()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	vault := runnertest.New(grantCanary)
	address, ca := vault.TCP(t)
	vault.Always(delivered(t, typev1.Material_MATERIAL_ACCESS_TOKEN))
	vault.OnFetch(func(asked *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
		return nil, rpcerr.New(codes.PermissionDenied, rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_AUDIENCE_NOT_ALLOWED),
			"integration does not allow the audience "+asked.GetAudience(), rpcerr.Metadata("audience", asked.GetAudience()))
	})
	grant := filepath.Join(t.TempDir(), "grant")
	if err := os.WriteFile(grant, []byte(grantCanary), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), program, "exec", "--vault", address, "--vault-id", runnertest.ID, "--ca", ca, "--grant-file", grant, "--", self)
	command.Env = append(os.Environ(), asChild+"="+childAzurerm)
	out, err := command.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("it ended with %v", err)
	}
	for _, want := range []string{"building account", "does not allow the audience " + graph, "add it to the integration's allowed audiences"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
