package keyring_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"

	"phasekey.dev/services/vault/internal/keyring"
)

// kms is a service with a key-encryption key, at testkms://.
type kms struct {
	code  atomic.Int64
	calls atomic.Int64
}

var theKMS = func() *kms {
	k := &kms{}
	secrets.DefaultURLMux().RegisterKeeper("testkms", k)
	return k
}()

func (k *kms) OpenKeeperURL(context.Context, *url.URL) (*secrets.Keeper, error) {
	return secrets.NewKeeper(k), nil
}

type kmsError gcerrors.ErrorCode

func (e kmsError) Error() string { return "the service says " + gcerrors.ErrorCode(e).String() }

func (k *kms) Encrypt(ctx context.Context, b []byte) ([]byte, error) { return k.Decrypt(ctx, b) }

func (k *kms) Decrypt(_ context.Context, b []byte) ([]byte, error) {
	k.calls.Add(1)
	if code := k.code.Load(); code != 0 {
		return nil, kmsError(code)
	}
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= 0x55
	}
	return out, nil
}

func (k *kms) Close() error              { return nil }
func (k *kms) ErrorAs(error, any) bool   { return false }
func (k *kms) fail(c gcerrors.ErrorCode) { k.code.Store(int64(c)) }
func (k *kms) ErrorCode(err error) gcerrors.ErrorCode {
	var e kmsError
	if errors.As(err, &e) {
		return gcerrors.ErrorCode(e)
	}
	return gcerrors.Unknown
}

// mortal is a Store whose user dies at one of its calls: before it, or after it was carried out.
type mortal struct {
	*memory
	left  int
	after bool
}

var errKilled = errors.New("killed")

func (m *mortal) die(call func() error) error {
	m.left--
	if m.left == 0 && !m.after {
		return errKilled
	}
	err := call()
	if m.left == 0 && err == nil {
		return errKilled
	}
	return err
}

func (m *mortal) Keys(ctx context.Context) (keys []keyring.WrappedKey, err error) {
	err = m.die(func() (err error) {
		keys, err = m.memory.Keys(ctx)
		return err
	})
	return keys, err
}

func (m *mortal) Swap(ctx context.Context, from, to []keyring.WrappedKey) error {
	return m.die(func() error { return m.memory.Swap(ctx, from, to) })
}

func TestRewrap_KilledAtEachStepLeavesOneKeyThatFits(t *testing.T) {
	for step := 1; ; step++ {
		path, store, ring := started(t)
		from, to := "file://"+path, "file://"+filepath.Join(filepath.Dir(path), "new", "kek")
		if _, err := keyring.Rekey(t.Context(), store, from); err != nil {
			t.Fatal(err)
		}
		sealed := seal(t, ring, "record", "text")
		_, err := keyring.Rewrap(t.Context(), &mortal{memory: store, left: (step + 1) / 2, after: step%2 == 0}, from, to)
		over := err == nil
		if !over && !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		fits := 0
		for _, kek := range []string{from, to} {
			restarted, err := keyring.Open(t.Context(), store, kek)
			if err != nil {
				continue
			}
			fits++
			if text, err := restarted.Open(t.Context(), "record", sealed); err != nil || text.Expose() != "text" {
				t.Errorf("step %d: %v", step, err)
			}
		}
		if fits != 1 {
			t.Errorf("killed at step %d: %d of the two keys fit", step, fits)
		}
		if _, err := keyring.Open(t.Context(), store, from, to); err != nil {
			t.Errorf("killed at step %d: a replica that was told of both does not start: %v", step, err)
		}
		if _, err := keyring.Open(t.Context(), &memory{}, to+"-none", from); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("the first data key was wrapped by what is not in use yet: %v", err)
		}
		if _, err := keyring.Rewrap(t.Context(), store, from, to); err != nil {
			t.Errorf("again after step %d: %v", step, err)
		}
		if n, err := keyring.Rewrap(t.Context(), store, from, to); err != nil || n != 0 {
			t.Errorf("once more: %d, %v", n, err)
		}
		if _, err := keyring.Open(t.Context(), store, to); err != nil {
			t.Error(err)
		}
		if _, err := keyring.Open(t.Context(), store, from); !errors.Is(err, keyring.ErrUnwrap) {
			t.Errorf("with the former key: %v", err)
		}
		if over {
			if step < 5 {
				t.Errorf("it was through after %d steps", step)
			}
			return
		}
	}
}

func TestRewrap_ChangesNothingUnlessAllFit(t *testing.T) {
	path, store, _ := started(t)
	from := "file://" + path
	dir := filepath.Dir(path)
	_, other, _ := started(t)
	store.keys = append(store.keys, keyring.WrappedKey{ID: 2, Wrapped: other.keys[0].Wrapped})
	before := fmt.Sprint(store.keys)
	if _, err := keyring.Rewrap(t.Context(), store, from, "file://"+filepath.Join(dir, "new")); !errors.Is(err, keyring.ErrUnwrap) {
		t.Errorf("got %v", err)
	}
	if fmt.Sprint(store.keys) != before {
		t.Error("keys were changed")
	}
	if _, err := keyring.Rewrap(t.Context(), store, from, "base64key://"); err == nil {
		t.Error("wrapped with a random key")
	}
}

// A rewrap during which a data key was added leaves keys of both kinds only if the store lets it.
func TestRewrap_LosesToAKeyAddedMeanwhile(t *testing.T) {
	path, store, _ := started(t)
	from, to := "file://"+path, "file://"+filepath.Join(filepath.Dir(path), "new")
	between := &during{memory: store, do: func() {
		if _, err := keyring.Rekey(t.Context(), store, from); err != nil {
			t.Error(err)
		}
	}}
	if _, err := keyring.Rewrap(t.Context(), between, from, to); !errors.Is(err, keyring.ErrKeysChanged) {
		t.Errorf("got %v", err)
	}
	if n, err := keyring.Rewrap(t.Context(), store, from, to); err != nil || n != 2 {
		t.Errorf("again: %d, %v", n, err)
	}
}

// during is a Store where something happens just before a swap.
type during struct {
	*memory
	do func()
}

func (d *during) Swap(ctx context.Context, from, to []keyring.WrappedKey) error {
	d.do()
	return d.memory.Swap(ctx, from, to)
}

// records are Records.
type records struct {
	mu    sync.Mutex
	all   map[string][]byte
	kill  int
	touch func(id string)
}

func (r *records) Sealed(_ context.Context, after string, limit int) ([]keyring.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []keyring.Record
	for id, sealed := range r.all {
		if id > after {
			out = append(out, keyring.Record{ID: id, Identity: "records/" + id, Sealed: sealed})
		}
	}
	slices.SortFunc(out, func(a, b keyring.Record) int { return cmp.Compare(a.ID, b.ID) })
	return out[:min(limit, len(out))], nil
}

func (r *records) Reseal(_ context.Context, record keyring.Record, sealed []byte) (bool, error) {
	if r.touch != nil {
		r.touch(record.ID)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kill--
	if r.kill == 0 {
		return false, errKilled
	}
	if !bytes.Equal(r.all[record.ID], record.Sealed) {
		return false, nil
	}
	r.all[record.ID] = sealed
	return true, nil
}

func TestReseal_GoesOnWhereItWasKilled_WhileAReplicaReads(t *testing.T) {
	path, store, ring := started(t)
	kek := "file://" + path
	all := &records{all: map[string][]byte{}}
	const n = 1203
	for i := range n {
		id := fmt.Sprintf("%05d", i)
		all.all[id] = seal(t, ring, "records/"+id, "text of "+id)
	}
	if id, err := keyring.Rekey(t.Context(), store, kek); err != nil || id != 2 {
		t.Fatalf("key %d, %v", id, err)
	}
	check := func(when string) {
		t.Helper()
		for id, sealed := range all.all {
			if text, err := ring.Open(t.Context(), "records/"+id, sealed); err != nil || text.Expose() != "text of "+id {
				t.Fatalf("%s: record %s: %v", when, id, err)
			}
		}
	}
	resealed := 0
	for _, kill := range []int{1, 700, 0} {
		command, err := keyring.Open(t.Context(), store, kek)
		if err != nil {
			t.Fatal(err)
		}
		if outdated, err := command.Outdated(t.Context(), all); err != nil || !outdated {
			t.Fatalf("outdated: %v, %v", outdated, err)
		}
		all.kill = kill
		batches := 0
		pass, err := command.Reseal(t.Context(), all, func(keyring.Pass) { batches++ })
		if (kill == 0) != (err == nil) || err != nil && !errors.Is(err, errKilled) {
			t.Fatalf("killed at %d: %v", kill, err)
		}
		resealed += pass.Resealed
		if kill == 0 && (pass.Seen != n || batches != n/500+1) {
			t.Errorf("saw %d in %d batches", pass.Seen, batches)
		}
		check(fmt.Sprintf("killed at %d", kill))
	}
	if resealed != n {
		t.Errorf("%d were sealed anew, want %d", resealed, n)
	}
	if outdated, err := ring.Outdated(t.Context(), all); err != nil || outdated {
		t.Errorf("still outdated: %v, %v", outdated, err)
	}
	if ring.Current() != 2 {
		t.Errorf("the replica seals with %d", ring.Current())
	}
}

func TestReseal_LeavesWhatChangesMeanwhile(t *testing.T) {
	path, store, ring := started(t)
	all := &records{all: map[string][]byte{"1": seal(t, ring, "records/1", "old")}}
	if _, err := keyring.Rekey(t.Context(), store, "file://"+path); err != nil {
		t.Fatal(err)
	}
	newer := seal(t, ring, "records/1", "new")
	all.touch = func(id string) { all.all[id] = newer }
	command, err := keyring.Open(t.Context(), store, "file://"+path)
	if err != nil {
		t.Fatal(err)
	}
	pass, err := command.Reseal(t.Context(), all, func(keyring.Pass) {})
	if err != nil || pass != (keyring.Pass{Seen: 1, Changed: 1}) || !bytes.Equal(all.all["1"], newer) {
		t.Errorf("%+v, %v", pass, err)
	}
}

// Many who meet a new key look once; a key that is nowhere is not looked for time and again.
func TestKeyring_LooksOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, store, ring := started(t)
		if _, err := keyring.Rekey(t.Context(), store, "file://"+path); err != nil {
			t.Fatal(err)
		}
		newer, err := keyring.Open(t.Context(), store, "file://"+path)
		if err != nil {
			t.Fatal(err)
		}
		sealed := seal(t, newer, "record", "text")
		before := store.reads
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if text, err := ring.Open(t.Context(), "record", sealed); err != nil || text.Expose() != "text" {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := store.reads - before; n != 1 {
			t.Errorf("looked %d times", n)
		}
		bad := bytes.Clone(sealed)
		bad[4] = 9
		before = store.reads
		for range 50 {
			all.Go(func() {
				if _, err := ring.Open(t.Context(), "record", bad); !errors.Is(err, keyring.ErrUnknownKey) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		time.Sleep(time.Minute)
		if _, err := ring.Open(t.Context(), "record", bad); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Error(err)
		}
		if n := store.reads - before; n != 2 {
			t.Errorf("looked %d times in all for a key that is not there, want twice, a minute apart", n)
		}
	})
}

func TestKeyring_GoesOnWithoutTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		const kek = "testkms://key"
		theKMS.fail(gcerrors.OK)
		ring, err := keyring.Open(t.Context(), store, kek)
		if err != nil {
			t.Fatal(err)
		}
		sealed := seal(t, ring, "record", "text")
		if _, err := keyring.Rekey(t.Context(), store, kek); err != nil {
			t.Fatal(err)
		}
		newer, err := keyring.Open(t.Context(), store, kek)
		if err != nil {
			t.Fatal(err)
		}
		unseen := seal(t, newer, "record", "newer")

		theKMS.fail(gcerrors.DeadlineExceeded)
		defer theKMS.fail(gcerrors.OK)
		if text, err := ring.Open(t.Context(), "record", sealed); err != nil || text.Expose() != "text" {
			t.Errorf("what it holds: %v", err)
		}
		calls := theKMS.calls.Load()
		for range 20 {
			if _, err := ring.Open(t.Context(), "record", unseen); !errors.Is(err, keyring.ErrKEKAway) || errors.Is(err, keyring.ErrUnknownKey) {
				t.Errorf("a new key's: %v", err)
			}
		}
		if n := theKMS.calls.Load() - calls; n != 1 {
			t.Errorf("%d calls while it is away", n)
		}
		if _, err := keyring.Open(t.Context(), store, kek); !errors.Is(err, keyring.ErrKEKAway) {
			t.Errorf("a start: %v", err)
		}
		theKMS.fail(gcerrors.PermissionDenied)
		if _, err := keyring.Open(t.Context(), store, kek); !errors.Is(err, keyring.ErrUnwrap) || errors.Is(err, keyring.ErrKEKAway) {
			t.Errorf("a start that is refused: %v", err)
		}
		theKMS.fail(gcerrors.OK)
		time.Sleep(time.Minute)
		if text, err := ring.Open(t.Context(), "record", unseen); err != nil || text.Expose() != "newer" {
			t.Errorf("once it is back: %v", err)
		}
	})
}

func TestRun_SealsWithANewKeyByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, store, ring := started(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- ring.Run(ctx, slog.New(slog.DiscardHandler)) }()
		if _, err := keyring.Rekey(t.Context(), store, "file://"+path); err != nil {
			t.Fatal(err)
		}
		if ring.Current() != 1 {
			t.Error("it knew at once")
		}
		store.mu.Lock()
		store.away = errors.New("database is away")
		store.mu.Unlock()
		time.Sleep(keyring.RefreshInterval)
		store.mu.Lock()
		store.away = nil
		store.mu.Unlock()
		time.Sleep(keyring.RefreshInterval)
		synctest.Wait()
		if ring.Current() != 2 {
			t.Error("it goes on sealing with the former key")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Records that a replica goes on sealing by the former key, until it has looked, are sealed anew too.
func TestResealAll_WaitsForReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, store, replica := started(t)
		kek := "file://" + path
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- replica.Run(ctx, slog.New(slog.DiscardHandler)) }()
		if _, err := keyring.Rekey(t.Context(), store, kek); err != nil {
			t.Fatal(err)
		}
		command, err := keyring.Open(t.Context(), store, kek)
		if err != nil {
			t.Fatal(err)
		}
		all := &records{all: map[string][]byte{}}
		put := func(id string) {
			all.mu.Lock()
			defer all.mu.Unlock()
			all.all[id] = seal(t, replica, "records/"+id, "text")
		}
		put("0")
		go func() {
			for i := range 80 {
				time.Sleep(time.Second - 7*time.Millisecond)
				put(fmt.Sprint(i))
			}
		}()
		if err := command.ResealAll(t.Context(), all, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if outdated, err := command.Outdated(t.Context(), all); err != nil || outdated || len(all.all) != 80 {
			t.Errorf("%d records, outdated: %v, %v", len(all.all), outdated, err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
