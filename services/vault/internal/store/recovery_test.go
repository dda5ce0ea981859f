package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/store"
)

func TestBeginRecovery_EndsMasterships(t *testing.T) {
	onBoth(t, func(b *bench) {
		b.mustCommit(credential.Change{}) // nothing is due for an hour
		now := start.Add(time.Minute)
		for number := int64(1); number <= 2; number++ {
			got, err := b.store.BeginRecovery(b.t.Context(), now)
			if err != nil {
				b.t.Fatal(err)
			}
			want := credential.Recovery{Number: number, Time: now}
			if diff := cmp.Diff(want, got); diff != "" {
				b.t.Error(diff)
			}
			if diff := cmp.Diff(want, b.facts().Recovery); diff != "" {
				b.t.Error(diff)
			}
			events, err := b.store.AuditEvents(b.t.Context(), audit.Query{From: now, Limit: 10})
			if err != nil || int64(len(events)) != number || events[0].Kind != store.RecoveryBegun || events[0].Reason != fmt.Sprint("recovery ", number) {
				b.t.Errorf("recorded are %+v, %v", events, err)
			}
			if err := b.commit(credential.Change{}); !errors.Is(err, election.ErrFenced) {
				b.t.Errorf("a master that may not know of it wrote: %v", err)
			}
			uids, _, err := b.store.Due(b.t.Context(), 0, now, 10)
			if err != nil || len(uids) != 1 {
				b.t.Errorf("due are %v, %v", uids, err)
			}
			before := b.master
			if b.master = b.take(); b.master.Epoch <= before.Epoch {
				b.t.Errorf("the next epoch is %d, after %d", b.master.Epoch, before.Epoch)
			}
			b.mustCommit(credential.Change{})
		}
	})
}

func TestRecoveryProgress(t *testing.T) {
	onBoth(t, func(b *bench) {
		progress := func(want store.RecoveryProgress) {
			b.t.Helper()
			got, err := b.store.RecoveryProgress(b.t.Context())
			if err != nil {
				b.t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				b.t.Error(diff)
			}
		}
		progress(store.RecoveryProgress{})
		old := b.insert("old", 1, credential.Active)
		r, err := b.store.BeginRecovery(b.t.Context(), start)
		if err != nil {
			b.t.Fatal(err)
		}
		b.master = b.take()
		progress(store.RecoveryProgress{Recovery: r, Unconsented: 1})
		a := b.facts().Application
		a.Consented = true
		b.mustCommit(credential.Change{Application: &a, ReplaceStrays: true, Strays: []credential.Stray{
			{KeyID: "before", StartTime: start.Add(-time.Hour)}, {KeyID: "perhaps"}, {KeyID: "since", StartTime: start.Add(time.Hour)}}})
		progress(store.RecoveryProgress{Recovery: r, Waiting: 1, Unknown: 2})
		next := credential.Version{ID: "next", IntegrationUID: "uid", Number: 2, Recovery: r.Number, State: credential.Intended, IntendTime: start, SendTime: start}
		b.mustCommit(credential.Change{Intent: &next})
		for _, state := range []credential.State{credential.Propagating, credential.Active} {
			from := next.State
			next.State, next.KeyID = state, "key-next"
			moves := []credential.Move{{From: from, Version: next}}
			if state == credential.Active {
				old.State = credential.Retiring
				moves = []credential.Move{{From: credential.Active, Version: old}, moves[0]}
			}
			progress(store.RecoveryProgress{Recovery: r, Waiting: 1, Unknown: 2})
			b.mustCommit(credential.Change{Moves: moves})
		}
		progress(store.RecoveryProgress{Recovery: r, Rotated: 1, Unknown: 2})
	})
}
