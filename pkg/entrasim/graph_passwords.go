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

func passwordViews(passwords []password) []map[string]any {
	out := make([]map[string]any, 0, len(passwords))
	for _, p := range passwords {
		out = append(out, p.view())
	}
	return out
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
	rules := s.rulesOf(c, latest.Policy, applicationRules, latest.Created)
	text, added, sec, bad := s.newPassword(c, latest.AppID, rules)
	if bad != nil {
		return *bad
	}
	if bad := s.tooLarge(c, len(latest.Passwords)+1, len(latest.Keys)); bad != nil {
		return *bad
	}
	next := *latest
	next.Passwords = append(slices.Clone(latest.Passwords), added)
	if err := s.commit(&change{
		Time: c.now, Kind: "password.added", Actor: c.actor, RequestID: c.requestID, Application: &next, Secret: sec,
		Visible: record.follow(c.now, Visibility{Graph: s.draw(s.dice.Of(c.actor), c.now, s.config.Lags.Graph)}),
	}); err != nil {
		return unavailable(c)
	}
	return s.shownPassword(c, added, text)
}

// newPassword makes the secret that a request describes, if the rules allow.
func (s *Simulator) newPassword(c *call, appID string, rules rules) (text string, added password, sec *secret, bad *reply) {
	var body addPasswordBody
	if bad := decodeBody(c, &body); bad != nil {
		return "", password{}, nil, bad
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
		bad := c.fail(http.StatusBadRequest, codeBadRequest, "Key credential end date is invalid: it must be after the start date.")
		return "", password{}, nil, &bad
	}
	if bad := rules.judgePassword(c, start, end); bad != nil {
		return "", password{}, nil, bad
	}
	dice := s.dice.Of(c.actor)
	text, sec = newSecret(dice, appID, start, end)
	sec.Added = s.draw(dice, c.now, s.config.Lags.Secret)
	return text, password{KeyID: sec.KeyID, DisplayName: body.PasswordCredential.DisplayName, Hint: text[:3], Start: start, End: end}, sec, nil
}

// shownPassword is the only sight of a secret's text.
func (s *Simulator) shownPassword(c *call, added password, text string) reply {
	c.keyID = added.KeyID
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
	left, gone, bad := s.withoutPassword(c, latest.Passwords, record.secrets)
	if bad != nil {
		return *bad
	}
	next := *latest
	next.Passwords = left
	if err := s.commit(&change{
		Time: c.now, Kind: "password.removed", Actor: c.actor, RequestID: c.requestID, Application: &next, Secret: gone,
		Visible: record.follow(c.now, Visibility{Graph: s.draw(s.dice.Of(c.actor), c.now, s.config.Lags.Graph)}),
	}); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

// withoutPassword takes the secret that a request names from those there are.
func (s *Simulator) withoutPassword(c *call, passwords []password, secrets []*secret) (left []password, gone *secret, bad *reply) {
	refuse := func(text string) ([]password, *secret, *reply) {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, text)
		return nil, nil, &bad
	}
	var body struct {
		KeyID string `json:"keyId"`
	}
	if bad := decodeBody(c, &body); bad != nil {
		return nil, nil, bad
	}
	id := strings.ToLower(body.KeyID)
	if !isGUID(id) {
		return refuse("Invalid value specified for property 'keyId' of resource 'PasswordCredential'.")
	}
	c.keyID = id
	i := slices.IndexFunc(passwords, func(p password) bool { return p.KeyID == id })
	k := slices.IndexFunc(secrets, func(sec *secret) bool { return sec.KeyID == id && !sec.Gone })
	if i < 0 || k < 0 {
		return refuse("No password credential found with keyId " + id + ".")
	}
	sec := *secrets[k]
	sec.Gone = true
	sec.Removed = sec.Added.follow(c.now, s.draw(s.dice.Of(c.actor), c.now, s.config.Lags.Removal))
	return slices.Delete(slices.Clone(passwords), i, i+1), &sec, nil
}
