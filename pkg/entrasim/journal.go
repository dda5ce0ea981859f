package entrasim

import (
	"slices"
	"time"
)

// KindRequest is the kind of the entry a request leaves; every other kind is a
// change: tenant.created, signIn.blocked and .unblocked, person.created, subscription.created, key.created,
// application.created, .updated, .deleted, .restored and .purged,
// password.added and .removed, federatedCredential.added, .updated and .removed, principal.created, .updated and .deleted,
// policy.created, .updated and .deleted, quota.set,
// role.assigned and .removed, group.written and .deleted, provider.registered.
const KindRequest = "request"

// Entry is one line of the journal. It never holds a secret's text or a token.
type Entry struct {
	// Seq orders all entries; changes keep theirs over a restart.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	// Actor is who asked: an application ID, or "control" for the simulator's
	// own interface, or "anonymous".
	Actor     string `json:"actor,omitempty"`
	RequestID string `json:"requestId,omitempty"`
	Tenant    string `json:"tenant,omitempty"`
	// Application is the application ID of the thing asked for or changed.
	Application string `json:"application,omitempty"`
	// Object is the object ID, or resource ID, of what was changed.
	Object string `json:"object,omitempty"`
	// KeyID names the credential that was added, changed, removed or used: a
	// secret's or certificate's key ID, or a federated credential's ID.
	KeyID string `json:"keyId,omitempty"`

	// Of changes: when the replicas show it. For a removed secret, when they
	// stop accepting it.
	Visible Visibility `json:"visible,omitzero"`

	// Of requests.
	Plane     Plane         `json:"plane,omitempty"`
	Operation string        `json:"operation,omitempty"`
	Method    string        `json:"method,omitempty"`
	Path      string        `json:"path,omitempty"` // without the query
	Status    int           `json:"status,omitempty"`
	Code      string        `json:"code,omitempty"` // the error's code, such as AADSTS7000215
	Replica   int           `json:"replica"`
	Fault     string        `json:"fault,omitempty"` // the rule that acted
	Lost      bool          `json:"lost,omitempty"`  // carried out, but the caller got no answer
	Took      time.Duration `json:"took,omitempty"`
}

// Query selects journal entries; its zero value selects all. A set field must
// match; Since is inclusive, Until exclusive.
type Query struct {
	// After has only entries with a higher Seq. Requests are not durable, so a
	// state folder that is opened again counts on from the last change: until a
	// restart, and no longer, is nothing missed after the Seq of a request.
	After       uint64
	Since       time.Time
	Until       time.Time
	Kinds       []string
	Plane       Plane
	Operation   string
	Tenant      string
	Application string
	KeyID       string
	Limit       int // 0: no limit
}

func (q Query) matches(e *Entry) bool {
	return e.Seq > q.After &&
		(q.Since.IsZero() || !e.Time.Before(q.Since)) &&
		(q.Until.IsZero() || e.Time.Before(q.Until)) &&
		(len(q.Kinds) == 0 || slices.Contains(q.Kinds, e.Kind)) &&
		(q.Plane == "" || q.Plane == e.Plane) &&
		(q.Operation == "" || q.Operation == e.Operation) &&
		(q.Tenant == "" || q.Tenant == e.Tenant) &&
		(q.Application == "" || q.Application == e.Application) &&
		(q.KeyID == "" || q.KeyID == e.KeyID)
}

// journal keeps the changes, for life if that is set, and the newest requests;
// and what both are asked for most. Simulator.mu guards it.
type journal struct {
	seq      uint64
	limit    int
	life     time.Duration // 0: for ever
	changes  []past
	requests []Entry
	evidence map[string]*evidence // by application ID
}

// past is a change's entry with nothing in it that only requests have: there
// are hundreds of thousands in a year.
type past struct {
	seq                                                        uint64
	at                                                         int64 // in nanoseconds of Unix time
	kind, actor, requestID, tenant, application, object, keyID string
	visible                                                    Visibility
}

func (p *past) entry() Entry {
	return Entry{
		Seq: p.seq, Time: time.Unix(0, p.at).UTC(), Kind: p.kind, Actor: p.actor, RequestID: p.requestID,
		Tenant: p.tenant, Application: p.application, Object: p.object, KeyID: p.keyID, Visible: p.visible,
	}
}

func (j *journal) next() uint64 {
	j.seq++
	return j.seq
}

func (j *journal) addRequest(e Entry) {
	e.Seq = j.next()
	j.requests = append(j.requests, e)
	// Cut in large steps: moving a slice for each request would cost more than
	// the memory it saves.
	if len(j.requests) >= 2*j.limit {
		j.requests = append(make([]Entry, 0, 2*j.limit), j.requests[len(j.requests)-j.limit:]...)
	}
}

func (j *journal) addChange(c *change) {
	j.seq = max(j.seq, c.Seq)
	e := c.entry()
	j.changes = append(j.changes, past{
		seq: e.Seq, at: e.Time.UnixNano(), kind: e.Kind, actor: e.Actor, requestID: e.RequestID,
		tenant: e.Tenant, application: e.Application, object: e.Object, keyID: e.KeyID, visible: e.Visible,
	})
	j.witness(c, &e)
	if j.life > 0 {
		j.forget(c.Time.Add(-j.life).UnixNano())
	}
}

// forget drops the changes before the horizon once they are half of all, so that
// each is moved once or twice in its life.
func (j *journal) forget(horizon int64) {
	const few = 1024
	if len(j.changes) < few || j.changes[len(j.changes)/2].at >= horizon {
		return
	}
	j.changes = slices.Clone(slices.DeleteFunc(j.changes, func(p past) bool { return p.at < horizon }))
	for id, v := range j.evidence {
		if v.forget(horizon) {
			delete(j.evidence, id)
		}
	}
}

func (c *change) entry() Entry {
	e := Entry{Seq: c.Seq, Time: c.Time, Kind: c.Kind, Actor: c.Actor, RequestID: c.RequestID, Visible: c.Visible}
	switch {
	case c.Secret != nil:
		e.Application, e.KeyID = c.Secret.AppID, c.Secret.KeyID
		e.Visible.Login = c.Secret.Added
		if c.Secret.Gone {
			e.Visible.Login = c.Secret.Removed
		}
		if c.Application != nil {
			e.Tenant, e.Object = c.Application.Tenant, c.Application.ID
		}
		if c.Principal != nil {
			e.Tenant, e.Object = c.Principal.Tenant, c.Principal.ID
		}
	case c.Federated != nil:
		e.Tenant, e.Application, e.Object, e.KeyID = c.Federated.Tenant, c.Federated.AppID, c.Federated.ID, c.Federated.ID
	case c.Application != nil:
		e.Tenant, e.Application, e.Object = c.Application.Tenant, c.Application.AppID, c.Application.ID
	case c.Principal != nil:
		e.Tenant, e.Application, e.Object = c.Principal.Tenant, c.Principal.AppID, c.Principal.ID
	case c.Assignment != nil:
		e.Tenant, e.Object = c.Assignment.Tenant, c.Assignment.ID
	case c.Denial != nil:
		e.Tenant, e.Object = c.Denial.Tenant, c.Denial.ID
	case c.Management != nil:
		e.Tenant, e.Object = c.Management.Tenant, managementScope(c.Management.ID)
	case c.Group != nil:
		e.Object = groupID(c.Group)
	case c.Registration != nil:
		e.Object = providerID(c.Registration.Subscription, c.Registration.Namespace)
	case c.Tenant != nil:
		e.Tenant = c.Tenant.ID
	case c.Policy != nil:
		e.Tenant, e.Object = c.Policy.Tenant, c.Policy.ID
	case c.Quota != nil:
		e.Tenant = c.Quota.Tenant
	case c.Block != nil:
		e.Tenant, e.Application = c.Block.Tenant, c.Block.ClientID
	case c.Person != nil:
		e.Tenant, e.Object = c.Person.Tenant, c.Person.ID
	case c.Subscription != nil:
		e.Tenant, e.Object = c.Subscription.Tenant, c.Subscription.ID
	}
	return e
}

// Journal returns the matching entries in order. With After set to the last
// entry's Seq it costs only what is new, so a judge may ask after every event.
func (s *Simulator) Journal(q Query) []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	later := func(is, seq uint64) int {
		if is > seq {
			return 1
		}
		return -1
	}
	i, _ := slices.BinarySearchFunc(s.journal.changes, q.After, func(p past, seq uint64) int { return later(p.seq, seq) })
	k, _ := slices.BinarySearchFunc(s.journal.requests, q.After, func(e Entry, seq uint64) int { return later(e.Seq, seq) })
	changes, requests := s.journal.changes[i:], s.journal.requests[k:]
	found := []Entry{}
	for (len(changes) > 0 || len(requests) > 0) && (q.Limit <= 0 || len(found) < q.Limit) {
		var e Entry
		if len(requests) == 0 || (len(changes) > 0 && changes[0].seq < requests[0].Seq) {
			e, changes = changes[0].entry(), changes[1:]
		} else {
			e, requests = requests[0], requests[1:]
		}
		if q.matches(&e) {
			found = append(found, e)
		}
	}
	return found
}
