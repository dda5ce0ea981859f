package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
)

const integrationColumns = `uid, name, display_name, tenant_id, cloud, default_subscription_id, credential_kind, allowed_audiences,
	rotation_period, application_display_name, client_id, service_principal_object_id, conditions, ever_active, generation,
	create_time, update_time, delete_time, delivery_materials, labels, auto_attach`

func scanIntegration(in string) func(row sqldb.Row) (integration.Integration, error) {
	return func(row sqldb.Row) (integration.Integration, error) {
		i := integration.Integration{Incarnation: in}
		var name, kind, audiences, conditions, materials, labels string
		var period, created, updated, deleted int64
		err := row.Scan(&i.UID, &name, &i.Spec.DisplayName, &i.Spec.TenantID, &i.Spec.Cloud, &i.Spec.DefaultSubscriptionID, &kind, &audiences,
			&period, &i.ApplicationDisplayName, &i.ClientID, &i.ServicePrincipalObjectID, &conditions, &i.EverActive, &i.Generation,
			&created, &updated, &deleted, &materials, &labels, &i.Spec.AutoAttach)
		if err != nil {
			return i, err
		}
		var ok bool
		if i.Name, ok = integration.ParseName(name); !ok {
			return i, fmt.Errorf("integration %s has the impossible name %q", i.UID, name)
		}
		var records []conditionRecord
		err = errors.Join(decode(audiences, &i.Spec.AllowedAudiences), decode(materials, &i.Spec.DeliveryMaterials), decode(labels, &i.Spec.Labels), decode(conditions, &records))
		if err != nil {
			return i, err
		}
		i.Conditions = conditionsOf(records)
		i.Spec.CredentialKind = integration.CredentialKind(kind)
		i.Spec.RotationPeriod = durationOf(period)
		i.CreateTime, i.UpdateTime, i.DeleteTime = sqldb.Time(created), sqldb.Time(updated), sqldb.Time(deleted)
		return i, nil
	}
}

// integrations is how integrations are created and updated.
var integrations = kind[integration.Name, integration.Integration, integration.Spec]{
	account:    func(n integration.Name) string { return n.Account },
	parent:     func(n integration.Name) string { return "integrations of " + n.Account },
	specRecord: func(s integration.Spec) any { return recordOfIntegrationSpec(s) },
	encode:     func(i integration.Integration) (string, error) { return encode(recordOfIntegration(i)) },
	decode: func(in, text string) (integration.Integration, error) {
		var r integrationRecord
		err := decode(text, &r)
		return r.integration(in), err
	},
	uid: func(i *integration.Integration) *string { return &i.UID },
	lock: func(ctx context.Context, w *writing, name integration.Name) (integration.Integration, error) {
		return w.lockIntegration(ctx, name)
	},
	insert: func(ctx context.Context, w *writing, name integration.Name, spec integration.Spec) (integration.Integration, error) {
		if err := w.checkQuota(ctx, name.Account, quota.Integrations); err != nil {
			return integration.Integration{}, err
		}
		i := integration.New(w.now, name, uuid.NewString(), spec)
		i.Incarnation = w.at.Incarnation
		return i, w.insertIntegration(ctx, i)
	},
	replace: func(ctx context.Context, w *writing, before, after integration.Integration) error {
		if err := w.updateIntegration(ctx, after); err != nil {
			return err
		}
		w.record(change.Change{Integration: &after})
		return w.replaceLabels(ctx, autoLabels, integrationOwner(after), before.Spec.AutoLabels(), after.Spec.AutoLabels())
	},
}

// CreateIntegration stores a new integration. A repeat of the request ID, which may be empty, returns what the first one
// created, as it was then.
func (s *Store) CreateIntegration(ctx context.Context, now time.Time, name integration.Name, spec integration.Spec, requestID string) (integration.Integration, error) {
	return create(ctx, s, now, integrations, name, spec.Normal(), requestID)
}

func (w *writing) insertIntegration(ctx context.Context, i integration.Integration) error {
	l, err := listsOf(i)
	if err != nil {
		return err
	}
	_, err = w.Exec(ctx, `INSERT INTO integrations (`+integrationColumns+`, writes)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, 1)`,
		i.UID, i.Name.String(), i.Spec.DisplayName, i.Spec.TenantID, i.Spec.Cloud, i.Spec.DefaultSubscriptionID,
		string(i.Spec.CredentialKind), l.audiences, i.Spec.RotationPeriod.Microseconds(), i.ApplicationDisplayName, i.ClientID,
		i.ServicePrincipalObjectID, l.conditions, i.EverActive, i.Generation,
		sqldb.Micros(i.CreateTime), sqldb.Micros(i.UpdateTime), sqldb.Micros(i.DeleteTime), l.materials, l.labels, i.Spec.AutoAttach)
	if err != nil {
		return err
	}
	w.record(change.Change{Integration: &i})
	return w.insertLabels(ctx, autoLabels, integrationOwner(i), i.Spec.AutoLabels())
}

// integrationOwner is an integration as its labels name it.
func integrationOwner(i integration.Integration) []any {
	return []any{i.UID, i.Name.Account, i.Name.String()}
}

// lists are the parts of an integration that stand in JSON.
type lists struct {
	audiences, materials, conditions, labels string
}

func listsOf(i integration.Integration) (lists, error) {
	var l lists
	for _, list := range []struct {
		text *string
		of   any
	}{
		{&l.audiences, i.Spec.AllowedAudiences},
		{&l.materials, i.Spec.DeliveryMaterials},
		{&l.labels, i.Spec.Labels},
		{&l.conditions, recordsOfConditions(i.Conditions)},
	} {
		var err error
		if *list.text, err = encode(list.of); err != nil {
			return lists{}, err
		}
	}
	return l, nil
}

// updateIntegration stores what may change of an integration that this transaction has locked.
func (w *writing) updateIntegration(ctx context.Context, i integration.Integration) error {
	l, err := listsOf(i)
	if err != nil {
		return err
	}
	_, err = w.Exec(ctx, `UPDATE integrations SET display_name = $2, default_subscription_id = $3, allowed_audiences = $4,
		rotation_period = $5, application_display_name = $6, client_id = $7, service_principal_object_id = $8, conditions = $9,
		ever_active = $10, generation = $11, update_time = $12, delete_time = $13, delivery_materials = $14, labels = $15,
		auto_attach = $16, credential_kind = $17
		WHERE uid = $1`,
		i.UID, i.Spec.DisplayName, i.Spec.DefaultSubscriptionID, l.audiences, i.Spec.RotationPeriod.Microseconds(),
		i.ApplicationDisplayName, i.ClientID, i.ServicePrincipalObjectID, l.conditions, i.EverActive, i.Generation,
		sqldb.Micros(i.UpdateTime), sqldb.Micros(i.DeleteTime), l.materials, l.labels, i.Spec.AutoAttach, string(i.Spec.CredentialKind))
	return err
}

// lockIntegration makes all other writers of the integration wait, and reads it.
func (w *writing) lockIntegration(ctx context.Context, name integration.Name) (integration.Integration, error) {
	i, err := scanIntegration(w.at.Incarnation)(w.QueryRow(ctx, `UPDATE integrations SET writes = writes + 1 WHERE name = $1 RETURNING `+integrationColumns, name.String()))
	return i, notFound(err, name.String())
}

// notFound says which resource is meant when no row was found.
func notFound(err error, name string) error {
	if errors.Is(err, sqldb.ErrNoRows) {
		return resource.NotFound(name)
	}
	return err
}

// Integration reads one.
func (s *Store) Integration(ctx context.Context, name integration.Name) (found integration.Integration, err error) {
	_, err = s.read(ctx, func(ctx context.Context, v view) error {
		found, err = scanIntegration(v.at.Incarnation)(v.QueryRow(ctx, `SELECT `+integrationColumns+` FROM integrations WHERE name = $1`, name.String()))
		return notFound(err, name.String())
	})
	if err != nil {
		return integration.Integration{}, fmt.Errorf("read %s: %w", name, err)
	}
	return found, nil
}

// BatchIntegrations reads several at one moment, in the order of their names, of which none comes twice.
func (s *Store) BatchIntegrations(ctx context.Context, names []integration.Name) ([]integration.Integration, error) {
	return batch(ctx, s, names, scanIntegration, `SELECT `+integrationColumns+` FROM integrations`, func(i integration.Integration) integration.Name { return i.Name })
}

// Integrations reads a page of those that pass the filter, which may be nil, and one more where there is more, and says of which
// moment they are. Where it has read all that one page may and found too little, rest is the place behind which the list goes on.
func (s *Store) Integrations(ctx context.Context, page resource.Page, passes func(integration.Integration) bool) (found []integration.Integration, rest resource.Place, at resource.Position, err error) {
	names, err := accountSpan(page.Parent)
	if err != nil {
		return nil, nil, at, err
	}
	return list(ctx, s, listing[integration.Integration]{table: "integrations", columns: integrationColumns, scan: scanIntegration, keys: integration.Integration.Keys}, names, page, passes)
}

// UpdateIntegration replaces what is wanted by what want makes of it, if the etag, which may be empty, is current. Where there is no
// integration, it creates the one that missing makes; missing may be nil. An etag speaks of an integration that was there, so with one
// nothing is created.
func (s *Store) UpdateIntegration(ctx context.Context, now time.Time, name integration.Name, etag string, want func(integration.Integration) (integration.Spec, error), missing func() (integration.Spec, error)) (integration.Integration, error) {
	return update(ctx, s, now, integrations, name, etag, func(i integration.Integration) (integration.Spec, error) {
		if i.Deleting() {
			return integration.Spec{}, deleting(name)
		}
		return want(i)
	}, missing)
}

func deleting(name integration.Name) error {
	return &resource.Error{
		Reason: integration.ErrDeleting, Message: name.String() + " is being deleted",
		Subject: name.String(), Advice: "take another integration, or wait until this one is gone and make it anew",
		Metadata: map[string]string{"name": name.String()},
	}
}

func stillAttached(name integration.Name, explicit, automatic int) error {
	return &resource.Error{
		Reason:  integration.ErrAttached,
		Message: fmt.Sprintf("%s is attached to %d projects, and to %d more by labels", name, explicit, automatic),
		Subject: name.String(), Advice: "detach it and switch auto_attach off first, or set force",
		Metadata: map[string]string{"name": name.String(), "attachments": strconv.Itoa(explicit), "projects": strconv.Itoa(automatic)},
	}
}

// DeleteIntegration asks for the deletion of an integration, and with force removes its attachments, the automatic ones with
// them. One that is being deleted already is returned as it is. Either way the etag, which may be empty, must be current.
func (s *Store) DeleteIntegration(ctx context.Context, now time.Time, name integration.Name, etag string, force bool) (deleted integration.Integration, err error) {
	err = s.write(ctx, now, func(ctx context.Context, w *writing) error {
		deleted, err = w.lockIntegration(ctx, name)
		if err != nil {
			return err
		}
		if err := resource.CheckETag(name.String(), etag, deleted.ETag()); err != nil {
			return err
		}
		if deleted.Deleting() {
			return errUnchanged
		}
		attached, err := w.attachmentsOf(ctx, "integration_uid", deleted.UID)
		if err != nil {
			return err
		}
		// A project that gets such a label meanwhile gets it after the deletion, and nothing by it.
		matched, err := w.matchedProjects(ctx, deleted.UID)
		if err != nil {
			return err
		}
		if len(attached)+matched > 0 && !force {
			return stillAttached(name, len(attached), matched)
		}
		if err := w.deleteAttachments(ctx, attached); err != nil {
			return err
		}
		deleted = deleted.Delete(w.now)
		if err := w.updateIntegration(ctx, deleted); err != nil {
			return err
		}
		w.record(change.Change{Integration: &deleted})
		return w.replaceLabels(ctx, autoLabels, integrationOwner(deleted), deleted.Spec.AutoLabels(), nil)
	})
	if err != nil {
		return integration.Integration{}, fmt.Errorf("delete %s: %w", name, err)
	}
	return deleted, nil
}
