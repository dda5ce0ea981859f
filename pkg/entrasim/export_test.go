package entrasim

import "crypto/sha256"

// Sign makes the signature of a token and nothing else: the floor beneath what a
// token request can take.
func (s *Simulator) Sign() {
	s.key.sign(sha256.Sum256([]byte("floor")))
}
