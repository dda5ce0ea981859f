package entrasim

import (
	"crypto/sha1" //nolint:gosec // a thumbprint, as Graph shows it
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// keyCredential is a certificate whose key signs assertions of an application.
type keyCredential struct {
	KeyID       string    `json:"keyId"`
	DisplayName *string   `json:"displayName"`
	Identifier  string    `json:"identifier"`
	Start       time.Time `json:"start"`
	End         time.Time `json:"end"`
	Certificate []byte    `json:"certificate"` // DER
}

// view is a certificate as Graph shows it, with its data only when asked for.
func (k keyCredential) view(withKey bool) map[string]any {
	out := map[string]any{
		"customKeyIdentifier": k.Identifier, "displayName": k.DisplayName, "endDateTime": k.End.Format(graphTime), "key": nil,
		"keyId": k.KeyID, "startDateTime": k.Start.Format(graphTime), "type": "AsymmetricX509Cert", "usage": "Verify",
	}
	if withKey {
		out["key"] = k.Certificate
	}
	return out
}

func keyViews(keys []keyCredential, withKey bool) []map[string]any {
	out := make([]map[string]any, 0, len(keys))
	for _, k := range keys {
		out = append(out, k.view(withKey))
	}
	return out
}

// selectsKeys tells whether a request names keyCredentials, and so is shown their data.
func (c *call) selectsKeys() bool {
	return slices.Contains(strings.Split(c.URL.Query().Get("$select"), ","), "keyCredentials")
}

type keyBody struct {
	Identifier  *string    `json:"customKeyIdentifier"`
	DisplayName *string    `json:"displayName"`
	Start       *time.Time `json:"startDateTime"`
	End         *time.Time `json:"endDateTime"`
	Key         []byte     `json:"key"`
	KeyID       *string    `json:"keyId"`
	Type        string     `json:"type"`
	Usage       string     `json:"usage"`
}

// keysFrom makes what a request gives into the certificates that take the place
// of the old ones. One that is to stay is named by its key ID, and its data,
// which Graph rarely shows, need not be repeated. New ones have to keep to the
// rules.
func (s *Simulator) keysFrom(c *call, old []keyCredential, passwords int, rules rules, value json.RawMessage) ([]keyCredential, *reply) {
	refuse := func(text string) ([]keyCredential, *reply) {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, text)
		return nil, &bad
	}
	var given []keyBody
	if err := json.Unmarshal(value, &given); err != nil {
		return refuse("A property has a value of the wrong type.")
	}
	if bad := s.tooLarge(c, passwords, len(given)); bad != nil {
		return nil, bad
	}
	keys := make([]keyCredential, 0, len(given))
	for _, g := range given {
		k, text := s.keyFrom(c, old, g)
		if text == "" && hasKey(keys, k.KeyID) {
			text = "Key credential " + k.KeyID + " is given twice."
		}
		if text != "" {
			return refuse(text)
		}
		if !hasKey(old, k.KeyID) {
			if bad := rules.judgeKey(c, k.Start, k.End); bad != nil {
				return nil, bad
			}
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func hasKey(keys []keyCredential, id string) bool {
	return slices.ContainsFunc(keys, func(k keyCredential) bool { return k.KeyID == id })
}

// loses tells whether one of the old certificates is not among the new ones.
func loses(old, keys []keyCredential) bool {
	return slices.ContainsFunc(old, func(k keyCredential) bool { return !hasKey(keys, k.KeyID) })
}

// tooLarge refuses more credentials than an object has room for.
func (s *Simulator) tooLarge(c *call, passwords, keys int) *reply {
	if passwords+keys <= s.config.MaxCredentials {
		return nil
	}
	bad := c.fail(http.StatusForbidden, "Directory_ResourceSizeExceeded", "The size of the object has exceeded its limit. Please reduce the number of values and retry your request.")
	return &bad
}

// keyFrom makes what a request gives into a certificate, the old one when it
// names one, or says what is wrong with it.
func (s *Simulator) keyFrom(c *call, old []keyCredential, g keyBody) (keyCredential, string) {
	k := keyCredential{DisplayName: g.DisplayName, Certificate: g.Key}
	if g.KeyID != nil {
		if k.KeyID = strings.ToLower(*g.KeyID); !isGUID(k.KeyID) {
			return k, "Invalid value specified for property 'keyId' of resource 'KeyCredential'."
		}
		if i := slices.IndexFunc(old, func(o keyCredential) bool { return o.KeyID == k.KeyID }); i >= 0 {
			return old[i], old[i].differs(g)
		}
	}
	if g.Type != "AsymmetricX509Cert" || g.Usage != "Verify" {
		return k, "Key credential has an invalid type or usage: only AsymmetricX509Cert for Verify is known here."
	}
	certificate, err := x509.ParseCertificate(g.Key)
	if err != nil {
		return k, "Key credential has an invalid value: it is not a certificate."
	}
	k.Start, k.End = certificate.NotBefore.UTC(), certificate.NotAfter.UTC()
	if g.Start != nil {
		k.Start = g.Start.UTC()
	}
	if g.End != nil {
		k.End = g.End.UTC()
	}
	if k.End.After(certificate.NotAfter) || !k.End.After(k.Start) {
		return k, "Key credential end date is invalid: it must be after the start date, and not after the certificate's."
	}
	k.Identifier = fmt.Sprintf("%X", sha1.Sum(g.Key)) //nolint:gosec // a thumbprint
	if g.Identifier != nil {
		k.Identifier = *g.Identifier
	}
	if k.KeyID == "" {
		k.KeyID = s.dice.Of(c.actor).UUID()
	}
	return k, ""
}

// differs says that an existing certificate cannot be changed, when g would.
func (k keyCredential) differs(g keyBody) string {
	same := func(given *time.Time, is time.Time) bool {
		return given == nil || given.Truncate(time.Second).Equal(is.Truncate(time.Second))
	}
	if (g.Key != nil && string(g.Key) != string(k.Certificate)) || !same(g.Start, k.Start) || !same(g.End, k.End) ||
		(g.Identifier != nil && *g.Identifier != k.Identifier) || (g.DisplayName != nil && (k.DisplayName == nil || *g.DisplayName != *k.DisplayName)) {
		return "Update to existing credential with KeyId '" + k.KeyID + "' is not allowed."
	}
	return ""
}
