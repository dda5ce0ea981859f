package signer

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/signingkey"
)

// PollInterval is how often a replica looks at the keys, unless configured otherwise.
const PollInterval = 2 * time.Second

// skew is how long before its making an assertion is valid, for token services whose clocks are behind.
const skew = 5 * time.Minute

var (
	// ErrKeyGone means that nothing may be signed with a key: it is not SIGNING, or is not known.
	ErrKeyGone = errors.New("signing key does not sign")
	// ErrStale means that nothing has been heard of the keys for too long to sign by them.
	ErrStale = errors.New("signing keys cannot be looked at")
)

// keys is where the signing keys are; see store.Store.
type keys interface {
	SigningKeys(ctx context.Context) ([]signingkey.Key, error)
}

// opener decrypts what the vault has stored under an identity.
type opener interface {
	Open(ctx context.Context, identity string, sealed []byte) (secret.Text, error)
}

// Config is what a Signer is made from.
type Config struct {
	// Issuer is the `iss` of every assertion: the URL under which token services find the keys.
	Issuer string
	Store  keys
	// Keyring opens the private halves, see signingkey.SealedAs.
	Keyring opener
	// Poll is how often the keys are looked at; PollInterval when zero.
	Poll time.Duration
	Log  *slog.Logger
	// Metrics is where metrics are registered; nil registers none.
	Metrics prometheus.Registerer
}

// Signer signs assertions. It is safe for concurrent use.
type Signer struct {
	config Config
	signed *prometheus.CounterVec
	known  atomic.Pointer[known]

	// looking is had by the one who looks; it guards private.
	looking sync.Mutex
	private map[string]*rsa.PrivateKey
}

// known is what a look found. It is replaced, never changed.
type known struct {
	time    time.Time
	keys    []signingkey.Key
	private map[string]*rsa.PrivateKey // of those that sign
	set     []byte                     // the public document
}

// New makes a Signer. It knows nothing before its first look.
func New(config Config) *Signer {
	if config.Poll == 0 {
		config.Poll = PollInterval
	}
	s := &Signer{
		config: config,
		signed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_assertions_total",
			Help: "Assertions of federated integrations, by result. Stale: the database is away. Gone: a version's key was dropped, and its successor is not proven yet.",
		}, []string{"result"}),
	}
	if config.Metrics != nil {
		config.Metrics.MustRegister(s.signed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "phasekey_vault_signing_keys_looked_at_seconds",
			Help: "When this replica last looked at the signing keys, in seconds since 1970; 0 before. Older than a minute: it signs nothing.",
		}, func() float64 {
			if k := s.known.Load(); k != nil {
				return float64(k.time.UnixMilli()) / 1000
			}
			return 0
		}))
	}
	return s
}

// Issuer is the `iss` of every assertion.
func (s *Signer) Issuer() string { return s.config.Issuer }

// Run looks at the keys until ctx ends. It returns nil.
func (s *Signer) Run(ctx context.Context) error {
	tick := time.NewTicker(s.config.Poll)
	defer tick.Stop()
	failing := false
	for {
		err := s.look(ctx, time.Now())
		switch {
		case err != nil && !failing && ctx.Err() == nil:
			s.config.Log.WarnContext(ctx, "signing keys cannot be looked at; what is known is served", slog.Any(obs.KeyError, err))
		case err == nil && failing:
			s.config.Log.InfoContext(ctx, "signing keys can be looked at again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look reads the keys, unless somebody has since now.
func (s *Signer) look(ctx context.Context, now time.Time) error {
	s.looking.Lock()
	defer s.looking.Unlock()
	if k := s.known.Load(); k != nil && k.time.After(now) {
		return nil
	}
	found := &known{time: time.Now(), private: map[string]*rsa.PrivateKey{}}
	all, err := s.config.Store.SigningKeys(ctx)
	if err != nil {
		return err
	}
	found.keys = all
	for _, k := range all {
		if k.State != signingkey.Signing {
			continue
		}
		key := s.private[k.ID]
		if key == nil {
			if key, err = s.open(ctx, k); err != nil {
				// The others are as good as ever.
				s.config.Log.ErrorContext(ctx, "signing key cannot be opened", slog.String(keyKeyID, k.ID), slog.Any(obs.KeyError, err))
				continue
			}
		}
		found.private[k.ID] = key
	}
	if found.set, err = keySet(all); err != nil {
		return err
	}
	s.private = found.private
	s.known.Store(found)
	return nil
}

func (s *Signer) open(ctx context.Context, k signingkey.Key) (*rsa.PrivateKey, error) {
	text, err := s.config.Keyring.Open(ctx, signingkey.SealedAs(k.ID), k.Sealed)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey([]byte(text.Expose()))
	if err != nil {
		return nil, errors.New("not a private key") // the parser's errors may quote it
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an RSA key")
	}
	return key, nil
}

// Claims are what an assertion says besides who made it, for whom and when.
type Claims struct {
	// Subject is what a federated credential trusts.
	Subject string
	// Run, Phase, Project and Lease name what the assertion was made for; empty for the vault's own requests.
	Run, Phase, Project, Lease string
}

// Assertion is a signed statement by which Entra ID issues tokens. It cannot be revoked.
type Assertion struct {
	Text secret.Text
	// ID is its `jti`.
	ID                    string
	IssueTime, ExpireTime time.Time
}

type tokenClaims struct {
	jwt.RegisteredClaims
	Run     string `json:"run,omitempty"`
	Phase   string `json:"phase,omitempty"`
	Project string `json:"project,omitempty"`
	Lease   string `json:"lease,omitempty"`
}

// Assert signs an assertion with the key of that ID, good for signingkey.AssertionLife. ErrKeyGone when nothing may be signed with it, ErrStale when
// that cannot be found out.
func (s *Signer) Assert(ctx context.Context, keyID string, claims Claims) (Assertion, error) {
	now := time.Now()
	k := s.known.Load()
	if k == nil || now.Sub(k.time) > s.config.Poll {
		err := s.look(ctx, now)
		if k = s.known.Load(); err != nil && (k == nil || now.Sub(k.time) > signingkey.MaxAge) {
			s.signed.WithLabelValues("stale").Inc()
			return Assertion{}, fmt.Errorf("%w: %w", ErrStale, err)
		}
	}
	key := k.private[keyID]
	if key == nil && s.look(ctx, time.Now()) == nil {
		key = s.known.Load().private[keyID] // it may have begun to sign a moment ago
	}
	if key == nil {
		s.signed.WithLabelValues("gone").Inc()
		return Assertion{}, fmt.Errorf("sign with key %s: %w", keyID, ErrKeyGone)
	}
	now = now.Truncate(time.Second) // as an assertion has it
	end, id := now.Add(signingkey.AssertionLife), uuid.NewString()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, tokenClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: s.config.Issuer, Subject: claims.Subject, Audience: jwt.ClaimStrings{directory.AssertionAudience}, ID: id,
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-skew)), ExpiresAt: jwt.NewNumericDate(end),
		},
		Run: claims.Run, Phase: claims.Phase, Project: claims.Project, Lease: claims.Lease,
	})
	token.Header["kid"] = keyID
	text, err := token.SignedString(key)
	if err != nil {
		s.signed.WithLabelValues("failed").Inc()
		return Assertion{}, fmt.Errorf("sign with key %s: %w", keyID, err)
	}
	s.signed.WithLabelValues("ok").Inc()
	return Assertion{Text: secret.New(text), ID: id, IssueTime: now, ExpireTime: end}, nil
}
