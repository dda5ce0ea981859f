package entrasim

import (
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	issuerTimeout  = 10 * time.Second // of each of an issuer's two documents
	issuerDocument = 1 << 20          // bytes
	maxIssuerKeys  = 100              // of a key set only the first ones count
	maxIssuers     = 1000             // remembered at a time
	// keysLife is how long an issuer's keys are used before they are fetched
	// anew, keysRefetch how soon a key that is not among them has them fetched,
	// and how long an issuer that failed is left alone.
	keysLife    = time.Minute
	keysRefetch = 5 * time.Second
)

var errIssuer = errors.New("issuer cannot be used")

// issuers fetches and remembers the keys of federated credentials' issuers.
type issuers struct {
	client *http.Client

	mu    sync.Mutex
	known map[string]*issuerKeys
}

// issuerKeys are one issuer's keys by their IDs, as fetched. They can be read
// once done is closed.
type issuerKeys struct {
	done    chan struct{}
	fetched time.Time
	keys    map[string]*rsa.PublicKey
	err     error
}

func newIssuers(transport http.RoundTripper) *issuers {
	return &issuers{
		known: make(map[string]*issuerKeys),
		client: &http.Client{
			Transport: transport, Timeout: issuerTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// key returns the issuer's key with the ID, nil when its key set has none. It
// waits for the issuer. Callers that ask at once share one fetch; which of them
// makes it does not depend on their contexts.
func (i *issuers) key(ctx context.Context, issuer, id string) (*rsa.PublicKey, error) {
	i.mu.Lock()
	e := i.known[issuer]
	if e == nil || e.stale(time.Now(), id) {
		if len(i.known) >= maxIssuers {
			clear(i.known)
		}
		e = &issuerKeys{done: make(chan struct{})}
		i.known[issuer] = e
		i.mu.Unlock()
		e.keys, e.err = i.fetch(context.WithoutCancel(ctx), issuer)
		e.fetched = time.Now()
		close(e.done)
	} else {
		i.mu.Unlock()
	}
	select {
	case <-e.done:
		return e.keys[id], e.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// stale tells whether what was fetched is of no use to somebody who looks for a
// key. What is being fetched is never stale.
func (e *issuerKeys) stale(now time.Time, id string) bool {
	select {
	case <-e.done:
	default:
		return false
	}
	age := now.Sub(e.fetched)
	if e.keys[id] == nil {
		return age >= keysRefetch
	}
	return age >= keysLife
}

// fetch reads the issuer's configuration and then its key set.
func (i *issuers) fetch(ctx context.Context, issuer string) (map[string]*rsa.PublicKey, error) {
	var configuration struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := i.get(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", &configuration); err != nil {
		return nil, err
	}
	if configuration.Issuer != issuer {
		return nil, fmt.Errorf("its configuration is that of %q: %w", clip(configuration.Issuer, maxFederatedText), errIssuer)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := i.get(ctx, configuration.Keys, &set); err != nil {
		return nil, err
	}
	keys := make(map[string]*rsa.PublicKey)
	for _, raw := range set.Keys[:min(len(set.Keys), maxIssuerKeys)] {
		if id, key := readKey(raw); key != nil && keys[id] == nil {
			keys[id] = key
		}
	}
	return keys, nil
}

// get reads a JSON document over HTTPS.
func (i *issuers) get(ctx context.Context, where string, into any) error {
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is not an https URL: %w", clip(where, maxFederatedText), errIssuer)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, where, http.NoBody)
	if err != nil {
		return fmt.Errorf("%w: %w", errIssuer, err)
	}
	r.Header.Set("Accept", "application/json")
	resp, err := i.client.Do(r)
	if err != nil {
		return fmt.Errorf("%w: %w", errIssuer, err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, issuerDocument+1))
	err = errors.Join(err, resp.Body.Close())
	switch {
	case err != nil:
		return fmt.Errorf("read %s: %w: %w", where, errIssuer, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s answered %d: %w", where, resp.StatusCode, errIssuer)
	case len(body) > issuerDocument:
		return fmt.Errorf("%s is longer than %d bytes: %w", where, issuerDocument, errIssuer)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s: %w: %w", where, errIssuer, err)
	}
	return nil
}

// readKey reads one key of a set, nil when it is not one that can have signed
// by RS256.
func readKey(raw json.RawMessage) (string, *rsa.PublicKey) {
	var k struct {
		Type string `json:"kty"`
		Use  string `json:"use"`
		Alg  string `json:"alg"`
		ID   string `json:"kid"`
		N    string `json:"n"`
		E    string `json:"e"`
	}
	if json.Unmarshal(raw, &k) != nil || k.Type != "RSA" || (k.Use != "" && k.Use != "sig") || (k.Alg != "" && k.Alg != "RS256") {
		return "", nil
	}
	n, err := base64.RawURLEncoding.DecodeString(k.N)
	if err != nil {
		return "", nil
	}
	e, err := base64.RawURLEncoding.DecodeString(k.E)
	if err != nil || len(e) > 4 {
		return "", nil
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	if !usableKey(key) {
		return "", nil
	}
	return k.ID, key
}

// usableKey bounds what a key that others chose costs to verify with.
func usableKey(key *rsa.PublicKey) bool {
	bits := key.N.BitLen()
	return bits >= 2048 && bits <= 8192 && key.E >= 3 && key.E < 1<<31 && key.E%2 == 1
}
