package entrasim

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// view is a password as Graph shows it later: without its text.
func (p password) view() map[string]any {
	return map[string]any{
		"customKeyIdentifier": nil, "displayName": p.DisplayName, "endDateTime": p.End.Format(graphFineTime), "hint": p.Hint,
		"keyId": p.KeyID, "secretText": nil, "startDateTime": p.Start.Format(graphFineTime),
	}
}

type addPasswordBody struct {
	PasswordCredential struct {
		DisplayName *string    `json:"displayName"`
		Start       *time.Time `json:"startDateTime"`
		End         *time.Time `json:"endDateTime"`
	} `json:"passwordCredential"`
}

// addPassword makes a secret and, this once, shows it. The caller cannot choose it.
func (s *Simulator) addPassword(c *call, key graphKey) reply {
	record, latest, bad := s.changeable(c, key)
	if bad != nil {
		return *bad
	}
	var body addPasswordBody
	if bad := decodeBody(c, &body); bad != nil {
		return *bad
	}
	start := c.now
	if t := body.PasswordCredential.Start; t != nil {
		start = t.UTC()
	}
	start = start.Truncate(100 * time.Nanosecond)
	end := start.AddDate(2, 0, 0)
	if t := body.PasswordCredential.End; t != nil {
		end = t.UTC().Truncate(100 * time.Nanosecond)
	}
	if !end.After(start) || start.Year() > 9990 || start.Year() < 1900 || end.Year() > 9999 {
		return c.fail(http.StatusBadRequest, codeBadRequest, "Key credential end date is invalid: it must be after the start date.")
	}
	dice := s.dice.Of(c.actor)
	text, sec := newSecret(dice, record.appID, start, end)
	sec.Added = s.draw(dice, c.now, s.config.Lags.Secret)
	added := password{KeyID: sec.KeyID, DisplayName: body.PasswordCredential.DisplayName, Hint: text[:3], Start: start, End: end}
	next := *latest
	next.Passwords = append(slices.Clone(latest.Passwords), added)
	if err := s.commit(&change{
		Time: c.now, Kind: "password.added", Actor: c.actor, RequestID: c.requestID, Application: &next, Secret: sec,
		Visible: record.follow(c.now, Visibility{Graph: s.draw(dice, c.now, s.config.Lags.Graph)}),
	}); err != nil {
		return unavailable(c)
	}
	c.keyID = sec.KeyID
	shown := added.view()
	shown["secretText"] = text
	shown["@odata.context"] = s.origin(c) + "/v1.0/$metadata#microsoft.graph.passwordCredential"
	out := jsonReply(http.StatusOK, shown)
	out.header.Set("Content-Type", graphContent)
	graphHeaders(c, out.header)
	return out
}

// removePassword takes a secret away. The token service's replicas go on
// accepting it for the removal lag.
func (s *Simulator) removePassword(c *call, key graphKey) reply {
	record, latest, bad := s.changeable(c, key)
	if bad != nil {
		return *bad
	}
	var body struct {
		KeyID string `json:"keyId"`
	}
	if bad := decodeBody(c, &body); bad != nil {
		return *bad
	}
	id := strings.ToLower(body.KeyID)
	if !isGUID(id) {
		return c.fail(http.StatusBadRequest, codeBadRequest, "Invalid value specified for property 'keyId' of resource 'PasswordCredential'.")
	}
	c.keyID = id
	i := slices.IndexFunc(latest.Passwords, func(p password) bool { return p.KeyID == id })
	k := slices.IndexFunc(record.secrets, func(sec *secret) bool { return sec.KeyID == id && !sec.Gone })
	if i < 0 || k < 0 {
		return c.fail(http.StatusBadRequest, codeBadRequest, "No password credential found with keyId "+id+".")
	}
	dice := s.dice.Of(c.actor)
	gone := *record.secrets[k]
	gone.Gone = true
	gone.Removed = gone.Added.follow(c.now, s.draw(dice, c.now, s.config.Lags.Removal))
	next := *latest
	next.Passwords = slices.Delete(slices.Clone(latest.Passwords), i, i+1)
	if err := s.commit(&change{
		Time: c.now, Kind: "password.removed", Actor: c.actor, RequestID: c.requestID, Application: &next, Secret: &gone,
		Visible: record.follow(c.now, Visibility{Graph: s.draw(dice, c.now, s.config.Lags.Graph)}),
	}); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}
