// Package issuer mints access tokens in customers' tenants, with the credential versions of integrations.
//
// It guarantees that a token is asked for once however many want it at the same moment, that it is renewed while a good
// part of its life is left, that Entra's flapping does not show: while the newest version is refused an older usable one is
// asked with, and while nothing is granted a token from before goes on being handed out. A refusal is not remembered for
// longer than a short back-off. It does not decide who may have a token, and tells the caller which version it came from,
// for the audit.
//
// The tricky idea: a request belongs to nobody. It runs until its last waiter has gone, so that the runner which happened to ask
// first cannot, by hanging up, fail the others; and when all have gone it is cancelled, so that nothing outlives its
// callers.
package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/signer"
)

// Why there is no token. All are worth another try later; the cause is wrapped beside them, for the log.
var (
	// ErrNotReady: no usable version, or Entra refuses all of them.
	ErrNotReady = errors.New("integration has no working credential")
	// ErrConsentMissing: the customer's tenant does not know the application, or does not let it in.
	ErrConsentMissing = errors.New("customer's tenant does not know the application")
	// ErrEntra: Entra does not answer, throttles or errs.
	ErrEntra = errors.New("entra id is not available")
)

const (
	requestTimeout = 30 * time.Second
	// minLife is the least that is left of a token when it is handed out because a newer one cannot be had.
	minLife      = time.Minute
	firstBackOff = time.Second
	maxBackOff   = 30 * time.Second
	// maxAsked caps what Entra may ask for; when it takes requests for a loop it is a minute.
	maxAsked   = 2 * time.Minute
	sweepEvery = time.Minute
)

// minter asks a cloud's token service for one token, by one request.
type minter interface {
	Token(ctx context.Context, cloud string, request directory.TokenRequest) (directory.Token, error)
}

// opener decrypts what the vault has stored under an identity.
type opener interface {
	Open(ctx context.Context, identity string, sealed []byte) (secret.Text, error)
}

// prober has a customer's tenant asked again whether it knows the application.
type prober interface {
	WantProbe(ctx context.Context, integrationUID string, now time.Time) error
}

// Config is what an Issuer is made from.
type Config struct {
	// Minter asks Entra.
	Minter minter
	// Keyring opens the sealed secrets of versions, see credential.SealedAs.
	Keyring opener
	// Signer signs for federated versions; nil where the vault is no issuer.
	Signer *signer.Signer
	// Prober is told of every refusal, so that what the vault says about the credential follows at once.
	Prober prober
	Log    *slog.Logger
	// Metrics is where metrics are registered; nil registers none.
	Metrics prometheus.Registerer
}

// Request says what token is wanted.
type Request struct {
	Cloud    string
	TenantID string
	ClientID string
	Audience string
	// Write is for whom a federated version asks: of its two subjects the one for writing, or the one for reading.
	Write bool
	// Versions are the proven ones, tried in this order.
	Versions []credential.Version
}

// Token is a token with what is to be said about it.
type Token struct {
	Text       secret.Text
	IssueTime  time.Time
	ExpireTime time.Time
	// RenewTime is when Issue will have a newer one.
	RenewTime time.Time
	// RequestID is the client-request-id of the request that got it.
	RequestID string
	// VersionID and VersionNumber are of the version that it was asked with.
	VersionID     string
	VersionNumber int64
}

// key is by what tokens are kept: a version belongs to one integration, and thereby to one tenant and cloud.
type key struct {
	versionID string
	audience  string
	write     bool // of a federated version alone: a secret has no subject
}

func keyOf(r *Request, v *credential.Version) key {
	federated := v.SigningKey != "" // as v.Federated, which would take a copy of it on the stack
	return key{versionID: v.ID, audience: r.Audience, write: r.Write && federated}
}

// entry is what is known about one key.
type entry struct {
	token *Token // an empty one before the first
	// failure is the last refusal since the token, remembered until retryTime.
	failure   error
	failures  int
	retryTime time.Time
	flight    *flight // nil when no request is on its way
}

// flight is one request on its way.
type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	token   *Token // read after done is closed
	err     error
}

// Issuer mints and keeps tokens. It is safe for concurrent use.
type Issuer struct {
	config  Config
	present signer.Presenter
	mints   *prometheus.CounterVec

	mu        sync.Mutex
	entries   map[key]*entry
	sweepTime time.Time
}

// New makes an Issuer.
func New(config Config) *Issuer {
	i := &Issuer{
		config:  config,
		present: signer.Presenter{Keyring: config.Keyring, Signer: config.Signer},
		entries: make(map[key]*entry),
		mints: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_token_requests_total",
			Help: "Token requests to Entra for deliveries, by result. Many refusals with few grants: look at consent; errors: at Entra.",
		}, []string{"result"}),
	}
	if config.Metrics != nil {
		config.Metrics.MustRegister(i.mints)
	}
	return i
}

// Issue returns a token for the audience: a kept one, or a new one. It waits for Entra, as long as ctx allows; that one caller
// gives up does not harm the others. Errors: ErrNotReady, ErrConsentMissing, ErrEntra, ctx's own, or that a secret could not be opened.
func (i *Issuer) Issue(ctx context.Context, request Request) (Token, error) {
	if len(request.Versions) == 0 || request.ClientID == "" {
		return Token{}, ErrNotReady
	}
	var failures []error
	for n := range request.Versions {
		token, err := i.issue(ctx, &request, &request.Versions[n])
		if err == nil {
			return *token, nil
		}
		if ctx.Err() != nil {
			return Token{}, ctx.Err()
		}
		failures = append(failures, err)
		if !refused(err) {
			break // another version would be told the same
		}
	}
	if token := i.remaining(time.Now(), &request); token != nil {
		return *token, nil
	}
	return Token{}, classify(failures)
}

// Kept returns the token that is kept of the first version, while it is not to be renewed. It waits for nothing.
func (i *Issuer) Kept(request Request) (Token, bool) {
	if len(request.Versions) == 0 || request.ClientID == "" {
		return Token{}, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	e := i.entries[keyOf(&request, &request.Versions[0])]
	if e == nil || !time.Now().Before(e.token.RenewTime) {
		return Token{}, false
	}
	return *e.token, true
}

// Drop forgets the tokens of a version that is no longer usable. It does no harm to drop one that is: its next token is
// asked for anew.
func (i *Issuer) Drop(versionID string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for k, e := range i.entries {
		if k.versionID == versionID && e.flight == nil {
			delete(i.entries, k)
		}
	}
}

// issue returns a token made from one version. With a kept one it is the deepest that most calls get to, so it needs little of the stack.
func (i *Issuer) issue(ctx context.Context, request *Request, v *credential.Version) (*Token, error) {
	now := time.Now()
	i.mu.Lock()
	i.sweep(now)
	k := keyOf(request, v)
	e := i.entries[k]
	if e == nil {
		e = &entry{token: &Token{}}
		i.entries[k] = e
	}
	switch {
	case now.Before(e.token.RenewTime):
		defer i.mu.Unlock()
		return e.token, nil
	case now.Before(e.retryTime):
		defer i.mu.Unlock()
		return nil, e.failure
	}
	return i.join(ctx, e, request, v)
}

// join waits for a request on its way, and has one sent if there is none. It lets go of the lock.
func (i *Issuer) join(ctx context.Context, e *entry, request *Request, v *credential.Version) (*Token, error) {
	f := e.flight
	if f == nil {
		f = i.start(e, request, v)
	}
	f.waiters++
	i.mu.Unlock()

	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		i.mu.Lock()
		defer i.mu.Unlock()
		if f.waiters--; f.waiters == 0 {
			f.cancel()
			if e.flight == f {
				e.flight = nil // whoever comes now asks anew
			}
		}
		return nil, ctx.Err()
	}
}

// start sends a request on its way. The lock is held.
func (i *Issuer) start(e *entry, request *Request, v *credential.Version) *flight {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	f := &flight{done: make(chan struct{}), cancel: cancel}
	e.flight = f
	go func() {
		defer cancel()
		var token *Token
		err := caught.Panic(func() (err error) {
			token, err = i.mint(ctx, request, v)
			return err
		})
		i.mu.Lock()
		defer i.mu.Unlock()
		f.token, f.err = token, err
		if e.flight == f {
			e.flight = nil
			e.settle(time.Now(), token, err)
		}
		close(f.done)
	}()
	return f
}

// settle keeps what a request brought.
func (e *entry) settle(now time.Time, token *Token, err error) {
	if err == nil {
		*e = entry{token: token}
		return
	}
	e.failure = err
	delay := min(firstBackOff<<min(e.failures, 8), maxBackOff)
	delay = delay/2 + rand.N(delay/2) //nolint:gosec // spreads requests, guards nothing
	if asked := retryAfter(err); asked > delay {
		delay = min(asked, maxAsked)
	}
	e.failures++
	e.retryTime = now.Add(delay)
}

func (i *Issuer) mint(ctx context.Context, request *Request, v *credential.Version) (*Token, error) {
	requestID := uuid.NewString()
	asked := directory.TokenRequest{TenantID: request.TenantID, ClientID: request.ClientID, Audience: request.Audience, RequestID: requestID}
	if err := i.present.Present(ctx, *v, request.Write, &asked); err != nil {
		i.mints.WithLabelValues("unopened").Inc()
		if refused(err) {
			i.wantProbe(ctx, v)
		}
		return nil, fmt.Errorf("show who asks for a token, with credential version %s: %w", v.ID, err)
	}
	got, err := i.config.Minter.Token(ctx, request.Cloud, asked)
	if err != nil {
		result := "failed"
		if refused(err) || missing(err) {
			result = "refused"
			i.wantProbe(ctx, v)
		}
		i.mints.WithLabelValues(result).Inc()
		return nil, fmt.Errorf("mint token with credential version %s, client-request-id %s: %w", v.ID, requestID, err)
	}
	i.mints.WithLabelValues("granted").Inc()
	half := got.ExpireTime.Sub(got.IssueTime) / 2
	return &Token{
		Text: got.Text, IssueTime: got.IssueTime, ExpireTime: got.ExpireTime, RenewTime: got.IssueTime.Add(half - jitter(half/5)),
		RequestID: requestID, VersionID: v.ID, VersionNumber: v.Number,
	}, nil
}

// wantProbe has the master hear at once that a version is refused.
func (i *Issuer) wantProbe(ctx context.Context, v *credential.Version) {
	if err := i.config.Prober.WantProbe(ctx, v.IntegrationUID, time.Now()); err != nil {
		i.config.Log.WarnContext(ctx, "refused token request could not be passed on", obs.KeyResource, v.IntegrationUID, obs.KeyError, err)
	}
}

// remaining finds a kept token that is past its renewal and not at its end; nil when there is none.
func (i *Issuer) remaining(now time.Time, request *Request) *Token {
	i.mu.Lock()
	defer i.mu.Unlock()
	for n := range request.Versions {
		e := i.entries[keyOf(request, &request.Versions[n])]
		if e != nil && now.Add(minLife).Before(e.token.ExpireTime) {
			return e.token
		}
	}
	return nil
}

// sweep forgets what is of no more use, now and then. The lock is held.
func (i *Issuer) sweep(now time.Time) {
	if now.Before(i.sweepTime) {
		return
	}
	i.sweepTime = now.Add(sweepEvery)
	for k, e := range i.entries {
		if e.flight == nil && !now.Before(e.token.ExpireTime) && !now.Before(e.retryTime) {
			delete(i.entries, k)
		}
	}
}

// jitter is a random time, less than limit.
func jitter(limit time.Duration) time.Duration {
	if limit <= 0 {
		return 0
	}
	return rand.N(limit) //nolint:gosec // spreads requests, guards nothing
}
