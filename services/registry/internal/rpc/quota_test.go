package rpc_test

import (
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/services/registry/internal/quota"
)

func TestQuota_IsToldInFull(t *testing.T) {
	w := newWorldOf(t, quota.Config{Integrations: 2, Projects: 1, Attachments: 1})
	w.integration(t, "acme", "reader")
	w.integration(t, "acme", "writer")
	w.project(t, "acme", "stack")
	w.attachment(t, stack, reader, typev1.Access_ACCESS_READ)
	for _, tt := range []struct {
		quota, limit string
		call         func() error
	}{
		{"integrations", "2", func() error {
			_, err := w.limited.integrations.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{
				Parent: "accounts/acme", IntegrationId: "third", Integration: newIntegration(),
			})
			return err
		}},
		{"integrations", "2", func() error {
			_, err := w.limited.integrations.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{
				Parent: "accounts/acme", IntegrationId: "third", Integration: newIntegration(), ValidateOnly: true,
			})
			return err
		}},
		{"integrations", "2", func() error {
			_, err := w.limited.integrations.UpdateIntegration(t.Context(), &registryv1.UpdateIntegrationRequest{
				Integration: changed(func(i *registryv1.Integration) { i.Name = spare }), AllowMissing: true,
			})
			return err
		}},
		{"projects", "1", func() error {
			_, err := w.limited.projects.CreateProject(t.Context(), &registryv1.CreateProjectRequest{
				Parent: "accounts/acme", ProjectId: "second", Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK},
			})
			return err
		}},
		{"projects", "1", func() error {
			_, err := w.limited.projects.UpdateProject(t.Context(), &registryv1.UpdateProjectRequest{
				Project: &registryv1.Project{Name: module, Kind: registryv1.Project_KIND_MODULE}, AllowMissing: true,
			})
			return err
		}},
		{"attachments", "1", func() error {
			_, err := w.limited.attachments.CreateAttachment(t.Context(), &registryv1.CreateAttachmentRequest{
				Parent: stack, Attachment: &registryv1.Attachment{Integration: writer, Accesses: []typev1.Access{typev1.Access_ACCESS_WRITE}},
			})
			return err
		}},
		{"attachments", "1", func() error {
			_, err := w.limited.attachments.UpdateAttachment(t.Context(), &registryv1.UpdateAttachmentRequest{
				Attachment: &registryv1.Attachment{Name: stack + "/attachments/writer", Accesses: []typev1.Access{typev1.Access_ACCESS_WRITE}}, AllowMissing: true,
			})
			return err
		}},
	} {
		err := tt.call()
		refusal{code: codes.ResourceExhausted, reason: "QUOTA_EXCEEDED", metadata: "quota=" + tt.quota, says: "may have " + tt.limit + " " + tt.quota}.check(t, err)
		refusal{code: codes.ResourceExhausted, reason: "QUOTA_EXCEEDED", metadata: "limit=" + tt.limit}.check(t, err)
		told := false
		for _, d := range status.Convert(err).Details() {
			if failure, ok := d.(*errdetails.QuotaFailure); ok {
				v := failure.GetViolations()
				told = len(v) == 1 && v[0].GetSubject() == "accounts/acme" && strings.Contains(v[0].GetDescription(), "operator")
			}
		}
		if !told {
			t.Errorf("%s: no QuotaFailure in %v", tt.quota, status.Convert(err).Details())
		}
	}
}
