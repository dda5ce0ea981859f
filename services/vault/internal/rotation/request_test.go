package rotation_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

// request asks for a rotation, as any replica may.
func (s *stage) request(reason credential.RotationReason, immediately bool) credential.RotationStatus {
	s.t.Helper()
	r, err := s.store.RequestRotation(s.t.Context(), time.Now(), credential.RotationRequest{
		Integration: name, Reason: reason, Immediately: immediately,
	}, grant.Caller{Identity: "operator"})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *stage) rotation(id string) credential.RotationStatus {
	s.t.Helper()
	r, err := s.store.Rotation(s.t.Context(), name, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// untilRotation waits in fake time for a rotation to be in a state.
func (s *stage) untilRotation(id string, state credential.RotationState, limit time.Duration) credential.RotationStatus {
	s.t.Helper()
	s.until("rotation "+string(state), limit, func(store.Facts) bool { return s.rotation(id).State == state })
	return s.rotation(id)
}

// settled brings an integration to an ACTIVE version that all of Entra knows.
func settled(t *testing.T, poll time.Duration) (s *stage, first credential.Version) {
	s, first = alive(t, func(s *stage) { s.config.Poll, s.entra.lag = poll, 10*time.Minute })
	time.Sleep(20 * time.Minute)
	return s, first
}

func TestWorker_RotatesOnRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		began := time.Now()
		r := s.request(credential.Scheduled, false)
		time.Sleep(5 * time.Second)
		if got := s.rotation(r.ID); got.State != credential.RotationPropagating || got.New != 2 {
			t.Errorf("after five seconds it is %+v", got)
		}
		got := s.untilRotation(r.ID, credential.RotationActivated, 25*time.Minute)
		if since := got.ActivateTime.Sub(began); since < 20*time.Minute || got.Proofs != 8 || !s.entra.works(first.KeyID) {
			t.Errorf("it is %+v after %s", got, since)
		}
		got = s.untilRotation(r.ID, credential.RotationCompleted, 65*time.Minute)
		if kept := got.RemoveTime.Sub(got.ActivateTime); kept < time.Hour || s.entra.works(first.KeyID) || got.EndTime.IsZero() {
			t.Errorf("it is %+v, and the old one was kept for %s", got, kept)
		}
		s.tidy()
	})
}

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
		s.entra.set(func(d *fakeDirectory) {
			d.before = func(_ context.Context, op string) error {
				if op == "remove" {
					return refuse(directory.Transient, "ServiceUnavailable")
				}
				return nil
			}
		})
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

// TestWorker_TakesRequestsAcrossMasters has every master die, as soon as anything was asked of Entra.
func TestWorker_TakesRequestsAcrossMasters(t *testing.T) {
	for _, immediately := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, first := settled(t, time.Second)
			r := s.request(credential.Compromised, immediately)
			for range 60 {
				ctx, cancel := context.WithCancel(t.Context())
				s.entra.set(func(d *fakeDirectory) {
					d.after = func(_ context.Context, op string) error {
						if op == "add" || op == "remove" {
							cancel()
						}
						return nil
					}
				})
				if err := s.end(); err != nil {
					t.Fatal(err)
				}
				s.serve(func(context.Context) context.Context { return ctx })
				time.Sleep(time.Minute)
				cancel()
			}
			if got := s.rotation(r.ID); got.State != credential.RotationCompleted || slices.Contains(s.entra.keys(), first.KeyID) {
				t.Errorf("after an hour it is %+v", got)
			}
		})
	}
}

func TestWorker_PausesAndGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, 10*time.Minute)
		now := time.Now()
		if err := s.store.PauseRotation(t.Context(), credential.Pause{Scope: "accounts/acme", CreateTime: now, ExpireTime: now.Add(credential.LongestPause)}, grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * 24 * time.Hour)
		if v, _ := s.facts().ByState(credential.Active); v.ID != first.ID {
			t.Errorf("after two days it is %s", v)
		}
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ RotationPaused+" {
			t.Errorf("conditions are %s", conditions)
		}
		// The last secret does not die of it.
		for time.Now().Before(first.EndTime.Add(24 * time.Hour)) {
			wait := 10 * time.Minute
			if left := time.Until(first.EndTime); left > 0 {
				wait = min(wait, left) // when a gap would begin, however short
			}
			time.Sleep(wait)
			if v, ok := s.facts().ByState(credential.Active); !ok || !s.entra.works(v.KeyID) {
				t.Fatalf("at %s nothing works", time.Now())
			}
		}
		if err := s.store.ResumeRotation(t.Context(), time.Now(), "accounts/acme", grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		second, _ := s.facts().ByState(credential.Active)
		if second.Number != 2 {
			t.Errorf("in three days it was rotated to %s", second)
		}
		s.until("the next", time.Hour, func(f store.Facts) bool { v, _ := f.ByState(credential.Active); return v.Number == 3 })
	})
}

// TestWorker_MakesTheNextInTimeAfterAnOutage has Graph away from before the next secret is due until forty minutes before the end of the only one: by then an hour lies
// between two tries, and one has just failed.
func TestWorker_MakesTheNextInTimeAfterAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, 10*time.Minute)
		away := true
		s.entra.set(func(d *fakeDirectory) {
			d.before = func(_ context.Context, op string) error {
				if !away || op == "token" {
					return nil
				}
				away = op != "add" || time.Until(first.EndTime) > 45*time.Minute
				return refuse(directory.Transient, "")
			}
		})
		time.Sleep(time.Until(first.EndTime) - time.Second)
		if v, _ := s.facts().ByState(credential.Active); v.ID == first.ID || !s.entra.works(v.KeyID) {
			t.Errorf("a second before the end of %s, the newest is %s", first, v)
		}
	})
}

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

func TestWorker_RecordsWhatVersionsCameTo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, time.Second)
		r := s.request(credential.Compromised, false)
		s.untilRotation(r.ID, credential.RotationCompleted, 30*time.Minute)
		var kinds []string
		err := s.db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
			kinds, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (kind string, err error) {
				err = row.Scan(&kind)
				return kind, err
			}, `SELECT kind FROM audit_events WHERE integration_uid = $1 AND account = 'acme' ORDER BY seq`, uid)
			return err
		})
		want := []string{
			"VersionIntended", "VersionStaged", "VersionPropagating", "VersionActive", "RotationRequested",
			"VersionIntended", "VersionPropagating", "VersionRetiring", "VersionActive", "VersionRevoking", "VersionRevoked",
		}
		if err != nil || !slices.Equal(kinds, want) {
			t.Errorf("recorded are %q, %v; want %q", kinds, err, want)
		}
	})
}

// measured are the gauges and counters of the last mastership, by name and labels.
func (s *stage) measured() map[string]float64 {
	s.t.Helper()
	return gathered(s.t, s.metrics.Load())
}

// gathered are a registry's gauges and counters, by name and labels.
func gathered(t *testing.T, metrics prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			out[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

func TestWorker_MeasuresHowItsShardStands(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, time.Minute) // as often as it measures
		s.request(credential.Compromised, false)
		s.entra.set(func(d *fakeDirectory) {
			d.before = func(_ context.Context, op string) error {
				if op == "add" {
					return refuse(directory.Denied, "Authorization_RequestDenied")
				}
				return nil
			}
		})
		time.Sleep(60 * time.Hour)
		got := s.measured()
		if got["phasekey_vault_rotations_open COMPROMISED 0"] != 1 || got["phasekey_vault_rotations_open SCHEDULED 0"] != 0 {
			t.Errorf("rotations open are %v", got)
		}
		if age := time.Duration(got["phasekey_vault_active_version_age_seconds 0"]) * time.Second; age < 60*time.Hour || age > 61*time.Hour {
			t.Errorf("the oldest is of %s", age)
		}
		if got["phasekey_vault_credential_versions_expiring 0"] != 1 || got["phasekey_vault_schedule_lag_seconds 0"] > 5 {
			t.Errorf("measured are %v", got)
		}
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		for key := range s.measured() {
			if strings.HasSuffix(key, " 0") {
				t.Errorf("%s is still there although the shard was given up", key)
			}
		}
	})
}

// TestWorker_MeasuresWhatIsWrongAlone has things happen that are nobody's to mend, or meant: they are no secret that should have been replaced.
func TestWorker_MeasuresWhatIsWrongAlone(t *testing.T) {
	t.Parallel()
	const (
		expiring = "phasekey_vault_credential_versions_expiring 0"
		age      = "phasekey_vault_active_version_age_seconds 0"
		lost     = "phasekey_vault_applications_without_consent 0"
	)
	for name, test := range map[string]struct {
		begin func(s *stage)
		// left is what the integration is in.
		left string
		lost float64
	}{
		"consent is withdrawn": {func(s *stage) { s.entra.set(func(d *fakeDirectory) { d.consented = false }) }, "ConsentLost", 1},
		"rotation is paused": {func(s *stage) {
			p := credential.Pause{Scope: credential.Everything, CreateTime: time.Now(), ExpireTime: time.Now().Add(credential.LongestPause)}
			if err := s.store.PauseRotation(s.t.Context(), p, grant.Caller{}); err != nil {
				s.t.Fatal(err)
			}
		}, "RotationPaused+", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, first := settled(t, time.Minute)
				test.begin(s)
				time.Sleep(time.Until(first.EndTime.Add(-20 * time.Hour)))
				if _, conditions := s.registry.last(); !strings.HasSuffix(conditions, test.left) {
					t.Errorf("it is %s", conditions)
				}
				for time.Now().Before(first.EndTime.Add(2 * time.Hour)) {
					time.Sleep(10 * time.Minute)
					got := s.measured()
					if got[expiring] != 0 || got[lost] != test.lost || test.lost > 0 && got[age] != 0 {
						t.Fatalf("%s before its end: %g expiring, age %g, %g without consent", time.Until(first.EndTime), got[expiring], got[age], got[lost])
					}
				}
			})
		})
	}
}

// TestWorker_TriesAtOnceForWhoAsksAgain has somebody mend the policy that refused what is asked for, and say so by asking again.
func TestWorker_TriesAtOnceForWhoAsksAgain(t *testing.T) {
	t.Parallel()
	for _, reason := range []credential.RotationReason{credential.Scheduled, credential.Compromised} {
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, _ := settled(t, 30*time.Second)
				s.refuseOps(directory.Denied, "CredentialTypeNotAllowedAsPerAppPolicy", "add")
				r := s.request(reason, false)
				time.Sleep(6 * time.Hour) // until the next try is an hour away
				s.refuseOps(0, "")
				if again := s.request(reason, false); again.ID != r.ID {
					t.Fatalf("asked again it is %s, and was %s", again.ID, r.ID)
				}
				s.untilRotation(r.ID, credential.RotationPropagating, time.Minute)
				s.tidy()
			})
		})
	}
}

// TestWorker_TriesOnceForARequestByAReplicaThatIsAhead has somebody ask a replica whose clock is ahead of the master's, while a policy refuses what is asked for.
func TestWorker_TriesOnceForARequestByAReplicaThatIsAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, 30*time.Second)
		s.entra.set(func(d *fakeDirectory) {
			d.before = func(_ context.Context, op string) error {
				if op == "add" {
					return refuse(directory.Denied, "CredentialTypeNotAllowedAsPerAppPolicy")
				}
				return nil
			}
		})
		before := s.entra.count("add")
		s.request(credential.Scheduled, false)
		time.Sleep(6 * time.Hour) // until the next try is an hour away
		tried := s.entra.count("add")
		const ahead = 2 * time.Minute
		if _, err := s.store.RequestRotation(t.Context(), time.Now().Add(ahead), credential.RotationRequest{
			Integration: name, Reason: credential.Compromised,
		}, grant.Caller{Identity: "operator"}); err != nil {
			t.Fatal(err)
		}
		s.want(store.Integration{}) // whatever makes it due meanwhile
		time.Sleep(ahead + time.Minute)
		if tried == before || s.entra.count("add") != tried+1 {
			t.Errorf("it was tried %d times before, and then %d times", tried-before, s.entra.count("add")-tried)
		}
	})
}
