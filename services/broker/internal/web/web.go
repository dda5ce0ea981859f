package web

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/limit"
	"phasekey.dev/services/broker/internal/consent"
)

// store keeps the sessions; its methods are as package store describes them.
type store interface {
	ByLink(ctx context.Context, linkHash []byte) (consent.Session, error)
	Begin(ctx context.Context, integrationUID string, a consent.Attempt, limit int) error
	Return(ctx context.Context, now time.Time, stateHash []byte, judge func(*consent.Attempt, consent.Session) consent.Verdict) (consent.Verdict, error)
}

// Config is what a Site is made from.
type Config struct {
	Store store
	Links consent.Links
	// Origins are where pages may lead in the end.
	Origins consent.Origins
	// Platform is the platform's name, as its customers know it.
	Platform string
	// AttemptLife is how long a browser may take at Entra ID.
	AttemptLife time.Duration
	Log         *slog.Logger
	// Metrics is where the pages' metrics are registered; nil registers none.
	Metrics prometheus.Registerer
}

// Site is the pages. It is safe for concurrent use.
type Site struct {
	cfg       Config
	handler   http.Handler
	templates templates
	sources   *limit.Buckets[string]
	going     chan struct{}
	pages     *prometheus.CounterVec
	callbacks *prometheus.CounterVec
	panics    prometheus.Counter
	refused   prometheus.Counter
}

// New returns the pages; it starts nothing. It fails if the metrics cannot be registered.
func New(cfg Config) (*Site, error) {
	s := &Site{
		cfg:     cfg,
		sources: limit.NewBuckets(func(string) string { return "" }),
		going:   make(chan struct{}, maxGoing),
		pages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_broker_pages_total",
			Help: "Answers to browsers by page and HTTP status. Many 429 behind a proxy mean that it is taken for one browser; many 503, that the database is away.",
		}, []string{"page", "status"}),
		callbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_broker_callbacks_total",
			Help: "Returns of browsers from Entra ID by outcome. Many that are refused (a state or cookie that is wrong) mean that somebody makes them up.",
		}, []string{"outcome"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_broker_page_panics_total",
			Help: "Panics while a page was made; each is a bug, and in the log.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_broker_page_connections_refused_total",
			Help: "Connections closed at once because their address had too many; behind a proxy, it opens one for each browser.",
		}),
	}
	if cfg.Metrics != nil {
		for _, c := range []prometheus.Collector{s.pages, s.callbacks, s.panics, s.refused} {
			if err := cfg.Metrics.Register(c); err != nil {
				return nil, fmt.Errorf("register page metrics: %w", err)
			}
		}
	}
	var err error
	if s.templates, err = parse(); err != nil {
		return nil, err
	}
	handler, err := s.routes()
	if err != nil {
		return nil, fmt.Errorf("routes of pages: %w", err)
	}
	s.handler = s.chain(handler)
	return s, nil
}

// Handler answers browsers.
func (s *Site) Handler() http.Handler { return s.handler }
