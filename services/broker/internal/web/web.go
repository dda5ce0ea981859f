package web

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/limit"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/follow"
)

// store keeps the sessions; its methods are as package store describes them.
type store interface {
	ByLink(ctx context.Context, linkHash []byte) (consent.Session, error)
	Begin(ctx context.Context, integrationUID string, a consent.Attempt, kept consent.Kept) error
	Return(ctx context.Context, now time.Time, stateHash []byte, judge func(*consent.Attempt, consent.Session) consent.Verdict) (consent.Verdict, error)
}

// follower tells of changes of a session, as package follow describes it.
type follower interface {
	Follow(linkHash []byte, seen int64) *follow.Follower
}

// looker looks which roles were given after consent, as package roles describes it.
type looker interface {
	Look(ctx context.Context, session consent.Session) error
}

// stander looks whether consent that was given still holds, as package standing describes it.
type stander interface {
	Look(ctx context.Context, session consent.Session) (consent.Session, error)
}

// Config is what a Site is made from.
type Config struct {
	Store store
	// Follow tells pages that are live what becomes of their sessions.
	Follow follower
	// Roles looks for roles while somebody waits for them.
	Roles looker
	// Standing looks whether consent still holds.
	Standing stander
	Links    consent.Links
	// Origins are where pages may lead in the end.
	Origins consent.Origins
	// Platform is the platform's name, as its customers know it.
	Platform string
	// Brand is what the pages have of the platform's own.
	Brand Brand
	// Proxies are whose word on whom they speak for is taken.
	Proxies Proxies
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
	streams   *http.ServeMux
	templates templates
	logo      *logo // nil: none
	sources   *limit.Buckets[string]
	presses   *limit.Buckets[string]
	going     chan struct{}
	// live and livePerSource are the places of pages that are told what happens; stopping is closed when they are to go.
	live, livePerSource *limit.Places
	stopping            chan struct{}
	stop                func()

	pages     *prometheus.CounterVec
	callbacks *prometheus.CounterVec
	panics    prometheus.Counter
	refused   prometheus.Counter
	liveNow   prometheus.Gauge
}

// New returns the pages; it starts nothing. It fails if the metrics cannot be registered.
func New(cfg Config) (*Site, error) {
	s := &Site{
		cfg:     cfg,
		sources: limit.NewBuckets(func(string) string { return "" }),
		presses: limit.NewBuckets(func(key string) string { kind, _, _ := strings.Cut(key, " "); return kind }),
		going:   make(chan struct{}, maxGoing),
		live:    limit.NewPlaces(maxLive), livePerSource: limit.NewPlaces(maxLivePerSource),
		stopping: make(chan struct{}),
		pages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_broker_pages_total",
			Help: "Answers to browsers by page and HTTP status. Many 429 behind a proxy mean that it is taken for one browser (trusted_proxies); many 503, that the database is away.",
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
			Help: "Connections closed at once because their address had too many; behind a proxy that is not among trusted_proxies, it opens one for each browser.",
		}),
		liveNow: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "phasekey_broker_live_pages",
			Help: "Pages that are told at this moment what becomes of their session; at 4096 further ones load themselves again instead.",
		}),
	}
	s.stop = sync.OnceFunc(func() { close(s.stopping) })
	if cfg.Metrics != nil {
		for _, c := range []prometheus.Collector{s.pages, s.callbacks, s.panics, s.refused, s.liveNow} {
			if err := cfg.Metrics.Register(c); err != nil {
				return nil, fmt.Errorf("register page metrics: %w", err)
			}
		}
	}
	var err error
	if s.templates, err = parse(); err != nil {
		return nil, err
	}
	if s.logo, err = cfg.Brand.logo(); err != nil {
		return nil, fmt.Errorf("logo: %w", err)
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
