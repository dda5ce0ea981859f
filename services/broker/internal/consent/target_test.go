package consent_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/broker/internal/consent"
)

var pace = consent.Pace{Probe: 10 * time.Second, Poll: 2 * time.Second, MaxBackoff: time.Minute}

func TestLooksNow(t *testing.T) {
	now := created.Add(time.Hour)
	soon := consent.Target{LookTime: now.Add(time.Second)}
	for _, tc := range []struct {
		name   string
		target consent.Target
		open   []consent.Session
		want   bool
	}{
		{"it is time and somebody waits", consent.Target{LookTime: now}, []consent.Session{session(nil)}, true},
		{"not yet time", soon, []consent.Session{session(nil)}, false},
		{"nobody waits", consent.Target{}, nil, false},
		{"all who wait are past their deadline", consent.Target{}, []consent.Session{session(func(s *consent.Session) { s.ExpireTime = now })}, false},
		{"one of two still waits", consent.Target{}, []consent.Session{session(func(s *consent.Session) { s.ExpireTime = now }), session(nil)}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := consent.LooksNow(now, tc.target, tc.open); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestPace_ProbesNow(t *testing.T) {
	now := created.Add(time.Hour)
	ready := consent.Observation{Finding: consent.Ready}
	for _, tc := range []struct {
		name   string
		target consent.Target
		seen   consent.Observation
		open   []consent.Session
		want   bool
	}{
		{"never asked", consent.Target{}, ready, []consent.Session{session(awaiting)}, true},
		{"an interval ago", consent.Target{ProbeTime: now.Add(-10 * time.Second)}, ready, []consent.Session{session(awaiting)}, true},
		{"less than an interval ago", consent.Target{ProbeTime: now.Add(-10*time.Second + 1)}, ready, []consent.Session{session(awaiting)}, false},
		{"not ready", consent.Target{}, consent.Observation{Finding: consent.Preparing}, []consent.Session{session(awaiting)}, false},
		{"a session is to be told first", consent.Target{}, ready, []consent.Session{session(awaiting), session(nil)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := pace.ProbesNow(now, tc.target, tc.seen, tc.open); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestPace_Next(t *testing.T) {
	now := created.Add(time.Hour)
	at := func(d time.Duration) time.Time { return now.Add(d) }
	open := []consent.Session{session(awaiting)}
	ready := consent.Observation{Finding: consent.Ready}
	for _, tc := range []struct {
		name   string
		target consent.Target
		round  consent.Round
		seen   consent.Observation
		open   []consent.Session
		spread float64
		want   consent.Target
	}{
		{
			name: "preparing: asks the registry again soon", round: consent.Round{Looked: true},
			seen: consent.Observation{Finding: consent.Preparing}, open: open,
			target: consent.Target{Failures: 3},
			want:   consent.Target{LookTime: at(pace.Poll), DueTime: at(pace.Poll)},
		}, {
			name: "just ready: asks the vault at once", round: consent.Round{Looked: true}, seen: ready, open: open,
			want: consent.Target{LookTime: now, DueTime: now},
		}, {
			name: "just ready, asked for another session before: when the interval is over", round: consent.Round{Looked: true}, seen: ready, open: open,
			target: consent.Target{ProbeTime: at(-4 * time.Second)},
			want:   consent.Target{ProbeTime: at(-4 * time.Second), LookTime: at(6 * time.Second), DueTime: at(6 * time.Second)},
		}, {
			name: "refused: an interval after the question, not after the answer", seen: ready, open: open,
			round: consent.Round{Looked: true, ProbeTime: at(-3 * time.Second)},
			want:  consent.Target{ProbeTime: at(-3 * time.Second), LookTime: at(7 * time.Second), DueTime: at(7 * time.Second)},
		}, {
			name: "first failure, least wait", round: consent.Round{Looked: true, Failed: true}, open: open,
			want: consent.Target{Failures: 1, LookTime: at(10 * time.Second), DueTime: at(10 * time.Second)},
		}, {
			name: "a question that nobody answered was asked all the same", round: consent.Round{Looked: true, ProbeTime: at(-3 * time.Second), Failed: true}, open: open,
			want: consent.Target{ProbeTime: at(-3 * time.Second), Failures: 1, LookTime: at(10 * time.Second), DueTime: at(10 * time.Second)},
		}, {
			name: "second failure, half spread", round: consent.Round{Looked: true, Failed: true}, open: open, spread: 0.5,
			target: consent.Target{Failures: 1},
			want:   consent.Target{Failures: 2, LookTime: at(25 * time.Second), DueTime: at(25 * time.Second)},
		}, {
			name: "many failures, longest wait", round: consent.Round{Looked: true, Failed: true}, open: open, spread: 1,
			target: consent.Target{Failures: 1000},
			want:   consent.Target{Failures: 1001, LookTime: at(time.Minute), DueTime: at(time.Minute)},
		}, {
			name: "a deadline only: the next look stays where it was", open: open,
			target: consent.Target{Failures: 2, LookTime: at(20 * time.Second)},
			want:   consent.Target{Failures: 2, LookTime: at(20 * time.Second), DueTime: at(20 * time.Second)},
		}, {
			name: "the earliest deadline comes before the look", round: consent.Round{Looked: true}, seen: consent.Observation{Finding: consent.Preparing},
			open: []consent.Session{session(nil), session(func(s *consent.Session) { s.ExpireTime = at(time.Second) })},
			want: consent.Target{LookTime: at(pace.Poll), DueTime: at(time.Second)},
		}, {
			name: "nobody waits any more", round: consent.Round{Looked: true, ProbeTime: now}, seen: ready,
			want: consent.Target{ProbeTime: now, LookTime: at(10 * time.Second)},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, pace.Next(now, tc.target, tc.round, tc.seen, tc.open, tc.spread)); diff != "" {
				t.Errorf("target (-want +got):\n%s", diff)
			}
		})
	}
}
