package grpcserver

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// metrics are one listener's numbers.
type metrics struct {
	handled  *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
	panics   prometheus.Counter
	refused  *prometheus.CounterVec
}

// newMetrics registers the metrics, with the listener's name on each, so that several servers share a registry.
func newMetrics(r prometheus.Registerer, listener string) (*metrics, error) {
	m := &metrics{
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_grpc_calls_total",
			Help: "Calls and streams that ended, by the code the caller saw. A rate of code Internal above zero is a bug.",
		}, []string{"service", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "phasekey_grpc_call_seconds",
			Help:    "From the end of the request's header to the end of the handler. For streams this is their life.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600, 3600},
		}, []string{"service", "method"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_grpc_calls_in_flight",
			Help: "Calls being handled and streams being open now.",
		}, []string{"service", "method"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_grpc_panics_total",
			Help: "Panics in handlers; each is a bug, logged with its stack.",
		}),
	}
	m.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "phasekey_grpc_connections_refused_total",
		Help: "Connections closed as soon as they were accepted, because their source address has too many (connections, or handshakes not over), or all have together (descriptors).",
	}, []string{"why"})
	if r == nil {
		return m, nil
	}
	r = prometheus.WrapRegistererWith(prometheus.Labels{"listener": listener}, r)
	for _, c := range []prometheus.Collector{m.handled, m.seconds, m.inFlight, m.panics, m.refused} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// refuse counts a connection that was refused.
func (m *metrics) refuse(why string) { m.refused.WithLabelValues(why).Inc() }

// begin counts a call in, and returns what counts it out.
func (m *metrics) begin(of *method) func(code codes.Code, took time.Duration) {
	g := m.inFlight.WithLabelValues(of.service, of.name)
	g.Inc()
	return func(code codes.Code, took time.Duration) {
		g.Dec()
		m.handled.WithLabelValues(of.service, of.name, code.String()).Inc()
		m.seconds.WithLabelValues(of.service, of.name).Observe(took.Seconds())
	}
}
