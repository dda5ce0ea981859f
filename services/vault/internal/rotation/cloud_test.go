package rotation_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

// TestWorker_SaysThatACloudIsNotConfigured has an integration's cloud leave the configuration for longer than its secret lives, and come back.
func TestWorker_SaysThatACloudIsNotConfigured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, time.Second)
		s.config.Poll = 10 * time.Minute
		configured := s.config.Clouds
		restart := func(clouds rotation.Clouds) {
			t.Helper()
			if err := s.end(); err != nil {
				t.Fatal(err)
			}
			s.config.Clouds = clouds
			s.serve()
			time.Sleep(30 * time.Second)
		}
		says := func(want string) {
			t.Helper()
			if _, conditions := s.registry.last(); conditions != want {
				t.Errorf("at %s conditions are %s, want %s", time.Now(), conditions, want)
			}
		}
		restart(rotation.Clouds{"other": s.entra})
		says("Replicated+ PrincipalFound+ CloudUnknown")
		asks := func() (n int) {
			s.entra.set(func(d *fakeDirectory) {
				for _, calls := range d.calls {
					n += calls
				}
			})
			return n
		}
		asked := asks()
		reports, _ := s.registry.counts()
		for range 5 {
			time.Sleep(24 * time.Hour)
			says("Replicated+ PrincipalFound+ CloudUnknown")
		}
		s.want(store.Integration{Deleting: true})
		time.Sleep(s.config.Poll)
		s.want(store.Integration{})
		time.Sleep(s.config.Poll)
		wanted := s.request(credential.Scheduled, false)
		time.Sleep(s.config.Poll)
		if r := s.rotation(wanted.ID); r.State != credential.RotationPending || r.StateReason != "CloudUnknown" {
			t.Errorf("the rotation that was asked for is %s %s", r.State, r.StateReason)
		}
		if again, _ := s.registry.counts(); again != reports {
			t.Errorf("it was reported %d times more", again-reports)
		}
		if got := asks(); got != asked || len(s.facts().Versions) != 1 {
			t.Errorf("of a cloud that is not configured %d things were asked, versions are %v", got-asked, s.facts().Versions)
		}
		if got := strings.Count(s.log.String(), "in a cloud that is not configured"); got == 0 || got > 10 {
			t.Errorf("the log says it %d times", got)
		}
		if f := s.facts(); f.Application.Failures > 0 {
			t.Errorf("%d failures are counted", f.Application.Failures)
		}
		restart(configured)
		says("Replicated+ PrincipalFound+ SecretExpired")
		s.until("another secret", 30*time.Minute, func(f store.Facts) bool { v, _ := f.ByState(credential.Active); return v.Number == 2 })
		time.Sleep(time.Minute)
		says("Replicated+ PrincipalFound+ Proven+")
		s.untilRotation(wanted.ID, credential.RotationCompleted, 2*time.Hour)
		s.tidy()
	})
}

// TestWorker_MakesNothingInACloudThatIsNotConfigured has one that is new wait for its cloud.
func TestWorker_MakesNothingInACloudThatIsNotConfigured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		configured := s.config.Clouds
		s.config.Clouds = rotation.Clouds{"other": s.entra}
		s.serve()
		time.Sleep(time.Hour)
		if _, conditions := s.registry.last(); conditions != "CloudUnknown AwaitingConsent CloudUnknown" {
			t.Errorf("conditions are %s", conditions)
		}
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		s.config.Clouds = configured
		s.serve()
		s.live()
	})
}
