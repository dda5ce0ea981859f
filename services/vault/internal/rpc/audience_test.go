package rpc_test

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

func TestCredentials_ForEachServiceThatTheIntegrationAllows(t *testing.T) {
	const kubernetes = "6dae42f8-4368-4678-94ff-3960e28e3630"
	inBubble(t, func(v *vault) {
		v.exec(`UPDATE integrations SET allowed_audiences = $1`,
			`["https://vault.azure.net","https://storage.azure.com","https://graph.microsoft.com","https://ossrdbms-aad.database.windows.net","`+kubernetes+`"]`)
		_, ctx := v.grant()
		for asked, want := range map[string]string{
			"": arm, arm + "/": arm, "https://vault.azure.net": "https://vault.azure.net", "https://storage.azure.com/": "https://storage.azure.com",
			"https://graph.microsoft.com": "https://graph.microsoft.com", "https://ossrdbms-aad.database.windows.net": "https://ossrdbms-aad.database.windows.net",
			kubernetes: kubernetes,
		} {
			resp, err := v.runner.FetchCredential(ctx, &vaultv1.FetchCredentialRequest{InstanceId: "instance-1", Audience: asked})
			if err != nil || resp.GetCredential().GetAccessToken().GetAudience() != want {
				v.t.Errorf("%q: for %q, %v", asked, resp.GetCredential().GetAccessToken().GetAudience(), err)
			}
		}
		for asked, reason := range map[string]string{
			"6dae42f8-4368-4678-94ff-3960e28e3631": "AUDIENCE_NOT_ALLOWED", "https://database.windows.net": "AUDIENCE_NOT_ALLOWED",
			"6DAE42F8-4368-4678-94FF-3960E28E3630": "INVALID_FIELDS", kubernetes + "/": "INVALID_FIELDS", kubernetes + "/.default": "INVALID_FIELDS",
			kubernetes[1:]: "INVALID_FIELDS", "https://vault.azure.net/keys": "INVALID_FIELDS", "x": "INVALID_FIELDS",
		} {
			_, err := v.runner.FetchCredential(ctx, &vaultv1.FetchCredentialRequest{InstanceId: "instance-1", Audience: asked})
			code := codes.PermissionDenied
			if reason == "INVALID_FIELDS" {
				code = codes.InvalidArgument
				if !slices.Equal(fields(err), []string{"audience"}) {
					v.t.Errorf("%q: names %v", asked, fields(err))
				}
			}
			refused(v.t, asked, err, code, reason)
		}
	})
}
