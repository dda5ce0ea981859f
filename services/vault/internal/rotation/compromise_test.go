package rotation_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

func TestWorker_ReplacesWhatIsCompromised(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		deliver := s.runner()
		s.want(store.Integration{})
		if err := deliver("instance-1"); err != nil {
			t.Fatal(err)
		}
		r := s.request(credential.Compromised, false)
		for range 18 {
			time.Sleep(time.Minute)
			if !s.entra.works(first.KeyID) {
				t.Fatal("the old one went before there was a new one")
			}
		}
		s.until("a new one", 5*time.Minute, func(f store.Facts) bool { v, _ := f.ByState(credential.Active); return v.Number == 2 })
		time.Sleep(15 * time.Second)
		if got := s.rotation(r.ID); got.State != credential.RotationCompleted || s.entra.works(first.KeyID) {
			t.Errorf("moments later it is %+v, and the old one works: %t", got, s.entra.works(first.KeyID))
		}
		// The lease that held it holds the new one as well, and gives both back.
		s.want(store.Integration{})
		if err := deliver("instance-1"); err != nil {
			t.Errorf("the next delivery: %v", err)
		}
		if _, err := s.store.RevokeGrant(t.Context(), time.Now(), "acme", "grant", grant.Caller{}); err != nil {
			t.Errorf("the end of the grant: %v", err)
		}
		if v, _ := s.facts().ByState(credential.Active); v.Holders != 0 {
			t.Errorf("%d leases hold the new one", v.Holders)
		}
		s.tidy()
	})
}

func TestWorker_AcceptsAGapWhenTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		deliver := s.runner()
		s.want(store.Integration{})
		if err := deliver("instance-1"); err != nil {
			t.Fatal(err)
		}
		s.entra.set(func(d *fakeDirectory) { d.lag = 0 })
		r := s.request(credential.Compromised, true)
		s.look = time.Second
		s.until("removal", 15*time.Second, func(store.Facts) bool { return !slices.Contains(s.entra.keys(), first.KeyID) })
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Compromised" {
			t.Errorf("in the gap conditions are %s", conditions)
		}
		got := s.untilRotation(r.ID, credential.RotationCompleted, 3*time.Minute)
		if gap := got.ActivateTime.Sub(got.RemoveTime); gap < 0 || gap > 2*time.Minute || got.New != 2 {
			t.Errorf("it is %+v, with a gap of %s", got, gap)
		}
		time.Sleep(time.Minute)
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Proven+" {
			t.Errorf("afterwards conditions are %s", conditions)
		}
		s.tidy()
	})
}

func TestWorker_GoesOnTryingToRemoveWhatIsCompromised(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, 30*time.Second)
		r := s.request(credential.Compromised, true)
		s.refuseOps(directory.Transient, "ServiceUnavailable", "remove")
		time.Sleep(6 * time.Hour)
		if got := s.rotation(r.ID); got.State != credential.RotationActivated || !got.RemoveTime.IsZero() {
			t.Errorf("while Graph refuses it is %+v", got)
		}
		s.entra.set(func(d *fakeDirectory) { d.before = nil })
		time.Sleep(90 * time.Second)
		if got := s.rotation(r.ID); got.State != credential.RotationCompleted || slices.Contains(s.entra.keys(), first.KeyID) {
			t.Errorf("then it is %+v", got)
		}
	})
}

// refuseOps has Entra refuse requests of some kinds, until it is called without any.
func (s *stage) refuseOps(class directory.Class, code string, ops ...string) {
	s.entra.set(func(d *fakeDirectory) {
		d.before = func(_ context.Context, op string) error {
			if slices.Contains(ops, op) {
				return refuse(class, code)
			}
			return nil
		}
	})
}

// TestWorker_TakesBackWhatACustomerDisabled follows the advice to have the service principal disabled, before the successor was proven.
func TestWorker_TakesBackWhatACustomerDisabled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		deliver := s.runner()
		s.want(store.Integration{})
		if err := deliver("instance-1"); err != nil {
			t.Fatal(err)
		}
		r := s.request(credential.Compromised, false)
		time.Sleep(5 * time.Minute)
		s.refuseOps(directory.PrincipalDisabled, "AADSTS7000112", "token")
		got := s.untilRotation(r.ID, credential.RotationCompleted, time.Hour)
		if slices.Contains(s.entra.keys(), first.KeyID) || got.RemoveTime.IsZero() || got.New != 2 {
			t.Errorf("once nobody is let in it is %+v, with %v at Entra", got, s.entra.keys())
		}
		if end := credential.ExposureOf(time.Now(), got).EndTime; !end.Equal(got.RemoveTime.Add(110 * time.Minute)) {
			t.Errorf("the exposure ends at %s", end)
		}
		time.Sleep(40 * time.Hour)
		if _, conditions := s.registry.last(); conditions != "Replicated+ AADSTS7000112 AwaitingConsent" {
			t.Errorf("conditions are %s", conditions)
		}
		s.refuseOps(0, "")
		s.until("a version that is ACTIVE", time.Hour+5*time.Minute, active)
		s.want(store.Integration{})
		if err := deliver("instance-2"); err != nil {
			t.Errorf("the next delivery: %v", err)
		}
		s.tidy()
	})
}

// TestWorker_TakesBackWhatHasEnded has nothing take the place of what is compromised, before its end or after.
func TestWorker_TakesBackWhatHasEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, 30*time.Second)
		s.refuseOps(directory.BlockedByPolicy, "CredentialTypeNotAllowed", "add")
		r := s.request(credential.Compromised, false)
		time.Sleep(time.Until(first.EndTime) - time.Minute)
		if got := s.rotation(r.ID); got.State != credential.RotationPending || got.StateReason != "CredentialTypeNotAllowed" || !s.entra.works(first.KeyID) {
			t.Errorf("before its end it is %+v", got)
		}
		if open := s.measured()["phasekey_vault_rotations_open COMPROMISED 0"]; open != 1 {
			t.Errorf("then %v stand", open)
		}
		time.Sleep(5 * time.Minute)
		if got := s.rotation(r.ID); got.State != credential.RotationPending || got.RemoveTime.IsZero() || slices.Contains(s.entra.keys(), first.KeyID) {
			t.Errorf("after it it is %+v", got)
		}
		if open := s.measured()["phasekey_vault_rotations_open COMPROMISED 0"]; open != 0 {
			t.Errorf("then %v stand", open)
		}
	})
}

func TestWorker_SaysWhatKeepsACompromisedSecret(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		r := s.request(credential.Compromised, false)
		s.refuseOps(directory.Denied, "Authorization_RequestDenied", "remove")
		s.untilRotation(r.ID, credential.RotationActivated, 25*time.Minute)
		time.Sleep(3 * time.Hour)
		got := s.rotation(r.ID)
		advice := strings.Join(credential.ExposureOf(time.Now(), got).Remedies, " ")
		if got.State != credential.RotationActivated || got.StateReason != "AuthorizationRequestDenied" {
			t.Errorf("after three hours it is %+v", got)
		}
		if !strings.Contains(advice, "removed by hand") || strings.Contains(advice, "immediately") {
			t.Errorf("the advice is %s", advice)
		}
		s.refuseOps(0, "")
		if got = s.untilRotation(r.ID, credential.RotationCompleted, 2*time.Minute); got.StateReason != "" || slices.Contains(s.entra.keys(), first.KeyID) {
			t.Errorf("in the end it is %+v", got)
		}
	})
}

// TestWorker_TakesBackWhatIsCompromisedOfWhatIsDeleted has the integration deleted while its secret is to be replaced.
func TestWorker_TakesBackWhatIsCompromisedOfWhatIsDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		r := s.request(credential.Compromised, false)
		time.Sleep(5 * time.Second)
		s.refuseOps(directory.Transient, "ServiceUnavailable", "remove")
		s.want(store.Integration{Deleting: true})
		time.Sleep(6 * time.Hour)
		got := s.rotation(r.ID)
		if got.State != credential.RotationAbandoned || got.StateReason != "IntegrationDeleting" || !got.RemoveTime.IsZero() || !got.EndTime.IsZero() {
			t.Errorf("while the old one cannot be removed it is %+v", got)
		}
		if e := credential.ExposureOf(time.Now(), got); e.EndTime.Before(first.EndTime) || strings.Contains(strings.Join(e.Remedies, " "), "rotation") {
			t.Errorf("the exposure is %+v", e)
		}
		s.refuseOps(0, "")
		time.Sleep(90 * time.Second)
		got = s.rotation(r.ID)
		if got.State != credential.RotationAbandoned || got.RemoveTime.IsZero() || got.EndTime.IsZero() || slices.Contains(s.entra.keys(), first.KeyID) {
			t.Errorf("moments after it can be removed it is %+v", got)
		}
		if e := credential.ExposureOf(time.Now(), got); !e.EndTime.Equal(got.RemoveTime.Add(110 * time.Minute)) {
			t.Errorf("the exposure is %+v", e)
		}
		s.until("forgotten", 2*time.Hour, forgotten)
	})
}
