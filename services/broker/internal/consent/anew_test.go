package consent_test

import (
	"testing"
	"time"

	"phasekey.dev/services/broker/internal/consent"
)

func TestDecide_AnApplicationMadeAnewForgetsWhatABrowserSaid(t *testing.T) {
	now := created.Add(time.Hour)
	approved := session(func(s *consent.Session) {
		awaiting(s)
		s.LastCallback, s.CallbackTime = consent.CallbackApproved, now.Add(-time.Minute)
	})
	if page := consent.PageOf(now, approved); page != consent.PagePending {
		t.Fatalf("page %d before", page)
	}
	lost, _ := consent.Decide(now, approved, consent.Observation{Finding: consent.Preparing})
	same, _ := consent.Decide(now, lost, consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network"})
	if page := consent.PageOf(now, same); page != consent.PagePending {
		t.Errorf("page %d of the same application", page)
	}
	anew, _ := consent.Decide(now, lost, consent.Observation{Finding: consent.Ready, ClientID: "other", ApplicationName: "phasekey Other"})
	if anew.LastCallback != "" || !anew.CallbackTime.IsZero() {
		t.Errorf("another application has callback %q of %s", anew.LastCallback, anew.CallbackTime)
	}
	if page := consent.PageOf(now, anew); page != consent.PageLanding {
		t.Errorf("page %d of another application, which nobody consented to", page)
	}
}
