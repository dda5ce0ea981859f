package feed

import (
	"slices"
	"strings"
	"time"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// autoAttachPrefix makes a label of an integration name a label of projects, see Integration.auto_attach.
const autoAttachPrefix = "autoattach:"

// defaultRotationPeriod is what an integration that names none gets.
const defaultRotationPeriod = 24 * time.Hour

// snapshot is everything the registry wants, as it is put together from pages and changes.
type snapshot struct {
	// cursor is the first page's: changes are missing from there on.
	cursor string
	// target is the newest page's revision: once the changes up to it are in, the snapshot is true at that revision.
	target       int64
	integrations map[string]store.Integration
	projects     map[string]store.Project
	attachments  map[string]store.Attachment
}

func newSnapshot() *snapshot {
	return &snapshot{
		integrations: make(map[string]store.Integration),
		projects:     make(map[string]store.Project),
		attachments:  make(map[string]store.Attachment),
	}
}

func (s *snapshot) page(cursor string, revision int64) {
	if s.cursor == "" {
		s.cursor = cursor
	}
	s.target = max(s.target, revision)
}

// apply puts a message's changes in, and tells whether the snapshot is whole with them.
func (s *snapshot) apply(message *registryv1.WatchResponse) bool {
	for _, event := range message.GetEvents() {
		switch resource := event.GetResource().(type) {
		case *registryv1.Event_Integration:
			uid := resource.Integration.GetUid()
			if event.GetDeleted() {
				delete(s.integrations, uid)
			} else {
				s.integrations[uid] = integration(resource.Integration, event.GetRevision())
			}
		case *registryv1.Event_Project:
			uid := resource.Project.GetUid()
			if event.GetDeleted() {
				delete(s.projects, uid)
			} else {
				s.projects[uid] = project(resource.Project, event.GetRevision())
			}
		case *registryv1.Event_Attachment:
			uid := resource.Attachment.GetUid()
			if event.GetDeleted() {
				delete(s.attachments, uid)
			} else {
				s.attachments[uid] = attachment(resource.Attachment, event.GetRevision())
			}
		}
	}
	return message.GetRevision() >= s.target
}

func (s *snapshot) wanted() store.Wanted {
	return store.Wanted{
		Integrations: values(s.integrations, func(i store.Integration) string { return i.UID }),
		Projects:     values(s.projects, func(p store.Project) string { return p.UID }),
		Attachments:  values(s.attachments, func(a store.Attachment) string { return a.UID }),
	}
}

// values are a map's values in the order of their keys.
func values[T any](m map[string]T, key func(T) string) []T {
	out := make([]T, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b T) int {
		if key(a) < key(b) {
			return -1
		}
		return 1
	})
	return out
}

// latest is what a message's changes amount to: each resource once, as the last of them left it.
func latest(message *registryv1.WatchResponse) store.Wanted {
	after := newSnapshot()
	goneIntegrations := make(map[string]bool)
	goneProjects := make(map[string]bool)
	goneAttachments := make(map[string]store.Attachment)
	for _, event := range message.GetEvents() {
		switch resource := event.GetResource().(type) {
		case *registryv1.Event_Integration:
			if event.GetDeleted() {
				goneIntegrations[resource.Integration.GetUid()] = true
			}
		case *registryv1.Event_Project:
			if event.GetDeleted() {
				goneProjects[resource.Project.GetUid()] = true
			}
		case *registryv1.Event_Attachment:
			if event.GetDeleted() {
				goneAttachments[resource.Attachment.GetUid()] = attachment(resource.Attachment, event.GetRevision())
			}
		}
	}
	// UIDs are never used again, so what is gone stays gone.
	after.apply(message)
	out := after.wanted()
	for uid := range goneIntegrations {
		out.GoneIntegrations = append(out.GoneIntegrations, uid)
	}
	for uid := range goneProjects {
		out.GoneProjects = append(out.GoneProjects, uid)
	}
	slices.Sort(out.GoneIntegrations)
	slices.Sort(out.GoneProjects)
	out.GoneAttachments = values(goneAttachments, func(a store.Attachment) string { return a.UID })
	return out
}

func integration(i *registryv1.Integration, revision int64) store.Integration {
	out := store.Integration{
		UID:                   i.GetUid(),
		Name:                  i.GetName(),
		DisplayName:           i.GetDisplayName(),
		TenantID:              i.GetTenantId(),
		Cloud:                 i.GetCloud(),
		DefaultSubscriptionID: i.GetDefaultSubscriptionId(),
		AllowedAudiences:      i.GetAllowedAudiences(),
		AutoLabels:            autoLabels(i),
		RotationPeriod:        defaultRotationPeriod,
		Federated:             i.GetCredentialKind() == typev1.CredentialKind_CREDENTIAL_KIND_FEDERATED,
		Deleting:              i.GetState() == registryv1.Integration_STATE_DELETING,
		Revision:              revision,
	}
	for _, m := range i.GetDeliveryMaterials() {
		// The word, as it is: one that is not known here is never asked for.
		out.DeliveryMaterials = append(out.DeliveryMaterials, lease.Material(strings.TrimPrefix(m.String(), "MATERIAL_")))
	}
	if out.Cloud == "" {
		out.Cloud = "public"
	}
	if period := i.GetRotationPeriod(); period != nil {
		out.RotationPeriod = period.AsDuration()
	}
	return out
}

// autoLabels are the labels of projects to which it is attached by itself.
func autoLabels(i *registryv1.Integration) []string {
	if !i.GetAutoAttach() {
		return nil
	}
	var labels []string
	for _, label := range i.GetLabels() {
		if wanted, ok := strings.CutPrefix(label, autoAttachPrefix); ok && wanted != "" {
			labels = append(labels, wanted)
		}
	}
	return labels
}

func project(p *registryv1.Project, revision int64) store.Project {
	return store.Project{UID: p.GetUid(), Name: p.GetName(), Labels: p.GetLabels(), Revision: revision}
}

func attachment(a *registryv1.Attachment, revision int64) store.Attachment {
	out := store.Attachment{
		UID:            a.GetUid(),
		IntegrationUID: a.GetIntegrationUid(),
		ProjectUID:     a.GetProjectUid(),
		SubscriptionID: a.GetSubscriptionId(),
		Revision:       revision,
	}
	accesses := a.GetAccesses()
	out.Reads = len(accesses) == 0 || slices.Contains(accesses, typev1.Access_ACCESS_READ)
	out.Writes = len(accesses) == 0 || slices.Contains(accesses, typev1.Access_ACCESS_WRITE)
	return out
}
