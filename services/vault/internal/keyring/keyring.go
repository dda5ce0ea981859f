// Package keyring encrypts what the vault stores.
//
// Three layers of keys: a key-encryption key, which never leaves its service (or is a file); a few data keys, stored wrapped by it and unwrapped once, at the start, so that the service
// may be down afterwards; and for every record a key of its own, derived from a data key and the record's identity by HKDF. Records are sealed by AES-256-GCM with
// the identity as associated data.
//
// It guarantees that what Open returns was sealed under this identity by somebody with a data key: a record that was changed, or put in another's place, is refused. It does not
// guarantee that it is the newest: a record's own older contents, put back, open. And it does not wipe keys from memory.
//
// Both upper layers can be replaced while replicas run. Rewrap has another key-encryption key wrap the data keys. Rekey adds a data key, and Reseal has it seal what there is. The
// data key that seals is the newest; older ones only open, and are never deleted, since backups need them. A replica that meets a record of a key which it does not hold looks at the
// store once more, so it need not know beforehand.
//
// A key that is missing stops the start rather than being made anew: a fresh one would hide that everything stored is lost.
package keyring

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
)

var (
	// ErrKeyMissing means the key-encryption key's file is not there. If the database holds anything, it must be brought back from wherever it is kept.
	ErrKeyMissing = errors.New("key file is missing")
	// ErrKeyFile means the key-encryption key's file is not 32 bytes for its owner alone.
	ErrKeyFile = errors.New("key file must be 32 bytes with mode 0600")
	// ErrUnwrap means the key-encryption key does not fit the stored data keys, or its service does not answer: then it is ErrKEKAway too.
	ErrUnwrap = errors.New("data key cannot be unwrapped")
	// ErrKEKAway means the key-encryption key's service does not answer, or not as it should; it may come back by itself.
	ErrKEKAway = errors.New("service of the key-encryption key is away")
	// ErrKeysChanged is Store.Swap's answer when the stored keys are not those that were to be replaced.
	ErrKeysChanged = errors.New("data keys were changed meanwhile")
	// ErrUnknownKey means a record was sealed by a data key that is not in the database.
	ErrUnknownKey = errors.New("unknown data key")
	// ErrCorrupt means a record was not sealed under this identity, or was changed since.
	ErrCorrupt = errors.New("record does not open")
	// ErrNoIdentity means a record without an identity was to be sealed or opened.
	ErrNoIdentity = errors.New("record has no identity")
)

// Lost reports whether Open's error says that no replica will ever open the record: its data key is not in the database, or the record is damaged.
func Lost(err error) bool { return errors.Is(err, ErrUnknownKey) || errors.Is(err, ErrCorrupt) }

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
	// Swap makes the stored keys those of to, if they are those of from, byte for byte, and nothing otherwise: then the error is ErrKeysChanged.
	// Every ID of from is in to: keys are added, or wrapped anew, never deleted.
	Swap(ctx context.Context, from, to []WrappedKey) error
}

// Keyring seals and opens records. It is safe for concurrent use.
type Keyring struct {
	store Store
	keks  []string
	held  atomic.Pointer[held]
	// looking is had by the one who looks at the store again. It guards misses.
	looking chan struct{}
	misses  map[uint32]miss
}

// held are the unwrapped keys; they are replaced, never changed.
type held struct {
	keys    map[uint32][]byte
	current uint32
}

// miss is why a key is not looked for again before some time.
type miss struct {
	until time.Time
	err   error
}

const keySize = 32

const (
	// lookSpacing lies between two looks for one key that was not found: a record may be damaged, and many may want it.
	lookSpacing = 10 * time.Second
	// lookTimeout bounds a look, for which others wait.
	lookTimeout = 10 * time.Second
	// RefreshInterval is how often a running replica looks for a new data key, to seal with. See Run.
	RefreshInterval = 30 * time.Second
)

// Open unwraps the data keys of store, and makes the first one if there is none. The keks say where the key-encryption key is, and where the one that is about to follow it
// is, if there is one: see OpenKEK. Replicas may do so together. An error that is ErrKEKAway may go away by itself.
func Open(ctx context.Context, store Store, keks ...string) (*Keyring, error) {
	ring := &Keyring{store: store, keks: keks, looking: make(chan struct{}, 1), misses: map[uint32]miss{}}
	ring.held.Store(&held{})
	keepers, err := openKEKs(ctx, keks)
	if err != nil {
		return nil, err
	}
	// Everything is unwrapped now; it is not needed any more.
	defer keepers.close()
	wrapped, err := store.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read data keys: %w", err)
	}
	if len(wrapped) == 0 {
		if wrapped, err = addFirst(ctx, keepers, store); err != nil {
			return nil, err
		}
	}
	return ring, ring.hold(ctx, keepers, wrapped)
}

// hold unwraps those keys that are not held yet.
func (k *Keyring) hold(ctx context.Context, keepers keepers, wrapped []WrappedKey) error {
	before := k.held.Load()
	after := &held{keys: map[uint32][]byte{}}
	for _, one := range wrapped {
		key, ok := before.keys[one.ID]
		if !ok {
			var err error
			if key, _, err = keepers.unwrap(ctx, one); err != nil {
				return err
			}
		}
		after.keys[one.ID] = key
		after.current = max(after.current, one.ID)
	}
	k.held.Store(after)
	return nil
}

// addFirst makes the first data key. If another replica does so too the store keeps one of them, and both use that.
func addFirst(ctx context.Context, keepers keepers, store Store) ([]WrappedKey, error) {
	if keepers.first == nil {
		return nil, errors.Join(keepers.problems...)
	}
	first, err := newKey(ctx, keepers.first, 1)
	if err != nil {
		return nil, err
	}
	if err := store.Swap(ctx, nil, []WrappedKey{first}); err != nil && !errors.Is(err, ErrKeysChanged) {
		return nil, fmt.Errorf("add data key: %w", err)
	}
	keys, err := store.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read data keys: %w", err)
	}
	return keys, nil
}

// Current is the ID of the data key that seals.
func (k *Keyring) Current() uint32 { return k.held.Load().current }

// Refresh looks for data keys that were added since, and seals with the newest from then on. It needs the key-encryption key only if there are such.
func (k *Keyring) Refresh(ctx context.Context) error {
	if err := k.lock(ctx); err != nil {
		return err
	}
	defer k.unlock()
	return k.look(ctx)
}

// Run refreshes from time to time until ctx ends, so that a key which another process has added comes to be used here too.
func (k *Keyring) Run(ctx context.Context, log *slog.Logger) error {
	ticks := time.NewTicker(RefreshInterval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		before := k.Current()
		switch err := k.Refresh(ctx); {
		case err != nil && ctx.Err() == nil:
			log.WarnContext(ctx, "data keys could not be looked at; what is held goes on being used", slog.Any(obs.KeyError, err))
		case k.Current() != before:
			log.InfoContext(ctx, "another data key seals from now on", slog.Uint64("data_key", uint64(k.Current())))
		}
	}
}

func (k *Keyring) lock(ctx context.Context) error {
	select {
	case k.looking <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k *Keyring) unlock() { <-k.looking }

// look reads the store, and unwraps what is new. The caller has the lock.
func (k *Keyring) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	wrapped, err := k.store.Keys(ctx)
	if err != nil {
		return fmt.Errorf("read data keys: %w", err)
	}
	have := k.held.Load()
	if !slices.ContainsFunc(wrapped, func(one WrappedKey) bool { return have.keys[one.ID] == nil }) {
		return nil
	}
	keepers, err := openKEKs(ctx, k.keks)
	if err != nil {
		return err
	}
	defer keepers.close()
	return k.hold(ctx, keepers, wrapped)
}

// key returns a data key. One that is not held was added by another process meanwhile, or never was: the store is looked at once for all who want it.
func (k *Keyring) key(ctx context.Context, id uint32) ([]byte, error) {
	if key, ok := k.held.Load().keys[id]; ok {
		return key, nil
	}
	if err := k.lock(ctx); err != nil {
		return nil, err
	}
	defer k.unlock()
	if key, ok := k.held.Load().keys[id]; ok {
		return key, nil
	}
	now := time.Now()
	if missed, ok := k.misses[id]; ok && now.Before(missed.until) {
		return nil, missed.err
	}
	err := k.look(ctx)
	if key, ok := k.held.Load().keys[id]; ok {
		delete(k.misses, id)
		return key, nil
	}
	if err == nil {
		err = fmt.Errorf("%w %d", ErrUnknownKey, id)
	}
	if ctx.Err() == nil {
		// A caller that gave up says nothing to the others.
		if len(k.misses) >= maxMisses {
			clear(k.misses)
		}
		k.misses[id] = miss{until: now.Add(lookSpacing), err: err}
	}
	return nil, err
}

// maxMisses bounds what is remembered: the IDs stand in records, which may be damaged.
const maxMisses = 64

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
	have := k.held.Load()
	header := binary.BigEndian.AppendUint32([]byte{format}, have.current)
	aead, err := recordKey(have.keys[have.current], identity)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", identity, err)
	}
	return aead.Seal(header, nil, []byte(text.Expose()), associated(header, identity)), nil //nolint:gosec // it takes a random nonce itself
}

// Open decrypts what Seal made for the same identity; ErrCorrupt if it did not. A data key that is not held is looked for in the store: ErrUnknownKey if it is not there
// either, ErrUnwrap if it cannot be unwrapped, sqldb's errors if the store cannot be read.
func (k *Keyring) Open(ctx context.Context, identity string, sealed []byte) (secret.Text, error) {
	if identity == "" {
		return secret.Text{}, ErrNoIdentity
	}
	id, ok := sealedBy(sealed)
	if !ok {
		return secret.Text{}, fmt.Errorf("open %s: %w", identity, ErrCorrupt)
	}
	header, rest := sealed[:headerSize], sealed[headerSize:]
	key, err := k.key(ctx, id)
	if err != nil {
		return secret.Text{}, fmt.Errorf("open %s: %w", identity, err)
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

// sealedBy is the ID of the data key that a record says it was sealed by.
func sealedBy(sealed []byte) (id uint32, ok bool) {
	if len(sealed) < headerSize || sealed[0] != format {
		return 0, false
	}
	return binary.BigEndian.Uint32(sealed[1:headerSize]), true
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

// Derive gives 32 bytes that belong to a purpose of a data key alone, for what is not sealed: to authenticate, or as the seed of a signing key. A
// purpose never is a record's identity. Errors are Open's.
func (k *Keyring) Derive(ctx context.Context, id uint32, purpose string) ([]byte, error) {
	if purpose == "" {
		return nil, ErrNoIdentity
	}
	dataKey, err := k.key(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("derive key for %s: %w", purpose, err)
	}
	key, err := hkdf.Key(sha256.New, dataKey, nil, "phasekey vault derived 1\x00"+purpose, keySize)
	if err != nil {
		return nil, fmt.Errorf("derive key for %s: %w", purpose, err)
	}
	return key, nil
}
