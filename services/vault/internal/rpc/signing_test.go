package rpc_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/signingkey"
)

func (v *vault) signingKey(k signingkey.Key) {
	v.t.Helper()
	v.exec(`INSERT INTO signing_keys (id, number, state, public, sealed, publish_time, sign_time, replace_time, retire_time, remove_time, reason)
		VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, 0, '')`, k.ID, k.Number, string(k.State), []byte("public"), []byte("CANARY-private"),
		sqldb.Micros(k.PublishTime), sqldb.Micros(k.SignTime), sqldb.Micros(k.RetireTime))
}

func TestSigningKeys_AreShownReplacedAndDropped(t *testing.T) {
	inBubble(t, func(v *vault) {
		operators, ctx := v.operators(), v.t.Context()
		scheduled := &vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_SCHEDULED}
		_, err := operators.RotateSigningKeys(ctx, scheduled)
		refused(v.t, "while the vault is no issuer", err, codes.NotFound, "RESOURCE_NOT_FOUND")

		now := time.Now()
		day := func(n int) time.Time { return now.Add(time.Duration(n) * 24 * time.Hour) }
		v.signingKey(signingkey.Key{ID: "a", Number: 1, State: signingkey.Retired, PublishTime: day(-40), SignTime: day(-30), RetireTime: now})
		v.signingKey(signingkey.Key{ID: "b", Number: 2, State: signingkey.Signing, PublishTime: day(-30), SignTime: day(-2)})
		v.signingKey(signingkey.Key{ID: "c", Number: 3, State: signingkey.Published, PublishTime: now})
		next := &vaultv1.SigningKey{Name: "signingKeys/c", State: vaultv1.SigningKey_STATE_PUBLISHED, PublishTime: timestamppb.New(now), SignTime: timestamppb.New(day(28))}
		current := &vaultv1.SigningKey{Name: "signingKeys/b", State: vaultv1.SigningKey_STATE_SIGNING, PublishTime: timestamppb.New(day(-30)), SignTime: timestamppb.New(day(-2))}
		former := &vaultv1.SigningKey{Name: "signingKeys/a", State: vaultv1.SigningKey_STATE_RETIRED, PublishTime: timestamppb.New(day(-40)), SignTime: timestamppb.New(day(-30)),
			RetireTime: timestamppb.New(now), RemoveTime: timestamppb.New(day(1).Add(11 * time.Minute))}
		listed, err := operators.ListSigningKeys(ctx, &vaultv1.ListSigningKeysRequest{PageSize: 2})
		if diff := cmp.Diff([]*vaultv1.SigningKey{next, current}, listed.GetSigningKeys(), protocmp.Transform()); err != nil || diff != "" || listed.GetNextPageToken() == "" {
			v.t.Errorf("listed: %v (-want +have):\n%s", err, diff)
		}
		listed, err = operators.ListSigningKeys(ctx, &vaultv1.ListSigningKeysRequest{PageSize: 2, PageToken: listed.GetNextPageToken()})
		if diff := cmp.Diff([]*vaultv1.SigningKey{former}, listed.GetSigningKeys(), protocmp.Transform()); err != nil || diff != "" || listed.GetNextPageToken() != "" {
			v.t.Errorf("listed next: %v (-want +have):\n%s", err, diff)
		}

		answer, err := operators.RotateSigningKeys(ctx, scheduled)
		current.ReplaceTime, next.SignTime = timestamppb.New(now), timestamppb.New(day(1))
		if diff := cmp.Diff([]*vaultv1.SigningKey{next, current, former}, answer.GetSigningKeys(), protocmp.Transform()); err != nil || diff != "" {
			v.t.Errorf("to be replaced: %v (-want +have):\n%s", err, diff)
		}
		dropped := &vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_COMPROMISED, SigningKey: "signingKeys/b"}
		for _, step := range []string{"dropped", "dropped again"} {
			answer, err = operators.RotateSigningKeys(ctx, dropped)
			next.SignTime = timestamppb.New(now) // nothing signs, so it does as soon as there is a master
			if diff := cmp.Diff([]*vaultv1.SigningKey{next, former}, answer.GetSigningKeys(), protocmp.Transform()); err != nil || diff != "" {
				v.t.Errorf("%s: %v (-want +have):\n%s", step, err, diff)
			}
		}
		v.audit("SigningKeysRotated operator", "SigningKeysRotated operator", "SigningKeysRotated operator")
	})
}

func TestSigningKeys_Refusals(t *testing.T) {
	inBubble(t, func(v *vault) {
		ctx := v.t.Context()
		v.signingKey(signingkey.Key{ID: "b", Number: 2, State: signingkey.Signing, PublishTime: time.Now(), SignTime: time.Now()})
		for step, tt := range map[string]struct {
			request *vaultv1.RotateSigningKeysRequest
			code    codes.Code
			reason  string
		}{
			"without a reason":         {&vaultv1.RotateSigningKeysRequest{}, codes.InvalidArgument, "INVALID_FIELDS"},
			"a compromise of no key":   {&vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_COMPROMISED}, codes.InvalidArgument, "INVALID_FIELDS"},
			"a key without compromise": {&vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_SCHEDULED, SigningKey: "signingKeys/b"}, codes.InvalidArgument, "INVALID_FIELDS"},
			"what is no key's name":    {&vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_COMPROMISED, SigningKey: "b"}, codes.InvalidArgument, "INVALID_FIELDS"},
			"no such key":              {&vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_COMPROMISED, SigningKey: "signingKeys/x"}, codes.NotFound, "RESOURCE_NOT_FOUND"},
		} {
			_, err := v.operators().RotateSigningKeys(ctx, tt.request)
			refused(v.t, step, err, tt.code, tt.reason)
		}
		_, err := v.rotation.RotateSigningKeys(ctx, &vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_SCHEDULED})
		refused(v.t, "by the platform", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
		_, err = v.rotation.ListSigningKeys(ctx, &vaultv1.ListSigningKeysRequest{})
		refused(v.t, "listed by the platform", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
		_, err = v.operators().ListSigningKeys(ctx, &vaultv1.ListSigningKeysRequest{PageToken: "x"})
		refused(v.t, "another list's token", err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
		v.audit()
	})
}

func TestCredentialVersions_NameTheirKey(t *testing.T) {
	inBubble(t, func(v *vault) {
		for key, want := range map[string]string{"": "", "k1": "signingKeys/k1"} {
			v.exec(`UPDATE credential_versions SET signing_key = $1, end_time = 0`, key)
			listed, err := v.rotation.ListCredentialVersions(v.t.Context(), &vaultv1.ListCredentialVersionsRequest{Parent: integration})
			if err != nil || listed.GetCredentialVersions()[0].GetSigningKey() != want || listed.GetCredentialVersions()[0].GetExpireTime() != nil {
				v.t.Errorf("under key %q: %v, %v", key, listed, err)
			}
		}
	})
}
