package rpc_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
)

// FuzzName: whatever is sent as a name or a parent, what is found has this name; nothing else is found, nor made; it is refused as no
// name exactly when the domain takes it for none; and who is limited to one account never learns of another's.
func FuzzName(f *testing.F) {
	for _, seed := range []string{
		reader, stack, attached, alien, "", "/", "accounts/", "accounts/acme", "accounts/-", "accounts/acme/integrations/-", "accounts/-/integrations/reader",
		reader + "/", "/" + reader, reader + "\n", strings.ToUpper(reader), "accounts/acme/integrations/reader%", "accounts/acme/integrations/'--",
		"accounts/acme//integrations/reader", "accounts/acme/integrations/reader/../spare", "accounts/acme/integrations/\u202e", "accounts/acme/integrations/x-",
		"accounts/umbrella/../acme/integrations/reader", "accounts/acme/projects/-/attachments/reader", "projects/stack", "//registry.phasekey.dev/" + reader,
		"accounts/acme/integrations/" + strings.Repeat("x", 63), "accounts/acme/integrations/" + strings.Repeat("x", 64), "accounts/aсme/integrations/reader",
	} {
		f.Add(seed)
	}
	w := newWorld(f)
	w.people(f)
	head := w.head(f)
	f.Fuzz(func(t *testing.T, name string) {
		ctx := t.Context()
		_, isIntegration := integration.ParseName(name)
		_, isProject := project.ParseName(name)
		_, isAttachment := attachment.ParseName(name)
		foreign := !strings.HasPrefix(name, "accounts/acme/")
		parent, _, _ := strings.Cut(strings.TrimPrefix(name, "accounts/"), "/")
		parent = "accounts/" + parent
		for _, tt := range []struct {
			what  string
			valid bool
			call  func(c clients) (found string, err error)
		}{
			{"integration", isIntegration, func(c clients) (string, error) {
				got, err := c.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
				return got.GetName(), err
			}},
			{"integration of a batch", isIntegration, func(c clients) (string, error) {
				got, err := c.integrations.BatchGetIntegrations(ctx, &registryv1.BatchGetIntegrationsRequest{Parent: parent, Names: []string{name}})
				if err != nil {
					return "", err
				}
				return got.GetIntegrations()[0].GetName(), nil
			}},
			{"integration to delete", isIntegration, func(c clients) (string, error) {
				got, err := c.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: name, Force: true, ValidateOnly: true})
				return got.GetName(), err
			}},
			{"project", isProject, func(c clients) (string, error) {
				got, err := c.projects.GetProject(ctx, &registryv1.GetProjectRequest{Name: name})
				return got.GetName(), err
			}},
			{"project to update", isProject, func(c clients) (string, error) {
				got, err := c.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: &registryv1.Project{Name: name, DisplayName: "x"}, ValidateOnly: true})
				return got.GetName(), err
			}},
			{"attachment", isAttachment, func(c clients) (string, error) {
				got, err := c.attachments.GetAttachment(ctx, &registryv1.GetAttachmentRequest{Name: name})
				return got.GetName(), err
			}},
		} {
			found, err := tt.call(w.platform)
			switch code := status.Code(err); {
			case !utf8.ValidString(name): // does not even leave the client
				if err == nil {
					t.Fatalf("%s %q was found", tt.what, name)
				}
			case err == nil && (found != name || !tt.valid):
				t.Fatalf("%s %q found %q", tt.what, name, found)
			case err != nil && tt.valid && code != codes.NotFound, err != nil && !tt.valid && code != codes.InvalidArgument:
				t.Fatalf("%s %q, which is a name: %t: %v", tt.what, name, tt.valid, err)
			}
			if _, err := tt.call(w.limited); foreign && tt.valid && rpcerr.Reason(err) != "ACCOUNT_NOT_ALLOWED" {
				t.Fatalf("%s %q told another account: %v", tt.what, name, err)
			}
		}
		if w.head(t) != head {
			t.Fatalf("%q changed something", name)
		}
	})
}
