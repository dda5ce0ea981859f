package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/signingkey"
	"phasekey.dev/services/vault/internal/store"
)

func signingKey(id string, number int64) signingkey.Key {
	return signingkey.Key{ID: id, Number: number, State: signingkey.Published, Public: []byte("public " + id), Sealed: []byte("sealed " + id), PublishTime: start}
}

func (b *bench) addKey(k signingkey.Key) {
	b.t.Helper()
	if err := b.store.AddSigningKey(b.t.Context(), b.master, start, k); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) moveKey(k signingkey.Key, to signingkey.State) signingkey.Key {
	b.t.Helper()
	from := k.State
	k.State = to
	if err := b.store.MoveSigningKey(b.t.Context(), b.master, signingkey.Move{From: from, Key: k}); err != nil {
		b.t.Fatal(err)
	}
	return k
}

func (b *bench) keys() []signingkey.Key {
	b.t.Helper()
	out, err := b.store.SigningKeys(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func TestSigningKeys_ThroughTheirLives(t *testing.T) {
	onBoth(t, func(b *bench) {
		if f, err := b.store.SigningFacts(b.t.Context()); err != nil || f.LastNumber != 0 || len(f.Keys) != 0 {
			b.t.Fatalf("at first %+v, %v", f, err)
		}
		a := signingKey("a", 1)
		b.addKey(a)
		if err := b.store.AddSigningKey(b.t.Context(), b.master, start, signingKey("b", 2)); !errors.Is(err, store.ErrChanged) {
			b.t.Errorf("a second one that is published: %v", err)
		}
		a.SignTime = start.Add(time.Second)
		a = b.moveKey(a, signingkey.Signing)
		if err := b.store.AddSigningKey(b.t.Context(), b.master, start, signingKey("b", 1)); !errors.Is(err, store.ErrChanged) {
			b.t.Errorf("another of its number: %v", err)
		}
		c := signingKey("c", 2)
		b.addKey(c)
		if diff := cmp.Diff([]signingkey.Key{c, a}, b.keys(), cmpopts.EquateEmpty()); diff != "" {
			b.t.Error(diff)
		}
		if err := b.store.MoveSigningKey(b.t.Context(), b.master, signingkey.Move{From: signingkey.Published, Key: a}); !errors.Is(err, store.ErrChanged) {
			b.t.Errorf("moved from where it is not: %v", err)
		}
		if err := b.store.MoveSigningKey(b.t.Context(), b.master, signingkey.Move{From: signingkey.Published, Key: with(c, signingkey.Retired)}); err == nil {
			b.t.Error("a transition that is none")
		}
		a.RetireTime = start.Add(time.Minute)
		a = b.moveKey(a, signingkey.Retired)
		a.RemoveTime = start.Add(time.Hour)
		a = b.moveKey(a, signingkey.Removed)
		a.Sealed = nil
		if diff := cmp.Diff([]signingkey.Key{c, a}, b.keys(), cmpopts.EquateEmpty()); diff != "" {
			b.t.Error(diff)
		}
		// Months later it is forgotten, when another is made.
		b.moveKey(c, signingkey.Signing)
		if err := b.store.AddSigningKey(b.t.Context(), b.master, start.Add(2200*time.Hour), signingKey("d", 3)); err != nil {
			b.t.Fatal(err)
		}
		if f, err := b.store.SigningFacts(b.t.Context()); err != nil || len(f.Keys) != 2 || f.LastNumber != 3 {
			b.t.Errorf("in the end %+v, %v", f, err)
		}
	})
}

func with(k signingkey.Key, s signingkey.State) signingkey.Key {
	k.State = s
	return k
}

func TestSigningKeys_AreWantedAndDroppedByAnybody(t *testing.T) {
	onBoth(t, func(b *bench) {
		ctx, caller := b.t.Context(), grant.Caller{Identity: "spiffe://example.org/operator", RequestID: "r"}
		if err := b.store.WantSigningKey(ctx, start, caller); !errors.Is(err, signingkey.ErrNotFound) {
			b.t.Errorf("wanted while there is none: %v", err)
		}
		if err := b.store.DropSigningKey(ctx, start, "a", caller); !errors.Is(err, signingkey.ErrNotFound) {
			b.t.Errorf("dropped while there is none: %v", err)
		}
		a := signingKey("a", 1)
		b.addKey(a)
		b.moveKey(a, signingkey.Signing)
		b.addKey(signingKey("n", 2))
		for _, at := range []time.Time{start, start.Add(time.Hour)} {
			if err := b.store.WantSigningKey(ctx, at, caller); err != nil {
				b.t.Fatal(err)
			}
		}
		if got := b.keys(); !got[1].ReplaceTime.Equal(start) || !got[0].ReplaceTime.IsZero() {
			b.t.Errorf("wanted since %s; the next one since %s", got[1].ReplaceTime, got[0].ReplaceTime)
		}
		for _, at := range []time.Time{start.Add(time.Minute), start.Add(time.Hour)} {
			if err := b.store.DropSigningKey(ctx, at, "a", caller); err != nil {
				b.t.Fatal(err)
			}
		}
		got := b.keys()
		if got[1].State != signingkey.Removed || got[1].Sealed != nil || got[1].Reason != signingkey.Compromised || !got[1].RemoveTime.Equal(start.Add(time.Minute)) ||
			got[0].State != signingkey.Published {
			b.t.Errorf("after one was dropped: %+v", got)
		}
		for id, want := range map[string]bool{"a": true, "n": false, "nobody's": false} {
			if said, err := b.store.SigningKeyCompromised(ctx, id); err != nil || said != want {
				b.t.Errorf("%s is compromised: %v, %v", id, said, err)
			}
		}
		var records, reasons int
		if err := b.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*), COUNT(DISTINCT reason) FROM audit_events WHERE kind = 'SigningKeysRotated' AND actor = $1`, caller.Identity).Scan(&records, &reasons)
		}); err != nil || records != 4 || reasons != 2 {
			b.t.Errorf("%d records of %d kinds, %v", records, reasons, err)
		}
	})
}

func TestSigningKeys_AreSealedAnewWithTheRest(t *testing.T) {
	onBoth(t, func(b *bench) {
		b.insert("a", 1, "ACTIVE")
		b.addKey(signingKey("Z", 1))
		all, err := b.store.Sealed(b.t.Context(), "", 10)
		if err != nil {
			b.t.Fatal(err)
		}
		want := []keyring.Record{
			{ID: "a", Identity: "credential_version/a", Sealed: []byte{1, 2, 3}},
			{ID: "signing_key/Z", Identity: signingkey.SealedAs("Z"), Sealed: []byte("sealed Z")},
		}
		if diff := cmp.Diff(want, all); diff != "" {
			b.t.Fatal(diff)
		}
		if rest, err := b.store.Sealed(b.t.Context(), "a", 1); err != nil || cmp.Diff(want[1:], rest) != "" {
			b.t.Errorf("after the first: %v, %v", rest, err)
		}
		if rest, err := b.store.Sealed(b.t.Context(), "signing_key/Z", 1); err != nil || len(rest) != 0 {
			b.t.Errorf("after the last: %v, %v", rest, err)
		}
		for _, done := range []bool{true, false} {
			if got, err := b.store.Reseal(b.t.Context(), all[1], []byte("anew")); err != nil || got != done {
				b.t.Errorf("sealed anew: %v, %v", got, err)
			}
		}
		if got := b.keys()[0].Sealed; string(got) != "anew" {
			b.t.Errorf("it is %q", got)
		}
	})
}

// A version keeps its key signing, and a key that does not sign has no version begun under it: whoever comes second finds what is there.
func TestSigningKeys_AreKeptByTheirVersions(t *testing.T) {
	onBoth(t, func(b *bench) {
		ctx := b.t.Context()
		b.want(2, store.Integration{UID: "uid", Name: "accounts/a/integrations/i", Cloud: "public", Federated: true, Revision: 2})
		a := signingKey("a", 1)
		b.addKey(a)
		version := func(id string, number int64, key string) credential.Version {
			return credential.Version{ID: id, IntegrationUID: "uid", Number: number, State: credential.Propagating, SigningKey: key, IntendTime: start, AddTime: start}
		}
		early := version("v0", 1, "a")
		if err := b.commit(credential.Change{Intent: &early}); !errors.Is(err, store.ErrChanged) {
			b.t.Errorf("begun under a key that does not sign yet: %v", err)
		}
		a.SignTime = start.Add(time.Second)
		a = b.moveKey(a, signingkey.Signing)
		v := version("v1", 1, "a")
		b.mustCommit(credential.Change{Intent: &v})
		f := b.facts()
		want := credential.Trust{Key: "a", KeyTime: start.Add(time.Second), Usable: []string{"a"}}
		if !f.Wanted.Federated || cmp.Diff(want, f.Trust) != "" || len(f.Versions) != 1 || f.Versions[0].SigningKey != "a" {
			b.t.Errorf("facts are %+v of %+v, %+v", f.Trust, f.Wanted, f.Versions)
		}
		n := signingKey("n", 2)
		b.addKey(n)
		b.moveKey(n, signingkey.Signing)
		if trust, err := b.store.Trust(ctx); err != nil || trust.Key != "n" || !slices.Equal(trust.Usable, []string{"n", "a"}) {
			b.t.Errorf("versions stand on %+v, %v", trust, err)
		}
		if s, err := b.store.SigningFacts(ctx); err != nil || cmp.Diff([]string{"a"}, s.Used) != "" {
			b.t.Errorf("used are %v, %v", s.Used, err)
		}
		if err := b.store.MoveSigningKey(ctx, b.master, signingkey.Move{From: signingkey.Signing, Key: with(a, signingkey.Retired)}); !errors.Is(err, store.ErrChanged) {
			b.t.Errorf("retired under a version: %v", err)
		}
		for _, to := range []credential.State{credential.Active, credential.Retiring, credential.Revoking} {
			from := v.State
			v.State = to
			b.mustCommit(credential.Change{Moves: []credential.Move{{From: from, Version: v}}})
		}
		b.moveKey(a, signingkey.Retired)
		late := version("v2", 2, "a")
		if err := b.commit(credential.Change{Intent: &late}); !errors.Is(err, store.ErrChanged) {
			b.t.Errorf("begun under a key that signs no more: %v", err)
		}
	})
}

// A rotation tells by which key what it replaces can be used: versions that were over before do not count.
func TestRotations_NameTheKeyOfWhatTheyReplace(t *testing.T) {
	onBoth(t, func(b *bench) {
		ctx := b.t.Context()
		b.want(2, store.Integration{UID: "uid", Name: integrationName, Cloud: "public", Federated: true, Revision: 2})
		old := signingKey("a", 1)
		b.addKey(old)
		b.moveKey(old, signingkey.Signing)
		v := credential.Version{ID: "v1", IntegrationUID: "uid", Number: 1, State: credential.Propagating, SigningKey: "a", IntendTime: start, AddTime: start}
		b.mustCommit(credential.Change{Intent: &v})
		move := func(to credential.State) {
			b.t.Helper()
			from := v.State
			v.State = to
			if to == credential.Revoking {
				v.RevokeTime = start.Add(time.Hour)
			}
			b.mustCommit(credential.Change{Moves: []credential.Move{{From: from, Version: v}}})
		}
		move(credential.Active)
		r := b.mustRotate(start, credential.Compromised)
		move(credential.Retiring)
		b.insert("v2", 2, credential.Active)
		move(credential.Revoking)
		move(credential.Revoked)
		if got, err := b.store.Rotation(ctx, integrationName, r.ID); err != nil || r.SigningKey != "a" || got.SigningKey != "a" {
			b.t.Errorf("it replaces what stands on %q, and afterwards %q, %v", r.SigningKey, got.SigningKey, err)
		}
		b.mustCommit(credential.Change{Rotations: []credential.RotationMove{{From: credential.RotationPending, Rotation: func() credential.Rotation {
			done := r.Rotation
			done.State, done.EndTime = credential.RotationCompleted, start.Add(time.Hour)
			return done
		}()}}})
		if next := b.mustRotate(start.Add(2*time.Hour), credential.Compromised); next.ID == r.ID || next.SigningKey != "" {
			b.t.Errorf("one of a secret names %q", next.SigningKey)
		}
	})
}

func TestTouchFederated_MakesThemDueAndNobodyElse(t *testing.T) {
	onBoth(t, func(b *bench) {
		integration := func(uid string, federated bool) store.Integration {
			return store.Integration{UID: uid, Name: "accounts/a/integrations/" + uid, Cloud: "public", Federated: federated, Revision: 2}
		}
		// All three are in shard 0 of three.
		var uids []string
		for i := 0; len(uids) < 3; i++ {
			if uid := fmt.Sprint("i", i); election.ShardOf(uid, 3) == 0 {
				uids = append(uids, uid)
			}
		}
		b.want(2, integration(uids[0], true), integration(uids[1], false), integration(uids[2], true))
		b.adopt(1)
		for _, uid := range uids {
			f, err := b.store.Facts(b.t.Context(), uid)
			if err != nil {
				b.t.Fatal(err)
			}
			if err := b.store.Commit(b.t.Context(), b.master, store.Step{IntegrationUID: uid, Now: start, NextTime: start.Add(time.Hour), Touches: f.Touches}); err != nil {
				b.t.Fatal(err)
			}
		}
		if err := b.store.TouchFederated(b.t.Context(), b.master, start.Add(time.Minute)); err != nil {
			b.t.Fatal(err)
		}
		due, _, err := b.store.Due(b.t.Context(), 0, start.Add(time.Minute), 10)
		due = slices.DeleteFunc(due, func(uid string) bool { return uid == "uid" })
		if err != nil || cmp.Diff([]string{uids[0], uids[2]}, due) != "" {
			b.t.Errorf("due are %v of %v, %v", due, uids, err)
		}
	})
}
