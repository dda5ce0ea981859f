package entrasim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"phasekey.dev/pkg/entrasim/internal/chance"
)

// Fault is a rule for trouble. Each request meets the rules in the order they
// were added; the first that matches and draws its probability acts, alone.
// Rules are not part of the durable state.
type Fault struct {
	// ID names the rule in the journal; one is made when it is empty.
	ID string `json:"id"`
	// The request it acts on; an empty field matches everything.
	Plane Plane `json:"plane,omitempty"`
	// Operation is a pattern (path.Match) over names such as login.token or
	// graph.application.addPassword.
	Operation string `json:"operation,omitempty"`
	Tenant    string `json:"tenant,omitempty"`
	// Application is the application ID of the caller or of the target.
	Application string `json:"application,omitempty"`
	// Probability of acting on a matching request; 0 means always.
	Probability float64 `json:"probability,omitempty"`
	// Count is how often it acts at most; 0 means without end.
	Count int `json:"count,omitempty"`
	// After and Before bound the time in which it acts.
	After  time.Time `json:"after,omitzero"`
	Before time.Time `json:"before,omitzero"`
	Effect Effect    `json:"effect"`
	// Acted is how often it has acted so far.
	Acted int `json:"acted"`
}

// Effect is what a fault does: it waits for Delay, then, when Status, Code or Cut
// is set, spoils the answer. Without AfterCommit the request is not carried out;
// with it, it is, and only the answer is lost.
type Effect struct {
	Delay time.Duration
	// Status is the HTTP status to answer. Code and Message fill the plane's
	// own error envelope, with usual values when empty; Body replaces it. A Code
	// of the token service, such as 90024, is enough by itself: the rule is then
	// for the login plane, with the status and the text that go with the code.
	Status  int
	Code    string
	Message string
	Body    string
	// RetryAfter, when set, is sent in whole seconds.
	RetryAfter time.Duration
	// Cut breaks the connection instead of answering.
	Cut bool
	// CutBody breaks the connection in the middle of the answer's body: of the
	// one that Status or Code make, or else of the real one, to a request that
	// has been carried out. An answer without a body is cut as by Cut.
	CutBody     bool
	AfterCommit bool
}

type effectJSON struct {
	Delay       string `json:"delay,omitempty"`
	Status      int    `json:"status,omitempty"`
	Code        string `json:"code,omitempty"`
	Message     string `json:"message,omitempty"`
	Body        string `json:"body,omitempty"`
	RetryAfter  string `json:"retryAfter,omitempty"`
	Cut         bool   `json:"cut,omitempty"`
	CutBody     bool   `json:"cutBody,omitempty"`
	AfterCommit bool   `json:"afterCommit,omitempty"`
}

// MarshalJSON writes durations as text, such as "1.5s".
func (e Effect) MarshalJSON() ([]byte, error) {
	j := effectJSON{Status: e.Status, Code: e.Code, Message: e.Message, Body: e.Body, Cut: e.Cut, CutBody: e.CutBody, AfterCommit: e.AfterCommit}
	if e.Delay != 0 {
		j.Delay = e.Delay.String()
	}
	if e.RetryAfter != 0 {
		j.RetryAfter = e.RetryAfter.String()
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes, and nothing more.
func (e *Effect) UnmarshalJSON(text []byte) error {
	var j effectJSON
	// A decoder's strictness does not reach into a method like this one.
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return err
	}
	*e = Effect{Status: j.Status, Code: j.Code, Message: j.Message, Body: j.Body, Cut: j.Cut, CutBody: j.CutBody, AfterCommit: j.AfterCommit}
	for _, d := range []struct {
		text string
		to   *time.Duration
	}{{j.Delay, &e.Delay}, {j.RetryAfter, &e.RetryAfter}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil {
			return err
		}
		*d.to = v
	}
	return nil
}

// faults are the rules in force. Simulator.mu guards them.
type faults struct {
	rules []*Fault
	made  int
}

// AddFault puts a rule in force and returns it with its ID.
func (s *Simulator) AddFault(f Fault) (Fault, error) {
	f.Effect.Code = strings.TrimPrefix(f.Effect.Code, "AADSTS")
	if k, found := knownProblems()[f.Effect.Code]; found && f.Effect.Status == 0 && (f.Plane == "" || f.Plane == PlaneLogin) {
		f.Plane, f.Effect.Status = PlaneLogin, k.status
	}
	switch _, err := path.Match(f.Operation, ""); {
	case err != nil:
		return Fault{}, fmt.Errorf("fault operation %q: %w: %w", f.Operation, ErrInvalid, err)
	case f.Probability < 0 || f.Probability > 1:
		return Fault{}, fmt.Errorf("fault probability %v is not within 0 to 1: %w", f.Probability, ErrInvalid)
	case f.Count < 0 || f.Effect.Delay < 0 || f.Effect.RetryAfter < 0:
		return Fault{}, fmt.Errorf("fault count and durations cannot be negative: %w", ErrInvalid)
	case f.Effect.Status != 0 && (f.Effect.Status < 200 || f.Effect.Status > 599):
		return Fault{}, fmt.Errorf("fault status %d is not within 200 to 599: %w", f.Effect.Status, ErrInvalid)
	case f.Effect.Status == 0 && f.Effect.Code != "":
		return Fault{}, fmt.Errorf("fault code %q has no status of its own on this plane: %w", f.Effect.Code, ErrInvalid)
	case f.Effect.Status == 0 && !f.Effect.Cut && !f.Effect.CutBody && f.Effect.Delay == 0:
		return Fault{}, fmt.Errorf("fault has no effect: set delay, status, code or a cut: %w", ErrInvalid)
	}
	f.Acted = 0
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.ID == "" {
		s.faults.made++
		f.ID = "fault-" + strconv.Itoa(s.faults.made)
	}
	for _, other := range s.faults.rules {
		if other.ID == f.ID {
			return Fault{}, fmt.Errorf("fault %q: %w", f.ID, ErrExists)
		}
	}
	s.faults.rules = append(s.faults.rules, &f)
	return f, nil
}

// RemoveFault takes a rule out of force.
func (s *Simulator) RemoveFault(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults.rules {
		if f.ID == id {
			s.faults.rules = append(s.faults.rules[:i:i], s.faults.rules[i+1:]...)
			return nil
		}
	}
	return fmt.Errorf("fault %q: %w", id, ErrNotFound)
}

// Faults returns the rules in force, with how often each has acted.
func (s *Simulator) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Fault, len(s.faults.rules))
	for i, f := range s.faults.rules {
		out[i] = *f
	}
	return out
}

// strike returns the rule that acts on the call, nil when none does.
func (s *Simulator) strike(c *call, dice *chance.Dice) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults.rules {
		if !f.matches(c) {
			continue
		}
		if f.Probability != 0 && !dice.Chance(f.Probability) {
			continue
		}
		f.Acted++
		acting := *f
		return &acting
	}
	return nil
}

func (f *Fault) matches(c *call) bool {
	if f.Operation != "" {
		if ok, err := path.Match(f.Operation, c.operation); err != nil || !ok {
			return false
		}
	}
	return (f.Count == 0 || f.Acted < f.Count) &&
		(f.Plane == "" || f.Plane == c.plane) &&
		(f.Tenant == "" || f.Tenant == c.tenant) &&
		(f.Application == "" || f.Application == c.application || f.Application == c.actor) &&
		(f.After.IsZero() || !c.now.Before(f.After)) &&
		(f.Before.IsZero() || c.now.Before(f.Before))
}

// answer is what the caller gets in place of the real answer.
func (f *Fault) answer(c *call) reply {
	e := f.Effect
	if e.Cut {
		return reply{cut: true}
	}
	code, message := usualTrouble(c.plane, e.Status)
	if e.Code != "" {
		code = e.Code
	}
	if k, found := knownProblems()[code]; found && c.plane == PlaneLogin {
		message = c.fill(k.text)
		if e.RetryAfter == 0 {
			e.RetryAfter = k.retryAfter
		}
	}
	if e.Message != "" {
		message = e.Message
	}
	r := c.fail(e.Status, code, message)
	if e.Body != "" {
		r.body = []byte(e.Body)
	}
	if e.RetryAfter > 0 {
		retryAfter(r.header, e.RetryAfter)
	}
	return r
}

// retryAfter says so in whole seconds, rounded up.
func retryAfter(h http.Header, d time.Duration) {
	h.Set("Retry-After", strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10))
}

// usualTrouble is the code and text a plane gives with a status.
func usualTrouble(plane Plane, status int) (code, message string) {
	switch {
	case plane == PlaneLogin && status == http.StatusTooManyRequests:
		return "90055", "" // the text goes with the code
	case plane == PlaneLogin:
		return "90033", ""
	case status == http.StatusTooManyRequests:
		return "TooManyRequests", "Too many requests. Please retry after the given time."
	case status == http.StatusConflict && plane == PlaneGraph:
		return "Directory_ConcurrencyViolation", "Error due to concurrent requests being made to the tenant. Please wait briefly and retry."
	case status == http.StatusForbidden && plane == PlaneGraph:
		return codeDenied, messageDenied
	case status == http.StatusGatewayTimeout:
		return "GatewayTimeout", "The gateway did not receive a response within the specified time period."
	case status == http.StatusServiceUnavailable:
		return "ServiceUnavailable", "The service is temporarily unavailable. Please try again later."
	default:
		return "InternalServerError", "Encountered internal server error."
	}
}
