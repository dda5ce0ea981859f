package rpc

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
)

const (
	defaultPage = 100
	maxPage     = 1000
	// pageSum is how many bytes of a page token tie it to its request. It keeps no secret: whoever makes one up lists only
	// what they may list anyway.
	pageSum = 8
)

func pageSize(asked int32) int {
	if asked == 0 {
		return defaultPage
	}
	return min(int(asked), maxPage)
}

// list is what a page is of.
type list string

const (
	grantsList   list = "grants"
	versionsList list = "credential versions"

	rotationsList list = "rotations"
	batchesList   list = "rotation batches"
	pausesList    list = "rotation pauses"

	signingKeysList list = "signing keys"
)

// pageToken says where a list of the parent's goes on.
func pageToken(of list, parent, after string) string {
	return base64.RawURLEncoding.EncodeToString(append(pageCheck(of, parent, after), after...))
}

// parsePageToken is the reverse: errPageToken for what is none, or another list's.
func parsePageToken(of list, parent, token string) (after string, err error) {
	if token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) <= pageSum {
		return "", errPageToken
	}
	after = string(raw[pageSum:])
	if subtle.ConstantTimeCompare(raw[:pageSum], pageCheck(of, parent, after)) != 1 {
		return "", errPageToken
	}
	return after, nil
}

func pageCheck(of list, parent, after string) []byte {
	sum := sha256.Sum256([]byte(string(of) + "\x00" + parent + "\x00" + after))
	return sum[:pageSum]
}
