// Package prover gets proof of consent for open sessions.
//
// Every replica runs one. It guarantees that an integration is worked on by one replica at a time, that its tenant is
// asked at most once in an interval by all replicas together, also when one dies in the middle, and that a session ends
// once. It is level-triggered: it compares what is stored with what the registry and the vault say now, so nothing is
// lost with a process, and nothing needs to be told. It does not guarantee that a round happens at its time when the
// database, or everything, is slow.
//
// The tricky idea is how long a claim lasts: a round's timeout and then an interval more. A replica that dies may have
// asked the vault at any moment of its round; whoever takes over comes late enough for either.
package prover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/internal/consent"
)

// store keeps the sessions; its methods are as package store describes them.
type store interface {
	Due(ctx context.Context, now time.Time, limit int) ([]string, error)
	Claim(ctx context.Context, now, until time.Time, uid string) (consent.Claim, error)
	Settle(ctx context.Context, c consent.Claim, decide func(consent.Target, []consent.Session) (consent.Target, []consent.Session)) error
}

// registry says how integrations are: ErrIntegrationNotFound means that there is none; any other error, no answer.
type registry interface {
	Integration(ctx context.Context, name string) (consent.Integration, error)
}

// vault asks an integration's tenant. Any error means that there is no answer.
type vault interface {
	ProbeConsent(ctx context.Context, integration string) (consent.Proof, error)
}

// Config is what a Prover is made from.
type Config struct {
	Store    store
	Registry registry
	Vault    vault
	Log      *slog.Logger
	// Metrics is where the prover's metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	Pace    consent.Pace
	// RoundTimeout bounds the registry's and the vault's answers together; zero means 20 s.
	RoundTimeout time.Duration
	// Concurrency is how many integrations are worked on at once; zero means 32.
	Concurrency int
	// Scan is how often the database is asked for what is due; zero means half a second.
	Scan time.Duration
}

const (
	defaultRoundTimeout = 20 * time.Second
	defaultConcurrency  = 32
	defaultScan         = 500 * time.Millisecond
	// settleTimeout bounds the writing of a round's result, also when the prover is being stopped.
	settleTimeout = 5 * time.Second
)

// Prover works off what is due. Make it with New, then Run it once.
type Prover struct {
	cfg    Config
	probes *prometheus.CounterVec
	ended  *prometheus.CounterVec
}

// New returns a prover; it starts nothing. It fails if the metrics cannot be registered.
func New(cfg Config) (*Prover, error) {
	if cfg.RoundTimeout == 0 {
		cfg.RoundTimeout = defaultRoundTimeout
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = defaultConcurrency
	}
	if cfg.Scan == 0 {
		cfg.Scan = defaultScan
	}
	p := &Prover{
		cfg: cfg,
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_broker_probes_total",
			Help: "Questions to the vault by outcome: consented, refused, or failed (no answer; many in a row mean that sessions cannot complete).",
		}, []string{"outcome"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_broker_sessions_ended_total",
			Help: "Consent sessions by how they ended: completed or expired.",
		}, []string{"state"}),
	}
	if cfg.Metrics == nil {
		return p, nil
	}
	for _, c := range []prometheus.Collector{p.probes, p.ended} {
		if err := cfg.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("register prover metrics: %w", err)
		}
	}
	return p, nil
}

// Run works until ctx ends, then finishes the rounds at hand, whose questions are called off. It returns nil.
func (p *Prover) Run(ctx context.Context) error {
	var rounds sync.WaitGroup
	defer rounds.Wait()
	slots := make(chan struct{}, p.cfg.Concurrency)
	answering := true
	for {
		uids, err := p.cfg.Store.Due(ctx, time.Now(), p.cfg.Concurrency)
		if err != nil && ctx.Err() == nil && answering {
			p.cfg.Log.WarnContext(ctx, "due consent sessions cannot be listed", slog.Any(obs.KeyError, err))
		}
		answering = err == nil
		for _, uid := range uids {
			select {
			case <-ctx.Done():
				return nil
			case slots <- struct{}{}:
			}
			rounds.Go(func() {
				defer func() { <-slots }()
				p.round(ctx, uid)
			})
		}
		// A little random, so that replicas that were started together do not scan together.
		wait := time.NewTimer(p.cfg.Scan/2 + rand.N(p.cfg.Scan)) //nolint:gosec // spreads load, guards nothing
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		}
	}
}

// round does what is due for one integration.
func (p *Prover) round(ctx context.Context, uid string) {
	now := time.Now()
	claim, err := p.cfg.Store.Claim(ctx, now, now.Add(p.cfg.RoundTimeout+settleTimeout+p.cfg.Pace.Probe), uid)
	if err != nil {
		p.report(ctx, err, uid)
		return
	}
	looking, cancel := context.WithTimeout(ctx, p.cfg.RoundTimeout)
	defer cancel()
	done, seen := p.look(looking, claim)
	if done.Failed && ctx.Err() != nil {
		// Called off by us: no failure of theirs. If the vault was not reached, another replica may go on at once.
		done.Failed, done.Looked = false, !done.ProbeTime.IsZero()
	}

	// What was found out is worth keeping, and the claim worth giving back, also when the process is to stop.
	settling, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	var ended []consent.Session
	err = p.cfg.Store.Settle(settling, claim, func(t consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
		now := time.Now()
		var changed, still []consent.Session
		ended = nil
		for _, s := range open {
			next, differs := consent.Decide(now, s, seen)
			if differs {
				changed = append(changed, next)
			}
			if next.State.Open() {
				still = append(still, next)
			} else {
				ended = append(ended, next)
			}
		}
		return p.cfg.Pace.Next(now, t, done, seen, still, rand.Float64()), changed //nolint:gosec // spreads load, guards nothing
	})
	if err != nil {
		p.report(ctx, err, uid)
		return
	}
	for _, s := range ended {
		state := "expired"
		if s.State == consent.Completed {
			state = "completed"
		}
		p.ended.WithLabelValues(state).Inc()
		p.cfg.Log.InfoContext(ctx, "consent session ended", slog.String(obs.KeyResource, s.Name.String()),
			slog.String(keyIntegration, s.Integration), slog.String(keyState, state), slog.String(keyRefusal, s.LastRefusal))
	}
}

// look asks the registry and, if it is time, the vault.
func (p *Prover) look(ctx context.Context, c consent.Claim) (consent.Round, consent.Observation) {
	if !consent.LooksNow(time.Now(), c.Target, c.Open) {
		return consent.Round{}, consent.Observation{}
	}
	done := consent.Round{Looked: true}
	found, err := p.cfg.Registry.Integration(ctx, c.Target.Integration)
	switch {
	case errors.Is(err, consent.ErrIntegrationNotFound):
		return done, consent.Observation{Finding: consent.Gone}
	case err != nil:
		p.unanswered(ctx, "registry", c.Target, err)
		done.Failed = true
		return done, consent.Observation{}
	case found.UID != c.Target.IntegrationUID:
		return done, consent.Observation{Finding: consent.Gone}
	}
	seen := consent.Observe(found)
	now := time.Now()
	if !p.cfg.Pace.ProbesNow(now, c.Target, seen, c.Open) {
		return done, seen
	}
	done.ProbeTime = now
	proof, err := p.cfg.Vault.ProbeConsent(ctx, c.Target.Integration)
	switch {
	case err != nil:
		p.probes.WithLabelValues("failed").Inc()
		p.unanswered(ctx, "vault", c.Target, err)
		done.Failed = true
		return done, seen
	case proof.Consented:
		p.probes.WithLabelValues("consented").Inc()
	default:
		p.probes.WithLabelValues("refused").Inc()
	}
	seen.Proof, seen.AskTime = &proof, done.ProbeTime
	return done, seen
}

// unanswered logs that somebody did not answer, unless we called the question off.
func (p *Prover) unanswered(ctx context.Context, service string, t consent.Target, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	p.cfg.Log.WarnContext(ctx, "a service does not answer", slog.String(keyUpstream, service),
		slog.String(keyIntegration, t.Integration), slog.Int(keyFailures, t.Failures+1), slog.Any(obs.KeyError, err))
}

// report logs why a round came to nothing. Another replica being first is how it should be.
func (p *Prover) report(ctx context.Context, err error, uid string) {
	if errors.Is(err, consent.ErrClaimLost) || ctx.Err() != nil {
		return
	}
	p.cfg.Log.WarnContext(ctx, "a round came to nothing", slog.String(keyIntegrationUID, uid), slog.Any(obs.KeyError, err))
}
