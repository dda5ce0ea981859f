package entrasim

import (
	"net/http"
	"strings"
)

// deleteApplication puts an application, and its principal at home, into the bin.
func (s *Simulator) deleteApplication(c *call, key graphKey) reply {
	record, latest, bad := s.changeable(c, key)
	if bad != nil {
		return *bad
	}
	deleted := c.now
	next := *latest
	next.Deleted = &deleted
	ch := s.deletion(c, "application.deleted", record, &next)
	if r := s.state.tenants[c.tenant].principal[next.AppID]; r != nil && r.latest().Deleted == nil {
		p := *r.latest()
		p.Deleted = &deleted
		ch.Principal = &p
		ch.PrincipalVisible = r.follow(c.now, s.principalLag(s.dice.Of(c.actor), c.now, s.config.Lags.Removal))
	}
	if err := s.commit(ch); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

func (s *Simulator) deletion(c *call, kind string, record *applicationRecord, next *application) *change {
	return &change{
		Time: c.now, Kind: kind, Actor: c.actor, RequestID: c.requestID, Application: next,
		Visible: record.follow(c.now, s.applicationLag(s.dice.Of(c.actor), c.now, s.config.Lags.Removal)),
	}
}

func (s *Simulator) listDeleted(c *call, _ graphKey) reply {
	return s.collection(c, "applications", s.applications(c, func(a *application) bool {
		return a.Deleted != nil && !expired(a.Deleted, c.now)
	}))
}

// findDeleted finds an application in the bin, as the replica shows it.
func (s *Simulator) findDeleted(c *call, key graphKey) (*applicationRecord, *application) {
	record := s.state.applications[strings.ToLower(key.value)]
	if record == nil || record.tenant != c.tenant {
		return nil, nil
	}
	a := record.seen(PlaneGraph, c.replica, c.now)
	if a == nil || a.Deleted == nil || expired(a.Deleted, c.now) {
		return nil, nil
	}
	return record, a
}

func (s *Simulator) getDeleted(c *call, key graphKey) reply {
	_, a := s.findDeleted(c, key)
	if a == nil {
		return notFound(c, key)
	}
	item := a.view()
	item["@odata.type"] = "#microsoft.graph.application"
	return s.entity(c, http.StatusOK, "directoryObjects", item)
}

// binned finds an application in the bin for a write.
func (s *Simulator) binned(c *call, key graphKey) (*applicationRecord, *reply) {
	record, a := s.findDeleted(c, key)
	if a == nil || record.latest() == nil || record.latest().Deleted == nil {
		bad := notFound(c, key)
		return nil, &bad
	}
	if !c.mayChange(a.Owners) {
		bad := c.fail(http.StatusForbidden, codeDenied, messageDenied)
		return nil, &bad
	}
	return record, s.conflict(c, record)
}

func (s *Simulator) purgeDeleted(c *call, key graphKey) reply {
	record, bad := s.binned(c, key)
	if bad != nil {
		return *bad
	}
	ch := s.deletion(c, "application.purged", record, record.latest())
	ch.Purged = true
	if err := s.commit(ch); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

func (s *Simulator) restoreDeleted(c *call, key graphKey) reply {
	record, bad := s.binned(c, key)
	if bad != nil {
		return *bad
	}
	next := *record.latest()
	if next.UniqueName != "" && s.state.uniqueNames[uniqueKey(c.tenant, next.UniqueName)] != nil {
		return c.fail(http.StatusBadRequest, codeBadRequest, "Another object with the same value for property uniqueName already exists.")
	}
	deleted := next.Deleted
	next.Deleted = nil
	dice := s.dice.Of(c.actor)
	ch := &change{
		Time: c.now, Kind: "application.restored", Actor: c.actor, RequestID: c.requestID, Application: &next,
		Visible: record.follow(c.now, s.applicationLag(dice, c.now, s.config.Lags.Application)),
	}
	// Its principal at home comes back if it went at the same time.
	if r := s.state.tenants[c.tenant].principal[next.AppID]; r != nil && r.latest().Deleted != nil && r.latest().Deleted.Equal(*deleted) {
		p := *r.latest()
		p.Deleted = nil
		ch.Principal = &p
		ch.PrincipalVisible = r.follow(c.now, s.principalLag(dice, c.now, s.config.Lags.Principal))
	}
	if err := s.commit(ch); err != nil {
		return unavailable(c)
	}
	item := next.view()
	item["@odata.type"] = "#microsoft.graph.application"
	return s.entity(c, http.StatusOK, "directoryObjects", item)
}
