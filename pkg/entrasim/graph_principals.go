package entrasim

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"phasekey.dev/pkg/entrasim/internal/chance"
)

// view is a service principal as Graph shows it.
func (p *principal) view() map[string]any {
	return map[string]any{
		"id": p.ID, "appId": p.AppID, "appDisplayName": p.DisplayName, "displayName": p.DisplayName,
		"appOwnerOrganizationId": p.HomeTenant, "accountEnabled": p.AccountEnabled, "deletedDateTime": graphMoment(p.Deleted),
		"createdDateTime": p.Created.Format(graphTime), "servicePrincipalNames": []string{p.AppID}, "servicePrincipalType": "Application",
		"replyUrls": orEmpty(p.ReplyURLs), "tags": orEmpty(p.Tags), "alternativeNames": []any{}, "appRoles": []any{},
		"passwordCredentials": passwordViews(p.Passwords), "keyCredentials": keyViews(p.Keys, false), "tokenEncryptionKeyId": p.TokenEncryptionKeyID,
		"oauth2PermissionScopes":    []any{},
		"appRoleAssignmentRequired": false, "appDescription": nil, "description": nil, "notes": nil, "homepage": nil, "loginUrl": nil, "logoutUrl": nil,
		"signInAudience": nil, "info": nil, "verifiedPublisher": nil, "applicationTemplateId": nil, "disabledByMicrosoftStatus": nil,
	}
}

// principalLag draws when a written principal shows at Graph and at login.
func (s *Simulator) principalLag(dice *chance.Dice, now time.Time, login Range) Visibility {
	return Visibility{Graph: s.draw(dice, now, s.config.Lags.Graph), Login: s.draw(dice, now, login)}
}

func (s *Simulator) findPrincipal(c *call, key graphKey) (*principalRecord, *principal) {
	var record *principalRecord
	switch key.name {
	case "id":
		record = s.state.principals[strings.ToLower(key.value)]
	case "appId":
		record = s.state.tenants[c.tenant].principal[strings.ToLower(key.value)]
	}
	if record == nil || record.tenant != c.tenant {
		return nil, nil
	}
	p := record.seen(PlaneGraph, c.replica, c.now)
	if p == nil || p.Deleted != nil {
		return nil, nil
	}
	return record, p
}

func (s *Simulator) getPrincipal(c *call, key graphKey) reply {
	_, p := s.findPrincipal(c, key)
	if p == nil {
		return notFound(c, key)
	}
	item := p.view()
	if c.selectsKeys() {
		item["keyCredentials"] = keyViews(p.Keys, true)
	}
	return s.entity(c, http.StatusOK, "servicePrincipals", item)
}

func (s *Simulator) listPrincipals(c *call, _ graphKey) reply {
	var items []listed
	for _, r := range s.state.tenants[c.tenant].principals {
		if p := r.seen(PlaneGraph, c.replica, c.now); p != nil && p.Deleted == nil {
			items = append(items, listed{r.order, p})
		}
	}
	return s.collection(c, "servicePrincipals", items)
}

func (p *principal) property(name string) (value any, known bool) {
	switch name {
	case "id":
		return p.ID, true
	case "appId":
		return p.AppID, true
	case "displayName", "appDisplayName":
		return p.DisplayName, true
	case "appOwnerOrganizationId":
		return p.HomeTenant, true
	case "accountEnabled":
		return p.AccountEnabled, true
	case "servicePrincipalNames":
		return []string{p.AppID}, true
	case "servicePrincipalType":
		return "Application", true
	case "tags":
		return p.Tags, true
	}
	return nil, false
}

// createPrincipal makes an application's principal in the caller's own tenant.
func (s *Simulator) createPrincipal(c *call, _ graphKey) reply {
	var body struct {
		AppID string   `json:"appId"`
		Tags  []string `json:"tags"`
	}
	if bad := decodeBody(c, &body); bad != nil {
		return *bad
	}
	id := strings.ToLower(body.AppID)
	var a *application
	if r := s.state.clients[id]; r != nil {
		a = r.seen(PlaneGraph, c.replica, c.now)
	}
	if a == nil || a.Deleted != nil || (a.Tenant != c.tenant && a.Set.SignInAudience == "AzureADMyOrg") {
		return c.fail(http.StatusBadRequest, codeBadRequest, "The appId '"+clip(body.AppID, 64)+"' of the service principal does not reference a valid application object.")
	}
	c.application = id
	if !c.mayChange(a.Owners) {
		return c.fail(http.StatusForbidden, codeDenied, messageDenied)
	}
	if r := s.state.tenants[c.tenant].principal[id]; r != nil && r.latest().Deleted == nil {
		return c.fail(http.StatusConflict, "Request_MultipleObjectsWithSameKeyValue", "The service principal cannot be created, updated, or restored because the service principal name "+id+" is already in use.")
	}
	owners, bad := s.firstOwners(c)
	if bad != nil {
		return *bad
	}
	if bad := s.overQuota(c); bad != nil {
		return *bad
	}
	dice := s.dice.Of(c.actor)
	p := &principal{
		ID: dice.UUID(), Tenant: c.tenant, AppID: id, HomeTenant: a.Tenant, DisplayName: a.Set.DisplayName, AccountEnabled: true,
		Created: c.now, ReplyURLs: a.Set.Web.RedirectURIs, Tags: body.Tags, Owners: owners,
	}
	if err := s.commit(&change{
		Time: c.now, Kind: "principal.created", Actor: c.actor, RequestID: c.requestID, Principal: p,
		Visible: s.principalLag(dice, c.now, s.config.Lags.Principal),
	}); err != nil {
		return unavailable(c)
	}
	return s.entity(c, http.StatusCreated, "servicePrincipals", p.view())
}

// changeablePrincipal finds a principal for a write.
func (s *Simulator) changeablePrincipal(c *call, key graphKey) (*principal, *reply) {
	record, p := s.findPrincipal(c, key)
	if p == nil || record.latest().Deleted != nil {
		bad := notFound(c, key)
		return nil, &bad
	}
	if !c.mayChange(record.latest().Owners) {
		bad := c.fail(http.StatusForbidden, codeDenied, messageDenied)
		return nil, &bad
	}
	next := *record.latest()
	return &next, nil
}

func (s *Simulator) updatePrincipal(c *call, key graphKey) reply {
	next, bad := s.changeablePrincipal(c, key)
	if bad != nil {
		return *bad
	}
	var given map[string]json.RawMessage
	if bad := decodeBody(c, &given); bad != nil {
		return *bad
	}
	for name, value := range given {
		var err error
		switch {
		case strings.Contains(name, "@odata."):
		case name == "keyCredentials":
			if bad := s.changePrincipalKeys(c, next, value); bad != nil {
				return *bad
			}
		case name == "tokenEncryptionKeyId":
			if bad := s.changeTokenEncryption(c, next, value); bad != nil {
				return *bad
			}
		case name == "accountEnabled":
			err = json.Unmarshal(value, &next.AccountEnabled)
		case name == "tags":
			next.Tags = nil // the old array belongs to the old version
			err = json.Unmarshal(value, &next.Tags)
		default:
			return c.fail(http.StatusBadRequest, codeBadRequest, "Property '"+clip(name, 64)+"' cannot be set here.")
		}
		if err != nil {
			return c.fail(http.StatusBadRequest, codeBadRequest, "A property has a value of the wrong type.")
		}
	}
	if err := s.commit(s.principalChange(c.now, next, s.dice.Of(c.actor), c.actor, c.requestID)); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

func (s *Simulator) deletePrincipal(c *call, key graphKey) reply {
	next, bad := s.changeablePrincipal(c, key)
	if bad != nil {
		return *bad
	}
	deleted := c.now
	next.Deleted = &deleted
	if err := s.commit(s.principalChange(c.now, next, s.dice.Of(c.actor), c.actor, c.requestID)); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

// principalChange is the update or, when next says so, the deletion of a principal.
func (s *Simulator) principalChange(now time.Time, next *principal, dice *chance.Dice, actor, requestID string) *change {
	kind, lag := "principal.updated", s.config.Lags.Principal
	switch {
	case next.Deleted != nil:
		kind, lag = "principal.deleted", s.config.Lags.Removal
	case loses(s.state.principals[next.ID].latest().Keys, next.Keys):
		lag = s.config.Lags.Removal
	}
	return &change{
		Time: now, Kind: kind, Actor: actor, RequestID: requestID, Principal: next,
		Visible: s.state.principals[next.ID].follow(now, s.principalLag(dice, now, lag)),
	}
}

func (s *Simulator) listOrganization(c *call, _ graphKey) reply {
	return s.collection(c, "organization", []listed{{1, organization{s.state.tenants[c.tenant]}}})
}

func (s *Simulator) getOrganization(c *call, key graphKey) reply {
	if !strings.EqualFold(key.value, c.tenant) {
		return notFound(c, key)
	}
	return s.entity(c, http.StatusOK, "organization", organization{s.state.tenants[c.tenant]}.view())
}

// organization is a tenant as Graph has it.
type organization struct{ *tenantRecord }

func (t organization) property(name string) (value any, known bool) {
	switch name {
	case "id":
		return t.ID, true
	case "displayName":
		return t.DisplayName, true
	}
	return nil, false
}

func (t organization) view() map[string]any {
	return map[string]any{
		"id": t.ID, "displayName": t.DisplayName, "createdDateTime": t.Created.Format(graphTime), "deletedDateTime": nil, "tenantType": "AAD",
		"verifiedDomains": []any{map[string]any{"name": t.Domain, "isDefault": true, "isInitial": !t.Verified, "capabilities": "Email, OfficeCommunicationsOnline", "type": "Managed"}},
	}
}
