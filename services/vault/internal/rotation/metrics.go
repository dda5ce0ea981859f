package rotation

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	calls       *prometheus.CounterVec
	proofs      *prometheus.CounterVec
	rotations   prometheus.Counter
	transitions *prometheus.CounterVec
	reports     *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_entra_calls_total",
			Help: "Requests to Entra ID and Graph by the rotator, by operation and by the class of the answer (ok when granted).",
		}, []string{"op", "class"}),
		proofs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_proofs_total",
			Help: "Token requests that were to prove a credential version, by what they told; many refused ones mean that Entra lags.",
		}, []string{"finding"}),
		rotations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_vault_rotations_total",
			Help: "Credential versions that replaced another one.",
		}),
		transitions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_version_transitions_total",
			Help: "Credential versions that entered a state.",
		}, []string{"state"}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_reports_total",
			Help: "Reports to the registry, by outcome (ok, failed).",
		}, []string{"outcome"}),
	}
	if r == nil {
		return m, nil
	}
	var problems []error
	for _, c := range []prometheus.Collector{m.calls, m.proofs, m.rotations, m.transitions, m.reports} {
		problems = append(problems, r.Register(c))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("register metrics of rotation: %w", err)
	}
	return m, nil
}
