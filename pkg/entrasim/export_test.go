package entrasim

import (
	"crypto/sha256"
	"math/big"
	"slices"
	"time"
)

// Sign makes the signature of a token and nothing else: the floor beneath what a
// token request can take.
func (s *Simulator) Sign() {
	s.key.sign(sha256.Sum256([]byte("floor")))
}

// Power is x to the power of e modulo m, an odd number of 256 bits.
func Power(x, e, m *big.Int) *big.Int {
	z, exponent := new(big.Int), toWords(e)
	newModulus(m).power(z, x, &exponent)
	return z
}

// Rotate adds a secret to the application and removes the one it has: the two
// changes that requests for that would commit at that time.
func (s *Simulator) Rotate(clientID string, now time.Time) error {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.state.clients[clientID]
	old := *r.secrets[slices.IndexFunc(r.secrets, func(sec *secret) bool { return !sec.Gone })]
	old.Gone, old.Removed = true, s.draw(dice, now, s.config.Lags.Removal)
	_, sec := newSecret(dice, r.appID, now, now.Add(secretLife))
	sec.Added = s.draw(dice, now, s.config.Lags.Secret)
	next := *r.latest()
	next.Passwords = []password{{KeyID: sec.KeyID, Start: sec.Start, End: sec.End}}
	if err := s.commit(&change{Time: now, Kind: "password.added", Actor: r.appID, RequestID: dice.UUID(), Application: &next, Secret: sec}); err != nil {
		return err
	}
	return s.commit(&change{Time: now, Kind: "password.removed", Actor: r.appID, RequestID: dice.UUID(), Application: &next, Secret: &old})
}

// LastSeq is the journal's newest entry.
func (s *Simulator) LastSeq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.journal.seq
}
