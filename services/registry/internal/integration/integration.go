// Package integration says what an integration is: what is wanted, what the vault has reported, and the state that both
// amount to. It decides; it stores nothing.
package integration

import (
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"phasekey.dev/pkg/displayname"
	"phasekey.dev/services/registry/internal/resource"
)

// The reasons for which an operation on an integration is refused, besides those of package resource.
var (
	// ErrHomeTenant means that the tenant is the platform's own.
	ErrHomeTenant = errors.New("the tenant is the platform's home tenant; an integration is for a customer's")
	// ErrAttached means that the integration cannot be deleted while it is attached.
	ErrAttached = errors.New("the integration is attached")
	// ErrDeleting means that the integration is being deleted.
	ErrDeleting = errors.New("the integration is being deleted")
)

// Name is accounts/{account}/integrations/{integration}.
type Name struct {
	Account, ID string
}

// ParseName reads a name; it reports false when it is none.
func ParseName(name string) (Name, bool) {
	ids, ok := resource.SplitName(name, "accounts", "integrations")
	if !ok {
		return Name{}, false
	}
	return Name{Account: ids[0], ID: ids[1]}, true
}

func (n Name) String() string { return "accounts/" + n.Account + "/integrations/" + n.ID }

// CredentialKind is how the application proves who it is.
type CredentialKind string

// The kinds there are.
const (
	// ClientSecret is of an application with a secret that the vault rotates.
	ClientSecret CredentialKind = "CLIENT_SECRET"
	// Federated is of an application that trusts assertions of the vault's.
	Federated CredentialKind = "FEDERATED"
)

// Material is a form in which runners may be given the credential.
type Material string

// The materials there are.
const (
	MaterialAccessToken    Material = "ACCESS_TOKEN"
	MaterialClientSecret   Material = "CLIENT_SECRET"
	MaterialFederatedToken Material = "FEDERATED_TOKEN"
)

// The values of fields that are left empty.
const (
	DefaultCloud          = "public"
	DefaultRotationPeriod = 24 * time.Hour
)

const (
	minRotationPeriod = time.Hour
	// minDevelopmentRotationPeriod lets a demonstration show a rotation.
	minDevelopmentRotationPeriod = time.Second
	maxRotationPeriod            = 30 * 24 * time.Hour
	maxDisplayName               = 60
)

// Spec is what is wanted of an integration.
type Spec struct {
	DisplayName           string
	TenantID              string
	Cloud                 string
	DefaultSubscriptionID string
	CredentialKind        CredentialKind
	AllowedAudiences      []string
	RotationPeriod        time.Duration
	// DeliveryMaterials are the forms that are allowed; none stands for those of the kind but the secret itself.
	DeliveryMaterials []Material
	Labels            []string
	// AutoAttach attaches it to all projects that have one of AutoLabels.
	AutoAttach bool
}

// AutoLabels are the labels of projects to which it is attached by itself; none without AutoAttach.
func (s Spec) AutoLabels() []string {
	if !s.AutoAttach {
		return nil
	}
	return resource.AutoLabels(s.Labels)
}

// Normal is the one form of all specs that mean the same: empty fields have their defaults, UUIDs are lower case, the
// audiences, the materials and the labels are sorted, durations are whole microseconds. The kind's usual materials are no materials.
func (s Spec) Normal() Spec {
	s.TenantID = strings.ToLower(s.TenantID)
	s.DefaultSubscriptionID = strings.ToLower(s.DefaultSubscriptionID)
	if s.Cloud == "" {
		s.Cloud = DefaultCloud
	}
	if s.CredentialKind == "" {
		s.CredentialKind = ClientSecret
	}
	if s.RotationPeriod == 0 {
		s.RotationPeriod = DefaultRotationPeriod
	}
	s.RotationPeriod = s.RotationPeriod.Truncate(time.Microsecond)
	s.AllowedAudiences = resource.Set(s.AllowedAudiences)
	s.DeliveryMaterials = resource.Set(s.DeliveryMaterials)
	s.Labels = resource.Set(s.Labels)
	if slices.Equal(s.DeliveryMaterials, s.CredentialKind.usual()) {
		s.DeliveryMaterials = nil
	}
	return s
}

// usual are the materials that are meant when none is named, in order.
func (k CredentialKind) usual() []Material {
	if k == Federated {
		return []Material{MaterialAccessToken, MaterialFederatedToken}
	}
	return []Material{MaterialAccessToken}
}

// lacks reports whether an integration of the kind has no such material to give.
func (k CredentialKind) lacks(m Material) bool {
	return k == Federated && m == MaterialClientSecret || k == ClientSecret && m == MaterialFederatedToken
}

// Equal tells whether two normal specs want the same.
func (s Spec) Equal(other Spec) bool {
	lists := slices.Equal(s.AllowedAudiences, other.AllowedAudiences) && slices.Equal(s.DeliveryMaterials, other.DeliveryMaterials) &&
		slices.Equal(s.Labels, other.Labels)
	return lists && s.AutoAttach == other.AutoAttach && s.DisplayName == other.DisplayName && s.TenantID == other.TenantID && s.Cloud == other.Cloud &&
		s.DefaultSubscriptionID == other.DefaultSubscriptionID && s.CredentialKind == other.CredentialKind &&
		s.RotationPeriod == other.RotationPeriod
}

// Rules are what a deployment demands of its integrations.
type Rules struct {
	// HomeTenants are the tenants the platform's applications live in, in lower case.
	HomeTenants []string
	// Clouds are those there are, by the names that integrations give them.
	Clouds []string
	// Development allows rotation periods of seconds.
	Development bool
}

// Check finds what the normal spec of a new integration cannot be, beyond the constraints of single fields in the proto. A home tenant is told
// apart from bad fields, by ErrHomeTenant, for it is the one mistake that looks right.
func (r Rules) Check(s Spec) ([]resource.Violation, error) {
	bad := r.CheckChange(Spec{}, s)
	if s.TenantID == "" {
		bad = append(bad, resource.Violation{Field: "tenant_id", Description: "is required"})
	}
	if !slices.Contains(r.Clouds, s.Cloud) {
		bad = append(bad, resource.Violation{Field: "cloud", Description: "must be one of those there are: " + strings.Join(r.Clouds, ", ")})
	}
	if len(bad) == 0 && slices.Contains(r.HomeTenants, s.TenantID) {
		return nil, ErrHomeTenant
	}
	return bad, nil
}

// CheckChange finds what a normal spec cannot become. What cannot be changed is not judged again, for the rules may have changed since.
func (r Rules) CheckChange(before, s Spec) []resource.Violation {
	var bad []resource.Violation
	add := func(field, description string) {
		bad = append(bad, resource.Violation{Field: field, Description: description})
	}
	if strings.TrimSpace(s.DisplayName) == "" || utf8.RuneCountInString(s.DisplayName) > maxDisplayName {
		add("display_name", "must be 1 to 60 characters, not all of them spaces")
	}
	// One that stays as it is may be from before there was such a rule.
	if err := displayname.Check(s.DisplayName); err != nil && s.DisplayName != before.DisplayName {
		add("display_name", err.Error())
	}
	shortest, phrase := minRotationPeriod, "must be one hour to 30 days"
	if r.Development {
		shortest, phrase = minDevelopmentRotationPeriod, "must be one second to 30 days"
	}
	if s.RotationPeriod < shortest || s.RotationPeriod > maxRotationPeriod {
		add("rotation_period", phrase)
	}
	if s.AutoAttach && s.DefaultSubscriptionID == "" {
		add("default_subscription_id", "is required with auto_attach")
	}
	for _, m := range s.DeliveryMaterials {
		if s.CredentialKind.lacks(m) {
			add("delivery_materials", "must not have "+string(m)+", which integrations of kind "+string(s.CredentialKind)+" do not give: take it out, in the same update where the kind is changed")
		}
	}
	// Labels that stay as they are may be from before there were such rules.
	relabelled := !slices.Equal(s.Labels, before.Labels)
	if relabelled {
		bad = append(bad, resource.CheckLabels(s.Labels)...)
	}
	if s.AutoAttach && len(s.AutoLabels()) == 0 && (relabelled || !before.AutoAttach) {
		add("auto_attach", `attaches nothing without a label that begins with "`+resource.AutoAttachPrefix+`": give it one in the same update or before, or switch auto_attach off with the last one`)
	}
	return bad
}

// Integration is one Entra application of the platform, and its service principal in one customer's tenant.
type Integration struct {
	Name Name
	UID  string
	// Incarnation is that of the database it was read from; see resource.Position.
	Incarnation string
	Spec        Spec

	// What the vault has reported; empty until it has.
	ApplicationDisplayName   string
	ClientID                 string
	ServicePrincipalObjectID string
	// Conditions has at most one of each type, in the order of conditionTypes.
	Conditions []Condition
	// EverActive remembers that it worked once, which is what tells DEGRADED from not ready yet.
	EverActive bool

	// Generation counts the wanted states; conditions do not count.
	Generation int64
	CreateTime time.Time
	UpdateTime time.Time
	// DeleteTime is when deletion was asked for; zero otherwise.
	DeleteTime time.Time
}

// New is an integration as it is created.
func New(now time.Time, name Name, uid string, spec Spec) Integration {
	return Integration{Name: name, UID: uid, Spec: spec.Normal(), Generation: 1, CreateTime: now, UpdateTime: now}
}

// ETag changes with every change of the wanted state, never with a condition.
func (i Integration) ETag() string { return resource.ETag(i.Incarnation, i.UID, i.Generation) }

// Keys are what lists are ordered by.
func (i Integration) Keys() resource.Keys {
	return resource.Keys{Name: i.Name.String(), DisplayName: i.Spec.DisplayName, CreateTime: i.CreateTime, UpdateTime: i.UpdateTime}
}

// Deleting tells whether deletion was asked for.
func (i Integration) Deleting() bool { return !i.DeleteTime.IsZero() }

// Want changes the wanted state; changed is false when it was so already.
func (i Integration) Want(now time.Time, spec Spec) (next Integration, changed bool) {
	spec = spec.Normal()
	if i.Spec.Equal(spec) {
		return i, false
	}
	i.Spec = spec
	i.Generation++
	i.UpdateTime = now
	return i, true
}

// Delete asks for the integration's deletion.
func (i Integration) Delete(now time.Time) Integration {
	i.Generation++
	i.UpdateTime, i.DeleteTime = now, now
	return i
}
