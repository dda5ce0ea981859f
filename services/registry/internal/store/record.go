package store

import (
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
)

// Resources as they stand in JSON, in changes and remembered results. What is written here is read by older and newer
// releases: fields are added, never renamed; an absent one is empty. The database's incarnation is not written, for it may get another.

const (
	kindIntegration = "integration"
	kindProject     = "project"
	kindAttachment  = "attachment"
)

type integrationRecord struct {
	Account                  string                `json:"account"`
	ID                       string                `json:"id"`
	UID                      string                `json:"uid"`
	Spec                     integrationSpecRecord `json:"spec"`
	ApplicationDisplayName   string                `json:"application_display_name,omitempty"`
	ClientID                 string                `json:"client_id,omitempty"`
	ServicePrincipalObjectID string                `json:"service_principal_object_id,omitempty"`
	Conditions               []conditionRecord     `json:"conditions,omitempty"`
	EverActive               bool                  `json:"ever_active,omitempty"`
	Generation               int64                 `json:"generation"`
	CreateTime               int64                 `json:"create_time"`
	UpdateTime               int64                 `json:"update_time"`
	DeleteTime               int64                 `json:"delete_time,omitempty"`
}

type integrationSpecRecord struct {
	DisplayName           string                 `json:"display_name"`
	TenantID              string                 `json:"tenant_id"`
	Cloud                 string                 `json:"cloud"`
	DefaultSubscriptionID string                 `json:"default_subscription_id,omitempty"`
	CredentialKind        string                 `json:"credential_kind"`
	AllowedAudiences      []string               `json:"allowed_audiences,omitempty"`
	RotationPeriod        int64                  `json:"rotation_period"`
	DeliveryMaterials     []integration.Material `json:"delivery_materials,omitempty"`
	Labels                []string               `json:"labels,omitempty"`
	AutoAttach            bool                   `json:"auto_attach,omitempty"`
}

type conditionRecord struct {
	Type           string `json:"type"`
	Status         string `json:"status"`
	Reason         string `json:"reason,omitempty"`
	Message        string `json:"message,omitempty"`
	LastTransition int64  `json:"last_transition"`
	Holds          bool   `json:"holds,omitempty"`
}

type projectRecord struct {
	Account    string            `json:"account"`
	ID         string            `json:"id"`
	UID        string            `json:"uid"`
	Spec       projectSpecRecord `json:"spec"`
	Generation int64             `json:"generation"`
	CreateTime int64             `json:"create_time"`
	UpdateTime int64             `json:"update_time"`
}

type projectSpecRecord struct {
	Kind        string   `json:"kind"`
	DisplayName string   `json:"display_name,omitempty"`
	Labels      []string `json:"labels,omitempty"`
}

type attachmentRecord struct {
	Account        string               `json:"account"`
	Project        string               `json:"project"`
	ID             string               `json:"id"`
	UID            string               `json:"uid"`
	IntegrationUID string               `json:"integration_uid"`
	ProjectUID     string               `json:"project_uid"`
	Spec           attachmentSpecRecord `json:"spec"`
	Generation     int64                `json:"generation"`
	CreateTime     int64                `json:"create_time"`
	UpdateTime     int64                `json:"update_time"`
}

type attachmentSpecRecord struct {
	Accesses       []attachment.Access `json:"accesses"`
	SubscriptionID string              `json:"subscription_id,omitempty"`
}

func recordOfIntegration(i integration.Integration) integrationRecord {
	return integrationRecord{
		Account: i.Name.Account, ID: i.Name.ID, UID: i.UID, Spec: recordOfIntegrationSpec(i.Spec),
		ApplicationDisplayName: i.ApplicationDisplayName, ClientID: i.ClientID, ServicePrincipalObjectID: i.ServicePrincipalObjectID,
		Conditions: recordsOfConditions(i.Conditions), EverActive: i.EverActive, Generation: i.Generation,
		CreateTime: sqldb.Micros(i.CreateTime), UpdateTime: sqldb.Micros(i.UpdateTime), DeleteTime: sqldb.Micros(i.DeleteTime),
	}
}

func (r integrationRecord) integration(in string) integration.Integration {
	return integration.Integration{
		Name: integration.Name{Account: r.Account, ID: r.ID}, UID: r.UID, Incarnation: in,
		Spec: integration.Spec{
			DisplayName: r.Spec.DisplayName, TenantID: r.Spec.TenantID, Cloud: r.Spec.Cloud,
			DefaultSubscriptionID: r.Spec.DefaultSubscriptionID, CredentialKind: integration.CredentialKind(r.Spec.CredentialKind),
			AllowedAudiences: r.Spec.AllowedAudiences, RotationPeriod: durationOf(r.Spec.RotationPeriod),
			DeliveryMaterials: r.Spec.DeliveryMaterials, Labels: r.Spec.Labels, AutoAttach: r.Spec.AutoAttach,
		},
		ApplicationDisplayName: r.ApplicationDisplayName, ClientID: r.ClientID, ServicePrincipalObjectID: r.ServicePrincipalObjectID,
		Conditions: conditionsOf(r.Conditions), EverActive: r.EverActive, Generation: r.Generation,
		CreateTime: sqldb.Time(r.CreateTime), UpdateTime: sqldb.Time(r.UpdateTime), DeleteTime: sqldb.Time(r.DeleteTime),
	}
}

func recordOfIntegrationSpec(s integration.Spec) integrationSpecRecord {
	return integrationSpecRecord{
		DisplayName: s.DisplayName, TenantID: s.TenantID, Cloud: s.Cloud, DefaultSubscriptionID: s.DefaultSubscriptionID,
		CredentialKind: string(s.CredentialKind), AllowedAudiences: s.AllowedAudiences, RotationPeriod: s.RotationPeriod.Microseconds(),
		DeliveryMaterials: s.DeliveryMaterials, Labels: s.Labels, AutoAttach: s.AutoAttach,
	}
}

func durationOf(micros int64) time.Duration { return time.Duration(micros) * time.Microsecond }

func recordsOfConditions(conditions []integration.Condition) []conditionRecord {
	records := make([]conditionRecord, len(conditions))
	for i, c := range conditions {
		records[i] = conditionRecord{
			Type: string(c.Type), Status: string(c.Status), Reason: c.Reason, Message: c.Message,
			LastTransition: sqldb.Micros(c.LastTransition), Holds: c.Holds,
		}
	}
	return records
}

func conditionsOf(records []conditionRecord) []integration.Condition {
	var conditions []integration.Condition
	for _, r := range records {
		conditions = append(conditions, integration.Condition{
			Type: integration.ConditionType(r.Type), Status: integration.ConditionStatus(r.Status), Reason: r.Reason, Message: r.Message,
			LastTransition: sqldb.Time(r.LastTransition), Holds: r.Holds,
		})
	}
	return conditions
}

func recordOfProject(p project.Project) projectRecord {
	return projectRecord{
		Account: p.Name.Account, ID: p.Name.ID, UID: p.UID, Spec: recordOfProjectSpec(p.Spec), Generation: p.Generation,
		CreateTime: sqldb.Micros(p.CreateTime), UpdateTime: sqldb.Micros(p.UpdateTime),
	}
}

func recordOfProjectSpec(s project.Spec) projectSpecRecord {
	return projectSpecRecord{Kind: string(s.Kind), DisplayName: s.DisplayName, Labels: s.Labels}
}

func (r projectRecord) project(in string) project.Project {
	return project.Project{
		Name: project.Name{Account: r.Account, ID: r.ID}, UID: r.UID, Incarnation: in,
		Spec: project.Spec{Kind: project.Kind(r.Spec.Kind), DisplayName: r.Spec.DisplayName, Labels: r.Spec.Labels}, Generation: r.Generation,
		CreateTime: sqldb.Time(r.CreateTime), UpdateTime: sqldb.Time(r.UpdateTime),
	}
}

func recordOfAttachment(a attachment.Attachment) attachmentRecord {
	return attachmentRecord{
		Account: a.Name.Account, Project: a.Name.Project, ID: a.Name.ID, UID: a.UID,
		IntegrationUID: a.IntegrationUID, ProjectUID: a.ProjectUID, Spec: recordOfAttachmentSpec(a.Spec), Generation: a.Generation,
		CreateTime: sqldb.Micros(a.CreateTime), UpdateTime: sqldb.Micros(a.UpdateTime),
	}
}

func recordOfAttachmentSpec(s attachment.Spec) attachmentSpecRecord {
	return attachmentSpecRecord{Accesses: s.Accesses, SubscriptionID: s.SubscriptionID}
}

func (r attachmentRecord) attachment(in string) attachment.Attachment {
	return attachment.Attachment{
		Name: attachment.Name{Account: r.Account, Project: r.Project, ID: r.ID}, UID: r.UID, Incarnation: in,
		IntegrationUID: r.IntegrationUID, ProjectUID: r.ProjectUID,
		Spec: attachment.Spec{Accesses: r.Spec.Accesses, SubscriptionID: r.Spec.SubscriptionID}, Generation: r.Generation,
		CreateTime: sqldb.Time(r.CreateTime), UpdateTime: sqldb.Time(r.UpdateTime),
	}
}

// identify gives a change's kind and the resource's UID.
func identify(c change.Change) (kind, uid string) {
	switch {
	case c.Integration != nil:
		return kindIntegration, c.Integration.UID
	case c.Project != nil:
		return kindProject, c.Project.UID
	default:
		return kindAttachment, c.Attachment.UID
	}
}

func payloadOf(c change.Change) (string, error) {
	switch {
	case c.Integration != nil:
		return encode(recordOfIntegration(*c.Integration))
	case c.Project != nil:
		return encode(recordOfProject(*c.Project))
	default:
		return encode(recordOfAttachment(*c.Attachment))
	}
}

// fill puts the resource of a change's kind and payload, in a database of this incarnation, into it.
func fill(c *change.Change, in, kind, payload string) error {
	switch kind {
	case kindIntegration:
		var r integrationRecord
		if err := decode(payload, &r); err != nil {
			return err
		}
		resource := r.integration(in)
		c.Integration = &resource
	case kindProject:
		var r projectRecord
		if err := decode(payload, &r); err != nil {
			return err
		}
		resource := r.project(in)
		c.Project = &resource
	case kindAttachment:
		var r attachmentRecord
		if err := decode(payload, &r); err != nil {
			return err
		}
		resource := r.attachment(in)
		c.Attachment = &resource
	default:
		return fmt.Errorf("change %d is of unknown kind %q", c.Revision, kind)
	}
	return nil
}
