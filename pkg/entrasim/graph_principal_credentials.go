package entrasim

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

// lockOf is the property lock that an application's home has put on the
// principal, as the replica shows the application; nil when there is none here.
func (s *Simulator) lockOf(c *call, p *principal) *principalLock {
	if p.Tenant == p.HomeTenant && !s.config.LockAtHome {
		return nil
	}
	r := s.state.clients[p.AppID]
	if r == nil {
		return nil
	}
	a := r.seen(PlaneGraph, c.replica, c.now)
	if a == nil || a.Set.ServicePrincipalLock == nil || !a.Set.ServicePrincipalLock.IsEnabled {
		return nil
	}
	return a.Set.ServicePrincipalLock
}

// has tells whether the lock is on and holds all properties or this one.
func (l *principalLock) has(property *bool) bool {
	on := func(b *bool) bool { return b != nil && *b }
	return on(l.AllProperties) || on(property)
}

// lockedCredentials refuses a new credential where they are locked. All that the
// simulator knows are used to verify, none to sign.
func (s *Simulator) lockedCredentials(c *call, p *principal, property string) *reply {
	if l := s.lockOf(c, p); l != nil && l.has(l.CredentialsWithUsageVerify) {
		return locked(c, property)
	}
	return nil
}

func locked(c *call, property string) *reply {
	bad := c.fail(http.StatusBadRequest, "CannotUpdateLockedServicePrincipalProperty", "Property "+property+" is invalid.")
	return &bad
}

// addPrincipalPassword makes a secret of a principal's own, for its tenant alone.
func (s *Simulator) addPrincipalPassword(c *call, key graphKey) reply {
	next, bad := s.changeablePrincipal(c, key)
	if bad != nil {
		return *bad
	}
	if bad := s.lockedCredentials(c, next, "passwordCredentials"); bad != nil {
		return *bad
	}
	text, added, sec, bad := s.newPassword(c, next.AppID, s.rulesOf(c, next.Policy, principalRules, next.Created))
	if bad != nil {
		return *bad
	}
	if bad := s.tooLarge(c, len(next.Passwords)+1, len(next.Keys)); bad != nil {
		return *bad
	}
	sec.Principal = next.ID
	next.Passwords = append(slices.Clone(next.Passwords), added)
	if err := s.commit(s.principalPassword(c, "password.added", next, sec)); err != nil {
		return unavailable(c)
	}
	return s.shownPassword(c, added, text)
}

// removePrincipalPassword takes one away again, locked or not: the lock is
// against what is added and changed.
func (s *Simulator) removePrincipalPassword(c *call, key graphKey) reply {
	next, bad := s.changeablePrincipal(c, key)
	if bad != nil {
		return *bad
	}
	left, gone, bad := s.withoutPassword(c, next.Passwords, s.state.principals[next.ID].secrets)
	if bad != nil {
		return *bad
	}
	next.Passwords = left
	if err := s.commit(s.principalPassword(c, "password.removed", next, gone)); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

// principalPassword is a change of a principal's secrets. What login sees of it
// are the secret's own moments.
func (s *Simulator) principalPassword(c *call, kind string, next *principal, sec *secret) *change {
	return &change{
		Time: c.now, Kind: kind, Actor: c.actor, RequestID: c.requestID, Principal: next, Secret: sec,
		Visible: s.state.principals[next.ID].follow(c.now, Visibility{Graph: s.draw(s.dice.Of(c.actor), c.now, s.config.Lags.Graph)}),
	}
}

func (s *Simulator) changePrincipalKeys(c *call, next *principal, value json.RawMessage) *reply {
	keys, bad := s.keysFrom(c, next.Keys, len(next.Passwords), s.rulesOf(c, next.Policy, principalRules, next.Created), value)
	if bad != nil {
		return bad
	}
	if loses(keys, next.Keys) { // some of them are new
		if bad := s.lockedCredentials(c, next, "keyCredentials"); bad != nil {
			return bad
		}
	}
	next.Keys = keys
	return nil
}

func (s *Simulator) changeTokenEncryption(c *call, next *principal, value json.RawMessage) *reply {
	var id *string
	if err := json.Unmarshal(value, &id); err != nil || (id != nil && !isGUID(*id)) {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, "Invalid value specified for property 'tokenEncryptionKeyId' of resource 'ServicePrincipal'.")
		return &bad
	}
	same := (id == nil) == (next.TokenEncryptionKeyID == nil) && (id == nil || strings.EqualFold(*id, *next.TokenEncryptionKeyID))
	if l := s.lockOf(c, next); !same && l != nil && l.has(l.TokenEncryptionKeyID) {
		return locked(c, "tokenEncryptionKeyId")
	}
	next.TokenEncryptionKeyID = id
	return nil
}
