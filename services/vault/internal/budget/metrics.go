package budget

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	permits   *prometheus.CounterVec
	waits     *prometheus.HistogramVec
	throttles prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		permits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_graph_permits_total",
			Help: "Permits for requests to Graph, by kind, by class (upkeep, change), and by whose budget (shared, or alone while Redis does not answer).",
		}, []string{"kind", "class", "budget"}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "phasekey_vault_graph_permit_wait_seconds",
			Help:    "How long those waited who got no permit for Graph at first; long waits of upkeep mean that rotations will be late.",
			Buckets: []float64{0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600},
		}, []string{"kind", "class"}),
		throttles: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_vault_graph_throttles_total",
			Help: "Answers of Graph to come back later, each of which stops all requests to that cloud's Graph for a while.",
		}),
	}
	if r == nil {
		return m, nil
	}
	var problems []error
	for _, c := range []prometheus.Collector{m.permits, m.waits, m.throttles} {
		problems = append(problems, r.Register(c))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("register metrics of graph's budget: %w", err)
	}
	return m, nil
}
