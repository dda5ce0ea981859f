package rpc_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/rotation"
)

func TestAccess_ProbeConsent(t *testing.T) {
	ask := &vaultv1.ProbeConsentRequest{Integration: "accounts/acme/integrations/read"}
	for _, tt := range []struct {
		name   string
		answer credential.Probe
		age    time.Duration // of the answer; less than nothing: it was got during the call
		err    error
		want   *vaultv1.ProbeConsentResponse
		code   codes.Code
		reason string
	}{
		{
			name: "consented", answer: credential.Probe{Finding: credential.Works, PrincipalObjectID: "oid"}, age: -time.Second,
			want: &vaultv1.ProbeConsentResponse{Consented: true, ServicePrincipalObjectId: "oid", Age: durationpb.New(0)},
		},
		{
			name: "consented some time ago", answer: credential.Probe{Finding: credential.Works, PrincipalObjectID: "oid"}, age: 7 * time.Second,
			want: &vaultv1.ProbeConsentResponse{Consented: true, ServicePrincipalObjectId: "oid", Age: durationpb.New(7 * time.Second)},
		},
		{
			name: "not consented", answer: credential.Probe{Finding: credential.ConsentMissing, Code: "AADSTS700016"},
			want: &vaultv1.ProbeConsentResponse{AadstsCode: 700016, Age: durationpb.New(0)},
		},
		{name: "no such integration", err: sqldb.ErrNoRows, code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "deleting", err: rotation.ErrDeleting, code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING"},
		{name: "not ready", err: rotation.ErrNotReady, code: codes.Unavailable, reason: "CREDENTIAL_NOT_READY"},
		{name: "entra away", err: rotation.ErrEntra, code: codes.Unavailable, reason: "ENTRA_UNAVAILABLE"},
		{name: "database away", err: sqldb.ErrUnavailable, code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				v.prober.answer, v.prober.err = tt.answer, nil
				v.prober.answer.Time = time.Now().Add(-tt.age)
				if tt.err != nil {
					v.prober.err = fmt.Errorf("probe: %w: detail of the inside", tt.err)
				}
				got, err := v.broker.ProbeConsent(v.t.Context(), ask)
				if tt.want == nil {
					refused(v.t, "probe", err, tt.code, tt.reason)
					if strings.Contains(err.Error(), "inside") {
						v.t.Errorf("tells too much: %v", err)
					}
					return
				}
				tt.want.ProbeTime = timestamppb.New(v.prober.answer.Time)
				if diff := cmp.Diff(tt.want, got, protocmp.Transform()); err != nil || diff != "" {
					v.t.Errorf("%v, %s", err, diff)
				}
			})
		})
	}
	inBubble(t, func(v *vault) {
		_, err := vaultv1.NewAccessServiceClient(v.services.Dial(v.t, platformID)).ProbeConsent(v.t.Context(), ask)
		refused(v.t, "by the platform", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	})
}
