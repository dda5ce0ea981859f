// Package keyring encrypts what the vault stores.
//
// Three layers of keys: a key-encryption key, which never leaves its service (or is a file); a few data keys, stored wrapped by it and unwrapped once, at the start, so that the service
// may be down afterwards; and for every record a key of its own, derived from a data key and the record's identity by HKDF. Records are sealed by AES-256-GCM with
// the identity as associated data.
//
// It guarantees that what Open returns was sealed under this identity by somebody with a data key: a record that was changed, or put in another's place, is refused. It does not
// guarantee that it is the newest: a record's own older contents, put back, open. And it does not wipe keys from memory.
//
// The data key that seals is the newest; older ones only open. A key that is missing stops the start rather than being made anew: a fresh one would hide that everything stored is lost.
package keyring

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"gocloud.dev/secrets"

	"phasekey.dev/pkg/secret"
)

var (
	// ErrKeyMissing means the key-encryption key's file is not there. If the database holds anything, it must be brought back from wherever it is kept.
	ErrKeyMissing = errors.New("key file is missing")
	// ErrKeyFile means the key-encryption key's file is not 32 bytes for its owner alone.
	ErrKeyFile = errors.New("key file must be 32 bytes with mode 0600")
	// ErrUnwrap means the key-encryption key does not fit the stored data keys, or its service does not answer.
	ErrUnwrap = errors.New("data key cannot be unwrapped")
	// ErrKeyExists is Store.AddKey's answer when the ID is taken.
	ErrKeyExists = errors.New("data key exists")
	// ErrUnknownKey means a record was sealed by a data key that was not there at the start.
	ErrUnknownKey = errors.New("unknown data key")
	// ErrCorrupt means a record was not sealed under this identity, or was changed since.
	ErrCorrupt = errors.New("record does not open")
	// ErrNoIdentity means a record without an identity was to be sealed or opened.
	ErrNoIdentity = errors.New("record has no identity")
)

// WrappedKey is a data key as it is stored.
type WrappedKey struct {
	// ID is 1 for the first key, and grows.
	ID uint32
	// Wrapped is the key, encrypted by the key-encryption key.
	Wrapped []byte
}

// Store keeps data keys.
type Store interface {
	// Keys gives all data keys, in any order.
	Keys(ctx context.Context) ([]WrappedKey, error)
	// AddKey adds one. If its ID is taken the error is ErrKeyExists, and nothing has changed.
	AddKey(ctx context.Context, key WrappedKey) error
}

// Keyring seals and opens records. It is safe for concurrent use.
type Keyring struct {
	keys    map[uint32][]byte
	current uint32
}

const keySize = 32

// Open unwraps the data keys of store, and makes the first one if there is none. kek says where the key-encryption key is: see OpenKEK. Replicas may do so together.
func Open(ctx context.Context, kek string, store Store) (*Keyring, error) {
	keeper, err := OpenKEK(ctx, kek)
	if err != nil {
		return nil, err
	}
	// Everything is unwrapped now; it is not needed any more.
	defer func() { _ = keeper.Close() }()
	wrapped, err := store.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read data keys: %w", err)
	}
	if len(wrapped) == 0 {
		if wrapped, err = addFirst(ctx, keeper, store); err != nil {
			return nil, err
		}
	}
	ring := &Keyring{keys: map[uint32][]byte{}}
	for _, one := range wrapped {
		key, err := unwrap(ctx, keeper, one)
		if err != nil {
			return nil, err
		}
		ring.keys[one.ID] = key
		ring.current = max(ring.current, one.ID)
	}
	return ring, nil
}

// addFirst makes the first data key. If another replica does so too the store keeps one of them, and both use that.
func addFirst(ctx context.Context, keeper *secrets.Keeper, store Store) ([]WrappedKey, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	first, err := wrap(ctx, keeper, 1, key)
	if err != nil {
		return nil, err
	}
	if err := store.AddKey(ctx, first); err != nil && !errors.Is(err, ErrKeyExists) {
		return nil, fmt.Errorf("add data key: %w", err)
	}
	keys, err := store.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read data keys: %w", err)
	}
	return keys, nil
}

// wrap encrypts a data key together with its ID, so that stored keys cannot trade places.
func wrap(ctx context.Context, keeper *secrets.Keeper, id uint32, key []byte) (WrappedKey, error) {
	wrapped, err := keeper.Encrypt(ctx, append(binary.BigEndian.AppendUint32(nil, id), key...))
	if err != nil {
		return WrappedKey{}, fmt.Errorf("wrap data key %d: %w", id, err)
	}
	return WrappedKey{ID: id, Wrapped: wrapped}, nil
}

func unwrap(ctx context.Context, keeper *secrets.Keeper, wrapped WrappedKey) ([]byte, error) {
	plain, err := keeper.Decrypt(ctx, wrapped.Wrapped)
	if err != nil {
		return nil, fmt.Errorf("%w: data key %d: %w", ErrUnwrap, wrapped.ID, err)
	}
	id, key := plain[:min(4, len(plain))], plain[min(4, len(plain)):]
	if len(key) != keySize || !bytes.Equal(id, binary.BigEndian.AppendUint32(nil, wrapped.ID)) {
		return nil, fmt.Errorf("%w: data key %d is another's", ErrUnwrap, wrapped.ID)
	}
	return key, nil
}

// A sealed record is: a byte for the format, four for the data key's ID, then what AES-GCM makes, its random nonce first.
const (
	format     = 1
	headerSize = 5
)

// Seal encrypts text for the record with this identity. An identity names one field of one record of the vault's, and nothing else ever: for example
// "credential-versions/" and the row's key. Sealing twice gives different bytes.
func (k *Keyring) Seal(identity string, text secret.Text) ([]byte, error) {
	if identity == "" {
		return nil, ErrNoIdentity
	}
	header := binary.BigEndian.AppendUint32([]byte{format}, k.current)
	aead, err := recordKey(k.keys[k.current], identity)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", identity, err)
	}
	return aead.Seal(header, nil, []byte(text.Expose()), associated(header, identity)), nil //nolint:gosec // it takes a random nonce itself
}

// Open decrypts what Seal made for the same identity; ErrCorrupt if it did not, ErrUnknownKey if another replica's newer key did.
func (k *Keyring) Open(identity string, sealed []byte) (secret.Text, error) {
	if identity == "" {
		return secret.Text{}, ErrNoIdentity
	}
	if len(sealed) < headerSize || sealed[0] != format {
		return secret.Text{}, fmt.Errorf("open %s: %w", identity, ErrCorrupt)
	}
	header, rest := sealed[:headerSize], sealed[headerSize:]
	id := binary.BigEndian.Uint32(header[1:])
	key, ok := k.keys[id]
	if !ok {
		return secret.Text{}, fmt.Errorf("open %s: %w %d", identity, ErrUnknownKey, id)
	}
	aead, err := recordKey(key, identity)
	if err != nil {
		return secret.Text{}, fmt.Errorf("open %s: %w", identity, err)
	}
	plain, err := aead.Open(nil, nil, rest, associated(header, identity))
	if err != nil {
		return secret.Text{}, fmt.Errorf("open %s: %w", identity, ErrCorrupt)
	}
	return secret.New(string(plain)), nil
}

// recordKey derives a record's key. With a key each, no two records share nonces, however many there are.
func recordKey(dataKey []byte, identity string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, dataKey, nil, "phasekey vault record 1\x00"+identity, keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// associated is what a record is bound to besides its contents. The header has one length, so nothing can move between the two.
func associated(header []byte, identity string) []byte {
	return append(slices.Clone(header), identity...)
}
