package rpc_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

// FuzzMask: whatever a mask says, an update is refused as invalid and changes nothing, or changes only fields that the mask names.
func FuzzMask(f *testing.F) {
	for _, seed := range []string{
		"display_name", "display_name,default_subscription_id", "*", "", "rotation_period.seconds", "rotation_period.nanos,etag", "state",
		"conditions.status", "allowed_audiences.x", "delivery_materials", ".", "..", "display_name.", "*,*", "nothing", "displayName", "rotation_period.seconds.x", "\u202e",
	} {
		f.Add(seed, "New")
	}
	f.Fuzz(func(t *testing.T, mask, name string) {
		w := newWorld(t)
		created := w.integration(t, "acme", "net")
		var named []string
		if mask != "" {
			named = strings.Split(mask, ",")
		}
		given := proto.CloneOf(created)
		given.DisplayName, given.DefaultSubscriptionId = name, nobody
		given.RotationPeriod, given.AllowedAudiences = durationpb.New(3600e9+5e6), []string{"https://new.example"}
		given.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET}
		updated, err := w.platform.integrations.UpdateIntegration(t.Context(), &registryv1.UpdateIntegrationRequest{Integration: given, UpdateMask: paths(named...)})
		if err != nil {
			// Text that is not UTF-8 does not even leave the client.
			if code := status.Code(err); code != codes.InvalidArgument && code != codes.Internal || w.head(t) != 1 {
				t.Fatalf("mask %q: %v, head %d", mask, err, w.head(t))
			}
			return
		}
		whole := mask == "" || mask == "*"
		fields := created.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			is := func(name protoreflect.Name) bool { return field.Name() == name }
			if is("etag") || is("update_time") || whole && slices.Contains([]protoreflect.Name{"display_name", "default_subscription_id", "rotation_period", "allowed_audiences", "delivery_materials"}, field.Name()) {
				continue
			}
			isNamed := slices.ContainsFunc(named, func(p string) bool { root, _, _ := strings.Cut(p, "."); return is(protoreflect.Name(root)) })
			if !isNamed && !updated.ProtoReflect().Get(field).Equal(created.ProtoReflect().Get(field)) {
				t.Fatalf("mask %q changed %s", mask, field.Name())
			}
		}
	})
}
