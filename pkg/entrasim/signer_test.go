package entrasim_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/entrasim/internal/eventlog"
)

// published is the key that the keys document shows.
func (w *world) published() (id string, key *rsa.PublicKey) {
	w.Helper()
	document := w.send(http.MethodGet, w.sim.Endpoints().Login+"/common/discovery/v2.0/keys", "", "")
	keys, _ := document.at("keys").([]any)
	if len(keys) != 1 {
		w.Fatalf("keys %s", document.body)
	}
	shown, _ := keys[0].(map[string]any)
	number := func(name string) *big.Int {
		text, _ := shown[name].(string)
		raw, err := base64.RawURLEncoding.DecodeString(text)
		w.must(err)
		return new(big.Int).SetBytes(raw)
	}
	id, _ = shown["kid"].(string)
	return id, &rsa.PublicKey{N: number("n"), E: int(number("e").Int64())}
}

// verified is a token's key ID, once an independent library has verified it.
func (w *world) verified(token string, key *rsa.PublicKey) string {
	w.Helper()
	parsed, err := jwt.Parse(token, func(*jwt.Token) (any, error) { return key, nil }, jwt.WithValidMethods([]string{"RS256"}))
	w.must(err)
	id, _ := parsed.Header["kid"].(string)
	return id
}

func TestSigner_AnyVerifierTakesTheTokens(t *testing.T) {
	for range 5 { // a key each
		w := newWorld(t, entrasim.Config{})
		id, key := w.published()
		if key.N.BitLen() != 2048 || key.E != 65537 {
			t.Fatalf("a modulus of %d bits, exponent %d", key.N.BitLen(), key.E)
		}
		for range 20 {
			if got := w.verified(w.graphToken(), key); got != id {
				t.Fatalf("the token names the key %q, not %q", got, id)
			}
		}
	}
}

// TestSigner_GoesOnWithAnOldKey opens a state whose key has two primes, as
// earlier ones have.
func TestSigner_GoesOnWithAnOldKey(t *testing.T) {
	old, err := sharedKey()
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(old)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	log, err := eventlog.Open(filepath.Join(dir, "entrasim.log"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Append(map[string]any{"seq": 1, "time": time.Now(), "kind": "key.created", "key": encoded}); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, entrasim.Config{StateDir: dir})
	id, key := w.published()
	if !key.Equal(&old.PublicKey) {
		t.Error("the published key is another one")
	}
	if got := w.verified(w.graphToken(), key); got != id {
		t.Errorf("the token names the key %q, not %q", got, id)
	}
}

// TestSigner_RefusesWhatIsNoKey opens a state whose key cannot be read.
func TestSigner_RefusesWhatIsNoKey(t *testing.T) {
	dir := t.TempDir()
	log, err := eventlog.Open(filepath.Join(dir, "entrasim.log"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Append(map[string]any{"seq": 1, "time": time.Now(), "kind": "key.created", "key": []byte("no key")}); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := entrasim.New(entrasim.Config{StateDir: dir}); err == nil {
		t.Error("a state with a broken key was opened")
	}
}

// FuzzPower compares powers with those of math/big, at the ends of what there is too.
func FuzzPower(f *testing.F) {
	ones, zeros := bytes.Repeat([]byte{0xff}, 32), make([]byte, 32)
	high := append([]byte{0x80}, zeros[1:]...)
	for _, m := range [][]byte{ones, high, append(append([]byte{}, ones[:8]...), zeros[8:]...), append(append([]byte{}, high[:8]...), ones[8:]...)} {
		for _, x := range [][]byte{ones, zeros, high, ones[:31]} {
			f.Add(x, ones, m)
			f.Add(x, zeros, m)
			f.Add(x, high, m)
		}
	}
	f.Fuzz(func(t *testing.T, base, exponent, modulus []byte) {
		number := func(text []byte) *big.Int { return new(big.Int).SetBytes(text[:min(len(text), 32)]) }
		x, e, m := number(base), number(exponent), number(modulus)
		m.SetBit(m.SetBit(m, 0, 1), 255, 1)
		x.Mod(x, m)
		if got, want := entrasim.Power(x, e, m), new(big.Int).Exp(x, e, m); got.Cmp(want) != 0 {
			t.Errorf("%x to the power of %x modulo %x is %x, want %x", x, e, m, got, want)
		}
	})
}
