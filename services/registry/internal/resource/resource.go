// Package resource is what integrations, projects and attachments have in common: names, etags, page tokens, cursors, and
// the errors by which an operation on one of them is refused.
//
// It is pure: no database, no clock, no wire format. What it encodes (page tokens, cursors) is opaque to callers, and bound
// to the database that it came from, so that nothing of another database is ever mistaken for this one's.
package resource

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// maxIDLength is a DNS label's.
const maxIDLength = 63

// Wildcard stands for every ID of a collection in the parent of a list.
const Wildcard = "-"

// ValidID tells whether id is 1 to 63 of a-z, 0-9 and hyphen, beginning with a letter and not ending with a hyphen.
func ValidID(id string) bool {
	if id == "" || len(id) > maxIDLength || id[0] < 'a' || id[0] > 'z' || id[len(id)-1] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// SplitName gives the IDs in a name that consists of these collections, each followed by a valid ID. It reports false for
// anything else.
func SplitName(name string, collections ...string) (ids []string, ok bool) {
	return split(name, ValidID, collections)
}

// SplitParent is SplitName for the parent of a list, in which every ID may be the Wildcard.
func SplitParent(name string, collections ...string) (ids []string, ok bool) {
	return split(name, func(id string) bool { return id == Wildcard || ValidID(id) }, collections)
}

func split(name string, valid func(string) bool, collections []string) (ids []string, ok bool) {
	segments := strings.Split(name, "/")
	if len(segments) != 2*len(collections) {
		return nil, false
	}
	for i, collection := range collections {
		if segments[2*i] != collection || !valid(segments[2*i+1]) {
			return nil, false
		}
		ids = append(ids, segments[2*i+1])
	}
	return ids, true
}

// Set is a set as a list: in order, each once, nil when there is none.
func Set[T ~string](items []T) []T {
	if len(items) == 0 {
		return nil
	}
	items = slices.Clone(items)
	slices.Sort(items)
	return slices.Compact(items)
}

// ETag is the tag of a resource in its so many-th wanted state, in a database's incarnation: one that was restored counts on from where its backup
// was taken, to other states. It is weak (AIP-154): equal tags mean equal wanted states, while what is observed of them may differ. A resource without
// a UID, which is none yet, has no tag.
func ETag(incarnation, uid string, generation int64) string {
	if uid == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(incarnation + "/" + uid + "/" + strconv.FormatInt(generation, 10)))
	return weak(hex.EncodeToString(sum[:16]))
}

// weak writes an etag as RFC 9110 has weak ones.
func weak(tag string) string { return `W/"` + tag + `"` }
