package clients

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	azcloud "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armsubscriptions"
)

// dialing is a client for which the public cloud's names are the simulator's address.
func dialing(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: azure.roots}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			switch address {
			case host(login) + ":443", host(graph) + ":443", host(resourceManager) + ":443":
				return (&net.Dialer{}).DialContext(ctx, network, host(azure.own))
			}
			return nil, errors.New("no way to " + address)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// byEveryMeans are azidentity's credentials for the application, all with instance discovery.
func byEveryMeans(t *testing.T, options azcore.ClientOptions) map[string]azcore.TokenCredential {
	t.Helper()
	credentials := map[string]azcore.TokenCredential{}
	add := func(name string, credential azcore.TokenCredential, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		credentials[name] = credential
	}
	secret, err := azidentity.NewClientSecretCredential(tenant, azure.app.ClientID, azure.app.ClientSecret, &azidentity.ClientSecretCredentialOptions{ClientOptions: options})
	add("client secret", secret, err)
	certificate, err := azidentity.NewClientCertificateCredential(tenant, azure.app.ClientID, []*x509.Certificate{azure.certificate}, azure.key,
		&azidentity.ClientCertificateCredentialOptions{ClientOptions: options})
	add("client certificate", certificate, err)
	assertion, err := azidentity.NewClientAssertionCredential(tenant, azure.app.ClientID, func(context.Context) (string, error) { return azure.issuer.token() },
		&azidentity.ClientAssertionCredentialOptions{ClientOptions: options})
	add("client assertion", assertion, err)
	text, err := azure.issuer.token()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	workload, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions: options, TenantID: tenant, ClientID: azure.app.ClientID, TokenFilePath: file,
	})
	add("workload identity", workload, err)
	return credentials
}

// subscriptions lists what Resource Manager says the credential may see.
func subscriptions(t *testing.T, credential azcore.TokenCredential, options azcore.ClientOptions) (ids []string) {
	t.Helper()
	client, err := armsubscriptions.NewClient(credential, &arm.ClientOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	for pages := client.NewListPager(nil); pages.More(); {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.Value {
			ids = append(ids, *s.SubscriptionID)
		}
	}
	return ids
}

// check has a credential's tokens work at Resource Manager and at Graph.
func check(t *testing.T, credential azcore.TokenCredential, client *http.Client, options azcore.ClientOptions, at string) {
	t.Helper()
	if ids := subscriptions(t, credential, options); len(ids) != 1 || ids[0] != subscription {
		t.Errorf("it sees the subscriptions %v", ids)
	}
	token, err := credential.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{graph + "/.default"}})
	if err != nil {
		t.Fatal(err)
	}
	var organizations struct {
		Value []struct{ ID string }
	}
	if err := send(client, http.MethodGet, at+"/v1.0/organization", token.Token, "", &organizations); err != nil {
		t.Fatal(err)
	}
	if len(organizations.Value) != 1 || organizations.Value[0].ID != tenant {
		t.Errorf("Graph knows the organizations %+v", organizations)
	}
}

func TestAzidentity_ByTheCloudsNames(t *testing.T) {
	client := dialing(t)
	options := azcore.ClientOptions{Transport: client}
	for name, credential := range byEveryMeans(t, options) {
		t.Run(name, func(t *testing.T) {
			before := azure.asked("login.instance")
			check(t, credential, client, options, graph)
			if azure.asked("login.instance") == before {
				t.Error("there was no instance discovery")
			}
		})
	}
}

// TestAzidentity_AsItIs is a program that has never heard of simulators.
func TestAzidentity_AsItIs(t *testing.T) {
	credential, err := azidentity.NewClientSecretCredential(tenant, azure.app.ClientID, azure.app.ClientSecret, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	check(t, credential, client, azcore.ClientOptions{}, graph)
}

// TestAzidentity_ByAnOwnAuthority is a cloud of which only the URLs are known: the one origin is what tokens are asked for.
func TestAzidentity_ByAnOwnAuthority(t *testing.T) {
	options := azcore.ClientOptions{Cloud: azcloud.Configuration{
		ActiveDirectoryAuthorityHost: azure.own,
		Services:                     map[azcloud.ServiceName]azcloud.ServiceConfiguration{azcloud.ResourceManager: {Endpoint: azure.own, Audience: azure.own}},
	}}
	credential, err := azidentity.NewClientSecretCredential(tenant, azure.app.ClientID, azure.app.ClientSecret,
		&azidentity.ClientSecretCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: true})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	check(t, credential, client, options, azure.own)
}

func TestAzidentity_Refusals(t *testing.T) {
	client := dialing(t)
	options := azcore.ClientOptions{Transport: client}
	wrong, err := azidentity.NewClientSecretCredential(tenant, azure.app.ClientID, "wrong", &azidentity.ClientSecretCredentialOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	_, err = wrong.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{resourceManager + "/.default"}})
	var failed *azidentity.AuthenticationFailedError
	if !errors.As(err, &failed) || failed.RawResponse == nil || failed.RawResponse.StatusCode != http.StatusUnauthorized || !names(err, "AADSTS7000215") {
		t.Errorf("a wrong secret: %v", err)
	}
	right, err := azidentity.NewClientSecretCredential(tenant, azure.app.ClientID, azure.app.ClientSecret, &azidentity.ClientSecretCredentialOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	subscriptions, err := armsubscriptions.NewClient(right, &arm.ClientOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	_, err = subscriptions.Get(t.Context(), nobody, nil)
	var answered *azcore.ResponseError
	if !errors.As(err, &answered) || answered.StatusCode != http.StatusNotFound || answered.ErrorCode != "SubscriptionNotFound" {
		t.Errorf("a subscription that is not there: %v", err)
	}
}
