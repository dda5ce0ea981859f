package grant

import (
	"crypto/rand"
	"crypto/sha256"
	"hash/crc32"
	"math/big"
	"strings"

	"phasekey.dev/pkg/secret"
)

// Prefix begins every token, so that scanners recognise a leaked one.
const Prefix = "pkg_"

const (
	randomBytes  = 32
	randomDigits = 43 // 62^43 > 2^256
	checkDigits  = 6  // 62^6 > 2^32
	tokenLength  = len(Prefix) + randomDigits + checkDigits

	digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// Hash is the SHA-256 of a whole token: all that the vault keeps of it. A token holds 256 random bits, so its hash needs no
// salt, and looking it up by an index tells nothing about tokens.
type Hash [sha256.Size]byte

// Mint makes a fresh token.
func Mint() (secret.Text, Hash) {
	var random [randomBytes]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the process instead
	token := format(random)
	return secret.New(token), hashOf(token)
}

// ParseToken returns the hash by which the token is looked up, or ErrUnknown for what is no token at all: the shape is
// wrong, or the checksum, which saves the database the questions of those who guess.
func ParseToken(token string) (Hash, error) {
	if len(token) != tokenLength || !strings.HasPrefix(token, Prefix) {
		return Hash{}, ErrUnknown
	}
	for _, c := range []byte(token[len(Prefix):]) {
		if strings.IndexByte(digits, c) < 0 {
			return Hash{}, ErrUnknown
		}
	}
	body, check := token[:tokenLength-checkDigits], token[tokenLength-checkDigits:]
	if checksum(body) != check { // anybody can reckon it
		return Hash{}, ErrUnknown
	}
	return hashOf(token), nil
}

func hashOf(token string) Hash { return sha256.Sum256([]byte(token)) }

func format(random [randomBytes]byte) string {
	body := Prefix + base62(new(big.Int).SetBytes(random[:]), randomDigits)
	return body + checksum(body)
}

// checksum is over prefix and random part, as other vendors' scanners expect it: CRC-32 (IEEE) in base 62.
func checksum(body string) string {
	var out [checkDigits]byte
	n := crc32.ChecksumIEEE([]byte(body))
	for i := checkDigits - 1; i >= 0; i-- {
		out[i] = digits[n%uint32(len(digits))]
		n /= uint32(len(digits))
	}
	return string(out[:])
}

func base62(n *big.Int, width int) string {
	out := make([]byte, width)
	base, digit := big.NewInt(int64(len(digits))), new(big.Int)
	for i := width - 1; i >= 0; i-- {
		n.DivMod(n, base, digit)
		out[i] = digits[digit.Int64()]
	}
	return string(out)
}
