package entrasim

import (
	"crypto/sha256"
	"time"
)

// Sign makes the signature of a token and nothing else: the floor beneath what a
// token request can take.
func (s *Simulator) Sign() {
	s.key.sign(sha256.Sum256([]byte("floor")))
}

// Rotate adds a secret to the application, once its principal is there, and
// removes the one before: the two changes that requests for that would commit.
func (s *Simulator) Rotate(clientID string, now time.Time) error {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.state.clients[clientID]
	next := *r.latest()
	_, sec := newSecret(dice, clientID, now, now.Add(secretLife))
	sec.Added = s.draw(dice, now, s.config.Lags.Secret)
	next.Passwords = []password{{KeyID: sec.KeyID, Start: sec.Start, End: sec.End}}
	old := *r.secrets[len(r.secrets)-1]
	old.Gone, old.Removed = true, s.draw(dice, now, s.config.Lags.Removal)
	if err := s.commit(&change{Time: now, Kind: "password.added", Actor: clientID, RequestID: dice.UUID(), Application: &next, Secret: sec}); err != nil {
		return err
	}
	return s.commit(&change{Time: now, Kind: "password.removed", Actor: clientID, RequestID: dice.UUID(), Application: &next, Secret: &old})
}
