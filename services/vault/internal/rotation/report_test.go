package rotation_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/rotation"
)

type fakeStatusClient struct {
	got *registryv1.ReportConditionsRequest
	err error
}

func (c *fakeStatusClient) ReportConditions(_ context.Context, in *registryv1.ReportConditionsRequest, _ ...grpc.CallOption) (*registryv1.ReportConditionsResponse, error) {
	c.got = in
	return &registryv1.ReportConditionsResponse{}, c.err
}

func TestRegistry_Report(t *testing.T) {
	client := &fakeStatusClient{}
	m := election.Mastership{Shard: 3, Epoch: 77, Holder: "holder"}
	err := rotation.NewRegistry(client).Report(t.Context(), m, rotation.Report{
		IntegrationUID: uid, ApplicationDisplayName: "name", ClientID: "client", PrincipalObjectID: "principal", Removed: true,
		Conditions: []credential.Condition{
			{Type: credential.ApplicationReady, True: true, Reason: "Replicated"},
			{Type: credential.Consented, Reason: "AADSTS700016", Message: "why"},
			{Type: credential.CredentialReady, Reason: "ConsentLost"},
			{Type: credential.PermissionsVerified, True: true, Reason: "CanRead"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &registryv1.ReportConditionsRequest{
		IntegrationUid: uid, Mastership: &registryv1.Mastership{Shard: 3, Epoch: 77, Holder: "holder"},
		ApplicationDisplayName: "name", ClientId: "client", ServicePrincipalObjectId: "principal", ApplicationRemoved: true,
		Conditions: []*registryv1.Condition{
			{Type: registryv1.Condition_TYPE_APPLICATION_READY, Status: registryv1.Condition_STATUS_TRUE, Reason: "Replicated"},
			{Type: registryv1.Condition_TYPE_CONSENTED, Status: registryv1.Condition_STATUS_FALSE, Reason: "AADSTS700016", Message: "why"},
			{Type: registryv1.Condition_TYPE_CREDENTIAL_READY, Status: registryv1.Condition_STATUS_FALSE, Reason: "ConsentLost"},
			{Type: registryv1.Condition_TYPE_PERMISSIONS_VERIFIED, Status: registryv1.Condition_STATUS_TRUE, Reason: "CanRead"},
		},
	}
	if diff := cmp.Diff(want, client.got, protocmp.Transform()); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestRegistry_TellsRefusalsApart(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		err                     error
		wantFenced, wantUnknown bool
	}{
		{name: "fenced", err: rpcerr.New(codes.FailedPrecondition, "REPORT_FENCED", "x"), wantFenced: true},
		{name: "no such integration", err: rpcerr.New(codes.NotFound, "RESOURCE_NOT_FOUND", "x"), wantUnknown: true},
		{name: "anything else", err: rpcerr.New(codes.Unavailable, "DEPENDENCY_UNAVAILABLE", "x")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := rotation.NewRegistry(&fakeStatusClient{err: tt.err}).Report(t.Context(), election.Mastership{}, rotation.Report{IntegrationUID: uid})
			if err == nil || errors.Is(err, election.ErrFenced) != tt.wantFenced || errors.Is(err, rotation.ErrUnknownIntegration) != tt.wantUnknown {
				t.Errorf("Report: %v", err)
			}
		})
	}
}
