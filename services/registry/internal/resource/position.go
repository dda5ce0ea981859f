package resource

import (
	"encoding/base64"
	"strconv"
	"strings"
)

// Position is a moment of a database: everything up to the revision, nothing after it.
type Position struct {
	// Incarnation tells databases apart: a UUID written when the database was new, and again whenever it was restored from a
	// backup. Revisions of two incarnations cannot be compared.
	Incarnation string
	// Revision counts the changes.
	Revision int64
}

const cursorVersion = "c1"

// Cursor is the position as callers carry it.
func (p Position) Cursor() string {
	return base64.RawURLEncoding.EncodeToString([]byte(cursorVersion + " " + p.Incarnation + " " + strconv.FormatInt(p.Revision, 10)))
}

// ParseCursor reads what Cursor made; anything else is ErrCursor. Whether the position is one of the database that is there now
// only the database can tell.
func ParseCursor(cursor string) (Position, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil {
		return Position{}, ErrCursor
	}
	parts := strings.Split(string(raw), " ")
	if len(parts) != 3 || parts[0] != cursorVersion || parts[1] == "" {
		return Position{}, ErrCursor
	}
	revision, err := strconv.ParseInt(parts[2], 10, 64)
	p := Position{Incarnation: parts[1], Revision: revision}
	// One position, one cursor: no signs, no leading zeros.
	if err != nil || revision < 0 || p.Cursor() != cursor {
		return Position{}, ErrCursor
	}
	return p, nil
}
