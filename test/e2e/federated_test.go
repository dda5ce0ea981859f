package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

const trusted = account + "/integrations/trusted"

// stream is what a runner hears, all the while.
type stream struct {
	mu       sync.Mutex
	messages []*vaultv1.Credential
	err      error
}

func (s *stream) follow(from interface {
	Recv() (*vaultv1.StreamCredentialsResponse, error)
}) {
	for {
		m, err := from.Recv()
		s.mu.Lock()
		if err != nil {
			s.err = err
			s.mu.Unlock()
			return
		}
		s.messages = append(s.messages, m.GetCredential())
		s.mu.Unlock()
	}
}

// last is the newest message, nil before the first, and how the stream ended, nil while it lives.
func (s *stream) last() (*vaultv1.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.messages) == 0 {
		return nil, s.err
	}
	return s.messages[len(s.messages)-1], s.err
}

// An integration without any secret: consented, delivered from as tokens and as assertions, which Microsoft's own client exchanges, through a change of signing
// keys, and then turned into one with a secret, while a runner streams.
func TestFederated_WithoutASecretAndThroughEveryChange(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	ctx := t.Context()
	made, err := c.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
		Parent: account, IntegrationId: "trusted", Integration: &registryv1.Integration{
			DisplayName: "Trusted", TenantId: c.world.CustomerTenant, DefaultSubscriptionId: c.world.Subscription,
			CredentialKind: typev1.CredentialKind_CREDENTIAL_KIND_FEDERATED, RotationPeriod: durationpb.New(20 * time.Second),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	state := func(want registryv1.Integration_State) func() bool {
		return func() bool {
			if made, err = c.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: trusted}); err != nil {
				t.Fatal(err)
			}
			return made.GetState() == want
		}
	}
	c.until("the application", state(registryv1.Integration_STATE_AWAITING_CONSENT))
	c.admin(http.MethodPost, "/consents", map[string]any{
		"tenant": c.world.CustomerTenant, "clientId": made.GetClientId(), "redirectUri": "https://" + c.d.at.BrokerHTTPS + "/consent/callback", "userName": c.world.Administrator,
	})
	c.until("the trust to be proven", state(registryv1.Integration_STATE_ACTIVE))

	registry := dial(t, c.d, c.d.at.Registry, "platform")
	if _, err := registryv1.NewProjectServiceClient(registry).CreateProject(ctx, &registryv1.CreateProjectRequest{
		Parent: account, ProjectId: "network", Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := registryv1.NewAttachmentServiceClient(registry).CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
		Parent: project, Attachment: &registryv1.Attachment{Integration: trusted},
	}); err != nil {
		t.Fatal(err)
	}
	granted, err := vaultv1.NewGrantServiceClient(dial(t, c.d, c.d.at.Vault, "platform")).CreateGrant(ctx, &vaultv1.CreateGrantRequest{
		Parent: account, Grant: &vaultv1.Grant{Project: project, Phase: typev1.Phase_PHASE_APPLYING, Run: "run-1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	runner := vaultv1.NewCredentialServiceClient(connect(t, c.d.at.VaultRunners, clientTLS(t, "", "", filepath.Join(c.d.dir, "tls", "ca.pem"))))
	shown := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+granted.GetToken())
	fetch := func(material typev1.Material) (*vaultv1.Credential, error) {
		answer, err := runner.FetchCredential(shown, &vaultv1.FetchCredentialRequest{InstanceId: "fetches-now-and-then", Material: material})
		return answer.GetCredential(), err
	}
	streaming, err := runner.StreamCredentials(shown, &vaultv1.StreamCredentialsRequest{InstanceId: "streams-all-the-while"})
	if err != nil {
		t.Fatal(err)
	}
	heard := &stream{}
	followed := make(chan struct{})
	go func() { defer close(followed); heard.follow(streaming) }()
	lives := func(step string) {
		t.Helper()
		if _, err := heard.last(); err != nil {
			t.Fatalf("%s: the stream ended: %v", step, err)
		}
	}
	c.until("the first token", func() bool { m, _ := heard.last(); return m.GetAccessToken().GetToken() != "" })

	// exchange has Microsoft's client show assertions for tokens, as a runner's tools do.
	exchange := func() error {
		credential, err := azidentity.NewClientAssertionCredential(c.world.CustomerTenant, made.GetClientId(), func(context.Context) (string, error) {
			got, err := fetch(typev1.Material_MATERIAL_FEDERATED_TOKEN)
			return got.GetFederatedToken().GetToken(), err
		}, &azidentity.ClientAssertionCredentialOptions{
			ClientOptions:            azcore.ClientOptions{Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: c.d.at.Login}, Transport: c.http, Retry: policy.RetryOptions{MaxRetries: -1}},
			DisableInstanceDiscovery: true,
		})
		if err != nil {
			return err
		}
		_, err = credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://management.azure.com/.default"}})
		return err
	}
	if err := exchange(); err != nil {
		t.Errorf("an assertion: %v", err)
	}
	if _, err := fetch(typev1.Material_MATERIAL_CLIENT_SECRET); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a secret of one that has none: %v", err)
	}

	rotations := vaultv1.NewRotationServiceClient(dial(t, c.d, c.d.at.Vault, "operator"))
	before, _ := heard.last()
	if _, err := rotations.RotateSigningKeys(ctx, &vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_SCHEDULED}); err != nil {
		t.Fatal(err)
	}
	c.until("a version under the next key", func() bool {
		lives("keys change")
		m, _ := heard.last()
		return m.GetCredentialVersion() > before.GetCredentialVersion()
	})
	if err := exchange(); err != nil {
		t.Errorf("an assertion by the next key: %v", err)
	}

	// The other kind, while the stream goes on.
	if _, err := c.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
		Integration: &registryv1.Integration{Name: trusted, CredentialKind: typev1.CredentialKind_CREDENTIAL_KIND_CLIENT_SECRET},
		UpdateMask:  &fieldmaskpb.FieldMask{Paths: []string{"credential_kind"}},
	}); err != nil {
		t.Fatal(err)
	}
	c.until("a secret to be in use", func() bool {
		lives("the kind changes")
		listed, err := rotations.ListCredentialVersions(ctx, &vaultv1.ListCredentialVersionsRequest{Parent: trusted, PageSize: 5})
		if err != nil {
			t.Fatal(err)
		}
		m, _ := heard.last()
		for _, v := range listed.GetCredentialVersions() {
			if v.GetState() == vaultv1.CredentialVersion_STATE_ACTIVE && v.GetKeyId() != "" {
				return m.GetCredentialVersion() > before.GetCredentialVersion()+1
			}
		}
		return false
	})
	if _, err := fetch(typev1.Material_MATERIAL_FEDERATED_TOKEN); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an assertion of one that has a secret: %v", err)
	}
	c.until("the federated credentials to be gone", func() bool {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.d.at.SimulatorAdmin+"/journal?kind=federatedCredential.removed", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("journal: %d, %v: %s", resp.StatusCode, err, text)
		}
		return strings.Count(string(text), `"federatedCredential.removed"`) == 2
	})
	lives("in the end")
	if err := streaming.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := runner.CloseLease(shown, &vaultv1.CloseLeaseRequest{InstanceId: "streams-all-the-while"}); err != nil {
		t.Error(err)
	}
	<-followed
	if _, err := heard.last(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream ended with %v", err)
	}
}
