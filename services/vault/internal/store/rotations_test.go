package store_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

const integrationName = "accounts/a/integrations/i"

var operator = grant.Caller{Identity: "operator", RequestID: "call"}

// rotate asks for a rotation at a time.
func (b *bench) rotate(at time.Time, reason credential.RotationReason, edit ...func(*credential.RotationRequest)) (credential.RotationStatus, error) {
	b.t.Helper()
	r := credential.RotationRequest{Integration: integrationName, Reason: reason}
	for _, e := range edit {
		e(&r)
	}
	return b.store.RequestRotation(b.t.Context(), at, r, operator)
}

func (b *bench) mustRotate(at time.Time, reason credential.RotationReason, edit ...func(*credential.RotationRequest)) credential.RotationStatus {
	b.t.Helper()
	r, err := b.rotate(at, reason, edit...)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func immediately(r *credential.RotationRequest) { r.Immediately = true }

func requestID(id string) func(*credential.RotationRequest) {
	return func(r *credential.RotationRequest) { r.RequestID = id }
}

// trail is what was recorded of rotation and versions: kind, actor, account, reason.
func (b *bench) trail() (out []string) {
	b.t.Helper()
	err := b.db.ReadTx(b.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (string, error) {
			var kind, actor, account, uid, version, reason string
			err := row.Scan(&kind, &actor, &account, &uid, &version, &reason)
			return strings.Join([]string{kind, actor, account, uid, version, reason}, "|"), err
		}, `SELECT kind, actor, account, integration_uid, version_id, reason FROM audit_events WHERE kind LIKE 'Rotation%' OR kind LIKE 'Version%' ORDER BY writer, seq`)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func TestRotations_OfRequests(t *testing.T) {
	onBoth(t, func(b *bench) {
		b.insert("v1", 1, credential.Active)
		b.insert("v2", 2, credential.Propagating)
		first := b.mustRotate(start, credential.Scheduled, requestID("one"))
		want := credential.RotationStatus{Creator: "operator", OldEndTime: start.Add(time.Hour), Rotation: credential.Rotation{
			ID: first.ID, Reason: credential.Scheduled, UpTo: 1, State: credential.RotationPending, CreateTime: start,
		}}
		if diff := cmp.Diff(want, first); diff != "" {
			b.t.Errorf("first (-want +have):\n%s", diff)
		}
		if uids, _, err := b.store.Due(b.t.Context(), 0, start, 10); err != nil || !slices.Equal(uids, []string{"uid"}) {
			b.t.Errorf("due are %v, %v", uids, err)
		}
		if diff := cmp.Diff([]credential.Rotation{first.Rotation}, b.facts().Rotations); diff != "" {
			b.t.Errorf("the master reads (-want +have):\n%s", diff)
		}

		later := start.Add(time.Minute)
		if again := b.mustRotate(later, credential.Scheduled, requestID("one")); again.ID != first.ID {
			b.t.Errorf("a repeat made %s", again.ID)
		}
		if joined := b.mustRotate(later, credential.Scheduled, requestID("two")); joined.ID != first.ID {
			b.t.Errorf("another request was answered with %s", joined.ID)
		}
		if _, err := b.rotate(later, credential.Compromised, requestID("one")); !errors.Is(err, grant.ErrRequestIDReused) {
			b.t.Errorf("the ID with other contents: %v", err)
		}

		second := b.mustRotate(later, credential.Compromised)
		if second.ID == first.ID || second.UpTo != 2 || second.Immediately {
			b.t.Errorf("compromised: %+v", second)
		}
		if third := b.mustRotate(later, credential.Compromised, immediately); third.ID != second.ID || !third.Immediately {
			b.t.Errorf("now immediately: %+v", third)
		}
		superseded, err := b.store.Rotation(b.t.Context(), integrationName, first.ID)
		if err != nil || superseded.State != credential.RotationAbandoned || superseded.StateReason != "Superseded" || !superseded.EndTime.IsZero() {
			b.t.Errorf("the first is %+v, %v", superseded, err)
		}
		if open := b.facts().Rotations; len(open) != 2 || open[0].ID != first.ID || open[1].ID != second.ID || !open[1].Immediately {
			b.t.Errorf("the master reads %+v", open)
		}
		// After a day the ID stands for a new request.
		if _, err := b.rotate(start.Add(25*time.Hour), credential.Compromised, requestID("one")); err != nil {
			b.t.Errorf("the ID after a day: %v", err)
		}

		var asked []string
		for _, e := range b.trail() {
			if strings.HasPrefix(e, "RotationRequested") {
				asked = append(asked, e)
			}
		}
		if want := []string{
			"RotationRequested|operator|a|uid||SCHEDULED", "RotationRequested|operator|a|uid||SCHEDULED", "RotationRequested|operator|a|uid||COMPROMISED",
			"RotationRequested|operator|a|uid||COMPROMISED IMMEDIATELY", "RotationRequested|operator|a|uid||COMPROMISED",
		}; !slices.Equal(asked, want) {
			b.t.Errorf("recorded are %q", asked)
		}

		all, err := b.store.Rotations(b.t.Context(), integrationName, "", 10)
		if err != nil || len(all) != 2 || all[0].ID != second.ID || all[1].ID != first.ID {
			b.t.Errorf("listed are %+v, %v", all, err)
		}
		if rest, err := b.store.Rotations(b.t.Context(), integrationName, second.ID, 10); err != nil || len(rest) != 1 || rest[0].ID != first.ID {
			b.t.Errorf("listed after the newest are %+v, %v", rest, err)
		}
	})
}

func TestRotations_Refused(t *testing.T) {
	onBoth(t, func(b *bench) {
		of := func(name string) func(*credential.RotationRequest) {
			return func(r *credential.RotationRequest) { r.Integration = name }
		}
		if _, err := b.rotate(start, credential.Scheduled, of("accounts/a/integrations/none")); !errors.Is(err, sqldb.ErrNoRows) {
			b.t.Errorf("no such integration: %v", err)
		}
		b.want(2, store.Integration{UID: "uid", Name: integrationName, Deleting: true, Revision: 1},
			store.Integration{UID: "new", Name: "accounts/a/integrations/new", Revision: 2})
		if _, err := b.rotate(start, credential.Compromised); !errors.Is(err, credential.ErrDeleting) {
			b.t.Errorf("deleting: %v", err)
		}
		if _, err := b.rotate(start, credential.Scheduled, of("accounts/a/integrations/new")); !errors.Is(err, credential.ErrNotAdopted) {
			b.t.Errorf("not adopted: %v", err)
		}
		for _, read := range []func() error{
			func() error { _, err := b.store.Rotation(b.t.Context(), integrationName, "none"); return err },
			func() error {
				_, err := b.store.Rotation(b.t.Context(), "accounts/a/integrations/none", "none")
				return err
			},
			func() error {
				_, err := b.store.Rotations(b.t.Context(), "accounts/a/integrations/none", "", 1)
				return err
			},
			func() error { _, err := b.store.Batch(b.t.Context(), "accounts/a", "none"); return err },
		} {
			if err := read(); !errors.Is(err, sqldb.ErrNoRows) {
				b.t.Errorf("what is not there: %v", err)
			}
		}
		if got := b.trail(); len(got) != 0 {
			b.t.Errorf("recorded are %q", got)
		}
	})
}

// TestCommit_MovesRotations fills every field that a master writes, so that one left out of the SQL shows.
func TestCommit_MovesRotations(t *testing.T) {
	onBoth(t, func(b *bench) {
		v := b.insert("v1", 1, credential.Active)
		r := b.mustRotate(start, credential.Compromised).Rotation
		moved := r
		b.fill(reflect.ValueOf(&moved).Elem())
		moved.ID, moved.Reason, moved.Immediately, moved.UpTo, moved.BatchID, moved.CreateTime = r.ID, r.Reason, r.Immediately, r.UpTo, r.BatchID, r.CreateTime
		moved.AskTime = r.AskTime // is who asks's to write
		moved.State, moved.EndTime = credential.RotationActivated, time.Time{}
		b.mustCommit(credential.Change{Rotations: []credential.RotationMove{{From: credential.RotationPending, Rotation: moved}}})
		if diff := cmp.Diff([]credential.Rotation{moved}, b.facts().Rotations); diff != "" {
			b.t.Errorf("rotation (-written +read):\n%s", diff)
		}
		if err := b.commit(credential.Change{Rotations: []credential.RotationMove{{From: credential.RotationPending, Rotation: moved}}}); !errors.Is(err, store.ErrChanged) {
			b.t.Errorf("from a state it is not in: %v", err)
		}

		// What is held goes when the move says so.
		b.hold("v1", 2)
		v.State = credential.Retiring
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Active, Version: v}}})
		v.State, v.Reason = credential.Revoking, "Compromised"
		if err := b.commit(credential.Change{Moves: []credential.Move{{From: credential.Retiring, Version: v}}}); !errors.Is(err, store.ErrHeld) {
			b.t.Errorf("held: %v", err)
		}
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Retiring, Version: v, DespiteHolders: true}}})
		e := b.entitlement("uid")
		if e.Compromised != 1 {
			b.t.Errorf("deliveries know version %d as compromised", e.Compromised)
		}

		moved.State, moved.EndTime = credential.RotationCompleted, start
		b.mustCommit(credential.Change{Rotations: []credential.RotationMove{{From: credential.RotationActivated, Rotation: moved}}})
		if open := b.facts().Rotations; len(open) != 0 {
			b.t.Errorf("open are %+v", open)
		}
		// It is forgotten with the versions.
		if err := b.store.Commit(b.t.Context(), b.master, store.Step{
			IntegrationUID: "uid", Now: start.Add(31 * 24 * time.Hour), Change: credential.Change{ReplaceStrays: true},
		}); err != nil {
			b.t.Fatal(err)
		}
		if all, err := b.store.Rotations(b.t.Context(), integrationName, "", 10); err != nil || len(all) != 0 {
			b.t.Errorf("after 31 days there are %+v, %v", all, err)
		}
	})
}

func TestCommit_RecordsTransitions(t *testing.T) {
	onBoth(t, func(b *bench) {
		v := b.insert("v1", 1, credential.Active)
		v.Refusals++
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Active, Version: v}}}) // no transition
		v.State, v.Reason = credential.Retiring, "Compromised"
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Active, Version: v}}})
		want := []string{"VersionIntended||a|uid|v1|", "VersionPropagating||a|uid|v1|", "VersionActive||a|uid|v1|", "VersionRetiring||a|uid|v1|Compromised"}
		if got := b.trail(); !slices.Equal(got, want) {
			b.t.Errorf("recorded are %q, want %q", got, want)
		}
		// A step that is refused records nothing.
		v.State = credential.Revoked
		if err := b.commit(credential.Change{Moves: []credential.Move{{From: credential.Revoking, Version: v}}}); !errors.Is(err, store.ErrChanged) {
			b.t.Errorf("refused with %v", err)
		}
		if got := b.trail(); len(got) != len(want) {
			b.t.Errorf("recorded are %q", got)
		}
	})
}

// inShard are UIDs of integrations that belong to the shard, in order.
func inShard(shard, n int) (uids []string) {
	for i := 0; len(uids) < n; i++ {
		if uid := fmt.Sprintf("uid-%06d", i); election.ShardOf(uid, 3) == shard {
			uids = append(uids, uid)
		}
	}
	return uids
}

func TestPauses(t *testing.T) {
	onBoth(t, func(b *bench) {
		others := inShard(0, 2)
		uid2, uid3 := others[0], others[1]
		b.want(2,
			store.Integration{UID: "uid", Name: integrationName, Revision: 1},
			store.Integration{UID: uid2, Name: "accounts/a/integrations/i2", Revision: 2},
			store.Integration{UID: uid3, Name: "accounts/a-b/integrations/i", Revision: 2})
		b.adopt(1)
		put := func(scope string, d time.Duration) {
			b.t.Helper()
			p := credential.Pause{Scope: scope, Reason: "why", Creator: "operator", CreateTime: start, ExpireTime: start.Add(d)}
			if err := b.store.PauseRotation(b.t.Context(), p, operator); err != nil {
				b.t.Fatal(err)
			}
		}
		until := func(uid string) time.Duration {
			b.t.Helper()
			f, err := b.store.Facts(b.t.Context(), uid)
			if err != nil {
				b.t.Fatal(err)
			}
			if f.PauseEndTime.IsZero() {
				return 0
			}
			return f.PauseEndTime.Sub(start)
		}
		all := func() string { return fmt.Sprint(until("uid"), until(uid2), until(uid3)) }
		list := func(scope, after string, limit int) (out []string) {
			b.t.Helper()
			pauses, err := b.store.Pauses(b.t.Context(), start, scope, after, limit)
			if err != nil {
				b.t.Fatal(err)
			}
			for _, p := range pauses {
				out = append(out, fmt.Sprint(p.Scope, " ", p.Reason, " ", p.Creator, " ", p.CreateTime.Sub(start), " ", p.ExpireTime.Sub(start)))
			}
			return out
		}
		for _, step := range []struct {
			name string
			do   func()
			want string
		}{
			{"nothing", func() {}, "0s 0s 0s"},
			{"an account", func() { put("accounts/a", time.Hour) }, "1h0m0s 1h0m0s 0s"},
			{"one of its integrations, for longer", func() { put(integrationName, 2*time.Hour) }, "2h0m0s 1h0m0s 0s"},
			{"that again, for less", func() { put(integrationName, 30*time.Minute) }, "1h0m0s 1h0m0s 0s"},
			{"everything", func() { put(credential.Everything, 3*time.Hour) }, "3h0m0s 3h0m0s 3h0m0s"},
		} {
			step.do()
			if got := all(); got != step.want {
				b.t.Fatalf("%s: paused for %s, want %s", step.name, got, step.want)
			}
		}
		if got, want := list("accounts/a", "", 9), []string{"accounts/a why operator 0s 1h0m0s", integrationName + " why operator 0s 30m0s"}; !slices.Equal(got, want) {
			b.t.Errorf("the account's are %q", got)
		}
		if got := list(credential.Everything, "accounts/-", 1); !slices.Equal(got, []string{"accounts/a why operator 0s 1h0m0s"}) {
			b.t.Errorf("the second of all is %q", got)
		}
		if late, err := b.store.Pauses(b.t.Context(), start.Add(2*time.Hour), credential.Everything, "", 9); err != nil || len(late) != 1 {
			b.t.Errorf("after two hours there are %v, %v", late, err)
		}

		// By schedule nothing is rotated on request either; what is compromised is.
		refusal := (*credential.PauseError)(nil)
		if _, err := b.rotate(start, credential.Scheduled); !errors.As(err, &refusal) || refusal.Pause.Scope != credential.Everything {
			b.t.Errorf("by schedule: %v", err)
		}
		if _, err := b.rotate(start.Add(3*time.Hour), credential.Scheduled); err != nil {
			b.t.Errorf("by schedule, afterwards: %v", err)
		}
		if _, err := b.rotate(start, credential.Compromised); err != nil {
			b.t.Errorf("compromised: %v", err)
		}

		// Resuming makes due what may have waited.
		rest := func(uid string) {
			b.t.Helper()
			f, err := b.store.Facts(b.t.Context(), uid)
			if err != nil {
				b.t.Fatal(err)
			}
			if err := b.store.Commit(b.t.Context(), b.master, store.Step{IntegrationUID: uid, Now: start, NextTime: start.Add(9 * time.Hour), Touches: f.Touches}); err != nil {
				b.t.Fatal(err)
			}
		}
		for _, step := range []struct {
			scope string
			due   []string
			want  string
		}{
			{credential.Everything, []string{"uid", uid2, uid3}, "1h0m0s 1h0m0s 0s"},
			{"accounts/a", []string{"uid", uid2}, "30m0s 0s 0s"},
			{integrationName, []string{"uid"}, "0s 0s 0s"},
			{"accounts/none", nil, "0s 0s 0s"},
		} {
			for _, uid := range []string{"uid", uid2, uid3} {
				rest(uid)
			}
			if err := b.store.ResumeRotation(b.t.Context(), start, step.scope, operator); err != nil {
				b.t.Fatal(err)
			}
			due, _, err := b.store.Due(b.t.Context(), 0, start, 9)
			if err != nil || !slices.Equal(due, step.due) {
				b.t.Errorf("after %s was resumed due are %v, %v; want %v", step.scope, due, err, step.due)
			}
			if got := all(); got != step.want {
				b.t.Errorf("after %s was resumed paused for %s, want %s", step.scope, got, step.want)
			}
		}
		var recorded []string
		for _, e := range b.trail() {
			if strings.HasPrefix(e, "RotationPaused") || strings.HasPrefix(e, "RotationResumed") {
				recorded = append(recorded, e)
			}
		}
		want := []string{
			"RotationPaused|operator|a|||accounts/a: why", "RotationPaused|operator|a|uid||" + integrationName + ": why",
			"RotationPaused|operator|a|uid||" + integrationName + ": why", "RotationPaused|operator||||accounts/-: why",
			"RotationResumed|operator||||accounts/-", "RotationResumed|operator|a|||accounts/a", "RotationResumed|operator|a|uid||" + integrationName,
		}
		if !slices.Equal(recorded, want) {
			b.t.Errorf("recorded are %q, want %q", recorded, want)
		}
	})
}
