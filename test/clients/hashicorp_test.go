package clients

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/go-azure-sdk/sdk/auth"
	sdk "github.com/hashicorp/go-azure-sdk/sdk/client"
	"github.com/hashicorp/go-azure-sdk/sdk/client/msgraph"
	"github.com/hashicorp/go-azure-sdk/sdk/client/resourcemanager"
	"github.com/hashicorp/go-azure-sdk/sdk/environments"
	"software.sslmate.com/src/go-pkcs12"
)

// hashicorp is what the azurerm and azuread providers are made of, for one environment and one way of proving who they are.
type hashicorp struct {
	environment *environments.Environment
	credentials auth.Credentials
}

// get asks an API of the environment for a path's objects, as the providers' own clients do.
func (h hashicorp) get(ctx context.Context, api environments.Api, path string, out any) (*sdk.Response, error) {
	h.credentials.Environment, h.credentials.TenantID, h.credentials.ClientID = *h.environment, tenant, azure.app.ClientID
	authorizer, err := auth.NewAuthorizerFromCredentials(ctx, h.credentials, api)
	if err != nil {
		return nil, err
	}
	var client sdk.BaseClient
	if api == h.environment.ResourceManager {
		made, err := resourcemanager.NewClient(api, "subscriptions", "2022-12-01")
		if err != nil {
			return nil, err
		}
		made.SetAuthorizer(authorizer)
		client = made
	} else {
		made, err := msgraph.NewClient(api, "organization", msgraph.VersionOnePointZero)
		if err != nil {
			return nil, err
		}
		made.SetAuthorizer(authorizer)
		client = made
	}
	request, err := client.NewRequest(ctx, sdk.RequestOptions{
		ContentType: "application/json; charset=utf-8", ExpectedStatusCodes: []int{http.StatusOK}, HttpMethod: http.MethodGet, Path: path,
	})
	if err != nil {
		return nil, err
	}
	response, err := request.Execute(ctx)
	if err != nil {
		return response, err
	}
	return response, response.Unmarshal(out)
}

// bounded is a context with the deadline that these clients insist on.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// told is the environment that a metadata host tells of: azurerm's `metadata_host`.
func told(t *testing.T, origin string) *environments.Environment {
	t.Helper()
	environment, err := environments.FromEndpoint(bounded(t), origin)
	if err != nil {
		t.Fatal(err)
	}
	return environment
}

func TestHashiCorp_FromMetadataToCalls(t *testing.T) {
	archive, err := pkcs12.Modern.Encode(azure.key, azure.certificate, nil, "open")
	if err != nil {
		t.Fatal(err)
	}
	assertion, err := azure.issuer.token()
	if err != nil {
		t.Fatal(err)
	}
	own, public := told(t, azure.own), told(t, resourceManager)
	for _, test := range []struct {
		name string
		hashicorp
	}{
		{"client secret, own origin", hashicorp{own, auth.Credentials{EnableAuthenticatingUsingClientSecret: true, ClientSecret: azure.app.ClientSecret}}},
		{"client certificate", hashicorp{public, auth.Credentials{EnableAuthenticatingUsingClientCertificate: true, ClientCertificateData: archive, ClientCertificatePassword: "open"}}},
		{"client certificate, own origin", hashicorp{own, auth.Credentials{EnableAuthenticatingUsingClientCertificate: true, ClientCertificateData: archive, ClientCertificatePassword: "open"}}},
		{"OIDC token", hashicorp{public, auth.Credentials{EnableAuthenticationUsingOIDC: true, OIDCAssertionToken: assertion}}},
		{"OIDC request, as at GitHub", hashicorp{own, auth.Credentials{
			EnableAuthenticationUsingGitHubOIDC: true, OIDCTokenRequestURL: azure.issuer.server.URL + "/request", OIDCTokenRequestToken: runnersToken,
		}}},
		{"client secret, the public cloud by heart", hashicorp{environments.AzurePublic(), auth.Credentials{EnableAuthenticatingUsingClientSecret: true, ClientSecret: azure.app.ClientSecret}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var subscriptions struct {
				Value []struct{ SubscriptionID string }
			}
			if _, err := test.get(bounded(t), test.environment.ResourceManager, "/subscriptions", &subscriptions); err != nil {
				t.Fatal(err)
			}
			if len(subscriptions.Value) != 1 || subscriptions.Value[0].SubscriptionID != subscription {
				t.Errorf("it sees the subscriptions %+v", subscriptions)
			}
			var organizations struct {
				Value []struct{ ID string }
			}
			if _, err := test.get(bounded(t), test.environment.MicrosoftGraph, "/organization", &organizations); err != nil {
				t.Fatal(err)
			}
			if len(organizations.Value) != 1 || organizations.Value[0].ID != tenant {
				t.Errorf("Graph knows the organizations %+v", organizations)
			}
		})
	}
}

func TestHashiCorp_Refusals(t *testing.T) {
	public := told(t, resourceManager)
	right := hashicorp{public, auth.Credentials{EnableAuthenticatingUsingClientSecret: true, ClientSecret: azure.app.ClientSecret}}
	wrong := hashicorp{public, auth.Credentials{EnableAuthenticatingUsingClientSecret: true, ClientSecret: "wrong"}}
	// These clients have no types for what is refused: their callers read the text, and what was parsed of the answer.
	if _, err := wrong.get(bounded(t), public.ResourceManager, "/subscriptions", nil); !names(err, "AADSTS7000215") || !names(err, "401") {
		t.Errorf("a wrong secret: %v", err)
	}
	for _, test := range []struct {
		name, path, code string
		api              environments.Api
	}{
		{"a subscription that is not there", "/subscriptions/" + nobody, "SubscriptionNotFound", public.ResourceManager},
		{"an application that is not there", "/applications/" + nobody, "Request_ResourceNotFound", public.MicrosoftGraph},
	} {
		response, err := right.get(bounded(t), test.api, test.path, nil)
		if err == nil || response == nil || response.StatusCode != http.StatusNotFound || response.OData == nil || response.OData.Error == nil ||
			response.OData.Error.Code == nil || *response.OData.Error.Code != test.code {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
