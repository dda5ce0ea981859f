package story

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

const (
	// managementScope is Resource Manager's, whatever address the simulated one has.
	managementScope = "https://management.azure.com/.default"
	// patience is how long a role assignment may take to show.
	patience  = 15 * time.Second
	retryCall = 300 * time.Millisecond
)

// Call is what came of a call to Resource Manager.
type Call struct {
	Status int `json:"status"`
	Tries  int `json:"tries"`
}

// ARM is what the demo runs as a child of `phasekey exec`: it gets a token as any Azure SDK does, from the managed identity
// that its environment names, and calls Resource Manager. A 403 where another status is wanted is tried again for a while.
func ARM(ctx context.Context, resourceManager, caFile, method, path string, want int) (Call, error) {
	pem, err := os.ReadFile(caFile) //nolint:gosec // the file that the flag names
	if err != nil {
		return Call{}, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return Call{}, fmt.Errorf("%s has no certificate", caFile)
	}
	identity, err := azidentity.NewManagedIdentityCredential(nil)
	if err != nil {
		return Call{}, err
	}
	client := &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}},
	}
	deadline := time.Now().Add(patience)
	var call Call
	for {
		call.Tries++
		if call.Status, err = callOnce(ctx, client, identity, method, resourceManager+path); err != nil {
			return call, err
		}
		if call.Status != http.StatusForbidden || want == http.StatusForbidden || time.Now().After(deadline) {
			return call, nil
		}
		if err := wait(ctx, retryCall); err != nil {
			return call, err
		}
	}
}

func callOnce(ctx context.Context, client *http.Client, identity *azidentity.ManagedIdentityCredential, method, where string) (status int, err error) {
	token, err := identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{managementScope}})
	if err != nil {
		return 0, err
	}
	var body io.Reader
	if method == http.MethodPut {
		body = strings.NewReader(`{"location":"westeurope"}`)
	}
	request, err := http.NewRequestWithContext(ctx, method, where+"?api-version=2021-04-01", body)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+token.Token)
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, errors.Join(err, response.Body.Close())
}
