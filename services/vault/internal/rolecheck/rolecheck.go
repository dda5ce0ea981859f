// Package rolecheck looks which Azure roles the principals of integrations hold: when somebody asks, and from time to time.
//
// It guarantees that an integration's principal is looked at at most once in an interval for one list of scopes by one replica, however
// many ask; that what is looked at from time to time is looked at by one replica; and that what is found in the default subscription is
// stored, for the integration's master to report. It asks with the principal's own token, made from a proven credential: the platform
// itself has no access to customers' tenants. It changes no role.
package rolecheck

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/permission"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

const (
	// spacing is the least time between two looks at one integration's scopes.
	spacing = 10 * time.Second
	// timeout bounds one look.
	timeout = 30 * time.Second
	// scan is how often what is due is listed, atOnce how many are looked at then.
	scan   = 30 * time.Second
	atOnce = 20
	// again is when a principal is looked at again that has a role, and soon when it has none; a look that failed counts as the latter.
	again = time.Hour
	soon  = 5 * time.Minute
	// maxKept bounds the answers that are kept.
	maxKept = 4096
)

// ErrNoSubscription means that no scope was given, and the integration has no default subscription.
var ErrNoSubscription = errors.New("integration has no default subscription")

// Issuer issues tokens, see package issuer.
type Issuer interface {
	Issue(ctx context.Context, request issuer.Request) (issuer.Token, error)
}

// Viewer is one cloud's Resource Manager, see package arm.
type Viewer interface {
	See(ctx context.Context, token secret.Text, scope, principal string) (permission.Seen, error)
}

// Cloud is where one cloud's roles are.
type Cloud struct {
	Viewer Viewer
	// Audience is what tokens for its Resource Manager are asked for.
	Audience string
}

// Config is what a Checker is made from.
type Config struct {
	Store  *store.Store
	Issuer Issuer
	// Clouds are by the names that integrations give them.
	Clouds map[string]Cloud
	Log    *slog.Logger
	// Metrics is where metrics are registered; nil registers none.
	Metrics prometheus.Registerer
}

// Result is what was found.
type Result struct {
	PrincipalObjectID string
	// Verdicts are by scope, in the order in which they were asked for.
	Verdicts []permission.Verdict
	Time     time.Time
}

// Checker looks. Make it with New, and Run it once. It is safe for concurrent use.
type Checker struct {
	cfg    Config
	checks *prometheus.CounterVec

	mu    sync.Mutex
	looks map[string]*look
}

// look is one that is on its way, or was had moments ago.
type look struct {
	done   chan struct{}
	ended  time.Time // zero while it is on its way
	result Result
	err    error
}

// New returns a checker; it starts nothing. It fails if the metrics cannot be registered.
func New(cfg Config) (*Checker, error) {
	c := &Checker{cfg: cfg, looks: map[string]*look{}, checks: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "phasekey_vault_permission_checks_total",
		Help: "Looks at the Azure roles of integrations by result: seen, denied (the principal sees nothing: no role), failed (Entra ID or Resource Manager did not answer).",
	}, []string{"result"})}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(c.checks); err != nil {
			return nil, fmt.Errorf("register permission metrics: %w", err)
		}
	}
	return c, nil
}

// Check looks at scopes for an integration, the default subscription if there are none. Errors: sqldb.ErrNoRows (no such integration),
// rotation.ErrDeleting, rotation.ErrNotReady (no proven credential), rotation.ErrNoCloud, ErrNoSubscription, issuer.ErrConsentMissing,
// rotation.ErrEntra, or the database's.
func (c *Checker) Check(ctx context.Context, name string, scopes []string) (Result, error) {
	integration, err := c.cfg.Store.IntegrationByName(ctx, name)
	if err != nil {
		return Result{}, err
	}
	if integration.Deleting {
		return Result{}, fmt.Errorf("check permissions of %s: %w", name, rotation.ErrDeleting)
	}
	if len(scopes) == 0 {
		if integration.DefaultSubscriptionID == "" {
			return Result{}, fmt.Errorf("check permissions of %s: %w", name, ErrNoSubscription)
		}
		scopes = []string{permission.Subscription(integration.DefaultSubscriptionID)}
	}
	key := integration.UID + "\n" + strings.ToLower(strings.Join(scopes, "\n"))
	for {
		l, mine := c.enter(time.Now(), key)
		if mine {
			c.leave(ctx, key, l, integration.UID, scopes)
		}
		select {
		case <-ctx.Done():
			return Result{}, ctx.Err()
		case <-l.done:
		}
		switch {
		case l.err == nil:
			return l.result, nil
		case !mine && gone(l.err):
			// Whoever asked first went away.
		default:
			return Result{}, fmt.Errorf("check permissions of %s: %w", name, l.err)
		}
	}
}

// gone reports whether a look ended with whoever asked for it.
func gone(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// enter returns the look there is, or a new one that the caller has to see through.
func (c *Checker) enter(now time.Time, key string) (l *look, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.looks[key]; l != nil && (l.ended.IsZero() || now.Before(l.ended.Add(spacing))) {
		return l, false
	}
	if len(c.looks) >= maxKept {
		for k, l := range c.looks {
			if !l.ended.IsZero() && !now.Before(l.ended.Add(spacing)) {
				delete(c.looks, k)
			}
		}
	}
	l = &look{done: make(chan struct{})}
	c.looks[key] = l
	return l, true
}

// leave sees a look through.
func (c *Checker) leave(ctx context.Context, key string, l *look, uid string, scopes []string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	result, err := c.look(ctx, uid, scopes)
	c.mu.Lock()
	defer c.mu.Unlock()
	l.result, l.err, l.ended = result, err, time.Now()
	if gone(err) {
		delete(c.looks, key)
	}
	close(l.done)
}

// look asks, and stores what was found in the default subscription.
func (c *Checker) look(ctx context.Context, uid string, scopes []string) (Result, error) {
	facts, err := c.cfg.Store.Facts(ctx, uid)
	if err != nil {
		return Result{}, err
	}
	cloud, ok := c.cfg.Clouds[facts.Integration.Cloud]
	if !ok {
		return Result{}, fmt.Errorf("%w: %q", rotation.ErrNoCloud, facts.Integration.Cloud)
	}
	principal := facts.Application.PrincipalObjectID
	// One that is not proven yet may be refused, which the issuer would remember while it is delivered.
	version, ok := facts.ByState(credential.Active)
	if !ok || principal == "" {
		if facts.Application.ClientID != "" && !facts.Application.Consented {
			return Result{}, issuer.ErrConsentMissing
		}
		return Result{}, rotation.ErrNotReady
	}
	token, err := c.cfg.Issuer.Issue(ctx, issuer.Request{
		Cloud: facts.Integration.Cloud, TenantID: facts.Integration.TenantID, ClientID: facts.Application.ClientID, Audience: cloud.Audience,
		Versions: []credential.Version{version},
	})
	if err != nil {
		c.checks.WithLabelValues("failed").Inc()
		return Result{}, err
	}
	result := Result{PrincipalObjectID: principal, Time: time.Now()}
	for _, scope := range scopes {
		seen, err := cloud.Viewer.See(ctx, token.Text, scope, principal)
		if err != nil {
			c.checks.WithLabelValues("failed").Inc()
			return Result{}, fmt.Errorf("%w: %w", rotation.ErrEntra, err)
		}
		v := permission.Judge(scope, principal, seen)
		if v.Visibility == permission.Denied {
			c.checks.WithLabelValues("denied").Inc()
		} else {
			c.checks.WithLabelValues("seen").Inc()
		}
		result.Verdicts = append(result.Verdicts, v)
		if strings.EqualFold(scope, permission.Subscription(facts.Integration.DefaultSubscriptionID)) {
			found := permission.Check{
				Time: result.Time, SubscriptionID: facts.Integration.DefaultSubscriptionID, PrincipalObjectID: principal, Read: v.Read, Write: v.Write, Denied: v.Denied,
			}
			if err := c.cfg.Store.RecordPermissions(ctx, uid, result.Time, found, result.Time.Add(wait(v))); err != nil {
				return Result{}, err
			}
		}
	}
	return result, nil
}

// wait is when to look again, give or take a quarter.
func wait(v permission.Verdict) time.Duration {
	d := again
	if v.Read == permission.None && v.Write == permission.None {
		d = soon
	}
	return d*3/4 + rand.N(d/2) //nolint:gosec // spreads load, guards nothing
}

// Run looks from time to time, until ctx ends. It returns nil.
func (c *Checker) Run(ctx context.Context) error {
	tick := time.NewTicker(scan)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.round(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.WarnContext(ctx, "permissions cannot be looked at", slog.Any(obs.KeyError, err))
		}
	}
}

func (c *Checker) round(ctx context.Context) error {
	due, err := c.cfg.Store.DuePermissions(ctx, time.Now(), atOnce)
	if err != nil {
		return err
	}
	for _, uid := range due {
		now := time.Now()
		claimed, err := c.cfg.Store.ClaimPermissions(ctx, uid, now, now.Add(soon))
		if err != nil {
			return err
		}
		if !claimed {
			continue
		}
		facts, err := c.cfg.Store.Facts(ctx, uid)
		if err != nil {
			return err
		}
		// What fails is tried again when the claim is over.
		if _, err := c.Check(ctx, facts.Integration.Name, nil); err != nil && ctx.Err() == nil {
			c.cfg.Log.InfoContext(ctx, "permissions of an integration cannot be looked at", slog.String(obs.KeyResource, facts.Integration.Name), slog.Any(obs.KeyError, err))
		}
	}
	return nil
}
