package rotation_test

import (
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

func TestWorker_AdvancesBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, time.Second)
		b, err := s.store.RequestBatch(t.Context(), time.Now(), credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, grant.Caller{})
		if err != nil || b.Total != 1 {
			t.Fatalf("batch is %+v, %v", b, err)
		}
		s.until("the end of the batch", 2*time.Hour, func(store.Facts) bool {
			b, err = s.store.Batch(t.Context(), b.Scope, b.ID)
			return err == nil && !b.EndTime.IsZero()
		})
		if v, _ := s.facts().ByState(credential.Active); b.Completed != 1 || v.Number != 2 {
			t.Errorf("it is %+v, with %s", b, v)
		}
	})
}

// TestWorker_EndsABatchWithoutConsent has a customer withdraw consent for good, as far as a batch by schedule goes.
func TestWorker_EndsABatchWithoutConsent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		s.entra.set(func(d *fakeDirectory) { d.consented = false })
		s.until("the loss of consent", 3*time.Hour, func(f store.Facts) bool { return !f.Application.Consented })
		b, err := s.store.RequestBatch(t.Context(), time.Now(), credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, grant.Caller{})
		if err != nil || b.Total != 1 {
			t.Fatalf("batch is %+v, %v", b, err)
		}
		read := func() {
			if b, err = s.store.Batch(t.Context(), b.Scope, b.ID); err != nil {
				t.Fatal(err)
			}
		}
		s.until("the end of the batch", time.Hour, func(store.Facts) bool { read(); return !b.EndTime.IsZero() })
		if b.Running != 1 || b.AwaitingConsent != 1 {
			t.Errorf("it has ended as %+v", b)
		}
		s.entra.set(func(d *fakeDirectory) { d.consented = true })
		s.until("the rotation", 4*time.Hour, func(store.Facts) bool { read(); return b.Completed == 1 })
		if v, _ := s.facts().ByState(credential.Active); b.Running+b.AwaitingConsent != 0 || v.Number != first.Number+1 {
			t.Errorf("with consent it is %+v, with %s", b, v)
		}
	})
}

// TestWorker_EndsABatchOfACompromiseWithoutConsent has it last until the secret is gone, and not longer.
func TestWorker_EndsABatchOfACompromiseWithoutConsent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		s.entra.set(func(d *fakeDirectory) { d.consented = false })
		s.until("the loss of consent", 3*time.Hour, func(f store.Facts) bool { return !f.Application.Consented })
		b, err := s.store.RequestBatch(t.Context(), time.Now(), credential.BatchRequest{Scope: credential.Everything, Reason: credential.Compromised}, grant.Caller{})
		if err != nil {
			t.Fatal(err)
		}
		s.until("the end of the batch", time.Hour, func(store.Facts) bool {
			b, err = s.store.Batch(t.Context(), b.Scope, b.ID)
			return err == nil && !b.EndTime.IsZero()
		})
		if b.Completed != 1 || s.entra.works(first.KeyID) {
			t.Errorf("it has ended as %+v, and that the old secret works is %t", b, s.entra.works(first.KeyID))
		}
	})
}
