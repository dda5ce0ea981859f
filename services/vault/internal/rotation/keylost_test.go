package rotation_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/store"
)

// keyLost is a keyring that cannot open what was sealed up to some time.
type keyLost struct {
	fakeKeyring
	lost atomic.Pointer[map[string]bool]
	made sync.Map
}

func (k *keyLost) Seal(identity string, text secret.Text) ([]byte, error) {
	k.made.Store(identity, true)
	return k.fakeKeyring.Seal(identity, text)
}

func (k *keyLost) Open(ctx context.Context, identity string, sealed []byte) (secret.Text, error) {
	if lost := k.lost.Load(); lost != nil && (*lost)[identity] {
		return secret.Text{}, fmt.Errorf("open %s: %w 7", identity, keyring.ErrUnknownKey)
	}
	return k.fakeKeyring.Open(ctx, identity, sealed)
}

// lose loses the key of everything that was sealed so far.
func (k *keyLost) lose() {
	lost := map[string]bool{}
	k.made.Range(func(identity, _ any) bool {
		lost[identity.(string)] = true
		return true
	})
	k.lost.Store(&lost)
}

// TestWorker_ReplacesWhatItCannotOpen loses the key of the secret there is, at each stage of its life.
func TestWorker_ReplacesWhatItCannotOpen(t *testing.T) {
	is := func(states ...credential.State) func(store.Facts) bool {
		return func(f store.Facts) bool {
			_, ok := f.ByState(states...)
			return ok && !f.Application.ReadyTime.IsZero()
		}
	}
	for _, tt := range []struct {
		name    string
		consent bool
		lose    func(store.Facts) bool
	}{
		{"before the home tenant knows", false, func(f store.Facts) bool { _, ok := f.ByState(credential.Staged); return ok }},
		{"before consent", false, is(credential.Staged)},
		{"while it is being proven", true, is(credential.Propagating)},
		{"while it is in use", true, is(credential.Active)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				s.config.Poll = time.Second
				s.look = time.Second
				keys := &keyLost{}
				s.config.Keyring = keys
				s.entra.set(func(d *fakeDirectory) { d.consented = tt.consent })
				s.serve()
				lost := s.until("there", time.Hour, tt.lose).LastNumber
				keys.lose()
				if tt.name == "while it is in use" {
					s.entra.set(func(d *fakeDirectory) {
						d.after = func(_ context.Context, op string) error {
							if op == "add" {
								return refuse(directory.Transient, "")
							}
							return nil
						}
					})
					s.until("it says so", 2*time.Hour, func(store.Facts) bool {
						_, short := s.registry.last()
						return strings.HasSuffix(short, " SecretUnreadable")
					})
					s.entra.set(func(d *fakeDirectory) { d.after = nil })
				}
				s.entra.set(func(d *fakeDirectory) { d.consented = true })
				f := s.until("another works", 3*time.Hour, func(f store.Facts) bool {
					v, ok := f.ByState(credential.Active)
					return ok && v.Number > lost && v.Refusals == 0
				})
				if f.LastNumber > lost+2 {
					t.Errorf("it took %d more versions", f.LastNumber-lost)
				}
				s.until("what was lost is removed", 2*time.Hour, func(store.Facts) bool { return len(s.entra.keys()) == 1 })
				if n := s.measured()["phasekey_vault_secrets_unreadable_total"]; n != 1 {
					t.Errorf("it counts %v", n)
				}
				s.tidy()
			})
		})
	}
}
