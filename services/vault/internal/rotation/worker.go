package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/store"
)

const (
	defaultConcurrency = 16
	defaultPoll        = time.Second
	defaultTimeout     = 8 * time.Second
	// recordTimeout is how long what was learnt may take to be written after the mastership's context has ended.
	recordTimeout = 5 * time.Second
	// maxSteps bounds a turn, so that an integration with much to do lets others have theirs.
	maxSteps = 64
	// batchEvery is how often more of the batches is begun with.
	batchEvery = 5 * time.Second
	// timelineEvery is how often it is looked whether the database has failed over.
	timelineEvery = 5 * time.Second
	// gaugeEvery is how often it is measured how the shard stands.
	gaugeEvery = time.Minute
)

// reporter tells the registry how an integration stands. See Registry.
type reporter interface {
	Report(ctx context.Context, m election.Mastership, report Report) error
}

// Config is what a Worker is made from.
type Config struct {
	Store   *store.Store
	Clouds  Clouds
	Keyring sealer
	// Signer signs for federated versions, and says who the issuer is; nil where the vault is none.
	Signer   *signer.Signer
	Reporter reporter
	// Budget is Graph's, shared with the other replicas.
	Budget *budget.Budget
	// Timing must be valid.
	Timing credential.Timing
	// DeploymentID is part of all names at Entra, so that two deployments in one home tenant leave each other's alone. It
	// must never change.
	DeploymentID string
	// NamePrefix begins every application's display name; customers' administrators read it.
	NamePrefix string
	// RedirectURI is where Entra sends browsers after consent.
	RedirectURI string
	// Notify is told of integrations whose versions changed, so that streams hear of it sooner; nil tells nobody. It must not block.
	Notify func(integrationUID string)
	Log    *slog.Logger
	// Metrics is where metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	// Concurrency is how many integrations of a shard are worked on at once; 16 when zero.
	Concurrency int
	// Poll is how often a shard is looked at, at least, for what others have learnt; 1 s when zero.
	Poll time.Duration
	// Timeout bounds one request to Entra, Graph or the registry; 8 s when zero. It must be less than
	// what a lock has left when it is renewed, or no request is ever started.
	Timeout time.Duration
}

// Worker works on the integrations of the shards that this replica is master of.
type Worker struct {
	config  Config
	prober  *Prober
	present signer.Presenter
	metrics *metrics
}

// New makes a Worker.
func New(config Config) (*Worker, error) {
	if config.DeploymentID == "" || config.NamePrefix == "" || config.Budget == nil {
		return nil, errors.New("rotation: deployment ID, name prefix and budget are required")
	}
	if config.Concurrency == 0 {
		config.Concurrency = defaultConcurrency
	}
	if config.Poll == 0 {
		config.Poll = defaultPoll
	}
	if config.Timeout == 0 {
		config.Timeout = defaultTimeout
	}
	if config.Notify == nil {
		config.Notify = func(string) {}
	}
	m, err := newMetrics(config.Metrics)
	if err != nil {
		return nil, err
	}
	return &Worker{config: config, metrics: m, present: signer.Presenter{Keyring: config.Keyring, Signer: config.Signer}, prober: NewProber(ProberConfig{
		Store: config.Store, Clouds: config.Clouds, Keyring: config.Keyring, Signer: config.Signer, Timing: config.Timing, Timeout: config.Timeout,
	})}, nil
}

// Serve works on a shard until ctx ends, and returns when nothing of it is running any more: nil then, and an error that is
// election.ErrFenced when another replica took the shard. Failures of anything else only delay it.
func (w *Worker) Serve(ctx context.Context, m election.Mastership) error {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &shift{w: w, m: m, stop: cancel, revision: -1, busy: map[string]bool{}, rest: map[string]time.Time{}, done: make(chan struct{}, 1)}
	log := w.config.Log.With(slog.Int(keyShard, m.Shard), slog.Int64(keyEpoch, m.Epoch))
	log.InfoContext(ctx, "shard taken")
	for ctx.Err() == nil {
		wait := w.config.Poll
		next, err := s.round(ctx)
		switch {
		case errors.Is(err, election.ErrFenced):
			cancel(err)
		case err != nil && ctx.Err() == nil:
			log.WarnContext(ctx, "shard could not be looked at", slog.Any(obs.KeyError, err))
		case !next.IsZero():
			wait = min(wait, max(0, time.Until(next)))
		}
		s.sleep(ctx, wait)
	}
	s.turns.Wait()
	cancel(nil)
	w.metrics.forget(m.Shard)
	if cause := context.Cause(ctx); errors.Is(cause, election.ErrFenced) {
		log.WarnContext(ctx, "shard taken by another replica", slog.Any(obs.KeyError, cause))
		return fmt.Errorf("serve shard %d: %w", m.Shard, cause)
	}
	log.InfoContext(ctx, "shard given up")
	return nil
}

// shift is one mastership's work.
type shift struct {
	w        *Worker
	m        election.Mastership
	stop     context.CancelCauseFunc
	revision int64
	// signingKeys are those that signed as of the last round, the newest first.
	signingKeys []string
	// clouds is set once the integrations were made due whose clouds are configured by now, or are not any more.
	clouds bool
	// batchTime is when batches are to be looked at next.
	batchTime time.Time
	// timelineTime is when it is to be looked next whether the database has failed over.
	timelineTime time.Time
	// gaugeTime is when the gauges are to be set next.
	gaugeTime time.Time
	// crowded is set while every place was taken at the last round: more may be due.
	crowded bool
	turns   sync.WaitGroup
	// done has something whenever a turn has ended since the last look.
	done chan struct{}

	mu sync.Mutex
	// busy are the integrations that have their turn; rest says until when those are left alone whose turn failed.
	busy map[string]bool
	rest map[string]time.Time
	// next is the soonest that those which had their turn since the last look are due again, zero when none is.
	next time.Time
}

// round gives a turn to what is due, and says when the next thing will be.
func (s *shift) round(ctx context.Context) (next time.Time, err error) {
	now := time.Now()
	if err := s.followTimeline(ctx, now); err != nil {
		return time.Time{}, err
	}
	if s.revision, err = s.w.config.Store.Adopt(ctx, s.m, now, s.revision); err != nil {
		return time.Time{}, err
	}
	if err := s.followKeys(ctx, now); err != nil {
		return time.Time{}, err
	}
	if err := s.followClouds(ctx, now); err != nil {
		return time.Time{}, err
	}
	if !now.Before(s.batchTime) {
		s.batchTime = now.Add(batchEvery)
		if _, err := s.w.config.Store.AdvanceBatches(ctx, s.m, now); err != nil {
			return time.Time{}, err
		}
	}
	s.gauge(ctx, now)
	resting := s.resting(now)
	// Those with a turn are still due and come first: enough more are read to fill every place.
	uids, next, err := s.w.config.Store.Due(ctx, s.m.Shard, now, 2*s.w.config.Concurrency+resting)
	if err != nil {
		return time.Time{}, err
	}
	for _, uid := range uids {
		if s.start(uid) {
			s.turns.Go(func() { s.turn(ctx, uid) })
		}
	}
	s.crowded = s.full()
	return next, nil
}

// followClouds makes those of the shard's integrations due whose clouds are configured by now, or are not any more: either takes another mastership.
func (s *shift) followClouds(ctx context.Context, now time.Time) error {
	if s.clouds {
		return nil
	}
	err := s.w.config.Store.TouchClouds(ctx, s.m, now, slices.Sorted(maps.Keys(s.w.config.Clouds)))
	s.clouds = err == nil
	return err
}

// followTimeline has everything looked at again once the database has failed over. The mastership ends with that: what this replica remembers may be of what was lost.
func (s *shift) followTimeline(ctx context.Context, now time.Time) error {
	if now.Before(s.timelineTime) {
		return nil
	}
	changed, err := s.w.config.Store.FollowTimeline(ctx, now)
	if changed {
		s.w.metrics.failOvers.Inc()
		s.w.config.Log.ErrorContext(ctx, "database was failed over or restored: everything is looked at again; if commits can have been lost, see what the documentation says about restoring")
	}
	if err == nil {
		s.timelineTime = now.Add(timelineEvery)
	}
	return err
}

// gauge measures how the shard stands, now and then. That it cannot be measured keeps nothing from being done.
func (s *shift) gauge(ctx context.Context, now time.Time) {
	if now.Before(s.gaugeTime) {
		return
	}
	s.gaugeTime = now.Add(gaugeEvery)
	schedule, err := s.w.config.Store.Schedule(ctx, s.m.Shard, now, s.w.config.Timing)
	if err != nil {
		if ctx.Err() == nil {
			s.w.config.Log.WarnContext(ctx, "shard could not be measured", slog.Int(keyShard, s.m.Shard), slog.Any(obs.KeyError, err))
		}
		return
	}
	s.w.metrics.measured(s.m.Shard, now, schedule)
}

// start takes a place for an integration, unless it has one, rests, or there is none.
func (s *shift) start(uid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, rests := s.rest[uid]
	if s.busy[uid] || rests || len(s.busy) >= s.w.config.Concurrency {
		return false
	}
	s.busy[uid] = true
	return true
}

func (s *shift) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.busy) >= s.w.config.Concurrency
}

// resting ends the rests that are over and counts the others.
func (s *shift) resting(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, until := range s.rest {
		if !until.After(now) {
			delete(s.rest, uid)
		}
	}
	return len(s.rest)
}

func (s *shift) turn(ctx context.Context, uid string) {
	next, err := s.w.turn(ctx, s.m, uid)
	s.mu.Lock()
	delete(s.busy, uid)
	switch {
	case err != nil:
		s.rest[uid] = time.Now().Add(max(s.w.config.Timing.RetryMin, s.w.config.Poll))
	case !next.IsZero():
		s.next = sooner(s.next, next)
	}
	s.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, election.ErrFenced):
		s.stop(err)
	case ctx.Err() == nil:
		s.w.config.Log.WarnContext(ctx, "integration could not be worked on", slog.String(keyIntegration, uid), slog.Any(obs.KeyError, err))
	}
	select {
	case s.done <- struct{}{}:
	default:
	}
}

// sleep waits for so long, or until one that had its turn meanwhile is due again, or has made room where more are due, or until ctx ends.
func (s *shift) sleep(ctx context.Context, d time.Duration) {
	end := time.Now().Add(d)
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-s.done:
		}
		if s.crowded {
			return
		}
		s.mu.Lock()
		next := s.next
		s.next = time.Time{}
		s.mu.Unlock()
		if !next.IsZero() && next.Before(end) {
			end = next
			timer.Reset(time.Until(end))
		}
	}
}
