package consent_test

import (
	"errors"
	"testing"
	"time"

	"phasekey.dev/services/broker/internal/consent"
)

func TestPageOf(t *testing.T) {
	now := created.Add(time.Hour)
	said := func(last string, ago time.Duration) func(*consent.Session) {
		return func(s *consent.Session) { awaiting(s); s.LastCallback, s.CallbackTime = last, now.Add(-ago) }
	}
	misnamedTo := func(s *consent.Session) { s.ApplicationName = "phasekey Micr\u043esoft 1a2b" }
	misnamed := func(s *consent.Session) { awaiting(s); misnamedTo(s) }
	in := func(state consent.State) func(*consent.Session) {
		return func(s *consent.Session) { said("APPROVED", 0)(s); s.State = state }
	}
	for _, tc := range []struct {
		name    string
		now     time.Time
		session consent.Session
		want    consent.Page
		begins  bool
	}{
		{"not ready", now, session(nil), consent.PageWaiting, false},
		{"ready", now, session(awaiting), consent.PageLanding, true},
		{"declined", now, session(said("AADSTS65004", 0)), consent.PageProblem, true},
		{"approved", now, session(said("APPROVED", 0)), consent.PagePending, true},
		{"approved, almost too long ago", now, session(said("APPROVED", 20*time.Minute-1)), consent.PagePending, true},
		{"approved too long ago", now, session(said("APPROVED", 20*time.Minute)), consent.PageProblem, true},
		{"misnamed", now, session(misnamed), consent.PageMisnamed, false},
		{"misnamed, declined", now, session(func(s *consent.Session) { said("AADSTS65004", 0)(s); misnamed(s) }), consent.PageMisnamed, false},
		{"misnamed, approved", now, session(func(s *consent.Session) { said("APPROVED", 0)(s); misnamed(s) }), consent.PagePending, false},
		{"approved, and lost", now, session(in(consent.WaitingForApplication)), consent.PageWaiting, false},
		{"completed", now, session(in(consent.Completed)), consent.PageResult, false},
		{"completed, long ago", deadline.Add(time.Hour), session(in(consent.Completed)), consent.PageResult, false},
		{"lost", now, session(lost), consent.PageLost, true},
		{"lost, at the deadline", deadline, session(lost), consent.PageExpired, false},
		{"lost, declined", now, session(func(s *consent.Session) { lost(s); s.LastCallback, s.CallbackTime = "AADSTS65004", now }), consent.PageProblem, true},
		{"lost, approved", now, session(func(s *consent.Session) { lost(s); s.LastCallback, s.CallbackTime = "APPROVED", now }), consent.PagePending, true},
		{"lost, misnamed", now, session(func(s *consent.Session) { lost(s); misnamedTo(s) }), consent.PageMisnamed, false},
		{"open, lost before", now, session(func(s *consent.Session) { awaiting(s); s.Loss = "AADSTS700016" }), consent.PageLost, true},
		{"expired, lost before", now, session(func(s *consent.Session) { in(consent.Expired)(s); s.Loss = "AADSTS700016" }), consent.PageExpired, false},
		{"expired", now, session(in(consent.Expired)), consent.PageExpired, false},
		{"at the deadline", deadline, session(awaiting), consent.PageExpired, false},
		{"at the deadline, not ready", deadline, session(nil), consent.PageExpired, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := consent.PageOf(tc.now, tc.session); got != tc.want {
				t.Errorf("page %d, want %d", got, tc.want)
			}
			if got := consent.MayBegin(tc.now, tc.session); got != tc.begins {
				t.Errorf("may begin: %v", got)
			}
		})
	}
}

func TestOrigins_Check(t *testing.T) {
	allowed := consent.Origins{"https://app.example.com", "https://Other.example.com:8443"}
	for uri, good := range map[string]bool{
		"https://app.example.com":                      true,
		"https://app.example.com/":                     true,
		"https://APP.example.com:443/a?b=c%20d":        true,
		"https://other.example.com:8443/a":             true,
		"https://other.example.com/":                   false,
		"https://app.example.com:8443/":                false,
		"https://app.example.com.evil.example/":        false,
		"https://evilapp.example.com":                  false,
		"https://x.app.example.com":                    false,
		"https://evil.example/https://app.example.com": false,
		"https://app.example.com@evil.example/":        false,
		"https://user@app.example.com/":                false,
		"https://app.example.com/#fragment":            false,
		"https://app.example.com/#":                    false,
		"http://app.example.com/":                      false,
		"javascript://app.example.com/%0aalert(1)":     false,
		"//app.example.com/":                           false,
		"/relative":                                    false,
		"https:app.example.com":                        false,
		"https://evil.example\\@app.example.com/":      false,
		"https://app.example.com\\.evil.example/":      false,
		"https://app.example.com/a b":                  false,
		"https://app.example.com/\n":                   false,
		"https://app.example.com/\u202e":               false,
		"https://app.example.com./":                    false,
		"https://[::1]/":                               false,
		"https://app.example.com:port/":                false,
		"https://app.example.com/%zz":                  false,
		"https://":                                     false,
	} {
		if err := allowed.Check(uri); (err == nil) != good || (err != nil && !errors.Is(err, consent.ErrReturn)) {
			t.Errorf("%q: error %v", uri, err)
		}
	}
	if err := consent.Origins(nil).Check("https://app.example.com/"); !errors.Is(err, consent.ErrReturn) {
		t.Errorf("without origins: error %v", err)
	}
}
