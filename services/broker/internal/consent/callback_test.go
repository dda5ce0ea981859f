package consent_test

import (
	"bytes"
	"errors"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/broker/internal/consent"
)

func TestParseCallback(t *testing.T) {
	long := strings.Repeat("a", 201)
	for _, tc := range []struct {
		name, query string
		bad         bool
		tenant      string
		code        string
	}{
		{name: "approved", query: "admin_consent=True&tenant=t&scope=s&state=x", tenant: "t"},
		{name: "approved, without a tenant", query: "admin_consent=true&state=x"},
		{name: "with what nobody knows", query: "admin_consent=True&state=x&session_state=" + long},
		{name: "declined", query: "admin_consent=True&error=consent_required&error_description=AADSTS65004%3A+declined&state=x", code: "AADSTS65004"},
		{name: "an error without a number", query: "error=Access_Denied&error_description=no&state=x", code: "access_denied"},
		{name: "an error without a name", query: "error=&state=x", code: "unnamed"},
		{name: "an error of strange characters", query: "error=%3Cb%3E1%E2%80%AE&state=x", code: "b"},
		{name: "an error that says it is approval", query: "error=APPROVED&state=x", code: "approved"},
		{name: "a long name", query: "error=" + strings.Repeat("ab", 50) + "&state=x", code: strings.Repeat("ab", 20)},
		{name: "the first of several numbers", query: "error=e&error_description=AADSTS1+AADSTS2&state=x", code: "AADSTS1"},
		{name: "a number too long", query: "error=e&error_description=AADSTS1234567890123&state=x", code: "AADSTS123456789"},
		{name: "a description of 4 KiB", query: "error=e&error_description=" + strings.Repeat("a", 4<<10) + "&state=x", code: "e"},
		{name: "nothing", query: "", bad: true},
		{name: "no state", query: "admin_consent=True&tenant=t", bad: true},
		{name: "an empty state", query: "admin_consent=True&state=", bad: true},
		{name: "neither consent nor an error", query: "state=x&tenant=t", bad: true},
		{name: "consent refused without an error", query: "admin_consent=False&state=x", bad: true},
		{name: "a number without an error", query: "error_description=AADSTS65004&state=x", bad: true},
		{name: "two states", query: "admin_consent=True&state=x&state=x", bad: true},
		{name: "two of what nobody knows", query: "admin_consent=True&state=x&y=1&y=2", bad: true},
		{name: "a state too long", query: "admin_consent=True&state=" + long, bad: true},
		{name: "a tenant too long", query: "admin_consent=True&state=x&tenant=" + long, bad: true},
		{name: "an error too long", query: "error=" + long + "&state=x", bad: true},
		{name: "a description too long", query: "error=e&state=x&error_description=" + strings.Repeat("a", 4<<10+1), bad: true},
		{name: "a query too long", query: "admin_consent=True&state=x&y=" + strings.Repeat("a", 8<<10), bad: true},
		{name: "broken escapes", query: "admin_consent=True&state=x%", bad: true},
		{name: "an escape that cannot be", query: "admin_consent=True&state=%QZ", bad: true},
		{name: "semicolons", query: "admin_consent=True;state=x", bad: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := consent.ParseCallback(tc.query)
			if errors.Is(err, consent.ErrCallback) != tc.bad || (err != nil) != tc.bad {
				t.Fatalf("error %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "QZ") {
				t.Errorf("the error tells of the state: %v", err)
			}
			if got.Tenant != tc.tenant || got.Code != tc.code || got.State.IsZero() != tc.bad {
				t.Errorf("tenant %q, code %q, state there: %v", got.Tenant, got.Code, !got.State.IsZero())
			}
		})
	}
}

// codes are what may be shown and stored of an error.
var codes = regexp.MustCompile(`^(AADSTS[0-9]{1,9}|[a-z_]{1,40})$`)

func FuzzCallback(f *testing.F) {
	f.Fuzz(func(t *testing.T, query string) {
		got, err := consent.ParseCallback(query)
		if err != nil {
			if !errors.Is(err, consent.ErrCallback) {
				t.Errorf("error %v", err)
			}
			// The text goes into logs, where no state may stand.
			if state, parsed := url.ParseQuery(query); parsed == nil && len(state.Get("state")) > 20 && strings.Contains(err.Error(), state.Get("state")) {
				t.Errorf("the error shows the state: %v", err)
			}
			return
		}
		if got.State.IsZero() || len(got.State.Expose()) > 200 || len(got.Tenant) > 200 {
			t.Errorf("state of %d bytes, tenant of %d", len(got.State.Expose()), len(got.Tenant))
		}
		if got.Code != "" && !codes.MatchString(got.Code) {
			t.Errorf("code %q", got.Code)
		}
		if values, err := url.ParseQuery(query); err != nil || values.Has("error") != (got.Code != "") {
			t.Errorf("code %q, error %v", got.Code, err)
		}
	})
}

func TestJudge(t *testing.T) {
	now := created.Add(time.Hour)
	attempt, state, mine := consent.Begin(now.Add(-time.Minute), session(nil).Name, []byte("here"), 30*time.Minute)
	const customer = "3fe2a1c4-0000-4000-8000-00000000000a"
	open := session(func(s *consent.Session) { awaiting(s); s.TenantID = customer })
	with := func(change func(*consent.Session)) consent.Session { s := open; change(&s); return s }
	said := func(last string, version int64) *consent.Session {
		s := with(func(s *consent.Session) { s.LastCallback, s.CallbackTime, s.Version = last, now, version })
		return &s
	}
	lostThere := func(s *consent.Session) { s.State, s.Loss = consent.Completed, "AADSTS700016" }
	approved := consent.Callback{State: state, Tenant: customer}
	cookie := consent.Browser{attempt.ID: {mine}, "another": {secret.New("x")}}
	used := attempt
	used.UseTime = now.Add(-time.Second)
	for _, tc := range []struct {
		name    string
		now     time.Time
		said    consent.Callback
		browser consent.Browser
		attempt *consent.Attempt
		session consent.Session
		want    consent.Outcome
		// after is the session if the callback had an effect.
		after    *consent.Session
		consumed bool
		hastened bool
	}{
		{"approved", now, approved, cookie, &attempt, open, consent.OutcomeApproved, said("APPROVED", 2), true, true},
		{"approved, the tenant in capitals", now, consent.Callback{State: state, Tenant: strings.ToUpper(customer)}, cookie, &attempt, open, consent.OutcomeApproved, said("APPROVED", 2), true, true},
		{"approved, without a tenant", now, consent.Callback{State: state}, cookie, &attempt, open, consent.OutcomeApproved, said("APPROVED", 2), true, true},
		{"approved again", now, approved, cookie, &attempt, with(func(s *consent.Session) { s.LastCallback = "APPROVED" }), consent.OutcomeApproved, said("APPROVED", 1), true, true},
		{"approved after declining", now, approved, cookie, &attempt, with(func(s *consent.Session) { s.LastCallback = "AADSTS65004" }), consent.OutcomeApproved, said("APPROVED", 2), true, true},
		{"declined", now, consent.Callback{State: state, Code: "AADSTS65004"}, cookie, &attempt, open, consent.OutcomeDeclined, said("AADSTS65004", 2), true, false},
		{"declined after approving", now, consent.Callback{State: state, Code: "access_denied"}, cookie, &attempt, with(func(s *consent.Session) { s.LastCallback = "APPROVED" }),
			consent.OutcomeDeclined, said("access_denied", 2), true, false},
		{"failed", now, consent.Callback{State: state, Code: "AADSTS50020"}, cookie, &attempt, open, consent.OutcomeFailed, said("AADSTS50020", 2), true, false},
		{"while the application is lost", now, approved, cookie, &attempt, with(func(s *consent.Session) { s.State = consent.WaitingForApplication }), consent.OutcomeApproved,
			func() *consent.Session { s := *said("APPROVED", 2); s.State = consent.WaitingForApplication; return &s }(), true, true},
		{"after consent was lost", now, approved, cookie, &attempt, with(lostThere), consent.OutcomeApproved, func() *consent.Session {
			s := with(lostThere)
			s.LastCallback, s.CallbackTime, s.Version = "APPROVED", now, 2
			return &s
		}(), true, true},
		{"after consent was lost, at the deadline", now, approved, cookie, &attempt, with(func(s *consent.Session) { lostThere(s); s.ExpireTime = now }), consent.OutcomeLate, nil, true, false},
		{"nobody's state", now, approved, cookie, nil, consent.Session{}, consent.OutcomeUnknown, nil, false, false},
		{"used before", now, approved, cookie, &used, open, consent.OutcomeReplayed, nil, false, false},
		{"a moment before it expires", attempt.ExpireTime.Add(-1), consent.Callback{State: state, Tenant: "other"}, cookie, &attempt, open, consent.OutcomeWrongTenant, nil, false, false},
		{"expired", attempt.ExpireTime, approved, cookie, &attempt, open, consent.OutcomeExpired, nil, false, false},
		{"another secret", now, approved, consent.Browser{attempt.ID: {secret.New("other")}}, &attempt, open, consent.OutcomeWrongCookie, nil, false, false},
		{"an empty secret", now, approved, consent.Browser{attempt.ID: {secret.Text{}}}, &attempt, open, consent.OutcomeWrongCookie, nil, false, false},
		{"two secrets", now, approved, consent.Browser{attempt.ID: {mine, secret.New("other")}}, &attempt, open, consent.OutcomeWrongCookie, nil, false, false},
		{"another attempt's cookie", now, approved, consent.Browser{"another": {mine}}, &attempt, open, consent.OutcomeOtherBrowser, nil, false, false},
		{"no cookie", now, approved, nil, &attempt, open, consent.OutcomeOtherBrowser, nil, false, false},
		{"no cookie, in another tenant", now, consent.Callback{State: state, Tenant: "other"}, nil, &attempt, open, consent.OutcomeWrongTenant, nil, false, false},
		{"another tenant", now, consent.Callback{State: state, Tenant: "other"}, cookie, &attempt, open, consent.OutcomeWrongTenant, nil, false, false},
		{"another tenant, of a session that has ended", now, consent.Callback{State: state, Tenant: "other"}, cookie, &attempt, with(func(s *consent.Session) { s.State = consent.Completed }),
			consent.OutcomeWrongTenant, nil, false, false},
		{"completed meanwhile", now, approved, cookie, &attempt, with(func(s *consent.Session) { s.State = consent.Completed }), consent.OutcomeLate, nil, true, false},
		{"expired meanwhile", now, approved, cookie, &attempt, with(func(s *consent.Session) { s.State = consent.Expired }), consent.OutcomeLate, nil, true, false},
		{"at the deadline", now, approved, cookie, &attempt, with(func(s *consent.Session) { s.ExpireTime = now }), consent.OutcomeLate, nil, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := consent.Judge(tc.now, tc.said, tc.browser, tc.attempt, tc.session)
			shown := tc.browser[attempt.ID]
			bound := tc.attempt != nil && len(shown) == 1 && bytes.Equal(consent.Hash(shown[0]), consent.Hash(mine))
			want := consent.Verdict{Outcome: tc.want, Bound: bound, Consumed: tc.consumed, Hastened: tc.hastened, Session: tc.session}
			if tc.after != nil {
				want.Session, want.Changed = *tc.after, true
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
		})
	}
}
