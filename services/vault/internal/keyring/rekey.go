package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
)

// keepers are key-encryption keys, the one in use first.
type keepers []*keeper

// keeper is one key-encryption key.
type keeper struct {
	*secrets.Keeper
	// remote is set when it is kept by a service, which can be away.
	remote bool
}

func openKEKs(ctx context.Context, keks []string) (out keepers, err error) {
	for _, kek := range keks {
		opened, err := OpenKEK(ctx, kek)
		if err != nil {
			out.close()
			return nil, err
		}
		out = append(out, &keeper{Keeper: opened, remote: !isFile(kek)})
	}
	if len(out) == 0 {
		return nil, errors.New("key-encryption key: none is named")
	}
	return out, nil
}

func (k keepers) close() {
	for _, one := range k {
		_ = one.Close()
	}
}

// unwrap decrypts a data key by the first of the key-encryption keys that fits, and says which did.
func (k keepers) unwrap(ctx context.Context, wrapped WrappedKey) (key []byte, by *keeper, err error) {
	var problems []error
	for _, one := range k {
		key, err := one.unwrap(ctx, wrapped)
		if err == nil {
			return key, one, nil
		}
		problems = append(problems, err)
	}
	return nil, nil, errors.Join(problems...)
}

// wrap encrypts a data key together with its ID, so that stored keys cannot trade places.
func (k *keeper) wrap(ctx context.Context, id uint32, key []byte) (WrappedKey, error) {
	wrapped, err := k.Encrypt(ctx, append(binary.BigEndian.AppendUint32(nil, id), key...))
	if err != nil {
		return WrappedKey{}, fmt.Errorf("wrap data key %d: %w", id, k.away(err))
	}
	return WrappedKey{ID: id, Wrapped: wrapped}, nil
}

func (k *keeper) unwrap(ctx context.Context, wrapped WrappedKey) ([]byte, error) {
	plain, err := k.Decrypt(ctx, wrapped.Wrapped)
	if err != nil {
		return nil, fmt.Errorf("%w: data key %d: %w", ErrUnwrap, wrapped.ID, k.away(err))
	}
	id, key := plain[:min(4, len(plain))], plain[min(4, len(plain)):]
	if len(key) != keySize || !bytes.Equal(id, binary.BigEndian.AppendUint32(nil, wrapped.ID)) {
		return nil, fmt.Errorf("%w: data key %d is another's", ErrUnwrap, wrapped.ID)
	}
	return key, nil
}

// away adds ErrKEKAway to what a service may have failed with although nothing is wrong with key and request.
func (k *keeper) away(err error) error {
	if !k.remote {
		return err
	}
	switch gcerrors.Code(err) {
	case gcerrors.InvalidArgument, gcerrors.NotFound, gcerrors.PermissionDenied, gcerrors.FailedPrecondition, gcerrors.Unimplemented:
		return err
	default:
		return fmt.Errorf("%w: %w", ErrKEKAway, err)
	}
}

// newKey makes a data key.
func newKey(ctx context.Context, k *keeper, id uint32) (WrappedKey, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	return k.wrap(ctx, id, key)
}

// Rewrap has the key-encryption key to wrap every data key that another one wraps, and returns how many those were. Either all are wrapped anew or none is: it can be repeated
// after any interruption, and does nothing when nothing is left. From then on a start needs to. If to names a file that is not there, that is made first.
func Rewrap(ctx context.Context, store Store, from, to string) (rewrapped int, err error) {
	if err := makeFile(to); err != nil {
		return 0, err
	}
	keepers, err := openKEKs(ctx, []string{to})
	if err != nil {
		return 0, err
	}
	defer func() { keepers.close() }()
	target := keepers[0]
	keys, err := sorted(ctx, store)
	if err != nil {
		return 0, err
	}
	next := slices.Clone(keys)
	for i, one := range keys {
		_, err := target.unwrap(ctx, one)
		if err == nil {
			continue
		}
		if errors.Is(err, ErrKEKAway) {
			return 0, err
		}
		if len(keepers) == 1 { // the former one is needed only now
			former, err := openKEKs(ctx, []string{from})
			if err != nil {
				return 0, err
			}
			keepers = append(keepers, former...)
		}
		key, err := keepers[1].unwrap(ctx, one)
		if err != nil {
			return 0, err
		}
		if next[i], err = target.wrap(ctx, one.ID, key); err != nil {
			return 0, err
		}
		// Nothing is stored that was not seen to open.
		if again, err := target.unwrap(ctx, next[i]); err != nil || !bytes.Equal(again, key) {
			return 0, errors.Join(fmt.Errorf("%w: data key %d does not come back from the new key-encryption key", ErrUnwrap, one.ID), err)
		}
		rewrapped++
	}
	if rewrapped == 0 {
		return 0, nil
	}
	if err := store.Swap(ctx, keys, next); err != nil {
		return 0, fmt.Errorf("rewrap data keys: %w", err)
	}
	return rewrapped, nil
}

// Rekey adds a data key, wrapped by the key-encryption key that wraps the newest, and returns its ID. Replicas seal with it as soon as they have seen it.
func Rekey(ctx context.Context, store Store, keks ...string) (uint32, error) {
	keepers, err := openKEKs(ctx, keks)
	if err != nil {
		return 0, err
	}
	defer keepers.close()
	keys, err := sorted(ctx, store)
	if err != nil {
		return 0, err
	}
	if len(keys) == 0 {
		return 0, errors.New("there is no data key yet: the first start makes one")
	}
	newest := keys[len(keys)-1]
	_, by, err := keepers.unwrap(ctx, newest)
	if err != nil {
		return 0, err
	}
	added, err := newKey(ctx, by, newest.ID+1)
	if err != nil {
		return 0, err
	}
	if err := store.Swap(ctx, keys, append(slices.Clone(keys), added)); err != nil {
		return 0, fmt.Errorf("add data key %d: %w", added.ID, err)
	}
	return added.ID, nil
}

func sorted(ctx context.Context, store Store) ([]WrappedKey, error) {
	keys, err := store.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read data keys: %w", err)
	}
	slices.SortFunc(keys, func(a, b WrappedKey) int { return int(int64(a.ID) - int64(b.ID)) })
	return keys, nil
}

// Record is something sealed that is stored.
type Record struct {
	// ID is what the store calls it; the store lists records by it.
	ID string
	// Identity is what it was sealed under.
	Identity string
	// Sealed is what Seal made.
	Sealed []byte
}

// Records are everything sealed that is stored.
type Records interface {
	// Sealed returns at most limit records whose ID is greater than after, by ID.
	Sealed(ctx context.Context, after string, limit int) ([]Record, error)
	// Reseal replaces what a record has sealed, if it is still what the record says, and reports whether it was.
	Reseal(ctx context.Context, record Record, sealed []byte) (bool, error)
}

// resealBatch is how many records are read at once.
const resealBatch = 500

// Pass is what going over all records once came to.
type Pass struct {
	// Seen counts the records; Resealed those that an older data key had sealed; Changed those that somebody changed meanwhile.
	Seen, Resealed, Changed int
}

// Reseal goes over all records once, and has the current data key seal those that an older one has. progress is told after each batch. It can be stopped anywhere and
// begun again: what is done is passed over.
func (k *Keyring) Reseal(ctx context.Context, records Records, progress func(Pass)) (Pass, error) {
	var pass Pass
	after := ""
	for {
		batch, err := records.Sealed(ctx, after, resealBatch)
		if err != nil {
			return pass, err
		}
		for _, record := range batch {
			after = record.ID
			pass.Seen++
			if by, ok := sealedBy(record.Sealed); ok && by >= k.Current() {
				continue
			}
			text, err := k.Open(ctx, record.Identity, record.Sealed)
			if err != nil {
				return pass, err
			}
			sealed, err := k.Seal(record.Identity, text)
			if err != nil {
				return pass, err
			}
			done, err := records.Reseal(ctx, record, sealed)
			switch {
			case err != nil:
				return pass, err
			case done:
				pass.Resealed++
			default:
				pass.Changed++
			}
		}
		if len(batch) < resealBatch {
			return pass, nil
		}
		progress(pass)
	}
}

// Outdated reports whether there is a record that an older data key than the current one has sealed.
func (k *Keyring) Outdated(ctx context.Context, records Records) (bool, error) {
	after := ""
	for {
		batch, err := records.Sealed(ctx, after, resealBatch)
		if err != nil {
			return false, err
		}
		for _, record := range batch {
			if by, ok := sealedBy(record.Sealed); !ok || by < k.Current() {
				return true, nil
			}
			after = record.ID
		}
		if len(batch) < resealBatch {
			return false, nil
		}
	}
}
