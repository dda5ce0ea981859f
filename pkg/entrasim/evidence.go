package entrasim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrForgotten says that a question is about a time of which the journal keeps
// nothing any more (Config.JournalLife).
var ErrForgotten = errors.New("forgotten")

// CredentialKind tells an application's credentials apart.
type CredentialKind string

// The kinds of credentials.
const (
	KindSecret      CredentialKind = "secret"
	KindCertificate CredentialKind = "certificate"
	KindFederated   CredentialKind = "federated"
)

// Credential is one of an application's credentials, as the token service's
// replicas have it at one moment.
type Credential struct {
	KeyID string         `json:"keyId"`
	Kind  CredentialKind `json:"kind"`
	// Start and End are its validity; a federated credential has none.
	Start time.Time `json:"start,omitzero"`
	End   time.Time `json:"end,omitzero"`
	// Added and Removed are when that was committed, Removed zero when it was not.
	Added   time.Time `json:"added"`
	Removed time.Time `json:"removed,omitzero"`
	// Replicas tells for each whether it has the credential, valid or not. One
	// that does not show the application has none of its credentials.
	Replicas []bool `json:"replicas"`
	// Everywhere and Nowhere sum it up.
	Everywhere bool `json:"everywhere"`
	Nowhere    bool `json:"nowhere"`
}

// Writes is how often an application, its credentials and its principals were
// changed by requests; what the simulator's own interface changed does not count.
type Writes struct {
	Total int `json:"total"`
	Since int `json:"since"`
}

// TokenState says what Graph or Resource Manager, whichever the token is for,
// makes of an access token now. Their replicas agree on it: neither asks the
// token service, so a token outlives its secret and its principal. One for their
// common origin, which both take, is judged as Resource Manager does.
type TokenState struct {
	Plane       Plane     `json:"plane,omitempty"`
	Tenant      string    `json:"tenant,omitempty"`
	ClientID    string    `json:"clientId,omitempty"`
	PrincipalID string    `json:"principalId,omitempty"`
	Expires     time.Time `json:"expires,omitzero"`
	// Works tells whether a request with it is accepted, as far as the token
	// goes; what it may then do is not asked. Problem says why not.
	Works   bool   `json:"works"`
	Problem string `json:"problem,omitempty"`
	// Enabled tells whether its principal is still there and may sign in.
	Enabled bool `json:"enabled"`
}

// evidence is what is known of one application without searching the journal.
// It outlives the application. Journal.evidence holds them by application ID.
type evidence struct {
	writes []int64 // in nanoseconds of Unix time, in order
	// forgotten is how many writes came before those, the last of them at forgottenAt.
	forgotten   int
	forgottenAt int64
	// shown is when the token service's replicas came to show the application, or not.
	shown []edge
	// held are the credentials that have not been removed, and ended those that
	// have, each in that order. A removal may still be on its way to a replica.
	held  []*holding
	ended []*holding
	// endedUntil is until when the last one that was forgotten was seen.
	endedUntil int64
	purged     bool
}

// edge is a change as the token service's replicas come to see it.
type edge struct {
	at      int64 // when it was committed, in nanoseconds of Unix time
	replica Moments
	shows   bool
}

func (e *edge) reached(replica int, at int64) bool {
	return at >= e.at && (replica >= len(e.replica) || e.replica[replica] <= at)
}

// last is when the last replica sees it.
func (e *edge) last() int64 {
	at := e.at
	for _, m := range e.replica {
		at = max(at, m)
	}
	return at
}

// holding is one credential from its addition to its removal.
type holding struct {
	keyID      string
	kind       CredentialKind
	start, end time.Time
	added      edge
	removed    edge
	// until is when no replica has it any more, nor any that was removed before it.
	until int64
}

func (h *holding) seen(replica int, at int64) bool {
	return h.added.reached(replica, at) && (h.removed.at == 0 || !h.removed.reached(replica, at))
}

// witness enters a change into the evidence of its application. What the change
// is about is decided by its contents, not by its kind.
func (j *journal) witness(c *change, e *Entry) {
	if e.Application == "" {
		return
	}
	v := j.evidence[e.Application]
	if v == nil {
		v = &evidence{}
		j.evidence[e.Application] = v
	}
	at := c.Time.UnixNano()
	if c.Actor != control {
		// Requests that meet may commit in another order than they came in.
		i := len(v.writes)
		for i > 0 && v.writes[i-1] > at {
			i--
		}
		v.writes = slices.Insert(v.writes, i, at)
	}
	if a := c.Application; a != nil {
		v.application(c, a, at)
	}
	if sec := c.Secret; sec != nil && sec.Principal == "" {
		if sec.Gone {
			v.remove(sec.KeyID, edge{at: at, replica: sec.Removed})
		} else {
			v.held = append(v.held, &holding{keyID: sec.KeyID, kind: KindSecret, start: sec.Start, end: sec.End, added: edge{at: at, replica: sec.Added}})
		}
	}
	if f := c.Federated; f != nil {
		known := slices.ContainsFunc(v.held, func(h *holding) bool { return h.keyID == f.ID })
		switch {
		case c.Unfederated:
			v.remove(f.ID, edge{at: at, replica: c.Visible.Login})
		case !known:
			v.held = append(v.held, &holding{keyID: f.ID, kind: KindFederated, added: edge{at: at, replica: c.Visible.Login}})
		}
	}
}

// application notes whether the application is there, and its certificates.
func (v *evidence) application(c *change, a *application, at int64) {
	now := edge{at: at, replica: c.Visible.Login, shows: a.Deleted == nil && !c.Purged}
	if len(v.shown) == 0 || v.shown[len(v.shown)-1].shows != now.shows {
		v.shown = append(v.shown, now)
	}
	v.purged = v.purged || c.Purged
	var gone []string
	for _, h := range v.held {
		if c.Purged || (h.kind == KindCertificate && !slices.ContainsFunc(a.Keys, func(k keyCredential) bool { return k.KeyID == h.keyID })) {
			gone = append(gone, h.keyID)
		}
	}
	for _, id := range gone {
		v.remove(id, now)
	}
	for _, k := range a.Keys {
		if !c.Purged && !slices.ContainsFunc(v.held, func(h *holding) bool { return h.keyID == k.KeyID }) {
			v.held = append(v.held, &holding{keyID: k.KeyID, kind: KindCertificate, start: k.Start, end: k.End, added: now})
		}
	}
}

func (v *evidence) remove(keyID string, removed edge) {
	i := slices.IndexFunc(v.held, func(h *holding) bool { return h.keyID == keyID })
	if i < 0 {
		return
	}
	h := v.held[i]
	h.removed, h.until = removed, removed.last()
	if n := len(v.ended); n > 0 {
		h.until = max(h.until, v.ended[n-1].until)
	}
	v.held = slices.Delete(v.held, i, i+1)
	v.ended = append(v.ended, h)
}

// there tells whether a replica shows the application at that time.
func (v *evidence) there(replica int, at int64) bool {
	for i := len(v.shown) - 1; i >= 0; i-- {
		if v.shown[i].reached(replica, at) {
			return v.shown[i].shows
		}
	}
	return false
}

// forget drops what ended before the horizon, and tells whether nothing is left
// of an application that cannot come back.
func (v *evidence) forget(horizon int64) bool {
	if i, _ := slices.BinarySearch(v.writes, horizon); i > 0 {
		v.forgotten, v.forgottenAt = v.forgotten+i, v.writes[i-1]
		v.writes = slices.Clone(v.writes[i:])
	}
	if i := slices.IndexFunc(v.ended, func(h *holding) bool { return h.until >= horizon }); i != 0 && len(v.ended) > 0 {
		if i < 0 {
			i = len(v.ended)
		}
		v.endedUntil = v.ended[i-1].until
		v.ended = slices.Clone(v.ended[i:])
	}
	return v.purged && len(v.writes) == 0 && len(v.held) == 0 && len(v.ended) == 0
}

// evidenceOf finds an application's evidence. The caller holds mu.
func (s *Simulator) evidenceOf(clientID string) (*evidence, error) {
	v := s.journal.evidence[strings.ToLower(clientID)]
	if v == nil {
		return nil, fmt.Errorf("application %q: %w", clientID, ErrNotFound)
	}
	return v, nil
}

// Credentials returns an application's secrets, certificates and federated
// credentials, not those that are a principal's own, that any replica of the token service has at that time or, though
// not removed by then, is yet to get: first those that still stand, then those
// that have been removed since, the last one first. The time may be past, or
// ahead: what has been committed will be seen at moments that are drawn already.
// It costs as much as there stands now and was removed since that time.
func (s *Simulator) Credentials(clientID string, at time.Time) ([]Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.evidenceOf(clientID)
	if err != nil {
		return nil, err
	}
	now := at.UnixNano()
	if now <= v.endedUntil {
		return nil, fmt.Errorf("credentials of application %s at %s: %w", clientID, at.UTC().Format(time.RFC3339), ErrForgotten)
	}
	found := []Credential{}
	for _, h := range v.held {
		if h.added.at <= now {
			found = append(found, s.credential(v, h, now))
		}
	}
	for i := len(v.ended) - 1; i >= 0 && v.ended[i].until > now; i-- {
		if h := v.ended[i]; h.added.at <= now && h.removed.last() > now {
			found = append(found, s.credential(v, h, now))
		}
	}
	return found, nil
}

func (s *Simulator) credential(v *evidence, h *holding, at int64) Credential {
	out := Credential{
		KeyID: h.keyID, Kind: h.kind, Start: h.start, End: h.end, Added: time.Unix(0, h.added.at).UTC(),
		Replicas: make([]bool, s.config.Replicas), Everywhere: true, Nowhere: true,
	}
	if h.removed.at != 0 && h.removed.at <= at {
		out.Removed = time.Unix(0, h.removed.at).UTC()
	}
	for i := range out.Replicas {
		has := h.seen(i, at) && v.there(i, at)
		out.Replicas[i] = has
		out.Everywhere = out.Everywhere && has
		out.Nowhere = out.Nowhere && !has
	}
	return out
}

// Writes returns how often an application was written to, in all and since a
// time (which belongs to it), in logarithmic time. With ErrForgotten Total is
// right all the same.
func (s *Simulator) Writes(clientID string, since time.Time) (Writes, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.evidenceOf(clientID)
	if err != nil {
		return Writes{}, err
	}
	if v.forgotten > 0 && since.UnixNano() <= v.forgottenAt {
		return Writes{Total: v.forgotten + len(v.writes)}, fmt.Errorf("writes to application %s since %s: %w", clientID, since.UTC().Format(time.RFC3339), ErrForgotten)
	}
	i, _ := slices.BinarySearch(v.writes, since.UnixNano())
	return Writes{Total: v.forgotten + len(v.writes), Since: len(v.writes) - i}, nil
}

// TokenState judges an access token as the plane would that it is for. The
// token is not kept.
func (s *Simulator) TokenState(token string) TokenState {
	now := time.Now().UTC()
	out := TokenState{Plane: PlaneARM}
	claims, err := s.checkToken("Bearer "+token, now, s.armResource())
	if errors.Is(err, errTokenAudience) {
		out.Plane = PlaneGraph
		err = claims.judge(now, s.graphResource())
	}
	if claims == nil {
		return TokenState{Problem: errTokenInvalid.Error()}
	}
	if errors.Is(err, errTokenAudience) {
		out.Plane = ""
	}
	out.Tenant, out.ClientID, out.PrincipalID = claims.TenantID, claims.AppID, claims.ObjectID
	out.Expires, out.Works = time.Unix(claims.Expires, 0).UTC(), err == nil
	if err != nil {
		out.Problem = err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.state.principals[claims.ObjectID]; r != nil {
		p := r.latest()
		out.Enabled = p != nil && p.Deleted == nil && p.AccountEnabled
	}
	return out
}
