package rpc_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

const (
	integration = "accounts/acme/integrations/read"
	everyUUID   = "0d4b6a7e-6c3b-4d0c-8a53-5d1f6c2f9a11"
)

// operators is RotationService as an operator.
func (v *vault) operators() vaultv1.RotationServiceClient {
	return vaultv1.NewRotationServiceClient(v.services.Dial(v.t, operatorID))
}

func rotate(edit ...func(*vaultv1.RotateIntegrationRequest)) *vaultv1.RotateIntegrationRequest {
	r := &vaultv1.RotateIntegrationRequest{Name: integration, Reason: vaultv1.Rotation_REASON_SCHEDULED}
	for _, e := range edit {
		e(r)
	}
	return r
}

func compromised(r *vaultv1.RotateIntegrationRequest) { r.Reason = vaultv1.Rotation_REASON_COMPROMISED }

func TestRotations_FromRequestToEnd(t *testing.T) {
	inBubble(t, func(v *vault) {
		now := timestamppb.Now()
		answer, err := v.rotation.RotateIntegration(v.t.Context(), rotate(compromised, func(r *vaultv1.RotateIntegrationRequest) { r.RequestId = strings.ToUpper(everyUUID) }))
		if err != nil {
			v.t.Fatal(err)
		}
		got := answer.GetRotation()
		want := &vaultv1.Rotation{
			Name: got.GetName(), Reason: vaultv1.Rotation_REASON_COMPROMISED, State: vaultv1.Rotation_STATE_PENDING, OldVersion: integration + "/credentialVersions/1",
			Creator: platformID, CreateTime: now, Exposure: &vaultv1.Exposure{
				EndTime:    timestamppb.New(now.AsTime().Add(25*time.Hour + 30*time.Minute)),
				RemovalLag: durationpb.New(20 * time.Minute), TokenLife: durationpb.New(90 * time.Minute), Remedies: got.GetExposure().GetRemedies(),
			},
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || !strings.HasPrefix(got.GetName(), integration+"/rotations/") || len(got.GetExposure().GetRemedies()) != 3 {
			v.t.Errorf("rotation (-want +have):\n%s", diff)
		}
		again, err := v.operators().RotateIntegration(v.t.Context(), rotate(compromised, func(r *vaultv1.RotateIntegrationRequest) { r.RequestId = everyUUID }))
		if err != nil || again.GetRotation().GetName() != got.GetName() {
			v.t.Errorf("a repeat: %v, %v", again, err)
		}
		_, err = v.rotation.RotateIntegration(v.t.Context(), rotate(func(r *vaultv1.RotateIntegrationRequest) { r.RequestId = everyUUID }))
		refused(v.t, "the ID with other contents", err, codes.AlreadyExists, "REQUEST_ID_REUSED")

		// What a master writes.
		v.exec(`UPDATE credential_versions SET state = 'REVOKED'`)
		v.successor(0)
		at := time.Now().Add(time.Minute).Truncate(time.Microsecond)
		v.exec(`UPDATE rotations SET state = 'COMPLETED', state_reason = 'Some', new_number = 2, activate_time = $1, remove_time = $1, end_time = $1`, at.UnixMicro())
		read, err := v.rotation.GetRotation(v.t.Context(), &vaultv1.GetRotationRequest{Name: got.GetName()})
		want.State, want.StateReason, want.NewVersion, want.Proofs = vaultv1.Rotation_STATE_COMPLETED, "Some", integration+"/credentialVersions/2", 8
		want.ActivateTime, want.RemoveTime, want.EndTime = timestamppb.New(at), timestamppb.New(at), timestamppb.New(at)
		want.Exposure.EndTime, want.Exposure.Remedies = timestamppb.New(at.Add(110*time.Minute)), read.GetExposure().GetRemedies()
		if diff := cmp.Diff(want, read, protocmp.Transform()); err != nil || diff != "" || len(read.GetExposure().GetRemedies()) != 2 {
			v.t.Errorf("in the end: %v (-want +have):\n%s", err, diff)
		}
		time.Sleep(2 * time.Hour)
		if read, err = v.rotation.GetRotation(v.t.Context(), &vaultv1.GetRotationRequest{Name: got.GetName()}); err != nil || len(read.GetExposure().GetRemedies()) != 0 {
			v.t.Errorf("when it is over: %v, %v", read, err)
		}
		v.audit("RotationRequested platform") // a repeat asks for nothing
	})
}

func TestRotations_Lists(t *testing.T) {
	inBubble(t, func(v *vault) {
		var names []string
		for range 3 {
			answer, err := v.rotation.RotateIntegration(v.t.Context(), rotate(compromised))
			if err != nil {
				v.t.Fatal(err)
			}
			names = append([]string{answer.GetRotation().GetName()}, names...)
			v.exec(`UPDATE rotations SET state = 'COMPLETED', end_time = 1`)
			time.Sleep(time.Second)
		}
		var have []string
		token := ""
		for range 3 {
			page, err := v.rotation.ListRotations(v.t.Context(), &vaultv1.ListRotationsRequest{Parent: integration, PageSize: 2, PageToken: token})
			if err != nil {
				v.t.Fatal(err)
			}
			for _, r := range page.GetRotations() {
				have = append(have, r.GetName())
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
		if diff := cmp.Diff(names, have); diff != "" {
			v.t.Errorf("listed (-want +have):\n%s", diff)
		}
		batches, err := v.operators().ListRotationBatches(v.t.Context(), &vaultv1.ListRotationBatchesRequest{Parent: "accounts/acme"})
		if err != nil || len(batches.GetRotationBatches()) != 0 {
			v.t.Errorf("batches are %v, %v", batches, err)
		}
	})
}

func TestRotations_Batches(t *testing.T) {
	inBubble(t, func(v *vault) {
		now := timestamppb.Now()
		answer, err := v.operators().RotateAllIntegrations(v.t.Context(), &vaultv1.RotateAllIntegrationsRequest{
			Parent: "accounts/-", Reason: vaultv1.Rotation_REASON_COMPROMISED, Cloud: "public", RequestId: everyUUID,
		})
		if err != nil {
			v.t.Fatal(err)
		}
		got := answer.GetRotationBatch()
		want := &vaultv1.RotationBatch{
			Name: got.GetName(), Reason: vaultv1.Rotation_REASON_COMPROMISED, Cloud: "public", TotalCount: 1, WaitingCount: 1, Creator: operatorID, CreateTime: now,
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || !strings.HasPrefix(got.GetName(), "accounts/-/rotationBatches/") {
			v.t.Errorf("batch (-want +have):\n%s", diff)
		}
		// What masters do.
		id := got.GetName()[strings.LastIndex(got.GetName(), "/")+1:]
		if _, err := v.rotation.RotateIntegration(v.t.Context(), rotate(compromised)); err != nil {
			v.t.Fatal(err)
		}
		v.exec(`UPDATE rotations SET batch_id = $1`, id)
		page, err := v.rotation.ListRotations(v.t.Context(), &vaultv1.ListRotationsRequest{Parent: integration})
		if err != nil || len(page.GetRotations()) != 1 || page.GetRotations()[0].GetRotationBatch() != got.GetName() {
			v.t.Errorf("its rotation is %v, %v", page, err)
		}
		v.exec(`UPDATE rotations SET state = 'ABANDONED', end_time = 1`)
		v.exec(`UPDATE rotation_batches SET end_time = $1`, now.AsTime().UnixMicro())
		want.WaitingCount, want.AbandonedCount, want.EndTime = 0, 1, now
		read, err := v.operators().GetRotationBatch(v.t.Context(), &vaultv1.GetRotationBatchRequest{Name: got.GetName()})
		if diff := cmp.Diff(want, read, protocmp.Transform()); err != nil || diff != "" {
			v.t.Errorf("in the end: %v (-want +have):\n%s", err, diff)
		}
		if _, err := v.operators().RotateAllIntegrations(v.t.Context(), &vaultv1.RotateAllIntegrationsRequest{Parent: "accounts/-", Reason: vaultv1.Rotation_REASON_SCHEDULED}); err != nil {
			v.t.Fatal(err)
		}
		list, err := v.operators().ListRotationBatches(v.t.Context(), &vaultv1.ListRotationBatchesRequest{Parent: "accounts/-", PageSize: 1})
		if err != nil || len(list.GetRotationBatches()) != 1 || list.GetNextPageToken() == "" {
			v.t.Fatalf("first page: %v, %v", list, err)
		}
		list, err = v.operators().ListRotationBatches(v.t.Context(), &vaultv1.ListRotationBatchesRequest{Parent: "accounts/-", PageSize: 1, PageToken: list.GetNextPageToken()})
		if err != nil || len(list.GetRotationBatches()) != 1 || list.GetRotationBatches()[0].GetName() != got.GetName() || list.GetNextPageToken() != "" {
			v.t.Errorf("last page: %v, %v", list, err)
		}
		v.audit("RotationBatchCreated operator", "RotationRequested platform", "RotationBatchCreated operator")
	})
}

func TestRotations_Pauses(t *testing.T) {
	inBubble(t, func(v *vault) {
		now := time.Now()
		answer, err := v.rotation.PauseRotation(v.t.Context(), &vaultv1.PauseRotationRequest{Scope: "accounts/acme", Reason: "Freeze", Ttl: durationpb.New(time.Hour)})
		if err != nil {
			v.t.Fatal(err)
		}
		want := &vaultv1.RotationPause{
			Scope: "accounts/acme", Reason: "Freeze", Creator: platformID, CreateTime: timestamppb.New(now), ExpireTime: timestamppb.New(now.Add(time.Hour)),
		}
		if diff := cmp.Diff(want, answer.GetRotationPause(), protocmp.Transform()); diff != "" {
			v.t.Errorf("pause (-want +have):\n%s", diff)
		}
		if _, err := v.operators().PauseRotation(v.t.Context(), &vaultv1.PauseRotationRequest{Scope: integration, Reason: "x", Ttl: durationpb.New(time.Minute)}); err != nil {
			v.t.Fatal(err)
		}
		_, err = v.rotation.RotateIntegration(v.t.Context(), rotate())
		refused(v.t, "by schedule", err, codes.FailedPrecondition, "ROTATION_PAUSED")
		if detail(err, "scope") != "accounts/acme" || detail(err, "expireTime") != now.Add(time.Hour).UTC().Format(time.RFC3339) {
			v.t.Errorf("it names %q, %q", detail(err, "scope"), detail(err, "expireTime"))
		}
		_, err = v.operators().RotateAllIntegrations(v.t.Context(), &vaultv1.RotateAllIntegrationsRequest{Parent: "accounts/acme", Reason: vaultv1.Rotation_REASON_SCHEDULED})
		refused(v.t, "all by schedule", err, codes.FailedPrecondition, "ROTATION_PAUSED")

		page, err := v.rotation.ListRotationPauses(v.t.Context(), &vaultv1.ListRotationPausesRequest{Parent: "accounts/acme", PageSize: 1})
		if err != nil || len(page.GetRotationPauses()) != 1 || !proto.Equal(page.GetRotationPauses()[0], want) || page.GetNextPageToken() == "" {
			v.t.Fatalf("first page: %v, %v", page, err)
		}
		page, err = v.rotation.ListRotationPauses(v.t.Context(), &vaultv1.ListRotationPausesRequest{Parent: "accounts/acme", PageSize: 1, PageToken: page.GetNextPageToken()})
		if err != nil || len(page.GetRotationPauses()) != 1 || page.GetRotationPauses()[0].GetScope() != integration || page.GetNextPageToken() != "" {
			v.t.Errorf("last page: %v, %v", page, err)
		}
		for range 2 {
			if _, err := v.rotation.ResumeRotation(v.t.Context(), &vaultv1.ResumeRotationRequest{Scope: "accounts/acme"}); err != nil {
				v.t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		if _, err := v.rotation.RotateIntegration(v.t.Context(), rotate()); err != nil {
			v.t.Errorf("when both are over: %v", err)
		}
		v.audit("RotationPaused platform", "RotationPaused operator", "RotationResumed platform", "RotationRequested platform")
	})
}

func TestRotations_Refuse(t *testing.T) {
	platform := func(v *vault) vaultv1.RotationServiceClient { return v.rotation }
	operator := (*vault).operators
	pause := func(edit func(*vaultv1.PauseRotationRequest)) func(ctx context.Context, c vaultv1.RotationServiceClient) error {
		r := &vaultv1.PauseRotationRequest{Scope: "accounts/acme", Reason: "x", Ttl: durationpb.New(time.Hour)}
		edit(r)
		return func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.PauseRotation(ctx, r)
			return err
		}
	}
	asked := func(edit ...func(*vaultv1.RotateIntegrationRequest)) func(ctx context.Context, c vaultv1.RotationServiceClient) error {
		return func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.RotateIntegration(ctx, rotate(edit...))
			return err
		}
	}
	all := func(parent string, edit ...func(*vaultv1.RotateAllIntegrationsRequest)) func(ctx context.Context, c vaultv1.RotationServiceClient) error {
		r := &vaultv1.RotateAllIntegrationsRequest{Parent: parent, Reason: vaultv1.Rotation_REASON_SCHEDULED}
		for _, e := range edit {
			e(r)
		}
		return func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.RotateAllIntegrations(ctx, r)
			return err
		}
	}
	for _, tt := range []struct {
		name   string
		as     func(v *vault) vaultv1.RotationServiceClient
		before string
		call   func(ctx context.Context, c vaultv1.RotationServiceClient) error
		code   codes.Code
		reason string
		field  string
	}{
		{name: "no such integration", as: platform, call: asked(func(r *vaultv1.RotateIntegrationRequest) { r.Name = "accounts/acme/integrations/none" }), code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "another account's", as: platform, call: asked(func(r *vaultv1.RotateIntegrationRequest) { r.Name = "accounts/other/integrations/none" }), code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "no reason", as: platform, call: asked(func(r *vaultv1.RotateIntegrationRequest) { r.Reason = 0 }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "reason"},
		{name: "a reason that there is not", as: platform, call: asked(func(r *vaultv1.RotateIntegrationRequest) { r.Reason = 9 }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "reason"},
		{name: "a gap for nothing", as: platform, call: asked(func(r *vaultv1.RotateIntegrationRequest) { r.Immediately = true }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "immediately"},
		{name: "no request ID", as: platform, call: asked(func(r *vaultv1.RotateIntegrationRequest) { r.RequestId = "x" }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "request_id"},
		{name: "deleting", as: platform, before: `UPDATE integrations SET deleting = 1`, call: asked(compromised), code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING"},
		{name: "not adopted", as: platform, before: `DELETE FROM applications`, call: asked(compromised), code: codes.Unavailable, reason: "CREDENTIAL_NOT_READY"},
		{name: "all, by the platform", as: platform, call: all("accounts/acme"), code: codes.PermissionDenied, reason: "CALLER_NOT_ALLOWED"},
		{name: "all of a tenant that is none", as: operator, call: all("accounts/-", func(r *vaultv1.RotateAllIntegrationsRequest) { r.TenantId = "x" }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "tenant_id"},
		{name: "all of an integration", as: operator, call: all(integration), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "parent"},
		{name: "all for no reason", as: operator, call: all("accounts/-", func(r *vaultv1.RotateAllIntegrationsRequest) { r.Reason = 0 }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "reason"},
		{name: "a pause of everything, by the platform", as: platform, call: pause(func(r *vaultv1.PauseRotationRequest) { r.Scope = "accounts/-" }), code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "a pause of a project", as: operator, call: pause(func(r *vaultv1.PauseRotationRequest) { r.Scope = project }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "scope"},
		{name: "a pause for no reason", as: operator, call: pause(func(r *vaultv1.PauseRotationRequest) { r.Reason = "" }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "reason"},
		{name: "a pause that does not end", as: operator, call: pause(func(r *vaultv1.PauseRotationRequest) { r.Ttl = nil }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "ttl"},
		{name: "a pause of more than a week", as: operator, call: pause(func(r *vaultv1.PauseRotationRequest) { r.Ttl = durationpb.New(7*24*time.Hour + 1) }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "ttl"},
		{name: "no such rotation", as: platform, call: func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.GetRotation(ctx, &vaultv1.GetRotationRequest{Name: integration + "/rotations/" + everyUUID})
			return err
		}, code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "no such batch", as: operator, call: func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.GetRotationBatch(ctx, &vaultv1.GetRotationBatchRequest{Name: "accounts/-/rotationBatches/" + everyUUID})
			return err
		}, code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "rotations of none", as: platform, call: func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.ListRotations(ctx, &vaultv1.ListRotationsRequest{Parent: "accounts/acme/integrations/none"})
			return err
		}, code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "another list's page", as: platform, call: func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.ListRotations(ctx, &vaultv1.ListRotationsRequest{Parent: integration, PageToken: "AAAA"})
			return err
		}, code: codes.InvalidArgument, reason: "INVALID_PAGE_TOKEN"},
		{name: "another list's page of batches", as: operator, call: func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.ListRotationBatches(ctx, &vaultv1.ListRotationBatchesRequest{Parent: "accounts/-", PageToken: "AAAA"})
			return err
		}, code: codes.InvalidArgument, reason: "INVALID_PAGE_TOKEN"},
		{name: "another list's page of pauses", as: platform, call: func(ctx context.Context, c vaultv1.RotationServiceClient) error {
			_, err := c.ListRotationPauses(ctx, &vaultv1.ListRotationPausesRequest{Parent: "accounts/acme", PageToken: "AAAA"})
			return err
		}, code: codes.InvalidArgument, reason: "INVALID_PAGE_TOKEN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				if tt.before != "" {
					v.exec(tt.before)
				}
				err := tt.call(v.t.Context(), tt.as(v))
				refused(v.t, tt.name, err, tt.code, tt.reason)
				if got := strings.Join(fields(err), ","); got != tt.field {
					v.t.Errorf("names %q, want %q", got, tt.field)
				}
				v.audit()
			})
		})
	}
}

// TestStream_OfWhatIsCompromised has streams hear of a compromise, and of the gap before a new version only what has to be.
func TestStream_OfWhatIsCompromised(t *testing.T) {
	for _, immediately := range []bool{false, true} {
		t.Run(fmt.Sprintf("immediately %t", immediately), func(t *testing.T) {
			inBubble(t, func(v *vault) {
				v.gives(both)
				_, ctx := v.grant()
				var streams []interface {
					Recv() (*vaultv1.StreamCredentialsResponse, error)
				}
				for _, r := range []*vaultv1.FetchCredentialRequest{fetch("instance-1"), whole("instance-2")} {
					s, err := v.runner.StreamCredentials(ctx, &vaultv1.StreamCredentialsRequest{InstanceId: r.GetInstanceId(), Material: r.GetMaterial()})
					if err != nil {
						v.t.Fatal(err)
					}
					if first, err := s.Recv(); err != nil || first.GetCredential().GetCredentialVersion() != 1 {
						v.t.Fatalf("first: %v, %v", first, err)
					}
					streams = append(streams, s)
				}
				if _, err := v.rotation.RotateIntegration(v.t.Context(), rotate(compromised, func(r *vaultv1.RotateIntegrationRequest) { r.Immediately = immediately })); err != nil {
					v.t.Fatal(err)
				}
				// What a master writes.
				changed := func() {
					v.exec(`UPDATE change_counter SET seq = seq + 1`)
					v.exec(`INSERT INTO changes (seq, integration_uid, grant_uid, time) SELECT seq, 'uid', '', 0 FROM change_counter`)
				}
				if immediately {
					v.exec(`UPDATE credential_versions SET state = 'REVOKING'`)
					changed()
					time.Sleep(2 * time.Minute)
				}
				v.exec(`UPDATE credential_versions SET state = 'REVOKING'`)
				v.successor(0)
				changed()
				for i, s := range streams {
					next, err := s.Recv()
					if c := next.GetCredential(); err != nil || c.GetCredentialVersion() != 2 || c.GetReason() != vaultv1.Credential_REASON_COMPROMISED {
						v.t.Errorf("stream %d: %v, %v", i, next, err)
					}
				}
			})
		})
	}
}

// TestStream_OfASecretWhoseSuccessorWasRefused has a reader hold on to what it has, and hear of what is new when there is something.
func TestStream_OfASecretWhoseSuccessorWasRefused(t *testing.T) {
	inBubble(t, func(v *vault) {
		v.gives(both)
		g, ctx := v.grant()
		s, err := v.runner.StreamCredentials(ctx, &vaultv1.StreamCredentialsRequest{InstanceId: "instance-1", Material: whole("").GetMaterial()})
		if err != nil {
			v.t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			v.t.Fatal(err)
		}
		v.exec(`UPDATE credential_versions SET state = 'RETIRING'`)
		v.successor(1)
		end := timestamppb.New(time.Now().Add(2 * time.Hour))
		if _, err := v.platform.ExtendGrant(v.t.Context(), &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: end}); err != nil {
			v.t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		v.exec(`UPDATE credential_versions SET refusals = 0`)
		since := time.Now()
		next, err := s.Recv()
		if c := next.GetCredential(); err != nil || c.GetCredentialVersion() != 2 || !proto.Equal(c.GetGrantExpireTime(), end) || time.Since(since) > 10*time.Second {
			v.t.Errorf("after %s: %v, %v", time.Since(since), next, err)
		}
	})
}

// successor puts an ACTIVE version 2 there, which was refused so often in a row.
func (v *vault) successor(refusals int) {
	v.t.Helper()
	v.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time,
		end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since,
		attempts, next_time, reason) VALUES ('v2', 'uid', 2, 'ACTIVE', 'v2', '', 'sealed', 0, 0, 0, 0, $1, 0, 0, 0, 0, 0, 0, 8, 0, $2, 0, 0, 0, '')`,
		time.Now().Add(24*time.Hour).UnixMicro(), refusals)
}

func TestFetch_OfASecretThatWasRefused(t *testing.T) {
	inBubble(t, func(v *vault) {
		v.gives(both)
		_, ctx := v.grant()
		v.exec(`UPDATE credential_versions SET refusals = 1`)
		_, err := v.runner.FetchCredential(ctx, whole("instance-1"))
		refused(v.t, "refused a moment ago", err, codes.Unavailable, "CREDENTIAL_NOT_READY")
		v.exec(`UPDATE credential_versions SET refusals = 0`)
		if _, err := v.runner.FetchCredential(ctx, whole("instance-1")); err != nil {
			v.t.Errorf("when it works again: %v", err)
		}
		v.audit("GrantCreated platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1")
	})
}
