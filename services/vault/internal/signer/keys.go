package signer

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/signingkey"
)

// Log keys of this package.
const (
	keyKeyID  = "kid"
	keyNumber = "number"
	keyState  = "state"
)

// keyBits is the size of keys. Entra ID takes RS256 alone.
const keyBits = 2048

// publicKey is a key as a key set shows it (RFC 7517).
type publicKey struct {
	Type      string `json:"kty"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	ID        string `json:"kid"`
	N         string `json:"n"`
	E         string `json:"e"`
}

// keySet is the document by which token services verify what was signed: every key that signs, is about to, or did so lately, those that
// sign first, for some read only the first hundred.
func keySet(all []signingkey.Key) ([]byte, error) {
	set := struct {
		Keys []publicKey `json:"keys"`
	}{Keys: []publicKey{}}
	for _, state := range []signingkey.State{signingkey.Signing, signingkey.Published, signingkey.Retired} {
		for _, k := range all {
			if k.State != state {
				continue
			}
			parsed, err := x509.ParsePKIXPublicKey(k.Public)
			if err != nil {
				return nil, fmt.Errorf("public half of signing key %s: %w", k.ID, err)
			}
			key, ok := parsed.(*rsa.PublicKey)
			if !ok {
				return nil, fmt.Errorf("public half of signing key %s is %T", k.ID, parsed)
			}
			n, e := numbers(key)
			set.Keys = append(set.Keys, publicKey{Type: "RSA", Use: "sig", Algorithm: "RS256", ID: k.ID, N: n, E: e})
		}
	}
	return json.Marshal(set)
}

func numbers(key *rsa.PublicKey) (n, e string) {
	encode := base64.RawURLEncoding.EncodeToString
	return encode(key.N.Bytes()), encode(big.NewInt(int64(key.E)).Bytes())
}

// sealer encrypts what is stored, bound to an identity.
type sealer interface {
	Seal(identity string, text secret.Text) ([]byte, error)
}

// newKey makes a key that is PUBLISHED. Its ID is its thumbprint, so that no two keys share one.
func newKey(now time.Time, number int64, ring sealer) (signingkey.Key, error) {
	made, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return signingkey.Key{}, fmt.Errorf("make signing key: %w", err)
	}
	n, e := numbers(&made.PublicKey)
	sum := sha256.Sum256([]byte(`{"e":"` + e + `","kty":"RSA","n":"` + n + `"}`))
	k := signingkey.Key{ID: base64.RawURLEncoding.EncodeToString(sum[:]), Number: number, State: signingkey.Published, PublishTime: now}
	private, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		return signingkey.Key{}, errors.New("private half of a signing key cannot be encoded")
	}
	if k.Public, err = x509.MarshalPKIXPublicKey(&made.PublicKey); err != nil {
		return signingkey.Key{}, fmt.Errorf("public half of signing key: %w", err)
	}
	k.Sealed, err = ring.Seal(signingkey.SealedAs(k.ID), secret.New(string(private)))
	return k, err
}
