package grant_test

import (
	"errors"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/grant"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestPhase_AccessFollowsFromThePhaseAlone(t *testing.T) {
	for phase, want := range map[grant.Phase]grant.Access{
		grant.Initializing: grant.Read, grant.Planning: grant.Read,
		grant.Applying: grant.Write, grant.Destroying: grant.Write, grant.Performing: grant.Write, grant.Testing: grant.Write,
		"UNSPECIFIED": "", "": "", "planning": "",
	} {
		if got := phase.Access(); got != want {
			t.Errorf("phase %q has access %q, want %q", phase, got, want)
		}
	}
}

func TestLimit(t *testing.T) {
	for _, tt := range []struct {
		name  string
		asked time.Time
		want  time.Time
		err   error
	}{
		{name: "absent is an hour", want: now.Add(time.Hour)},
		{name: "as asked", asked: now.Add(90 * time.Minute), want: now.Add(90 * time.Minute)},
		{name: "whole microseconds", asked: now.Add(time.Minute + 1500*time.Nanosecond), want: now.Add(time.Minute + time.Microsecond)},
		{name: "now is past", asked: now, err: grant.ErrPast},
		{name: "past", asked: now.Add(-time.Second), err: grant.ErrPast},
		{name: "a day", asked: now.Add(24 * time.Hour), want: now.Add(24 * time.Hour)},
		{name: "a clock that is ahead", asked: now.Add(24*time.Hour + 5*time.Minute), want: now.Add(24 * time.Hour)},
		{name: "too far", asked: now.Add(24*time.Hour + 6*time.Minute), err: grant.ErrTooFar},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := grant.Limit(now, tt.asked)
			if !got.Equal(tt.want) || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %v; want %v, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func sample(t *testing.T) grant.Grant {
	t.Helper()
	g, err := grant.New(now, "g1", grant.Request{Account: "acme", Project: "accounts/acme/projects/network", Phase: grant.Planning, Run: "r1"},
		grant.Resolution{IntegrationUID: "i1", ProjectUID: "p1", Incarnation: "a", Revision: 7})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGrant_StateByNow(t *testing.T) {
	g := sample(t)
	revoked := g
	revoked.RevokeTime = now.Add(time.Minute)
	for _, tt := range []struct {
		name  string
		grant grant.Grant
		now   time.Time
		want  grant.State
		err   error
	}{
		{"at creation", g, now, grant.Active, nil},
		{"just before its end", g, g.ExpireTime.Add(-time.Microsecond), grant.Active, nil},
		{"at its end", g, g.ExpireTime, grant.Expired, grant.ErrExpired},
		{"revoked", revoked, now.Add(time.Minute), grant.Revoked, grant.ErrRevoked},
		{"revoked and over", revoked, g.ExpireTime, grant.Revoked, grant.ErrRevoked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := tt.grant.State(tt.now), tt.grant.Check(tt.now); got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("state %v, error %v; want %v, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestGrant_ExtendNeverEarlier(t *testing.T) {
	g := sample(t)
	revoked := g
	revoked.RevokeTime = now
	for _, tt := range []struct {
		name  string
		grant grant.Grant
		now   time.Time
		asked time.Time
		want  time.Time
		err   error
	}{
		{"later", g, now, now.Add(3 * time.Hour), now.Add(3 * time.Hour), nil},
		{"earlier", g, now, now.Add(time.Minute), g.ExpireTime, nil},
		{"past", g, now, now.Add(-time.Hour), g.ExpireTime, nil},
		{"too far", g, now, now.Add(30 * time.Hour), time.Time{}, grant.ErrTooFar},
		{"over", g, g.ExpireTime, g.ExpireTime.Add(time.Hour), time.Time{}, grant.ErrExpired},
		{"revoked", revoked, now, now.Add(3 * time.Hour), time.Time{}, grant.ErrRevoked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.grant.Extend(tt.now, tt.asked)
			if !got.Equal(tt.want) || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %v; want %v, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestGrant_BoundToACertificate(t *testing.T) {
	g := sample(t)
	if err := g.CheckCertificate("anything"); err != nil {
		t.Errorf("unbound grant refuses: %v", err)
	}
	g.CertificateSHA256 = "ab"
	for shown, want := range map[string]error{"ab": nil, "": grant.ErrCertificate, "ac": grant.ErrCertificate} {
		if err := g.CheckCertificate(shown); !errors.Is(err, want) {
			t.Errorf("shown with %q: %v, want %v", shown, err, want)
		}
	}
}

func TestRequest_FingerprintTellsContentsApart(t *testing.T) {
	base := grant.Request{Account: "acme", Project: "p", Phase: grant.Planning, Run: "r", ExpireTime: now, CertificateSHA256: "c"}
	seen := map[[32]byte]string{base.Fingerprint(): "base"}
	for name, change := range map[string]func(*grant.Request){
		"account":     func(r *grant.Request) { r.Account = "acne" },
		"project":     func(r *grant.Request) { r.Project = "q" },
		"phase":       func(r *grant.Request) { r.Phase = grant.Applying },
		"run":         func(r *grant.Request) { r.Run = "s" },
		"end":         func(r *grant.Request) { r.ExpireTime = now.Add(time.Second) },
		"no end":      func(r *grant.Request) { r.ExpireTime = time.Time{} },
		"certificate": func(r *grant.Request) { r.CertificateSHA256 = "" },
	} {
		r := base
		change(&r)
		if other, ok := seen[r.Fingerprint()]; ok {
			t.Errorf("%s looks like %s", name, other)
		}
		seen[r.Fingerprint()] = name
	}
	if again := base; again.Fingerprint() != base.Fingerprint() {
		t.Error("equal requests differ")
	}
}

func TestStanding_MostTellingReasonFirst(t *testing.T) {
	whole := grant.Standing{
		Grant: sample(t), Incarnation: "a", Revision: 7, BookmarkTime: now, IntegrationLives: true, ProjectLives: true, Attached: true,
	}
	for _, tt := range []struct {
		name   string
		change func(*grant.Standing)
		want   error
	}{
		{"whole", func(*grant.Standing) {}, nil},
		{"newer copy", func(s *grant.Standing) { s.Revision = 8 }, nil},
		{"other incarnation", func(s *grant.Standing) { s.Incarnation, s.Revision = "b", 1 }, nil},
		{"no copy", func(s *grant.Standing) { *s = grant.Standing{Grant: s.Grant} }, grant.ErrBehind},
		{"copy behind lacks the attachment", func(s *grant.Standing) { s.Revision, s.Attached = 6, false }, grant.ErrBehind},
		{"copy behind, grant revoked", func(s *grant.Standing) { s.Revision, s.Grant.RevokeTime = 6, now }, grant.ErrRevoked},
		{"account frozen", func(s *grant.Standing) { s.Frozen = true }, grant.ErrAccountFrozen},
		{"account frozen, copy behind", func(s *grant.Standing) { s.Frozen, s.Revision = true, 6 }, grant.ErrAccountFrozen},
		{"account frozen, grant revoked", func(s *grant.Standing) { s.Frozen, s.Grant.RevokeTime = true, now }, grant.ErrRevoked},
		{"detached", func(s *grant.Standing) { s.Attached = false }, grant.ErrDetached},
		{"copy lacks the labels", func(s *grant.Standing) { s.Attached, s.Unlabelled = false, true }, grant.ErrBehind},
		{"copy lacks the labels, and they do not matter", func(s *grant.Standing) { s.Unlabelled = true }, nil},
		{"copy lacks the labels, integration deleted", func(s *grant.Standing) { s.Attached, s.Unlabelled, s.IntegrationLives = false, true, false }, grant.ErrIntegrationDeleted},
		{"integration deleted", func(s *grant.Standing) { s.IntegrationLives, s.Attached = false, false }, grant.ErrIntegrationDeleted},
		{"project deleted", func(s *grant.Standing) { s.ProjectLives, s.Attached = false, false }, grant.ErrIntegrationDeleted},
		{"silence, just bearable", func(s *grant.Standing) { s.BookmarkTime = now.Add(-15*time.Minute + 1) }, nil},
		{"silence", func(s *grant.Standing) { s.BookmarkTime = now.Add(-15 * time.Minute) }, grant.ErrStale},
		{"detached, then silence", func(s *grant.Standing) { s.BookmarkTime, s.Attached = now.Add(-time.Hour), false }, grant.ErrDetached},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := whole
			tt.change(&s)
			if err := s.Check(now); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}
