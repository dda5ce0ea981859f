package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
)

// keepers are the key-encryption keys that could be opened.
type keepers struct {
	// first is the one in use; nil if it could not be opened.
	first *keeper
	all   []*keeper
	// problems say why the others could not be.
	problems []error
}

// keeper is one key-encryption key.
type keeper struct {
	*secrets.Keeper
	// remote is set when it is kept by a service, which can be away.
	remote bool
}

// openKEKs opens those that can be: while one takes the other's place, either will do. It fails if none can.
func openKEKs(ctx context.Context, keks []string) (keepers, error) {
	var out keepers
	for i, kek := range keks {
		opened, err := OpenKEK(ctx, kek)
		if err != nil {
			out.problems = append(out.problems, err)
			continue
		}
		one := &keeper{Keeper: opened, remote: !isFile(kek)}
		out.all = append(out.all, one)
		if i == 0 {
			out.first = one
		}
	}
	if len(out.all) == 0 {
		return out, errors.Join(append(out.problems, errNoKEK)...)
	}
	return out, nil
}

var errNoKEK = errors.New("no key-encryption key could be opened")

func (k keepers) close() {
	for _, one := range k.all {
		_ = one.Close()
	}
}

// unwrap decrypts a data key by the first of the key-encryption keys that fits, and says which did.
func (k keepers) unwrap(ctx context.Context, wrapped WrappedKey) (key []byte, by *keeper, err error) {
	problems := slices.Clone(k.problems)
	for _, one := range k.all {
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
	target, err := openKEKs(ctx, []string{to})
	if err != nil {
		return 0, err
	}
	defer target.close()
	var former keepers // opened when it is needed: once all is done it may be gone
	defer func() { former.close() }()
	keys, err := sorted(ctx, store)
	if err != nil {
		return 0, err
	}
	next := slices.Clone(keys)
	for i, one := range keys {
		_, err := target.first.unwrap(ctx, one)
		if err == nil {
			continue
		}
		if errors.Is(err, ErrKEKAway) {
			return 0, err
		}
		if former.first == nil {
			if former, err = openKEKs(ctx, []string{from}); err != nil {
				return 0, err
			}
		}
		key, err := former.first.unwrap(ctx, one)
		if err != nil {
			return 0, err
		}
		if next[i], err = target.first.wrap(ctx, one.ID, key); err != nil {
			return 0, err
		}
		// Nothing is stored that was not seen to open.
		if again, err := target.first.unwrap(ctx, next[i]); err != nil || !bytes.Equal(again, key) {
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

// Outdated reports whether there is a record that an older data key than the current one has sealed.
func (k *Keyring) Outdated(ctx context.Context, records Records) (bool, error) {
	found := false
	err := each(ctx, records, func(record Record) (bool, error) {
		found = k.outdated(record)
		return !found, nil
	}, func() {})
	return found, err
}

func (k *Keyring) outdated(record Record) bool {
	by, ok := sealedBy(record.Sealed)
	return !ok || by < k.Current()
}

// Reseal goes over all records once, and has the current data key seal those that an older one has. progress is told after each batch. It can be stopped anywhere and
// begun again: what is done is passed over.
func (k *Keyring) Reseal(ctx context.Context, records Records, progress func(Pass)) (Pass, error) {
	var pass Pass
	err := each(ctx, records, func(record Record) (bool, error) {
		pass.Seen++
		if !k.outdated(record) {
			return true, nil
		}
		text, err := k.Open(ctx, record.Identity, record.Sealed)
		if err != nil {
			return false, err
		}
		sealed, err := k.Seal(record.Identity, text)
		if err != nil {
			return false, err
		}
		done, err := records.Reseal(ctx, record, sealed)
		switch {
		case err != nil:
			return false, err
		case done:
			pass.Resealed++
		default:
			pass.Changed++
		}
		return true, nil
	}, func() { progress(pass) })
	return pass, err
}

// each has do look at all records until it has had enough, and progress told after each batch.
func each(ctx context.Context, records Records, do func(Record) (more bool, err error), progress func()) error {
	after := ""
	for {
		batch, err := records.Sealed(ctx, after, resealBatch)
		if err != nil {
			return err
		}
		for _, record := range batch {
			more, err := do(record)
			if err != nil || !more {
				return err
			}
			after = record.ID
		}
		progress()
		if len(batch) < resealBatch {
			return nil
		}
	}
}

// ResealAll has the current data key seal everything, also what replicas seal by an older one until they have seen it: it goes over the records until nothing was left to do
// in a pass that began after all of them have looked, and well after the last record was sealed anew. The log tells how far it is.
func (k *Keyring) ResealAll(ctx context.Context, records Records, log *slog.Logger) error {
	looked := time.Now().Add(2 * RefreshInterval)
	for {
		begun := time.Now()
		pass, err := k.Reseal(ctx, records, func(p Pass) {
			log.InfoContext(ctx, "records are being sealed anew", slog.Int("seen", p.Seen), slog.Int("resealed", p.Resealed))
		})
		if err != nil {
			return err
		}
		wait := resealPause
		left := pass.Resealed + pass.Changed
		if again := time.Now().Add(RefreshInterval); left > 0 && again.After(looked) {
			looked = again // somebody who read a record before may write it back as it was
		}
		switch {
		case left == 0 && begun.After(looked):
			log.InfoContext(ctx, "everything is sealed by the new data key", slog.Int("records", pass.Seen))
			return nil
		case left == 0:
			wait = max(wait, time.Until(looked))
			log.InfoContext(ctx, "waiting until every replica has seen the new data key", slog.String("wait", wait.Round(time.Second).String()))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// resealPause lies between two passes over the records.
const resealPause = time.Second
