package resource

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"phasekey.dev/pkg/secret"
)

// Key is a field by which a list can be ordered. Texts are compared by their bytes.
type Key string

// The keys there are. A name is unique, so that an order that has it is total.
const (
	ByName        Key = "name"
	ByDisplayName Key = "display_name"
	ByCreateTime  Key = "create_time"
	ByUpdateTime  Key = "update_time"
)

// IsTime tells whether the key's values are times.
func (k Key) IsTime() bool { return k == ByCreateTime || k == ByUpdateTime }

// Order is one key of an order, and its direction.
type Order struct {
	By   Key
	Desc bool
}

// Total makes a total order of one that may be empty: by name in the end, and by nothing after that.
func Total(order []Order) []Order {
	isName := func(o Order) bool { return o.By == ByName }
	if i := slices.IndexFunc(order, isName); i >= 0 {
		return order[: i+1 : i+1]
	}
	return append(slices.Clip(order), Order{By: ByName})
}

// Keys are what a resource has of each Key; DisplayName is empty where it has none.
type Keys struct {
	Name, DisplayName      string
	CreateTime, UpdateTime time.Time
}

// Place is where a resource stands in an order: the values of the order's keys, times in microseconds since 1970.
func (k Keys) Place(order []Order) Place {
	place := make(Place, len(order))
	for i, o := range order {
		switch o.By {
		case ByName:
			place[i] = k.Name
		case ByDisplayName:
			place[i] = k.DisplayName
		case ByCreateTime:
			place[i] = strconv.FormatInt(k.CreateTime.UnixMicro(), 10)
		case ByUpdateTime:
			place[i] = strconv.FormatInt(k.UpdateTime.UnixMicro(), 10)
		}
	}
	return place
}

// Place is a place in an order.
type Place []string

// fits tells whether a place can be one of the order.
func (p Place) fits(order []Order) bool {
	if len(p) != len(order) {
		return false
	}
	for i, o := range order {
		if _, err := strconv.ParseInt(p[i], 10, 64); o.By.IsTime() && err != nil {
			return false
		}
	}
	return true
}

const (
	defaultPageSize = 100
	maxPageSize     = 1000
)

// Page says which part of a list is wanted: at most Size resources below Parent, in the total order that Order means, that
// come behind the place After, which is nil at the beginning.
type Page struct {
	Parent string
	Order  []Order
	After  Place
	Size   int
}

// Query is the request of a list, as far as it must stay the same from page to page.
type Query struct {
	// Incarnation is the database's.
	Incarnation string
	// Key is what the database's page tokens are sealed with; whoever calls does not have it.
	Key secret.Text
	// List tells the lists of one parent apart.
	List   string
	Parent string
	// Filter and OrderBy are as the caller wrote them.
	Filter, OrderBy string
}

// Page is the page that a token and a size, both of which may be zero, ask for in an order, which it makes total. The token must have been
// given for this query; else ErrPageToken.
func (q Query) Page(order []Order, token string, size int32) (Page, error) {
	page := Page{Parent: q.Parent, Order: Total(order), Size: int(min(size, maxPageSize))}
	if size <= 0 {
		page.Size = defaultPageSize
	}
	if token == "" {
		return page, nil
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return Page{}, ErrPageToken
	}
	place, err := q.seal().Open(nil, nil, sealed, nil)
	if err != nil || json.Unmarshal(place, &page.After) != nil || !page.After.fits(page.Order) {
		return Page{}, ErrPageToken
	}
	return page, nil
}

// Token is what continues the list behind a place.
func (q Query) Token(after Place) string {
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // three of its characters would be six bytes each, and a token has a limit
	// Strings are always encoded, and a builder takes everything.
	_ = encoder.Encode(after)
	place := strings.TrimSuffix(text.String(), "\n")
	return base64.RawURLEncoding.EncodeToString(q.seal().Seal(nil, nil, []byte(place), nil)) //nolint:gosec // the nonce is random, and made by the cipher
}

// seal encrypts and authenticates the places of one query, under a key that no other query has: a token says nothing of what is in it, so that nobody
// comes to rest on that, and one that is used elsewhere by mistake is an error instead of a wrong page.
func (q Query) seal() cipher.AEAD {
	mac := hmac.New(sha256.New, []byte(q.Key.Expose()))
	for _, part := range []string{q.Incarnation, q.List, q.Parent, q.Filter, q.OrderBy} {
		// With its length before it, no part can be taken for the end of another.
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		mac.Write([]byte(part))
	}
	// A sum of 32 bytes is a key of AES-256, and AES has the block that GCM wants.
	block, _ := aes.NewCipher(mac.Sum(nil))
	aead, _ := cipher.NewGCMWithRandomNonce(block)
	return aead
}
