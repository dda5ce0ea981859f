package entrasim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"phasekey.dev/pkg/entrasim/internal/chance"
)

// view is an application as Graph shows it.
func (a *application) view() map[string]any {
	set := a.Set
	return map[string]any{
		"id": a.ID, "appId": a.AppID, "deletedDateTime": graphMoment(a.Deleted), "createdDateTime": a.Created.Format(graphTime),
		"publisherDomain": a.Publisher, "uniqueName": orNull(a.UniqueName), "applicationTemplateId": nil,
		"disabledByMicrosoftStatus": nil, "certification": nil, "addIns": []any{}, "keyCredentials": keyViews(a.Keys, false),
		"passwordCredentials": passwordViews(a.Passwords),
		"displayName":         set.DisplayName, "signInAudience": set.SignInAudience, "description": set.Description, "notes": set.Notes,
		"tags": orEmpty(set.Tags), "identifierUris": orEmpty(set.IdentifierURIs), "groupMembershipClaims": set.GroupMembershipClaims,
		"isFallbackPublicClient": set.IsFallbackPublicClient, "serviceManagementReference": set.ServiceManagement,
		"appRoles": orEmpty(set.AppRoles), "optionalClaims": orDefault(set.OptionalClaims, `null`),
		"info":                              orDefault(set.Info, `{"logoUrl":null,"marketingUrl":null,"privacyStatementUrl":null,"supportUrl":null,"termsOfServiceUrl":null}`),
		"api":                               orDefault(set.API, `{"acceptMappedClaims":null,"knownClientApplications":[],"requestedAccessTokenVersion":null,"oauth2PermissionScopes":[],"preAuthorizedApplications":[]}`),
		"spa":                               redirects{orEmpty(set.SPA.RedirectURIs)},
		"publicClient":                      redirects{orEmpty(set.PublicClient.RedirectURIs)},
		"web":                               set.Web.view(),
		"requiredResourceAccess":            orEmpty(set.RequiredResourceAccess),
		"servicePrincipalLockConfiguration": set.ServicePrincipalLock,
		"parentalControlSettings":           orDefault(set.ParentalControlSettings, `{"countriesBlockedForMinors":[],"legalAgeGroupRule":"Allow"}`),
		"verifiedPublisher":                 orDefault(set.VerifiedPublisher, `{"displayName":null,"verifiedPublisherId":null,"addedDateTime":null}`),
		"requestSignatureVerification":      orDefault(set.RequestSignatureVerify, `null`),
		"samlMetadataUrl":                   set.SamlMetadataURL, "defaultRedirectUri": set.DefaultRedirectURI,
		"tokenEncryptionKeyId": set.TokenEncryptionKeyID, "isDeviceOnlyAuthSupported": set.IsDeviceOnlyAuthSupported,
		"nativeAuthenticationApisEnabled": set.NativeAuthenticationAPIs,
	}
}

func (w webProperties) view() webProperties {
	w.RedirectURIs = orEmpty(w.RedirectURIs)
	if w.RedirectURISettings == nil {
		w.RedirectURISettings = make([]redirectIndex, 0, len(w.RedirectURIs))
		for _, u := range w.RedirectURIs {
			w.RedirectURISettings = append(w.RedirectURISettings, redirectIndex{URI: u})
		}
	}
	return w
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func orDefault(value json.RawMessage, text string) json.RawMessage {
	if value == nil {
		return json.RawMessage(text)
	}
	return value
}

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

func graphMoment(t *time.Time) any {
	if t == nil {
		return nil
	}
	return t.Format(graphTime)
}

// findApplication finds an application of the caller's tenant as the replica
// shows it; value is nil when it does not.
func (s *Simulator) findApplication(c *call, key graphKey) (record *applicationRecord, value *application) {
	switch key.name {
	case "id":
		record = s.state.applications[strings.ToLower(key.value)]
	case "appId":
		record = s.state.clients[strings.ToLower(key.value)]
	case "uniqueName":
		record = s.state.uniqueNames[uniqueKey(c.tenant, key.value)]
	}
	if record == nil || record.tenant != c.tenant {
		return nil, nil
	}
	value = record.seen(PlaneGraph, c.replica, c.now)
	if value == nil || value.Deleted != nil {
		return nil, nil
	}
	return record, value
}

// changeable finds an application for a write: the request must land on a
// replica that shows it, and then acts on what has been committed last.
func (s *Simulator) changeable(c *call, key graphKey) (*applicationRecord, *application, *reply) {
	record, value := s.findApplication(c, key)
	if value == nil || record.latest() == nil || record.latest().Deleted != nil {
		bad := notFound(c, key)
		return nil, nil, &bad
	}
	latest := record.latest()
	if !c.mayChange(latest.Owners) {
		bad := c.fail(http.StatusForbidden, codeDenied, messageDenied)
		return nil, nil, &bad
	}
	if bad := s.conflict(c, record); bad != nil {
		return nil, nil, bad
	}
	return record, latest, nil
}

func (s *Simulator) getApplication(c *call, key graphKey) reply {
	record, a := s.findApplication(c, key)
	if a == nil {
		return notFound(c, key)
	}
	item := a.view()
	if c.URL.Query().Get("$expand") == expandable {
		trusts := []any{}
		for _, r := range record.federated {
			if f := r.seen(PlaneGraph, c.replica, c.now); f != nil {
				trusts = append(trusts, f.view())
			}
		}
		item[expandable] = trusts
	}
	if c.selectsKeys() {
		item["keyCredentials"] = keyViews(a.Keys, true)
	}
	return s.entity(c, http.StatusOK, "applications", item)
}

func (s *Simulator) listApplications(c *call, _ graphKey) reply {
	return s.collection(c, "applications", s.applications(c, func(a *application) bool { return a.Deleted == nil }))
}

func (s *Simulator) applications(c *call, keep func(*application) bool) []listed {
	var items []listed
	for _, r := range s.state.tenants[c.tenant].applications {
		if a := r.seen(PlaneGraph, c.replica, c.now); a != nil && keep(a) {
			items = append(items, listed{r.order, a})
		}
	}
	return items
}

func (a *application) property(name string) (value any, known bool) {
	switch name {
	case "id":
		return a.ID, true
	case "appId":
		return a.AppID, true
	case "uniqueName":
		return orNull(a.UniqueName), true
	case "displayName":
		return a.Set.DisplayName, true
	case "tags":
		return a.Set.Tags, true
	case "identifierUris":
		return a.Set.IdentifierURIs, true
	case "signInAudience":
		return a.Set.SignInAudience, true
	case "publisherDomain":
		return a.Publisher, true
	case "createdDateTime":
		return a.Created.Format(graphTime), true
	}
	return nil, false
}

func (s *Simulator) createApplication(c *call, _ graphKey) reply {
	return s.makeApplication(c, "")
}

// upsertApplication is PATCH applications(uniqueName='…') with the preference
// create-if-missing. The name is looked up where it is kept unique, so that a
// repeat finds what a first request made before any replica shows it.
func (s *Simulator) upsertApplication(c *call, key graphKey) reply {
	if key.value == "" {
		return c.fail(http.StatusBadRequest, codeBadRequest, "Invalid value specified for property 'uniqueName' of resource 'Application'.")
	}
	record := s.state.uniqueNames[uniqueKey(c.tenant, key.value)]
	if record == nil {
		return s.makeApplication(c, key.value)
	}
	if !c.mayChange(record.latest().Owners) {
		return c.fail(http.StatusForbidden, codeDenied, messageDenied)
	}
	if bad := s.conflict(c, record); bad != nil {
		return *bad
	}
	return s.changeApplication(c, record)
}

func (s *Simulator) updateApplication(c *call, key graphKey) reply {
	record, _, bad := s.changeable(c, key)
	if bad != nil {
		return *bad
	}
	return s.changeApplication(c, record)
}

func (s *Simulator) makeApplication(c *call, uniqueName string) reply {
	owners, bad := s.firstOwners(c)
	if bad != nil {
		return *bad
	}
	a := &application{Tenant: c.tenant, Publisher: s.state.tenants[c.tenant].Domain, Created: c.now.Truncate(time.Second), UniqueName: uniqueName, Owners: owners, Set: &applicationProperties{}}
	if bad := s.applyProperties(c, a); bad != nil {
		return *bad
	}
	if a.Set.DisplayName == "" {
		return c.fail(http.StatusBadRequest, codeBadRequest, "A value is required for property 'displayName' of resource 'Application'.")
	}
	if a.Set.SignInAudience == "" {
		a.Set.SignInAudience = "AzureADandPersonalMicrosoftAccount"
	}
	if bad := s.overQuota(c); bad != nil {
		return *bad
	}
	dice := s.dice.Of(c.actor)
	a.ID, a.AppID = dice.UUID(), dice.UUID()
	if err := s.commit(&change{
		Time: c.now, Kind: "application.created", Actor: c.actor, RequestID: c.requestID, Application: a,
		Visible: s.applicationLag(dice, c.now, s.config.Lags.Application),
	}); err != nil {
		return unavailable(c)
	}
	c.application = a.AppID
	return s.entity(c, http.StatusCreated, "applications", a.view())
}

func (s *Simulator) changeApplication(c *call, record *applicationRecord) reply {
	next := *record.latest()
	if bad := s.applyProperties(c, &next); bad != nil {
		return *bad
	}
	login := s.config.Lags.Application
	if loses(record.latest().Keys, next.Keys) {
		login = s.config.Lags.Removal
	}
	if err := s.commitApplication(c, "application.updated", record, &next, s.applicationLag(s.dice.Of(c.actor), c.now, login)); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

func (s *Simulator) commitApplication(c *call, kind string, record *applicationRecord, next *application, visible Visibility) error {
	return s.commit(&change{
		Time: c.now, Kind: kind, Actor: c.actor, RequestID: c.requestID, Application: next, Visible: record.follow(c.now, visible),
	})
}

// applicationLag draws when a written application shows at Graph and at login.
func (s *Simulator) applicationLag(dice *chance.Dice, now time.Time, login Range) Visibility {
	return Visibility{Graph: s.draw(dice, now, s.config.Lags.Graph), Login: s.draw(dice, now, login)}
}

// applyProperties merges the request's body into a: complex properties member
// by member, collections as a whole.
func (s *Simulator) applyProperties(c *call, a *application) *reply {
	fail := func(text string) *reply {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, text)
		return &bad
	}
	var given map[string]json.RawMessage
	if bad := decodeBody(c, &given); bad != nil {
		return bad
	}
	known := a.view()
	for name, value := range given {
		switch {
		case strings.Contains(name, "@odata."):
			delete(given, name)
		case name == "uniqueName":
			if bad := s.nameApplication(c, a, value); bad != nil {
				return bad
			}
			delete(given, name)
		case name == "keyCredentials":
			rules := s.rulesOf(c, a.Policy, applicationRules, a.Created)
			keys, bad := s.keysFrom(c, a.Keys, len(a.Passwords), rules, value)
			if bad != nil {
				return bad
			}
			a.Keys = keys
			delete(given, name)
		case slices.Contains(writableProperties(), name):
		case name == "passwordCredentials" && (string(value) == "null" || string(value) == "[]"):
			delete(given, name)
		case known[name] != nil || name == "deletedDateTime":
			return fail("Property '" + name + "' is read-only and cannot be set.")
		default:
			return fail("Invalid property '" + clip(name, 64) + "'.")
		}
	}
	// A deep copy, so that versions do not share memory that decoding reuses.
	old, err := json.Marshal(a.Set)
	var set applicationProperties
	if err == nil {
		err = json.Unmarshal(old, &set)
	}
	var patch []byte
	if err == nil {
		patch, err = json.Marshal(given)
	}
	if err == nil {
		err = json.Unmarshal(patch, &set)
	}
	if err != nil {
		return fail("A property has a value of the wrong type.")
	}
	if text := set.wrong(); text != "" {
		return fail(text)
	}
	a.Set = &set
	return nil
}

func (s *Simulator) nameApplication(c *call, a *application, value json.RawMessage) *reply {
	var name *string
	err := json.Unmarshal(value, &name)
	text := ""
	switch {
	case err != nil:
		text = "A property has a value of the wrong type."
	case name == nil || *name == a.UniqueName:
	case a.UniqueName != "":
		text = "Property 'uniqueName' is immutable once it is set."
	case s.state.uniqueNames[uniqueKey(a.Tenant, *name)] != nil:
		text = "Another object with the same value for property uniqueName already exists."
	default:
		a.UniqueName = *name
	}
	if text == "" {
		return nil
	}
	bad := c.fail(http.StatusBadRequest, codeBadRequest, text)
	return &bad
}

func writableProperties() []string {
	return []string{
		"displayName", "signInAudience", "description", "notes", "tags", "identifierUris", "groupMembershipClaims",
		"isFallbackPublicClient", "serviceManagementReference", "appRoles", "optionalClaims", "info", "api", "spa", "publicClient",
		"web", "requiredResourceAccess", "servicePrincipalLockConfiguration", "parentalControlSettings", "requestSignatureVerification",
		"samlMetadataUrl", "defaultRedirectUri", "tokenEncryptionKeyId", "isDeviceOnlyAuthSupported", "nativeAuthenticationApisEnabled",
	}
}

// wrong says what is wrong with the properties, nothing when all is well.
func (p applicationProperties) wrong() string {
	audiences := []string{"", "AzureADMyOrg", "AzureADMultipleOrgs", "AzureADandPersonalMicrosoftAccount", "PersonalMicrosoftAccount"}
	switch {
	case !slices.Contains(audiences, p.SignInAudience):
		return "Invalid value specified for property 'signInAudience' of resource 'Application'."
	case utf8.RuneCountInString(p.DisplayName) > 256:
		return "Invalid value specified for property 'displayName' of resource 'Application'."
	}
	for _, r := range p.RequiredResourceAccess {
		if !isGUID(r.ResourceAppID) {
			return fmt.Sprintf("Invalid value '%s' specified for property 'resourceAppId' of resource 'RequiredResourceAccess'.", clip(r.ResourceAppID, 64))
		}
		for _, access := range r.ResourceAccess {
			if !isGUID(access.ID) || (access.Type != "Scope" && access.Type != "Role") {
				return "Invalid value specified for property 'resourceAccess' of resource 'RequiredResourceAccess'."
			}
		}
	}
	return ""
}
