package entrasim

import (
	"fmt"
	"net/http"
	"time"
)

// WriteConflicts says how writes to one application, its passwords and its
// federated credentials among them, get in each other's way.
type WriteConflicts struct {
	// Probability that a write is refused, by 409 Directory_ConcurrencyViolation,
	// because another one was made while it was under way, or within Window
	// before it. What is refused is not carried out.
	Probability float64
	// Window is how long a write stands in the way of the next one.
	Window time.Duration
	// RemovalProbability that removePassword fails, by 500, within Window after
	// a password was added to the application. It is not carried out.
	RemovalProbability float64
}

func (w WriteConflicts) check() error {
	within := func(p float64) bool { return p >= 0 && p <= 1 }
	if within(w.Probability) && within(w.RemovalProbability) && w.Window >= 0 {
		return nil
	}
	return fmt.Errorf("write conflicts: probabilities %v and %v are not within 0 to 1, or window %v is negative: %w",
		w.Probability, w.RemovalProbability, w.Window, ErrInvalid)
}

// conflict refuses a write that another one is in the way of. The caller holds mu.
func (s *Simulator) conflict(c *call, record *applicationRecord) *reply {
	w, dice := s.config.WriteConflicts, s.dice.Of(c.actor)
	recent := func(t time.Time) bool { return !t.IsZero() && c.now.Sub(t) < w.Window }
	removal := c.operation == "graph.application.removePassword" && recent(record.passwordAdded)
	status := 0
	switch {
	case w.RemovalProbability > 0 && removal && dice.Chance(w.RemovalProbability):
		status = http.StatusInternalServerError
	case w.Probability > 0 && (recent(record.written) || record.written.After(c.came)) && dice.Chance(w.Probability):
		status = http.StatusConflict
	default:
		return nil
	}
	code, message := usualTrouble(PlaneGraph, status)
	bad := c.fail(status, code, message)
	return &bad
}
