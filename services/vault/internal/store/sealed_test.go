package store_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/keyring"
)

func TestSealed_IsReplacedOnlyAsItWasRead(t *testing.T) {
	onBoth(t, func(b *bench) {
		b.insert("a", 1, credential.Retiring)
		b.insert("b", 2, credential.Active)
		b.insert("c", 3, credential.Intended) // has no text
		list := func(after string, limit int) []keyring.Record {
			t.Helper()
			out, err := b.store.Sealed(b.t.Context(), after, limit)
			if err != nil {
				b.t.Fatal(err)
			}
			return out
		}
		want := []keyring.Record{
			{ID: "a", Identity: credential.SealedAs("a"), Sealed: []byte{1, 2, 3}},
			{ID: "b", Identity: credential.SealedAs("b"), Sealed: []byte{1, 2, 3}},
		}
		all := list("", 10)
		if diff := cmp.Diff(want, all); diff != "" {
			b.t.Error(diff)
		}
		if diff := cmp.Diff(want[1:], list("a", 1)); diff != "" {
			b.t.Error(diff)
		}
		if done, err := b.store.Reseal(b.t.Context(), all[0], []byte{4}); err != nil || !done {
			b.t.Errorf("sealed anew: %v, %v", done, err)
		}
		if done, err := b.store.Reseal(b.t.Context(), all[0], []byte{5}); err != nil || done {
			b.t.Errorf("although it is not as it was read: %v, %v", done, err)
		}
		v, _ := b.facts().ByState(credential.Retiring)
		if diff := cmp.Diff([]byte{4}, v.Sealed); diff != "" {
			b.t.Error(diff)
		}
		// The text goes with the password; nothing brings it back.
		v.State = credential.Revoking
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Retiring, Version: v}}})
		after := b.facts().Removed(start, v)
		b.mustCommit(after)
		if done, err := b.store.Reseal(b.t.Context(), keyring.Record{ID: "a", Sealed: []byte{4}}, []byte{6}); err != nil || done {
			b.t.Errorf("a removed one: %v, %v", done, err)
		}
		if got := list("", 10); len(got) != 1 {
			b.t.Errorf("left are %v", got)
		}
	})
}
