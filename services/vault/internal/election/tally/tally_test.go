package tally_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/election/tally"
)

// fakeElector gives one mastership after another, each of which ends as it is told.
type fakeElector struct {
	causes []error
	ended  func()
}

func (f fakeElector) Run(ctx context.Context, serve election.Serve) error {
	for i, cause := range f.causes {
		ctx, cancel := context.WithCancelCause(ctx)
		if cause != nil {
			cancel(cause)
		}
		_ = serve(ctx, election.Mastership{Shard: i})
		f.ended()
		cancel(nil)
	}
	return nil
}

func TestElector_CountsWhatBecomesOfMasterships(t *testing.T) {
	metrics := prometheus.NewPedanticRegistry()
	// value is one metric's, by its name and why.
	value := func(name, why string) float64 {
		t.Helper()
		families, err := metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, m := range family.GetMetric() {
				if family.GetName() == "phasekey_vault_"+name && (why == "" || m.GetLabel()[0].GetValue() == why) {
					return m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
		t.Fatalf("no %s %s", name, why)
		return 0
	}
	gone := fmt.Errorf("%w: the lock was deleted", election.ErrLost)
	e, err := tally.New(fakeElector{
		causes: []error{nil, nil, gone, gone, election.ErrResigned, nil},
		ended: func() {
			if got := value("masterships_held", ""); got != 0 {
				t.Errorf("%v are held after the end", got)
			}
		},
	}, metrics)
	if err != nil {
		t.Fatal(err)
	}
	answers := []error{fmt.Errorf("commit: %w", election.ErrFenced), errors.New("a failure"), nil, election.ErrFenced, nil, nil}
	if err := e.Run(t.Context(), func(ctx context.Context, m election.Mastership) error {
		if got := value("masterships_held", ""); got != 1 {
			t.Errorf("%v are held", got)
		}
		if errors.Is(answers[m.Shard], election.ErrFenced) {
			election.Fenced(ctx) // as the fence does, here for two transactions
			election.Fenced(context.WithoutCancel(ctx))
		}
		return answers[m.Shard]
	}); err != nil {
		t.Fatal(err)
	}
	for why, want := range map[string]float64{"failed": 2, "fenced": 2, "lost": 1, "resigned": 1} {
		if got := value("masterships_ended_total", why); got != want {
			t.Errorf("%v %s, want %v", got, why, want)
		}
	}
	if got := value("fenced_writes_total", ""); got != 4 {
		t.Errorf("%v fenced writes, want 4", got)
	}
	if _, err := tally.New(fakeElector{}, metrics); err == nil {
		t.Error("registered twice")
	}
}
