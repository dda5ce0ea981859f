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
	purposeState       = "phasekey broker consent state 1"
	purposeFingerprint = "phasekey broker key fingerprint 1"
)

// Key makes the states of links. All replicas have the same one.
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

// StateOf is the opaque state of a session's link: the same at every call, until the session's nonce changes.
func (k Key) StateOf(s Session) string {
	data := append([]byte(s.Name.String()), 0)
	return base64.RawURLEncoding.EncodeToString(k.mac(purposeState, append(data, s.Nonce[:]...)))
}

// HashState is what is stored of a state.
func HashState(state string) []byte {
	sum := sha256.Sum256([]byte(state))
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
	// RedirectURI is where Entra ID sends the browser afterwards; the application has the same one.
	RedirectURI string
}

// URI is where the administrator consents: empty unless the session awaits it.
func (l Links) URI(s Session) (string, error) {
	if s.State != AwaitingConsent {
		return "", nil
	}
	cloud, ok := l.Clouds[s.Cloud]
	if !ok {
		return "", fmt.Errorf("link of %s: %w: %q", s.Name, ErrUnknownCloud, s.Cloud)
	}
	query := url.Values{
		"client_id":    {s.ClientID},
		"scope":        {cloud.GraphURL + "/.default"},
		"redirect_uri": {l.RedirectURI},
		"state":        {l.Key.StateOf(s)},
	}
	return cloud.LoginURL + "/" + url.PathEscape(s.TenantID) + "/v2.0/adminconsent?" + query.Encode(), nil
}
