package entrasim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxFederated     = 20
	maxFederatedText = 600                            // characters of issuer, subject, audience and description
	expandable       = "federatedIdentityCredentials" // what an application may be read with
	codeFederated    = "InvalidFederatedIdentityCredentialValue"
)

// view is a federated credential as Graph shows it.
func (f *federated) view() map[string]any {
	return map[string]any{
		"id": f.ID, "name": f.Name, "issuer": f.Issuer, "subject": f.Subject, "audiences": f.Audiences, "description": f.Description,
	}
}

// federatedCollection is how OData names an application's federated credentials.
func federatedCollection(record *applicationRecord) string {
	return "applications('" + record.id + "')/federatedIdentityCredentials"
}

// is tells whether the key names the credential. In a path of its own a segment
// may be its ID or its name.
func (f *federated) is(key graphKey) bool {
	switch key.name {
	case "id":
		return strings.EqualFold(f.ID, key.value) || f.Name == key.value
	case "name":
		return f.Name == key.value
	}
	return false
}

// findFederated finds a federated credential as the replica shows it, value nil
// when it does not.
func (r *applicationRecord) findFederated(c *call) (record *federatedRecord, value *federated) {
	for _, record := range r.federated {
		if f := record.seen(PlaneGraph, c.replica, c.now); f != nil && f.is(c.part) {
			return record, f
		}
	}
	return nil, nil
}

func (s *Simulator) listFederated(c *call, key graphKey) reply {
	app, a := s.findApplication(c, key)
	if a == nil {
		return notFound(c, key)
	}
	var items []listed
	for _, r := range app.federated {
		if f := r.seen(PlaneGraph, c.replica, c.now); f != nil {
			items = append(items, listed{r.order, f})
		}
	}
	return s.collection(c, federatedCollection(app), items)
}

func (f *federated) property(name string) (value any, known bool) {
	switch name {
	case "name":
		return f.Name, true
	case "subject":
		return f.Subject, true
	}
	return nil, false
}

func (s *Simulator) getFederated(c *call, key graphKey) reply {
	app, a := s.findApplication(c, key)
	if a == nil {
		return notFound(c, key)
	}
	_, f := app.findFederated(c)
	if f == nil {
		return notFound(c, c.part)
	}
	c.keyID = f.ID
	return s.entity(c, http.StatusOK, federatedCollection(app), f.view())
}

func (s *Simulator) createFederated(c *call, key graphKey) reply {
	app, _, bad := s.changeable(c, key)
	if bad != nil {
		return *bad
	}
	return s.makeFederated(c, app, "")
}

// upsertFederated is PATCH federatedIdentityCredentials(name='…') with the
// preference create-if-missing. As with applications the name is looked up
// where it is kept unique.
func (s *Simulator) upsertFederated(c *call, key graphKey) reply {
	app, _, bad := s.changeable(c, key)
	if bad != nil {
		return *bad
	}
	for _, r := range app.federated {
		if f := r.latest(); f != nil && f.is(c.part) {
			return s.changeFederated(c, app, r)
		}
	}
	return s.makeFederated(c, app, c.part.value)
}

func (s *Simulator) updateFederated(c *call, key graphKey) reply {
	app, r, bad := s.changeableFederated(c, key)
	if bad != nil {
		return *bad
	}
	return s.changeFederated(c, app, r)
}

// changeableFederated finds a federated credential for a write: the request
// must land on a replica that shows it, and acts on what was committed last.
func (s *Simulator) changeableFederated(c *call, key graphKey) (*applicationRecord, *federatedRecord, *reply) {
	app, _, bad := s.changeable(c, key)
	if bad != nil {
		return nil, nil, bad
	}
	r, f := app.findFederated(c)
	if f == nil || r.latest() == nil {
		bad := notFound(c, c.part)
		return nil, nil, &bad
	}
	return app, r, nil
}

func (s *Simulator) makeFederated(c *call, app *applicationRecord, name string) reply {
	f := &federated{AppID: app.appID, Tenant: app.tenant, Name: name}
	if bad := applyFederated(c, app, f); bad != nil {
		return *bad
	}
	count := 0
	for _, r := range app.federated {
		if r.latest() != nil {
			count++
		}
	}
	if count >= maxFederated {
		return c.fail(http.StatusBadRequest, codeBadRequest, fmt.Sprintf("The application already has the maximum of %d federated identity credentials.", maxFederated))
	}
	f.ID = s.dice.Of(c.actor).UUID()
	if err := s.commit(s.federate(c, "federatedCredential.added", s.config.Lags.Federated, nil, f)); err != nil {
		return unavailable(c)
	}
	c.keyID = f.ID
	return s.entity(c, http.StatusCreated, federatedCollection(app), f.view())
}

func (s *Simulator) changeFederated(c *call, app *applicationRecord, r *federatedRecord) reply {
	c.keyID = r.id
	next := *r.latest()
	if bad := applyFederated(c, app, &next); bad != nil {
		return *bad
	}
	if err := s.commit(s.federate(c, "federatedCredential.updated", s.config.Lags.Federated, r, &next)); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

// deleteFederated takes a federated credential away. The token service's
// replicas go on accepting it for the removal lag.
func (s *Simulator) deleteFederated(c *call, key graphKey) reply {
	_, r, bad := s.changeableFederated(c, key)
	if bad != nil {
		return *bad
	}
	c.keyID = r.id
	ch := s.federate(c, "federatedCredential.removed", s.config.Lags.Removal, r, r.latest())
	ch.Unfederated = true
	if err := s.commit(ch); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

// federate is a change of a federated credential, which the token service sees
// after a lag in login; r is nil when it is new.
func (s *Simulator) federate(c *call, kind string, login Range, r *federatedRecord, f *federated) *change {
	dice := s.dice.Of(c.actor)
	visible := Visibility{Graph: s.draw(dice, c.now, s.config.Lags.Graph), Login: s.draw(dice, c.now, login)}
	if r != nil {
		visible = r.follow(c.now, visible)
	}
	return &change{Time: c.now, Kind: kind, Actor: c.actor, RequestID: c.requestID, Federated: f, Visible: visible}
}

// applyFederated takes the request's body into f and judges the outcome. What a
// value means is not judged: one that fits no token is accepted, and fails
// where tokens are exchanged.
func applyFederated(c *call, app *applicationRecord, f *federated) *reply {
	fail := func(status int, code, text string) *reply {
		bad := c.fail(status, code, text)
		return &bad
	}
	var given map[string]json.RawMessage
	if bad := decodeBody(c, &given); bad != nil {
		return bad
	}
	name := f.Name
	for property, value := range given {
		var err error
		switch {
		case strings.Contains(property, "@odata."):
		case property == "name":
			name, err = textOf(value)
		case property == "issuer":
			f.Issuer, err = textOf(value)
		case property == "subject":
			f.Subject, err = textOf(value)
		case property == "audiences":
			f.Audiences = nil // the old array belongs to the old version
			err = json.Unmarshal(value, &f.Audiences)
		case property == "description":
			f.Description = nil
			err = json.Unmarshal(value, &f.Description)
		case property == "id":
			return fail(http.StatusBadRequest, codeBadRequest, "Property 'id' is read-only and cannot be set.")
		default:
			return fail(http.StatusBadRequest, codeBadRequest, "Invalid property '"+clip(property, 64)+"'.")
		}
		if err != nil {
			return fail(http.StatusBadRequest, codeBadRequest, "A property has a value of the wrong type.")
		}
	}
	if f.Name != "" && name != f.Name {
		return fail(http.StatusBadRequest, codeFederated, "Property 'name' is immutable once it is set.")
	}
	f.Name = name
	if text := f.wrong(); text != "" {
		return fail(http.StatusBadRequest, codeFederated, text)
	}
	for _, r := range app.federated {
		other := r.latest()
		switch {
		case other == nil || other.ID == f.ID:
		case other.Name == f.Name:
			return fail(http.StatusConflict, "Request_MultipleObjectsWithSameKeyValue", "FederatedIdentityCredential with name "+f.Name+" already exists.")
		case other.Issuer == f.Issuer && other.Subject == f.Subject:
			return fail(http.StatusBadRequest, codeFederated, "The combination of issuer and subject must be unique for the application. Issuer "+f.Issuer+" and Subject: "+f.Subject+
				" already exist. paramName: FederatedIdentityCredential.Subject, paramValue: "+f.Subject+", objectType: Microsoft.Online.DirectoryServices.Application")
		}
	}
	return nil
}

// textOf reads a JSON string, and null as an empty one.
func textOf(value json.RawMessage) (text string, err error) {
	err = json.Unmarshal(value, &text)
	return text, err
}

// wrong says what is wrong with the credential's form, nothing when all is well.
func (f *federated) wrong() string {
	if len(f.Audiences) != 1 {
		return "Federated identity credentials must have exactly 1 audience."
	}
	for _, p := range []struct{ name, value string }{{"Issuer", f.Issuer}, {"Subject", f.Subject}, {"Audiences", f.Audiences[0]}} {
		switch {
		case p.value == "":
			return "The value of FederatedIdentityCredential." + p.name + " must not be empty. paramName: FederatedIdentityCredential." + p.name
		case utf8.RuneCountInString(p.value) > maxFederatedText:
			return fmt.Sprintf("The value of FederatedIdentityCredential.%s exceeds %d characters.", p.name, maxFederatedText)
		}
	}
	switch {
	case f.Description != nil && utf8.RuneCountInString(*f.Description) > maxFederatedText:
		return fmt.Sprintf("The value of FederatedIdentityCredential.Description exceeds %d characters.", maxFederatedText)
	case !isFederatedName(f.Name):
		return "The value of FederatedIdentityCredential.Name must have 3 to 120 letters, digits, hyphens and underscores, and begin with a letter or a digit. paramName: FederatedIdentityCredential.Name"
	}
	return ""
}

func isFederatedName(name string) bool {
	if len(name) < 3 || len(name) > 120 || name[0] == '-' || name[0] == '_' {
		return false
	}
	return !slices.ContainsFunc([]byte(name), func(b byte) bool { return !strings.ContainsRune(letters+"-_", rune(b)) })
}
