package rpc

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
)

// The domain's words are the names of the enums' values without their prefix; the zero value is the empty word.
const (
	prefixState           = "STATE_"
	prefixConditionType   = "TYPE_"
	prefixConditionStatus = "STATUS_"
	prefixProjectKind     = "KIND_"
	prefixCredentialKind  = "CREDENTIAL_KIND_" //nolint:gosec // the names of conditions
	prefixMaterial        = "MATERIAL_"
	prefixAccess          = "ACCESS_"
	prefixPhase           = "PHASE_"
	unspecified           = "UNSPECIFIED"
)

// wordOf is the domain's word for an enum's value.
func wordOf[W ~string](value interface{ String() string }, prefix string) W {
	word := strings.TrimPrefix(value.String(), prefix)
	if word == unspecified {
		return ""
	}
	return W(word)
}

// valueOf is the enum's value for a word of the domain.
func valueOf[E ~int32, W ~string](values map[string]int32, prefix string, word W) E {
	return E(values[prefix+string(word)])
}

func timestampOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func messageOfIntegration(i integration.Integration) *registryv1.Integration {
	m := &registryv1.Integration{
		Name:                     i.Name.String(),
		Uid:                      i.UID,
		DisplayName:              i.Spec.DisplayName,
		TenantId:                 i.Spec.TenantID,
		Cloud:                    i.Spec.Cloud,
		DefaultSubscriptionId:    i.Spec.DefaultSubscriptionID,
		CredentialKind:           valueOf[typev1.CredentialKind](typev1.CredentialKind_value, prefixCredentialKind, i.Spec.CredentialKind),
		AllowedAudiences:         i.Spec.AllowedAudiences,
		RotationPeriod:           durationpb.New(i.Spec.RotationPeriod),
		Labels:                   i.Spec.Labels,
		AutoAttach:               i.Spec.AutoAttach,
		ApplicationDisplayName:   i.ApplicationDisplayName,
		ClientId:                 i.ClientID,
		ServicePrincipalObjectId: i.ServicePrincipalObjectID,
		State:                    valueOf[registryv1.Integration_State](registryv1.Integration_State_value, prefixState, i.State()),
		Etag:                     i.ETag(),
		CreateTime:               timestampOf(i.CreateTime),
		UpdateTime:               timestampOf(i.UpdateTime),
		DeleteTime:               timestampOf(i.DeleteTime),
	}
	for _, material := range i.Spec.DeliveryMaterials {
		m.DeliveryMaterials = append(m.DeliveryMaterials, valueOf[typev1.Material](typev1.Material_value, prefixMaterial, material))
	}
	for _, c := range i.Conditions {
		m.Conditions = append(m.Conditions, &registryv1.Condition{
			Type:               valueOf[registryv1.Condition_Type](registryv1.Condition_Type_value, prefixConditionType, c.Type),
			Status:             valueOf[registryv1.Condition_Status](registryv1.Condition_Status_value, prefixConditionStatus, c.Status),
			Reason:             c.Reason,
			Message:            c.Message,
			LastTransitionTime: timestampOf(c.LastTransition),
		})
	}
	return m
}

func specOfIntegration(m *registryv1.Integration) integration.Spec {
	spec := integration.Spec{
		DisplayName:           m.GetDisplayName(),
		TenantID:              m.GetTenantId(),
		Cloud:                 m.GetCloud(),
		DefaultSubscriptionID: m.GetDefaultSubscriptionId(),
		CredentialKind:        wordOf[integration.CredentialKind](m.GetCredentialKind(), prefixCredentialKind),
		AllowedAudiences:      m.GetAllowedAudiences(),
		RotationPeriod:        m.GetRotationPeriod().AsDuration(),
		Labels:                m.GetLabels(),
		AutoAttach:            m.GetAutoAttach(),
	}
	for _, material := range m.GetDeliveryMaterials() {
		spec.DeliveryMaterials = append(spec.DeliveryMaterials, wordOf[integration.Material](material, prefixMaterial))
	}
	return spec
}

func messageOfProject(p project.Project) *registryv1.Project {
	return &registryv1.Project{
		Name:        p.Name.String(),
		Uid:         p.UID,
		Kind:        valueOf[registryv1.Project_Kind](registryv1.Project_Kind_value, prefixProjectKind, p.Spec.Kind),
		DisplayName: p.Spec.DisplayName,
		Labels:      p.Spec.Labels,
		Etag:        p.ETag(),
		CreateTime:  timestampOf(p.CreateTime),
		UpdateTime:  timestampOf(p.UpdateTime),
	}
}

func specOfProject(m *registryv1.Project) project.Spec {
	return project.Spec{Kind: wordOf[project.Kind](m.GetKind(), prefixProjectKind), DisplayName: m.GetDisplayName(), Labels: m.GetLabels()}
}

func messageOfAttachment(a attachment.Attachment) *registryv1.Attachment {
	return &registryv1.Attachment{
		Name:           a.Name.String(),
		Uid:            a.UID,
		Integration:    a.Name.IntegrationName().String(),
		IntegrationUid: a.IntegrationUID,
		ProjectUid:     a.ProjectUID,
		Accesses:       messagesOfAccesses(a.Spec.Accesses),
		SubscriptionId: a.Spec.SubscriptionID,
		Etag:           a.ETag(),
		CreateTime:     timestampOf(a.CreateTime),
		UpdateTime:     timestampOf(a.UpdateTime),
	}
}

func messageOfAccess(a attachment.Access) typev1.Access {
	return valueOf[typev1.Access](typev1.Access_value, prefixAccess, a)
}

func messagesOfAccesses(accesses []attachment.Access) []typev1.Access {
	var all []typev1.Access
	for _, access := range accesses {
		all = append(all, messageOfAccess(access))
	}
	return all
}

func specOfAttachment(m *registryv1.Attachment) attachment.Spec {
	spec := attachment.Spec{SubscriptionID: m.GetSubscriptionId()}
	for _, access := range m.GetAccesses() {
		spec.Accesses = append(spec.Accesses, wordOf[attachment.Access](access, prefixAccess))
	}
	return spec
}

func messageOfChange(c change.Change) *registryv1.Event {
	m := &registryv1.Event{Revision: c.Revision, Deleted: c.Deleted}
	switch {
	case c.Integration != nil:
		m.Resource = &registryv1.Event_Integration{Integration: messageOfIntegration(*c.Integration)}
	case c.Project != nil:
		m.Resource = &registryv1.Event_Project{Project: messageOfProject(*c.Project)}
	case c.Attachment != nil:
		m.Resource = &registryv1.Event_Attachment{Attachment: messageOfAttachment(*c.Attachment)}
	}
	return m
}
