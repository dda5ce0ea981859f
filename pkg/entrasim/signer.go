package entrasim

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
)

// The signing key is an RSA key of 2,048 bits like Entra's, but of eight primes
// (RFC 8017, section 3.2). Nobody who verifies can tell: the modulus and the
// exponent are all they see. Signing by eight small primes takes an eighth of the
// time that two large ones take. Primes of 256 bits are within reach of
// somebody who has months and a cluster, which is of no use against a simulator,
// whose tokens open nothing, and is why no key that protects anything may be
// made like this.
const (
	keyPrimes   = 8
	primeBytes  = 2048 / keyPrimes / 8
	keyExponent = 65537
)

// signer signs by RS256. It is safe for concurrent use.
type signer struct {
	public *rsa.PublicKey
	id     string
	// head is the first part of every token: its header, encoded, and the dot.
	head  string
	parts []crtPart
}

// crtPart is one prime of the key, and what recombining needs beside it.
type crtPart struct {
	prime, exponent *big.Int
	before          *big.Int // the product of the primes before this one
	inverse         *big.Int // of before, modulo the prime
	// fast and its exponent are set for primes of the size that newKey makes.
	fast         *modulus
	fastExponent words
}

// power sets z to x to the power of the exponent.
func (p *crtPart) power(z, x *big.Int) {
	if p.fast == nil {
		z.Exp(x, p.exponent, p.prime)
		return
	}
	p.fast.power(z, x, &p.fastExponent)
}

// newKey makes a private key, in PKCS #8 form.
func newKey() ([]byte, error) {
	one := big.NewInt(1)
	for {
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: big.NewInt(1), E: keyExponent}}
		order := big.NewInt(1)
		for range keyPrimes {
			p, err := newPrime()
			if err != nil {
				return nil, err
			}
			key.Primes = append(key.Primes, p)
			key.N.Mul(key.N, p)
			order.Mul(order, new(big.Int).Sub(p, one))
		}
		key.D = new(big.Int).ModInverse(big.NewInt(keyExponent), order)
		if key.D == nil { // a prime is one more than a multiple of the exponent
			continue
		}
		encoded, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encode signing key: %w", err)
		}
		return encoded, nil
	}
}

// newPrime draws a prime that begins with four ones: the product of eight such
// always has as many bits as all of them together.
func newPrime() (*big.Int, error) {
	text := make([]byte, primeBytes)
	for p := new(big.Int); ; {
		if _, err := rand.Read(text); err != nil {
			return nil, fmt.Errorf("make signing key: %w", err)
		}
		text[0] |= 0xf0
		text[primeBytes-1] |= 1
		if p.SetBytes(text).ProbablyPrime(20) {
			return p, nil
		}
	}
}

// newSigner reads a private key of any number of primes in PKCS #8 form, and
// proves that what it signs verifies.
func newSigner(encoded []byte) (*signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(encoded)
	if err != nil {
		return nil, fmt.Errorf("read signing key: %w", err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("signing key is a %T, not RSA: %w", parsed, ErrInvalid)
	}
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	s := &signer{public: &key.PublicKey, id: base64.RawURLEncoding.EncodeToString(sum[:20])}
	s.head = base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"RS256","x5t":"`+s.id+`","kid":"`+s.id+`"}`)) + "."
	one, before := big.NewInt(1), big.NewInt(1)
	for _, p := range key.Primes {
		part := crtPart{
			prime: p, exponent: new(big.Int).Mod(key.D, new(big.Int).Sub(p, one)),
			before: new(big.Int).Set(before), inverse: new(big.Int).ModInverse(before, p),
		}
		if p.BitLen() == 8*primeBytes {
			part.fast, part.fastExponent = newModulus(p), toWords(part.exponent)
		}
		s.parts = append(s.parts, part)
		before.Mul(before, p)
	}
	probe := sha256.Sum256([]byte(s.id))
	if err := rsa.VerifyPKCS1v15(s.public, crypto.SHA256, probe[:], s.sign(probe)); err != nil {
		return nil, errors.Join(fmt.Errorf("signing key does not sign: %w", ErrInvalid), err)
	}
	return s, nil
}

// token signs claims, which are JSON.
func (s *signer) token(claims []byte) string {
	b64 := base64.RawURLEncoding
	size := s.public.Size()
	out := make([]byte, 0, len(s.head)+b64.EncodedLen(len(claims))+1+b64.EncodedLen(size))
	out = append(out, s.head...)
	out = b64.AppendEncode(out, claims)
	signature := s.sign(sha256.Sum256(out))
	out = append(out, '.')
	return string(b64.AppendEncode(out, signature))
}

// sign makes the signature of RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, section
// 8.2.1): modulo each prime, then put together by Garner's method. It takes no
// care to take the same time for every message.
func (s *signer) sign(sum [sha256.Size]byte) []byte {
	// What stands before the sum, by the notes on section 9.2.
	const info = "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"
	padded := make([]byte, s.public.Size())
	padded[1] = 1
	end := len(padded) - len(info) - len(sum)
	for i := 2; i < end-1; i++ {
		padded[i] = 0xff
	}
	copy(padded[end:], info)
	copy(padded[end+len(info):], sum[:])

	message, signature, x := new(big.Int).SetBytes(padded), new(big.Int), new(big.Int)
	for i := range s.parts {
		p := &s.parts[i]
		p.power(x, x.Mod(message, p.prime))
		x.Mul(x.Sub(x, signature), p.inverse)
		signature.Add(signature, x.Mul(x.Mod(x, p.prime), p.before))
	}
	return signature.FillBytes(padded)
}

// jwk is the public key as the keys document lists it.
func (s *signer) jwk(issuer string) map[string]any {
	b64 := base64.RawURLEncoding.EncodeToString
	return map[string]any{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": s.id, "x5t": s.id,
		"n": b64(s.public.N.Bytes()), "e": b64(big.NewInt(int64(s.public.E)).Bytes()),
		"issuer": issuer,
	}
}
