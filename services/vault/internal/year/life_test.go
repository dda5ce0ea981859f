package year_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"phasekey.dev/pkg/redistest"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/election/redislock"
	"phasekey.dev/services/vault/internal/entra"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/store"
)

// errDead is what a process that was killed gets from everything.
var errDead = errors.New("the process is dead")

const (
	// lockTTL is long, so that a year has few renewals; polls are stretched with it.
	lockTTL = 15 * time.Minute
	shards  = 2
	poll    = 5 * time.Minute
)

// replica is a place where vaults run, one life after another.
type replica struct {
	w    *world
	name string
	link *redistest.Link

	lives int // so far

	mu   sync.Mutex
	life *life // nil between two
}

// current is the life there is, nil between two.
func (r *replica) current() *life {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.life
}

func (r *replica) set(l *life) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life = l
}

// run lives one life after another until the world ends.
func (r *replica) run(ctx context.Context) {
	dice := r.w.luck.dice("rest of " + r.name)
	for ctx.Err() == nil {
		r.link.Heal()
		if err := r.live(ctx); err != nil {
			r.w.fail("replica %s: %v", r.name, err)
			return
		}
		sleep(ctx, time.Minute+time.Duration(dice.Int64N(int64(10*time.Minute))))
	}
}

// life is one process of the vault, as far as it has a part in rotation and delivery.
type life struct {
	r     *replica
	name  string
	ctx   context.Context //nolint:containedctx // its end is the life's
	end   context.CancelFunc
	hub   *delivery.Hub
	store *store.Store
	// signer, site and keeper make it an issuer.
	signer *signer.Signer
	site   *signer.Site
	keeper *signer.Keeper

	mu     sync.Mutex
	dead   bool
	resume chan struct{} // closed to go on; nil while running
	silent chan struct{} // closed when it has not answered for longer than a connection's keepalive
}

func (r *replica) live(ctx context.Context) error {
	w := r.w
	r.lives++
	l := &life{r: r, name: fmt.Sprintf("%s/%d", r.name, r.lives), store: store.New(w.db, audittest.Keys(1)), silent: make(chan struct{})}
	l.ctx, l.end = context.WithCancel(ctx)
	defer l.end()
	l.ctx = sqldbtest.WithHook(l.ctx, l.atSQL)
	log := slog.New(w.log.handler(r.name))

	directory, err := w.directory(l)
	if err != nil {
		return err
	}
	if err := l.sign(signer.Config{Issuer: issuerURL, Store: keys{l.store}, Keyring: w.keyring, Poll: poll, Log: log}); err != nil {
		return err
	}
	l.hub = delivery.New(delivery.Config{
		LongestHold: 24 * time.Hour,
		Store:       l.store,
		Issuer:      issuer.New(issuer.Config{Minter: entra.Clouds{"public": directory}, Keyring: w.keyring, Signer: l.signer, Prober: l.store, Log: log}),
		Keyring:     w.keyring, Signer: l.signer, HoldMargin: w.timing.HoldMargin,
		Clouds: map[string]delivery.Cloud{"public": {ResourceManager: directory.ResourceManager(), Environment: "public"}},
		Poll:   poll, Log: log,
	})
	permits, err := budget.New(budget.Config{Limits: budget.DefaultLimits(), Client: r.link, Prefix: "year", Log: log})
	if err != nil {
		return err
	}
	worker, err := rotation.New(rotation.Config{
		Budget: permits,
		Store:  l.store, Clouds: rotation.Clouds{"public": directory}, Keyring: w.keyring, Signer: l.signer, Reporter: w.registry, Timing: w.timing,
		DeploymentID: deployment, NamePrefix: "Phasekey", RedirectURI: redirectURI, Log: log, Poll: poll,
		Notify: func(string) { w.hint(l) },
	})
	if err != nil {
		return err
	}
	elector, err := redislock.New(redislock.Config{
		Client: r.link, Prefix: "year", Replica: r.name, Shards: shards, TTL: lockTTL, Fence: fence.New(w.db, shards), Log: log,
	})
	if err != nil {
		return err
	}
	w.count("lives")
	w.journal.tell(answers{l.name, true})
	r.set(l)
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = l.hub.Run(l.ctx) })
	tasks.Go(func() { l.tidy(l.ctx) })
	tasks.Go(func() { _ = l.signer.Run(l.ctx) })
	tasks.Go(func() {
		if err := elector.Run(l.ctx, l.serve(worker)); err != nil {
			w.fail("elector of %s: %v", r.name, err)
		}
	})
	tasks.Wait()
	r.set(nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	w.journal.tell(answers{l.name, false})
	return nil
}

// hint has streams look for what a life has changed: its own, and by Redis those of others. (What carries hints there, go-redis' subscription, waits for
// connections with a mutex, and a bubble's time stands still for as long.)
func (w *world) hint(from *life) {
	for _, r := range w.replicas {
		if l := r.current(); l != nil && (l == from || !w.is(noRedis)) {
			l.hub.Nudge()
		}
	}
}

// tidy does what delivery's releaser and the notary do, less often. What failed is done by the next.
func (l *life) tidy(ctx context.Context) {
	for ctx.Err() == nil {
		_, _ = l.store.ReleaseEnded(ctx, time.Now().Add(-l.r.w.timing.HoldMargin), 1000)
		_ = l.store.ExpandFanOuts(ctx)
		sleep(ctx, poll)
	}
}

// kill ends the life as SIGKILL does: from now on nothing that it does has an effect.
func (l *life) kill(step string) {
	l.mu.Lock()
	first := !l.dead
	l.dead = true
	if l.resume != nil {
		close(l.resume)
		l.resume = nil
	}
	l.mu.Unlock()
	if !first {
		return
	}
	l.r.w.journal.tell(killed{step})
	l.r.w.journal.tell(answers{l.name, false})
	l.r.link.Cut()
	l.end()
}

// pause stops the life as SIGSTOP does, for so long.
func (l *life) pause(ctx context.Context, d time.Duration) {
	l.mu.Lock()
	if l.dead || l.resume != nil {
		l.mu.Unlock()
		return
	}
	resume := make(chan struct{})
	l.resume = resume
	l.mu.Unlock()
	l.r.w.journal.tell(clouds{oneAway, true})
	defer l.r.w.journal.tell(clouds{oneAway, false})
	l.r.w.journal.tell(answers{l.name, false})
	l.r.link.Stall()
	sleep(ctx, keepalive)
	l.mu.Lock()
	close(l.silent)
	l.mu.Unlock()
	sleep(ctx, d-keepalive)
	l.r.link.Heal()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = make(chan struct{})
	if l.resume == resume {
		close(resume)
		l.resume = nil
		if !l.dead {
			l.r.w.journal.tell(answers{l.name, true})
		}
	}
}

// keepalive is how long a runner's connection goes on to a process that does not answer.
const keepalive = time.Minute

// silence is closed when the life has not answered for too long.
func (l *life) silence() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.silent
}

// pass is gone through wherever the life has an effect: it waits while the life is paused, and fails when it is dead.
func (l *life) pass(wait bool) error {
	for {
		l.mu.Lock()
		dead, resume := l.dead, l.resume
		l.mu.Unlock()
		switch {
		case dead:
			return errDead
		case resume == nil || !wait:
			return nil
		}
		<-resume
	}
}

// strike kills the life by chance.
func (l *life) strike(step string) error {
	if l.r.w.luck.draw(l.r.name+" "+step) < l.r.w.set.killChance {
		l.kill(step)
		return errDead
	}
	return nil
}

// atSQL is the life's hook in every transaction.
func (l *life) atSQL(ctx context.Context, at sqldbtest.Point, readOnly bool) error {
	if at == sqldbtest.Committed && !readOnly {
		l.committed(ctx)
	}
	// Only at the beginning does it not keep the one connection there is.
	if err := l.pass(at == sqldbtest.Begin && ctx.Value(unpausedKey{}) == nil); err != nil {
		return err
	}
	if at == sqldbtest.Begin && l.r.w.is(noSQL) {
		return fmt.Errorf("%w: the weather", sqldb.ErrUnavailable)
	}
	if readOnly {
		return nil
	}
	return l.strike(string(at) + " " + caller())
}

// callers are the names of steps by where they come from: a year comes by the same ways millions of times.
var callers sync.Map //nolint:gochecknoglobals // a cache

// caller names the step that a transaction belongs to, by what called the store.
func caller() string {
	var frames [40]uintptr
	n := runtime.Callers(3, frames[:])
	if known, ok := callers.Load(frames); ok {
		return known.(string) //nolint:forcetypeassert // nothing else is in there
	}
	name := nameOf(frames[:n])
	callers.Store(frames, name)
	return name
}

func nameOf(frames []uintptr) string {
	walk := runtime.CallersFrames(frames)
	method := "?"
	for {
		frame, more := walk.Next()
		_, name, ok := strings.Cut(frame.Function, "services/vault/internal/")
		switch {
		case ok && strings.HasPrefix(name, "store."), ok && strings.HasPrefix(name, "fence.(*Fence).Take"):
			method = shorten(name)
		case ok && strings.HasPrefix(name, "rotation.(*turn).") && !strings.HasPrefix(name, "rotation.(*turn).apply") && !strings.HasPrefix(name, "rotation.(*turn).learn"):
			return method + " in " + shorten(name)
		}
		if !more {
			return method
		}
	}
}

func shorten(function string) string {
	function, _, _ = strings.Cut(function, ".func")
	return function[strings.LastIndex(function, ".")+1:]
}

// RoundTrip carries the life's requests to the simulator.
func (l *life) RoundTrip(request *http.Request) (*http.Response, error) {
	// The SDK asks for the platform's own token with a mutex, for which others wait; a bubble's time stands still for as long, so that request is never held up.
	waits := !strings.HasPrefix(request.URL.Path, "/"+l.r.w.platform.Tenant+"/")
	if err := l.pass(waits); err != nil {
		return nil, err
	}
	request, what, err := l.r.w.showing(request)
	if err != nil {
		return nil, err
	}
	step := operation(request)
	if err := l.strike("before " + step); err != nil {
		return nil, err
	}
	chance := l.r.w.set.pauseChance
	if _, is := mastership(request.Context()); is {
		chance = l.r.w.set.masterPauseChance
	}
	if waits && l.r.w.luck.draw(l.r.name+" suspended "+step) < chance {
		// The machine stops with the request on its lips: it is sent when it wakes, whatever happened meanwhile.
		l.r.w.count("pauses with a request on the way")
		l.pause(l.r.w.ctx, 2*lockTTL)
		if err := l.pass(true); err != nil {
			return nil, err
		}
		request = request.WithContext(context.WithoutCancel(request.Context()))
	}
	sent := time.Now()
	response, err := l.r.w.sim.Transport().RoundTrip(request)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	l.r.w.overhear(body)
	response.Body = io.NopCloser(strings.NewReader(string(body)))
	if err := l.strike("after " + step); err != nil {
		return nil, err
	}
	if err := l.pass(waits); err != nil {
		return nil, err
	}
	if waits { // a customer's
		l.hears(request.Context(), what, sent, response.StatusCode, body)
	}
	return response, nil
}

// operation names a request.
func operation(r *http.Request) string {
	path := r.URL.Path
	switch {
	case strings.HasSuffix(path, "/token"):
		return "token"
	case strings.HasSuffix(path, "/addPassword"):
		return "addPassword"
	case strings.HasSuffix(path, "/removePassword"):
		return "removePassword"
	case strings.Contains(path, "/deletedItems/"):
		return "purge application"
	case strings.HasPrefix(path, "/v1.0/applications"):
		return strings.ToLower(r.Method) + " application"
	default:
		return strings.ToLower(r.Method)
	}
}

// sleep waits for so long, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

var _ http.RoundTripper = (*life)(nil)
