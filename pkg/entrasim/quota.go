package entrasim

import (
	"fmt"
	"net/http"
	"slices"
	"time"
)

const (
	quotaUnverified = 50_000
	quotaVerified   = 300_000
)

// quotaSetting sets how many objects a tenant's directory may hold.
type quotaSetting struct {
	Tenant  string `json:"tenant"`
	Objects int    `json:"objects"`
}

// Quota is how much of its directory's room a tenant uses. What was deleted counts
// whole for the 30 days in which it can be restored, and a quarter for 30 days
// more, or from when it was deleted for good.
type Quota struct {
	Total int     `json:"total"`
	Used  float64 `json:"used"`
}

// SetQuota sets how many objects a tenant's directory may hold, zero or more, in
// place of 50,000, or 300,000 with a verified domain. It acts at once, on
// applications and principals that requests make; what the simulator's own
// interface makes is not held to it.
func (s *Simulator) SetQuota(tenant string, objects int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(tenant)
	switch {
	case t == nil:
		return fmt.Errorf("tenant %q: %w", tenant, ErrNotFound)
	case objects < 0:
		return fmt.Errorf("quota of %d objects: %w", objects, ErrInvalid)
	}
	return s.commit(&change{Time: time.Now().UTC(), Kind: "quota.set", Actor: control, Quota: &quotaSetting{Tenant: t.ID, Objects: objects}})
}

// Quota tells what SetQuota limits.
func (s *Simulator) Quota(tenant string) (Quota, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(tenant)
	if t == nil {
		return Quota{}, fmt.Errorf("tenant %q: %w", tenant, ErrNotFound)
	}
	return Quota{Total: t.total(), Used: float64(t.quarters(time.Now())) / 4}, nil
}

func (s *Simulator) adminQuota(n quotaSetting) (any, error) {
	if err := s.SetQuota(n.Tenant, n.Objects); err != nil {
		return nil, err
	}
	return s.Quota(n.Tenant)
}

func (st *state) applyQuota(c *change) error {
	q := c.Quota
	if q == nil {
		return nil
	}
	t := st.tenants[q.Tenant]
	if t == nil {
		return fmt.Errorf("tenant %s of quota: %w", q.Tenant, ErrNotFound)
	}
	t.quota = &q.Objects
	return nil
}

// purge notes that an application is gone for good, and forgets those of which
// that is too long ago to count.
func (t *tenantRecord) purge(now time.Time) {
	old := slices.IndexFunc(t.purged, func(at time.Time) bool { return !expired(&at, now) })
	if old < 0 {
		old = len(t.purged)
	}
	t.purged = append(slices.Delete(t.purged, 0, old), now)
}

func (t *tenantRecord) total() int {
	switch {
	case t.quota != nil:
		return *t.quota
	case t.Verified:
		return quotaVerified
	}
	return quotaUnverified
}

// quarters is what the directory holds, in quarters of an object.
func (t *tenantRecord) quarters(now time.Time) int {
	n := 4 * len(t.people)
	count := func(deleted *time.Time) {
		switch {
		case !expired(deleted, now):
			n += 4
		case now.Sub(*deleted) <= 2*keepDeletedDays*24*time.Hour:
			n++
		}
	}
	for _, r := range t.applications {
		if a := r.latest(); a != nil { // else it is among the purged
			count(a.Deleted)
		}
	}
	for _, r := range t.principals {
		count(r.latest().Deleted)
	}
	for _, at := range t.purged {
		if !expired(&at, now) {
			n++
		}
	}
	return n
}

// roomFor tells whether one more object finds room in the directory. Counting
// takes a while, and most have far more room than they need.
func (s *Simulator) roomFor(t *tenantRecord, now time.Time) bool {
	total := t.total()
	atMost := len(t.people) + len(t.applications) + len(t.principals) + len(t.purged)
	return atMost < total || t.quarters(now)+4 <= 4*total
}

// overQuota refuses an object for which the caller's directory has no room.
func (s *Simulator) overQuota(c *call) *reply {
	if s.roomFor(s.state.tenants[c.tenant], c.now) {
		return nil
	}
	bad := c.fail(http.StatusForbidden, "Directory_QuotaExceeded", knownProblems()["90093"].text)
	return &bad
}
