package resource

import (
	"crypto/hmac"
	"crypto/sha256"
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

const (
	defaultPageSize = 100
	maxPageSize     = 1000
	pageMACSize     = 16
)

// Page says which part of a list is wanted: at most Size resources below Parent whose names come after After.
type Page struct {
	Parent string
	After  string
	Size   int
}

// NewPage reads a list's request. The token must have been given for this list, of this parent, in this database; else
// ErrPageToken.
func NewPage(incarnation, list, parent, token string, size int32) (Page, error) {
	page := Page{Parent: parent, Size: int(min(size, maxPageSize))}
	if size <= 0 {
		page.Size = defaultPageSize
	}
	if token == "" {
		return page, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) <= pageMACSize {
		return Page{}, ErrPageToken
	}
	page.After = string(raw[pageMACSize:])
	if !hmac.Equal(raw[:pageMACSize], pageMAC(incarnation, list, parent, page.After)) {
		return Page{}, ErrPageToken
	}
	return page, nil
}

// PageToken is what continues a list after the resource named last.
func PageToken(incarnation, list, parent, last string) string {
	return base64.RawURLEncoding.EncodeToString(append(pageMAC(incarnation, list, parent, last), last...))
}

// pageMAC binds a token to its list. It keeps no secret, since a forged token shows nothing that its parent does not show
// anyway; it makes a token used by mistake an error instead of a wrong page.
func pageMAC(incarnation, list, parent, last string) []byte {
	mac := hmac.New(sha256.New, []byte(incarnation))
	mac.Write([]byte(list + "\n" + parent + "\n" + last))
	return mac.Sum(nil)[:pageMACSize]
}
