package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

// batchBench is a bench with more integrations in shard 0, each with one version.
func batchBench(t *testing.T, n int, test func(b *bench, uids []string)) {
	onBoth(t, func(b *bench) {
		uids := inShard(0, n)
		wanted := []store.Integration{{UID: "uid", Name: integrationName, Revision: 1}}
		for i, uid := range uids {
			account := []string{"accounts/a", "accounts/b"}[i%2]
			wanted = append(wanted, store.Integration{UID: uid, Name: account + "/integrations/" + uid, TenantID: fmt.Sprint("tenant-", i%2), Cloud: "public", Revision: 2})
		}
		b.want(2, wanted...)
		b.adopt(1)
		for _, uid := range uids {
			b.version(uid, 1, credential.Active, start.Add(-time.Hour))
		}
		test(b, uids)
	})
}

// version puts a version there, in any state, however it came to be.
func (b *bench) version(uid string, number int64, state credential.State, intended time.Time) {
	b.t.Helper()
	b.tx(func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM credential_versions WHERE integration_uid = $1 AND number = $2`, uid, number); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time,
			start_time, end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals,
			refused_since, attempts, next_time, reason) VALUES ($1, $2, $3, $4, '', '', NULL, $5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '')`,
			fmt.Sprint(uid, "-", number), uid, number, string(state), sqldb.Micros(intended))
		return err
	})
}

func (b *bench) batch(r credential.BatchRequest) credential.Batch {
	b.t.Helper()
	out, err := b.store.RequestBatch(b.t.Context(), start, r, operator)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bench) advance(at time.Time) int {
	b.t.Helper()
	n, err := b.store.AdvanceBatches(b.t.Context(), b.master, at)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// counts are a batch's: total, waiting, running, completed, abandoned.
func (b *bench) counts(batch credential.Batch) string {
	b.t.Helper()
	now, err := b.store.Batch(b.t.Context(), batch.Scope, batch.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	out := fmt.Sprint(now.Total, now.Waiting, now.Running, now.Completed, now.Abandoned)
	if !now.EndTime.IsZero() {
		out += " ended"
	}
	return out
}

// end has the rotations of an integration be in a state.
func (b *bench) end(uid string, state credential.RotationState, at time.Time) {
	b.t.Helper()
	b.tx(func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE rotations SET state = $2, end_time = $3 WHERE integration_uid = $1`, uid, string(state), sqldb.Micros(at))
		return err
	})
}

func TestBatches_AFewAtATime(t *testing.T) {
	const n = 70
	batchBench(t, n, func(b *bench, uids []string) {
		batch := b.batch(credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled})
		if batch.Total != n || batch.Creator != "operator" || !batch.CreateTime.Equal(start) {
			b.t.Errorf("batch is %+v", batch)
		}
		if got := b.advance(start); got != 64 {
			b.t.Errorf("began with %d", got)
		}
		if got := b.advance(start); got != 0 {
			b.t.Errorf("began with %d more while none has a new secret", got)
		}
		if got, want := b.counts(batch), fmt.Sprint(n, n-64, 64, 0, 0); got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
		b.end(uids[0], credential.RotationPropagating, time.Time{})
		b.end(uids[1], credential.RotationCompleted, start)
		b.end(uids[2], credential.RotationAbandoned, start)
		if got := b.advance(start); got != 3 {
			b.t.Errorf("began with %d when three had theirs", got)
		}
		// Whatever is in the way of those that wait does not stop the others.
		if got := b.advance(start.Add(11 * time.Minute)); got != 3 {
			b.t.Errorf("began with %d after a while", got)
		}
		for _, uid := range uids[3:] {
			b.end(uid, credential.RotationCompleted, start)
		}
		b.advance(start.Add(time.Hour))
		if got, want := b.counts(batch), fmt.Sprint(n, 0, 1, n-2, 1); got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
		b.end(uids[0], credential.RotationCompleted, start)
		b.advance(start.Add(time.Hour))
		if got, want := b.counts(batch), fmt.Sprint(n, 0, 0, n-1, 1)+" ended"; got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
		r, err := b.store.Rotations(b.t.Context(), "accounts/a/integrations/"+uids[0], "", 9)
		if err != nil || len(r) != 1 || r[0].BatchID != batch.ID || r[0].BatchScope != credential.Everything || r[0].Creator != "operator" {
			b.t.Errorf("its rotation is %+v, %v", r, err)
		}
	})
}

func TestBatches_OfWhat(t *testing.T) {
	for _, tt := range []struct {
		name          string
		request       credential.BatchRequest
		before, after func(b *bench, uids []string) // what is done before it is asked for, and after that
		want          []int                         // which of six
	}{
		{name: "all", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, want: []int{0, 1, 2, 3, 4, 5}},
		{name: "an account's", request: credential.BatchRequest{Scope: "accounts/b", Reason: credential.Scheduled}, want: []int{1, 3, 5}},
		{name: "a tenant's", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled, TenantID: "tenant-0"}, want: []int{0, 2, 4}},
		{name: "a cloud's", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled, Cloud: "china"}},
		{
			name: "what was made since is no part of it", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled},
			after: func(b *bench, uids []string) { b.replaced(uids[0]) }, want: []int{1, 2, 3, 4, 5},
		},
		{
			name: "unless what was there is compromised and has not gone", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised},
			after: func(b *bench, uids []string) { b.replaced(uids[0]) }, want: []int{0, 1, 2, 3, 4, 5},
		},
		{
			name: "nor is who had none then", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised},
			before: func(b *bench, uids []string) { b.version(uids[0], 1, credential.Revoked, start.Add(-time.Hour)) },
			after:  func(b *bench, uids []string) { b.version(uids[0], 2, credential.Active, start.Add(-time.Minute)) }, want: []int{1, 2, 3, 4, 5},
		},
		{
			name: "whatever its maker's clock said", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised},
			before: func(b *bench, uids []string) { b.version(uids[0], 1, credential.Active, start.Add(time.Minute)) }, want: []int{0, 1, 2, 3, 4, 5},
		},
		{
			name: "what was just being made is part of a compromise", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised},
			before: func(b *bench, uids []string) { b.version(uids[0], 1, credential.Intended, start) },
			after:  func(b *bench, uids []string) { b.version(uids[0], 1, credential.Staged, start) }, want: []int{0, 1, 2, 3, 4, 5},
		},
		{
			name: "what is STAGED need not be rotated", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled},
			before: func(b *bench, uids []string) { b.version(uids[0], 1, credential.Staged, start.Add(-time.Hour)) }, want: []int{1, 2, 3, 4, 5},
		},
		{
			name: "unless it is compromised", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised},
			before: func(b *bench, uids []string) { b.version(uids[0], 1, credential.Staged, start.Add(-time.Hour)) }, want: []int{0, 1, 2, 3, 4, 5},
		},
		{
			name: "what is paused waits", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled},
			before: func(b *bench, uids []string) { b.pause("accounts/a", time.Hour) }, want: []int{1, 3, 5},
		},
		{
			name: "unless it is compromised, too", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised},
			before: func(b *bench, uids []string) { b.pause("accounts/a", time.Hour) }, want: []int{0, 1, 2, 3, 4, 5},
		},
		{
			name: "what is being rotated already is not joined", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled},
			before: func(b *bench, uids []string) { b.asked("accounts/a/integrations/"+uids[0], credential.Scheduled) }, want: []int{1, 2, 3, 4, 5},
		},
		{
			name: "but superseded by a compromise", request: credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised},
			before: func(b *bench, uids []string) { b.asked("accounts/a/integrations/"+uids[0], credential.Scheduled) }, want: []int{0, 1, 2, 3, 4, 5},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			batchBench(t, 6, func(b *bench, uids []string) {
				if tt.before != nil {
					tt.before(b, uids)
				}
				batch := b.batch(tt.request)
				if tt.after != nil {
					tt.after(b, uids)
				}
				b.advance(start)
				var have []int
				for i, uid := range uids {
					f, err := b.store.Facts(b.t.Context(), uid)
					if err != nil {
						b.t.Fatal(err)
					}
					if slices.ContainsFunc(f.Rotations, func(r credential.Rotation) bool { return r.BatchID == batch.ID && r.Reason == tt.request.Reason }) {
						have = append(have, i)
					}
				}
				if !slices.Equal(have, tt.want) {
					b.t.Errorf("it began with %v, want %v", have, tt.want)
				}
			})
		})
	}
}

// replaced has an integration have another ACTIVE version, as by schedule.
func (b *bench) replaced(uid string) {
	b.t.Helper()
	b.version(uid, 1, credential.Retiring, start.Add(-time.Hour))
	b.version(uid, 2, credential.Active, start.Add(-time.Minute))
}

// awaitConsent has the rotations of an integration that are under way wait for consent.
func (b *bench) awaitConsent(uid string) {
	b.t.Helper()
	b.tx(func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE rotations SET state = 'PROPAGATING', state_reason = 'AwaitingConsent' WHERE integration_uid = $1 AND state = 'PENDING'`, uid)
		return err
	})
}

// Of a customer who has withdrawn consent nothing comes, for ever perhaps.
func TestBatches_WaitForNobodysConsent(t *testing.T) {
	batchBench(t, 2, func(b *bench, uids []string) {
		request := credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}
		batch := b.batch(request)
		b.advance(start)
		b.awaitConsent(uids[0])
		b.advance(start)
		if got, want := b.counts(batch), "2 0 2 0 0"; got != want {
			b.t.Errorf("while the other has none the counts are %s, want %s", got, want)
		}
		b.end(uids[1], credential.RotationCompleted, start)
		b.advance(start)
		if got, want := b.counts(batch), "2 0 1 1 0 ended"; got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
		if now, err := b.store.Batch(b.t.Context(), batch.Scope, batch.ID); err != nil || now.AwaitingConsent != 1 {
			b.t.Errorf("%d await consent, %v", now.AwaitingConsent, err)
		}
		// Nor does the next one wait for what the first has left.
		again := b.batch(request)
		b.advance(start)
		b.end(uids[1], credential.RotationCompleted, start)
		b.awaitConsent(uids[0])
		b.advance(start)
		if got, want := b.counts(again), "2 0 0 1 0 ended"; got != want {
			b.t.Errorf("counts of the next are %s, want %s", got, want)
		}
		if got, want := b.counts(batch), "2 0 1 1 0 ended"; got != want {
			b.t.Errorf("after it, those of the first are %s, want %s", got, want)
		}
		b.end(uids[0], credential.RotationCompleted, start)
		if got, want := b.counts(batch), "2 0 0 2 0 ended"; got != want {
			b.t.Errorf("with consent the counts are %s, want %s", got, want)
		}
	})
}

// A secret that is in other hands is there until it was removed, whoever consents.
func TestBatches_OfACompromiseEndWithIt(t *testing.T) {
	batchBench(t, 1, func(b *bench, uids []string) {
		batch := b.batch(credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised})
		b.advance(start)
		b.awaitConsent(uids[0])
		b.advance(start)
		if got, want := b.counts(batch), "1 0 1 0 0"; got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
		b.end(uids[0], credential.RotationCompleted, start)
		b.advance(start)
		if got, want := b.counts(batch), "1 0 0 1 0 ended"; got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
	})
}

func TestBatches_ComeBackToWhatHadToWait(t *testing.T) {
	batchBench(t, 4, func(b *bench, uids []string) {
		b.pause("accounts/a", time.Hour)
		b.asked("accounts/b/integrations/"+uids[1], credential.Scheduled)
		batch := b.batch(credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled})
		if got := b.advance(start); got != 1 {
			b.t.Errorf("began with %d of which one is neither paused nor being rotated", got)
		}
		// One is rotated by what was asked for before, another is deleted.
		b.replaced(uids[1])
		b.end(uids[1], credential.RotationActivated, time.Time{})
		b.end(uids[3], credential.RotationCompleted, start)
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM integrations WHERE uid = $1`, uids[2])
			return err
		})
		later := start.Add(5 * time.Minute)
		b.advance(later)
		if got, want := b.counts(batch), "4 1 0 1 0"; got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
		b.advance(start.Add(59 * time.Minute))
		if got := b.advance(start.Add(64 * time.Minute)); got != 1 {
			b.t.Errorf("began with %d after the pause", got)
		}
		b.end(uids[0], credential.RotationCompleted, start)
		b.advance(start.Add(65 * time.Minute))
		if got, want := b.counts(batch), "4 0 0 2 0 ended"; got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
	})
}

// One is asked for at a replica of the previous release, which queues nothing and whose masters may have begun.
func TestBatches_OfThePreviousRelease(t *testing.T) {
	batchBench(t, 4, func(b *bench, uids []string) {
		batch := b.batch(credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled})
		b.advance(start)
		b.tx(func(ctx context.Context, tx sqldb.Tx) error {
			if _, err := tx.Exec(ctx, `UPDATE rotation_batches SET queued = 0`); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `DELETE FROM rotations WHERE integration_uid IN ($1, $2)`, uids[0], uids[1])
			return err
		})
		if got := b.advance(start); got != 2 {
			b.t.Errorf("began with %d of the two that are left", got)
		}
		if got, want := b.counts(batch), "4 0 4 0 0"; got != want {
			b.t.Errorf("counts are %s, want %s", got, want)
		}
		if got := b.advance(start); got != 0 {
			b.t.Errorf("began with %d again", got)
		}
	})
}

func (b *bench) pause(scope string, d time.Duration) {
	b.t.Helper()
	if err := b.store.PauseRotation(b.t.Context(), credential.Pause{Scope: scope, CreateTime: start, ExpireTime: start.Add(d)}, operator); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) asked(integration string, reason credential.RotationReason) {
	b.t.Helper()
	b.mustRotate(start, reason, func(r *credential.RotationRequest) { r.Integration = integration })
}

func TestBatches_Requests(t *testing.T) {
	batchBench(t, 2, func(b *bench, _ []string) {
		request := credential.BatchRequest{Scope: "accounts/a", Reason: credential.Scheduled, RequestID: "one"}
		first := b.batch(request)
		if again := b.batch(request); again.ID != first.ID {
			b.t.Errorf("a repeat made %s", again.ID)
		}
		other := request
		other.Reason = credential.Compromised
		if _, err := b.store.RequestBatch(b.t.Context(), start, other, operator); !errors.Is(err, grant.ErrRequestIDReused) {
			b.t.Errorf("the ID with other contents: %v", err)
		}
		other.RequestID = ""
		second := b.batch(other)
		all, err := b.store.Batches(b.t.Context(), "accounts/a", "", 9)
		if err != nil || len(all) != 2 || all[0].ID != second.ID || all[1].Waiting != 1 {
			b.t.Errorf("listed are %+v, %v", all, err)
		}
		if rest, err := b.store.Batches(b.t.Context(), "accounts/a", second.ID, 9); err != nil || len(rest) != 1 || rest[0].ID != first.ID {
			b.t.Errorf("listed after the newest are %+v, %v", rest, err)
		}
		if none, err := b.store.Batches(b.t.Context(), credential.Everything, "", 9); err != nil || len(none) != 0 {
			b.t.Errorf("of everything are %+v, %v", none, err)
		}
		b.pause("accounts/a", time.Hour)
		request.RequestID = ""
		if _, err := b.store.RequestBatch(b.t.Context(), start, request, operator); !errors.Is(err, credential.ErrPaused) {
			b.t.Errorf("while all of it is paused: %v", err)
		}
		if got, want := b.trail(), []string{"RotationBatchCreated|operator|a|||SCHEDULED", "RotationBatchCreated|operator|a|||COMPROMISED", "RotationPaused|operator|a|||accounts/a"}; !slices.Equal(got, want) {
			b.t.Errorf("recorded are %q", got)
		}
	})
}

// What became of a batch is told for as long as it is kept, which is until another is asked for, a month after its end at the earliest.
func TestBatches_KeepTheirRotations(t *testing.T) {
	batchBench(t, 2, func(b *bench, uids []string) {
		batch := b.batch(credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled})
		b.advance(start)
		for _, uid := range uids {
			b.end(uid, credential.RotationCompleted, start)
		}
		b.advance(start.Add(time.Hour))
		later := start.Add(31 * 24 * time.Hour)
		read := func() {
			b.t.Helper()
			for _, uid := range uids {
				if err := b.store.Commit(b.t.Context(), b.master, store.Step{
					IntegrationUID: uid, Now: later, Change: credential.Change{ReplaceStrays: true},
				}); err != nil {
					b.t.Fatal(err)
				}
			}
		}
		rotations := func() (n int) {
			b.t.Helper()
			b.tx(func(ctx context.Context, tx sqldb.Tx) error {
				return tx.QueryRow(ctx, `SELECT COUNT(*) FROM rotations WHERE batch_id = $1`, batch.ID).Scan(&n)
			})
			return n
		}
		read()
		if got, want := b.counts(batch), "2 0 0 2 0 ended"; got != want {
			b.t.Errorf("a month later counts are %s, want %s", got, want)
		}
		if _, err := b.store.RequestBatch(b.t.Context(), later, credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, operator); err != nil {
			b.t.Fatal(err)
		}
		read()
		if n := rotations(); n != 0 {
			b.t.Errorf("%d rotations of a batch are left that is forgotten", n)
		}
	})
}
