// Package pagetoken makes the tokens by which a list, or a stream, goes on where it ended.
//
// It guarantees that a token says nothing of what is in it, so that nobody comes to rest on that; and that what opens was sealed by a replica of
// this database for the same request: one that is used elsewhere by mistake, was changed, or was made up, is ErrInvalid instead of a wrong page. It does
// not guarantee that the place still exists.
package pagetoken

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
)

// ErrInvalid means a page token that was not given for this request, by this database.
var ErrInvalid = errors.New("not a page token of this list")

// Key reads the key of the database's tokens from its table page_token_keys (id, secret), and makes it where there is none. Of replicas that start at once
// one makes it, and the others wait.
func Key(ctx context.Context, tx sqldb.Tx) (secret.Text, error) {
	fresh := make([]byte, sha256.Size)
	_, _ = rand.Read(fresh) // never fails
	if _, err := tx.Exec(ctx, `INSERT INTO page_token_keys (id, secret) VALUES (1, $1) ON CONFLICT (id) DO NOTHING`, hex.EncodeToString(fresh)); err != nil {
		return secret.Text{}, fmt.Errorf("make the key of page tokens: %w", err)
	}
	var key string
	if err := tx.QueryRow(ctx, `SELECT secret FROM page_token_keys WHERE id = 1`).Scan(&key); err != nil {
		return secret.Text{}, fmt.Errorf("read the key of page tokens: %w", err)
	}
	return secret.New(key), nil
}

// Scope is what a token is good for: a request, as far as it must stay the same from page to page.
type Scope struct {
	// Key is the database's; see Key.
	Key secret.Text
	// Incarnation tells apart what one database was at different times; empty where that is told otherwise.
	Incarnation string
	// List tells the lists of one parent apart.
	List   string
	Parent string
	// Filter and OrderBy are as the caller wrote them.
	Filter, OrderBy string
}

// Seal is the token of a place.
func (s Scope) Seal(place []byte) string {
	return base64.RawURLEncoding.EncodeToString(s.seal().Seal(nil, nil, place, nil)) //nolint:gosec // the nonce is random, and made by the cipher
}

// Open is the place of a token; ErrInvalid when there is none.
func (s Scope) Open(token string) ([]byte, error) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return nil, ErrInvalid
	}
	place, err := s.seal().Open(nil, nil, sealed, nil)
	if err != nil {
		return nil, ErrInvalid
	}
	return place, nil
}

// SealTexts is the token of a place that is some texts, of which all are UTF-8.
func (s Scope) SealTexts(place ...string) string {
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // three of its characters would be six bytes each, and a token has a limit
	// Texts are always encoded, and a builder takes everything.
	_ = encoder.Encode(place)
	return s.Seal([]byte(strings.TrimSuffix(text.String(), "\n")))
}

// OpenTexts is the reverse of SealTexts.
func (s Scope) OpenTexts(token string) ([]string, error) {
	raw, err := s.Open(token)
	if err != nil {
		return nil, err
	}
	var place []string
	if json.Unmarshal(raw, &place) != nil {
		return nil, ErrInvalid
	}
	return place, nil
}

// seal encrypts and authenticates the places of one request, under a key that no other request has.
func (s Scope) seal() cipher.AEAD {
	mac := hmac.New(sha256.New, []byte(s.Key.Expose()))
	for _, part := range []string{s.Incarnation, s.List, s.Parent, s.Filter, s.OrderBy} {
		// With its length before it, no part can be taken for the end of another.
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		mac.Write([]byte(part))
	}
	// A sum of 32 bytes is a key of AES-256, and AES has the block that GCM wants.
	block, _ := aes.NewCipher(mac.Sum(nil))
	aead, _ := cipher.NewGCMWithRandomNonce(block)
	return aead
}
