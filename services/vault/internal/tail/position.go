package tail

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"github.com/google/uuid"

	"phasekey.dev/services/vault/internal/audit"
)

// ErrPosition means that the records cannot be followed from a position: those behind it are not kept any more, were removed, or never were.
var ErrPosition = errors.New("the audit's events cannot be followed from there; begin anew by a time")

// digestSize is how much of a checkpoint's digest tells it from another of the same number, which a database has after a restore.
const digestSize = 8

// Position is up to where a reader has been told everything: what a checkpoint covers, and of the chains that have grown since, so much more.
type Position struct {
	// checkpoint is its number; 0 is before the first.
	checkpoint int64
	digest     [digestSize]byte
	// ahead are the numbers of the newest records of chains that were told further than the checkpoint says.
	ahead map[string]int64
}

// positionAt is the position that a checkpoint is.
func positionAt(c audit.Checkpoint) Position {
	p := Position{checkpoint: c.Number, ahead: map[string]int64{}}
	if c.Number > 0 {
		digest := c.Digest()
		p.digest = [digestSize]byte(digest[:digestSize])
	}
	return p
}

func (p Position) clone() Position {
	p.ahead = maps.Clone(p.ahead)
	return p
}

// Bytes are the position's; see ParsePosition.
func (p Position) Bytes() []byte {
	b := binary.AppendUvarint(nil, uint64(p.checkpoint)) //nolint:gosec // it is not negative
	b = append(b, p.digest[:]...)
	for _, writer := range slices.Sorted(maps.Keys(p.ahead)) {
		id, err := uuid.Parse(writer)
		if err != nil {
			continue // no writer of the vault's
		}
		b = append(b, id[:]...)
		b = binary.AppendUvarint(b, uint64(p.ahead[writer])) //nolint:gosec // it is not negative
	}
	return b
}

// ParsePosition is the position of its bytes; ErrPosition when they are none.
func ParsePosition(b []byte) (Position, error) {
	from := bytes.NewReader(b)
	p := Position{ahead: map[string]int64{}}
	number, err := binary.ReadUvarint(from)
	if err != nil || int64(number) < 0 { //nolint:gosec // which is what is asked
		return Position{}, ErrPosition
	}
	p.checkpoint = int64(number) //nolint:gosec // it is not too large
	if n, _ := from.Read(p.digest[:]); n < digestSize {
		return Position{}, ErrPosition
	}
	for from.Len() > 0 {
		var id uuid.UUID
		if n, _ := from.Read(id[:]); n < len(id) {
			return Position{}, ErrPosition
		}
		seq, err := binary.ReadUvarint(from)
		if err != nil || int64(seq) <= 0 { //nolint:gosec // which is what is asked
			return Position{}, ErrPosition
		}
		p.ahead[id.String()] = int64(seq) //nolint:gosec // it is not too large
	}
	return p, nil
}
