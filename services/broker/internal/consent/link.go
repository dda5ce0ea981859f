package consent

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"

	"phasekey.dev/pkg/secret"
)

// KeySize is the length of a Key, in bytes.
const KeySize = 32

// The purposes a key is used for, so that no two share an HMAC.
const (
	purposeLink        = "phasekey broker consent link 1"
	purposeSource      = "phasekey broker attempt source 1"
	purposeFingerprint = "phasekey broker key fingerprint 1"
)

// The paths of the pages, under the public URL.
const (
	// PagePath is followed by a link.
	PagePath = "/consent/"
	// CallbackPath is where Entra ID sends browsers back to. No link is like it.
	CallbackPath = PagePath + "callback"
)

// TokenSize is how long links, states and browsers' secrets are, in characters: 32 bytes, base64url.
const TokenSize = 43

// Key makes links. All replicas have the same one.
type Key struct{ text secret.Text }

// NewKey takes KeySize random bytes.
func NewKey(raw []byte) (Key, error) {
	if len(raw) != KeySize {
		return Key{}, ErrKey
	}
	return Key{text: secret.New(string(raw))}, nil
}

func (k Key) mac(purpose string, data []byte) []byte {
	// The purpose has a fixed length for each use and the name cannot contain a zero byte, so nothing is ambiguous.
	h := hmac.New(sha256.New, []byte(k.text.Expose()))
	h.Write([]byte(purpose))
	h.Write([]byte{0})
	h.Write(data)
	return h.Sum(nil)
}

// Fingerprint tells keys apart without saying anything about them.
func (k Key) Fingerprint() []byte { return k.mac(purposeFingerprint, nil) }

// LinkOf is the last part of the address of a session's page: the same at every call, until the session's nonce changes.
// Whoever knows it acts in the session.
func (k Key) LinkOf(s Session) secret.Text {
	data := append([]byte(s.Name.String()), 0)
	return secret.New(base64.RawURLEncoding.EncodeToString(k.mac(purposeLink, append(data, s.Nonce[:]...))))
}

// SourceOf is what is stored of a browser's address: it tells sources apart, and whoever reads the database does not learn them.
func (k Key) SourceOf(address string) []byte { return k.mac(purposeSource, []byte(address)) }

// Hash is what is stored of a link, a state or a browser's secret.
func Hash(token secret.Text) []byte {
	sum := sha256.Sum256([]byte(token.Expose()))
	return sum[:]
}

// Cloud is where one of Microsoft's clouds is.
type Cloud struct {
	// LoginURL is the origin of its login pages.
	LoginURL string
	// GraphURL is the origin of its Graph, whose permissions are consented to.
	GraphURL string
}

// Links makes the links that administrators follow.
type Links struct {
	Key Key
	// Clouds are those that are known, by the names that integrations give them.
	Clouds map[string]Cloud
	// PublicURL is the origin under which browsers reach the pages.
	PublicURL string
}

// URI is the page that leads the administrator through consent: empty once the session has ended.
func (l Links) URI(s Session) string {
	if !s.State.Open() {
		return ""
	}
	return l.PageURI(s)
}

// PageURI is the session's page, also after its end.
func (l Links) PageURI(s Session) string { return l.PublicURL + PagePath + l.Key.LinkOf(s).Expose() }

// EntraURI is the page of Entra ID on which the administrator consents, and which sends the browser back with the state;
// ErrUnknownCloud if the session's cloud is not configured.
func (l Links) EntraURI(s Session, state secret.Text) (string, error) {
	cloud, ok := l.Clouds[s.Cloud]
	if !ok {
		return "", fmt.Errorf("link of %s: %w: %q", s.Name, ErrUnknownCloud, s.Cloud)
	}
	query := url.Values{
		"client_id":    {s.ClientID},
		"scope":        {cloud.GraphURL + "/.default"},
		"redirect_uri": {l.PublicURL + CallbackPath},
		"state":        {state.Expose()},
	}
	return cloud.LoginURL + "/" + url.PathEscape(s.TenantID) + "/v2.0/adminconsent?" + query.Encode(), nil
}
