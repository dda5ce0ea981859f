package runner

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/secret"
)

const (
	// pathVM and pathApp are where the two shapes of managed identity are served, named as Azure names them; pathOIDC is where
	// assertions are, as GitHub gives them.
	pathVM   = "/metadata/identity/oauth2/token"
	pathApp  = "/msi/token"
	pathOIDC = "/oidc/token"

	// exchange begins the audiences of assertions that Entra ID exchanges, in all clouds.
	exchange = "api://AzureADTokenExchange"

	// defaultWait is how long a request waits for a credential before it is told to come again.
	defaultWait = 30 * time.Second
	// retryAfter is how many seconds later that is. Both SDKs obey it, and come three to five times.
	retryAfter = 5
	// maxQuery bounds a request's query, in bytes.
	maxQuery = 2 << 10
)

// apiVersions are the versions of the two shapes.
var apiVersions = []string{"2018-02-01", "2019-08-01"}

// guardHeaders are the headers in which SDKs send the guard secret: App Service's own, and go-azure-sdk's.
var guardHeaders = []string{"X-Identity-Header", "X-Ms-Identity"}

// LoopbackConfig is what a Loopback is made from.
type LoopbackConfig struct {
	// Runner has the credentials, access tokens or assertions.
	Runner *Runner
	// Wait is how long a request waits for a credential; zero means 30 s.
	Wait time.Duration
	// Log gets refusals; never a secret.
	Log *slog.Logger
}

// Loopback serves a Runner's tokens on 127.0.0.1 in the shapes of Azure's managed identities, or its assertions in the shape of GitHub's
// OpenID provider, which go-azure-sdk asks again whenever it needs a token.
type Loopback struct {
	cfg    LoopbackConfig
	ln     net.Listener
	addr   netip.AddrPort
	secret secret.Text
	// owner is the user whose processes are answered without the secret, where the kernel says whose they are.
	owner int
}

// Listen takes a free port of 127.0.0.1 and makes a guard secret. Nothing is answered before Run; whoever does not call
// Run calls Close.
func Listen(ctx context.Context, cfg LoopbackConfig) (*Loopback, error) {
	switch {
	case cfg.Runner == nil || cfg.Log == nil:
		return nil, errors.New("listen on loopback: no runner, or no log")
	case cfg.Runner.cfg.Material == typev1.Material_MATERIAL_CLIENT_SECRET:
		return nil, fmt.Errorf("listen on loopback: %w", ErrNoTokens)
	}
	if cfg.Wait == 0 {
		cfg.Wait = defaultWait
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	addr, err := netip.ParseAddrPort(ln.Addr().String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on loopback: %w", err), ln.Close())
	}
	return &Loopback{
		cfg:    cfg,
		ln:     ln,
		addr:   addr,
		secret: secret.New(rand.Text() + rand.Text()),
		owner:  os.Getuid(),
	}, nil
}

// Close gives the port back.
func (l *Loopback) Close() error { return l.ln.Close() }

// Run serves until ctx ends, then closes the port; requests that wait are cut off. It returns nil, or what made serving
// impossible.
func (l *Loopback) Run(ctx context.Context) error {
	srv := &http.Server{
		Handler:                      http.HandlerFunc(l.serve),
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  10 * time.Second,
		WriteTimeout:                 l.cfg.Wait + 15*time.Second,
		IdleTimeout:                  2 * time.Minute,
		MaxHeaderBytes:               8 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(l.cfg.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l.ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve loopback: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve loopback: %w", err)
	}
	return nil
}

// refusal is an answer without a token.
type refusal struct {
	status      int
	code        string // as OAuth and Azure's endpoints name it
	description string
}

// tokenResponse is an answer with one. Both SDKs take numbers as strings, as Azure sends them; go-azure-sdk renews only
// if expires_in is there.
type tokenResponse struct {
	AccessToken string `json:"access_token"`
	ClientID    string `json:"client_id"`
	ExpiresIn   string `json:"expires_in"`
	ExpiresOn   string `json:"expires_on"`
	NotBefore   string `json:"not_before"`
	Resource    string `json:"resource"`
	TokenType   string `json:"token_type"`
}

// assertionResponse is an answer with an assertion.
type assertionResponse struct {
	Count int    `json:"count"`
	Value string `json:"value"`
}

// federated reports whether what is served is assertions.
func (l *Loopback) federated() bool {
	return l.cfg.Runner.cfg.Material == typev1.Material_MATERIAL_FEDERATED_TOKEN
}

// serve answers one request.
func (l *Loopback) serve(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Type", "application/json; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	answer, refused := l.answer(r)
	if refused == nil {
		_ = json.NewEncoder(w).Encode(answer) // handing out the token is what this endpoint is for
		return
	}
	switch refused.status {
	case http.StatusServiceUnavailable:
		header.Set("Retry-After", strconv.Itoa(retryAfter))
	case http.StatusMethodNotAllowed:
		header.Set("Allow", http.MethodGet)
	}
	l.cfg.Log.WarnContext(r.Context(), "request for a token refused",
		slog.Int("status", refused.status), slog.String(obs.KeyReason, refused.code), slog.String("description", refused.description))
	w.WriteHeader(refused.status)
	_ = json.NewEncoder(w).Encode(map[string]string{
		"error":             refused.code,
		"error_description": refused.description,
	})
}

// answer decides on a request.
func (l *Loopback) answer(r *http.Request) (any, *refusal) {
	if refused := l.guard(r); refused != nil {
		return nil, refused
	}
	if l.federated() {
		return l.assertion(r)
	}
	resource, clientID, refused := parseQuery(r.URL.RawQuery)
	if refused != nil {
		return nil, refused
	}
	ctx, cancel := context.WithTimeout(r.Context(), l.cfg.Wait)
	defer cancel()
	c, err := l.cfg.Runner.CredentialFor(ctx, resource)
	if err != nil {
		return nil, explain(err)
	}
	if clientID != "" && !strings.EqualFold(clientID, c.ClientID) {
		return nil, &refusal{http.StatusBadRequest, "invalid_request", "Identity not found: this run has another client_id"}
	}
	issued := c.IssueTime
	if issued.IsZero() {
		issued = time.Now()
	}
	return &tokenResponse{
		AccessToken: c.Token.Expose(),
		ClientID:    c.ClientID,
		ExpiresIn:   strconv.FormatInt(int64(time.Until(c.ExpireTime)/time.Second), 10),
		ExpiresOn:   strconv.FormatInt(c.ExpireTime.Unix(), 10),
		NotBefore:   strconv.FormatInt(issued.Unix(), 10),
		Resource:    resource,
		TokenType:   "Bearer",
	}, nil
}

// assertion answers a request for one. Its audience is the vault's choice, and the one that Entra ID takes.
func (l *Loopback) assertion(r *http.Request) (any, *refusal) {
	q, refused := parsePairs(r.URL.RawQuery)
	switch {
	case refused != nil:
		return nil, refused
	case q.Has("audience") && !strings.HasPrefix(q.Get("audience"), exchange):
		return nil, &refusal{http.StatusBadRequest, "invalid_request", "audience must be that of an exchange, " + exchange}
	}
	ctx, cancel := context.WithTimeout(r.Context(), l.cfg.Wait)
	defer cancel()
	c, err := l.cfg.Runner.Credential(ctx)
	if err != nil {
		return nil, explain(err)
	}
	value := c.Assertion.Expose()
	return &assertionResponse{Count: len(value), Value: value}, nil
}

// guard refuses whoever may not ask.
func (l *Loopback) guard(r *http.Request) *refusal {
	switch {
	case r.Host != l.addr.String():
		return &refusal{http.StatusForbidden, "access_denied", "the Host header is not this endpoint's address"}
	case r.Method != http.MethodGet:
		return &refusal{http.StatusMethodNotAllowed, "invalid_request", "only GET"}
	case l.federated() != (r.URL.Path == pathOIDC) || r.URL.Path != pathVM && r.URL.Path != pathApp && r.URL.Path != pathOIDC:
		return &refusal{http.StatusNotFound, "invalid_request", "no such path"}
	case r.Header.Get("Origin") != "" || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "":
		return &refusal{http.StatusForbidden, "access_denied", "neither pages nor proxies may ask"}
	case r.ContentLength != 0:
		return &refusal{http.StatusBadRequest, "invalid_request", "a GET has no body"}
	}
	if r.URL.Path == pathOIDC {
		return l.bearer(r)
	}
	shown := false
	for _, name := range guardHeaders {
		for _, value := range r.Header.Values(name) {
			if !l.secret.Equal(secret.New(value)) {
				return &refusal{http.StatusUnauthorized, "access_denied", "wrong identity header"}
			}
			shown = true
		}
	}
	switch {
	case shown:
		return nil
	case r.URL.Path == pathApp:
		return &refusal{http.StatusUnauthorized, "access_denied", "no identity header"}
	case r.Header.Get("Metadata") != "true":
		return &refusal{http.StatusBadRequest, "invalid_request", "Required metadata header not specified"}
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return &refusal{http.StatusForbidden, "access_denied", "unknown peer"}
	}
	uid, err := peerUID(l.addr, peer)
	switch {
	case err != nil:
		return &refusal{http.StatusForbidden, "access_denied", "no identity header, and the caller's user is unknown: " + err.Error()}
	case !mayAsk(l.owner, uid):
		return &refusal{http.StatusForbidden, "access_denied", "no identity header, and the caller is another user"}
	default:
		return nil
	}
}

// bearer refuses whoever does not show the secret as a bearer token.
func (l *Loopback) bearer(r *http.Request) *refusal {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return &refusal{http.StatusUnauthorized, "access_denied", "no bearer token, or several"}
	}
	shown, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok || !l.secret.Equal(secret.New(shown)) {
		return &refusal{http.StatusUnauthorized, "access_denied", "wrong bearer token"}
	}
	return nil
}

// mayAsk reports whether a process of uid is answered without the secret: our own user's, and root's, who could read the
// secret anyway.
func mayAsk(owner, uid int) bool { return uid == owner || uid == 0 }

// parseQuery takes a query apart: the version must be a known one, the resource be there, once.
func parseQuery(raw string) (resource, clientID string, refused *refusal) {
	invalid := func(description string) (string, string, *refusal) {
		return "", "", &refusal{http.StatusBadRequest, "invalid_request", description}
	}
	q, refused := parsePairs(raw)
	if refused != nil {
		return "", "", refused
	}
	for name := range q {
		if slices.Contains([]string{"object_id", "principal_id", "mi_res_id", "msi_res_id"}, name) {
			return invalid("Identity not found: this run's identity is named by client_id alone")
		}
	}
	switch {
	case !slices.Contains(apiVersions, q.Get("api-version")):
		return invalid("api-version must be one of " + strings.Join(apiVersions, ", "))
	case q.Get("resource") == "":
		return invalid("resource is missing")
	}
	return q.Get("resource"), q.Get("client_id"), nil
}

// parsePairs takes a query apart in which nothing may be repeated.
func parsePairs(raw string) (url.Values, *refusal) {
	invalid := func(description string) (url.Values, *refusal) {
		return nil, &refusal{http.StatusBadRequest, "invalid_request", description}
	}
	if len(raw) > maxQuery {
		return invalid("the query is too long")
	}
	q, err := url.ParseQuery(raw)
	if err != nil {
		return invalid("the query is malformed")
	}
	for _, values := range q {
		if len(values) != 1 {
			return invalid("a parameter is repeated")
		}
	}
	return q, nil
}

// explain turns an error of the runner's into an answer: 503 where it is worth coming again, else one that SDKs do not repeat.
func explain(err error) *refusal {
	var final *FinalError
	switch {
	case errors.As(err, &final):
		return &refusal{http.StatusForbidden, "access_denied", final.Error()}
	case errors.Is(err, ErrStopped):
		return &refusal{http.StatusForbidden, "access_denied", "the run is over"}
	case errors.Is(err, ErrAudience), errors.Is(err, ErrTooManyAudiences):
		return &refusal{http.StatusBadRequest, "invalid_resource", err.Error()}
	case !passing(err):
		status, description := http.StatusForbidden, rpcerr.Explain(err)
		if st, ok := rpcerr.FromError(err); ok && st.Code() == codes.InvalidArgument {
			status = http.StatusBadRequest
		}
		if rpcerr.Reason(err) == rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_AUDIENCE_NOT_ALLOWED) {
			description += ": add it to the integration's allowed audiences"
		}
		return &refusal{status, "invalid_resource", description}
	default:
		return &refusal{http.StatusServiceUnavailable, "temporarily_unavailable", "no credential now, come again: " + rpcerr.Explain(err)}
	}
}
