// Package chain makes a trail of records such that whoever reads it can tell whether it is whole. Each writer has a chain of its own: every
// record has a number, from 1 without gaps, and a hash over its contents and the hash before it. Checkpoints, signed by Ed25519, say from time to
// time what the newest number and hash of each chain are.
//
// It guarantees that a change, a gap, a record that was moved, added or cut off, up to the newest checkpoint that the reader holds, is found by
// anybody who has the public key. It does not guarantee anything about records that no checkpoint covers yet: those are only tied to each other. And
// whoever can cut off checkpoints together with the records they cover is found only by somebody who keeps checkpoints elsewhere.
//
// The tricky idea is Full. A checkpoint names only the chains that have grown, so a reader needs all of them from the first; but now and then one
// names every chain there is. Such a checkpoint is a place to begin: everything before it can be dropped, and it says by which hash each chain goes on.
package chain

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Hash ties a record to all before it in its chain; the zero value is before the first. As text it is lower-case hexadecimal.
type Hash [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(text []byte) error {
	n, err := hex.Decode(h[:], text[:min(len(text), 2*len(h))])
	if err != nil || n != len(h) || len(text) != 2*len(h) {
		return fmt.Errorf("hash must be %d hexadecimal digits", 2*len(h))
	}
	return nil
}

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// HashOf reads a hash of its bytes.
func HashOf(raw []byte) (h Hash, err error) {
	if len(raw) != len(h) {
		return h, fmt.Errorf("hash has %d bytes, not %d", len(raw), len(h))
	}
	copy(h[:], raw)
	return h, nil
}

// Next is the hash of the writer's record of that number and contents, after the one whose hash is before.
func Next(before Hash, writer string, seq int64, content []byte) Hash {
	h := sha256.New()
	// Everything of variable length but the last has its length before it, so nothing can move from one to the other.
	h.Write([]byte("phasekey chain record 1\x00"))
	h.Write(before[:])
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(writer))))
	h.Write([]byte(writer))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(seq))) //nolint:gosec // the same bits
	h.Write(content)
	return Hash(h.Sum(nil))
}

// Head is the newest record of a writer's chain.
type Head struct {
	Writer string `json:"writer"`
	Seq    int64  `json:"seq"`
	Hash   Hash   `json:"hash"`
}

// Checkpoint says how long the chains are.
type Checkpoint struct {
	// Number counts checkpoints, from 1 without gaps.
	Number int64     `json:"number"`
	Time   time.Time `json:"time"`
	// Previous is the digest of the checkpoint before it; see Signed.Digest.
	Previous Hash `json:"previous"`
	// Full: Heads are all chains there are, else those that have grown since the checkpoint before.
	Full  bool   `json:"full,omitempty"`
	Heads []Head `json:"heads"`
	// NextKey is set in the last checkpoint that its key signs: the public key of those after it.
	NextKey ed25519.PublicKey `json:"next_key,omitempty"`
}

// Signed is a checkpoint with its signature. What was signed are these very bytes, so nobody has to write JSON as somebody else does.
type Signed struct {
	// Payload is the checkpoint as JSON.
	Payload []byte `json:"payload"`
	// Signature is by Ed25519, over signedPrefix and the payload.
	Signature []byte `json:"signature"`
}

// signedPrefix keeps the signature from meaning anything elsewhere.
const signedPrefix = "phasekey chain checkpoint 1\x00"

// ErrSignature means that a checkpoint was not signed by the key, or was changed since.
var ErrSignature = errors.New("signature is not by this key")

// Sign signs a checkpoint.
func Sign(c Checkpoint, key ed25519.PrivateKey) (Signed, error) {
	c.Time = c.Time.UTC()
	if c.Heads == nil {
		c.Heads = []Head{}
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return Signed{}, fmt.Errorf("sign checkpoint %d: %w", c.Number, err)
	}
	return Signed{Payload: payload, Signature: ed25519.Sign(key, slices.Concat([]byte(signedPrefix), payload))}, nil
}

// Open returns the checkpoint if the key signed it; else ErrSignature.
func (s Signed) Open(key ed25519.PublicKey) (Checkpoint, error) {
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, slices.Concat([]byte(signedPrefix), s.Payload), s.Signature) {
		return Checkpoint{}, ErrSignature
	}
	return s.Unverified()
}

// Unverified returns what the checkpoint says, whoever wrote it.
func (s Signed) Unverified() (Checkpoint, error) {
	var c Checkpoint
	if err := json.Unmarshal(s.Payload, &c); err != nil {
		return Checkpoint{}, fmt.Errorf("read checkpoint: %w", err)
	}
	return c, nil
}

// Digest is what the next checkpoint names as Previous.
func (s Signed) Digest() Hash { return sha256.Sum256(slices.Concat([]byte(signedPrefix), s.Payload)) }
