package entrasim

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Range is a span of time to draw from; both ends belong to it.
type Range struct {
	Min, Max time.Duration
}

// Lags says how long a change takes to reach a replica. For every change and
// every replica one delay is drawn, when the change is made.
type Lags struct {
	// Graph: any write, as seen by later Graph reads.
	Graph Range
	// Application: a new or changed application, as the token service and the
	// consent page see it.
	Application Range
	// Secret: a new client secret, as the token service sees it.
	Secret Range
	// Federated: a new or changed federated credential, as the token service sees it.
	Federated Range
	// Principal: a new or changed service principal, as the token service sees it.
	Principal Range
	// Role: a new role assignment or registration of a resource provider, as
	// Resource Manager sees it.
	Role Range
	// Removal: anything removed, at the token service and at Resource Manager.
	// Until it has passed, a removed secret still works.
	Removal Range
}

// Lag returns the same range for everything.
func Lag(shortest, longest time.Duration) Lags {
	r := Range{Min: shortest, Max: longest}
	return Lags{Graph: r, Application: r, Secret: r, Federated: r, Principal: r, Role: r, Removal: r}
}

// Config describes a simulator. Its zero value is a simulator in memory, with
// three replicas and no lag, under the names of Azure's public cloud.
type Config struct {
	// Seed decides everything random: identifiers, secrets, lags, replicas, faults.
	Seed uint64
	// StateDir, when set, is an existing folder. Every change is on its disk
	// before it is answered, and New goes on from what it finds there.
	StateDir string
	// Lags are the replication delays of changes made from now on.
	Lags Lags
	// Replicas is their number per plane; 0 means 3.
	Replicas int
	// TokenLife is the span access tokens live, 60 to 90 minutes when zero.
	TokenLife Range
	// BaseURL is the one origin (such as https://127.0.0.1:8443) under which
	// all planes are reached, told apart by path. Empty: by host name, those of
	// the public cloud.
	BaseURL string
	// Endpoints are those of planes that are reached elsewhere than BaseURL says,
	// under an origin of their own (of Admin: with /admin after it).
	Endpoints Endpoints
	// SecretBeforePrincipal makes the token service look at the secret before
	// it misses the principal in the application's home tenant (7000215 hides
	// 7000229). What Entra does is not documented.
	SecretBeforePrincipal bool
	// ConsentRace answers a second consent in the same tenant with AADSTS650051
	// while the first has not replicated, instead of finding the principal.
	ConsentRace bool
	// MaxCredentials is how many secrets and certificates together an application,
	// or a principal, has room for; 0 means 600. Entra's limit is one of size, and
	// where it is met is not documented: more than 600 certificates were too many.
	MaxCredentials int
	// LockAtHome has the property lock hold for an application's principal in its
	// home tenant too, as has been reported; the documentation speaks of others.
	LockAtHome bool
	// WriteConflicts has writes to one application get in each other's way. Off
	// when zero.
	WriteConflicts WriteConflicts
	// LoginLoop has the token service answer AADSTS50196, to come back after a
	// minute, when one client asks for the same token (tenant, resource,
	// credential) more often than that. Off when zero: what Entra allows is not
	// documented.
	LoginLoop Budget
	// Budgets are those of Graph and Resource Manager, the documented ones when zero.
	Budgets Budgets
	// OpenAdmin has the admin API answer other machines too. It asks nobody who
	// they are, so without this only this machine is answered.
	OpenAdmin bool
	// Issuers carries the requests for the OpenID configuration and the keys of
	// federated credentials' issuers, over https only. Nil is the network, and
	// the system's roots; inside a testing/synctest bubble it must be something
	// that opens no socket.
	Issuers http.RoundTripper
	// JournalRequests is how many requests the journal remembers; 0 means
	// 100000.
	JournalRequests int
	// JournalLife is for how long the journal remembers changes at least, and
	// what it can tell of them; 0 is for ever. What is known of credentials that
	// stand does not depend on it, nor what is in StateDir.
	JournalLife time.Duration
	// Log receives what an operator should know; nil discards it.
	Log *slog.Logger
}

// Endpoints are the URLs of the four planes, without a final slash.
type Endpoints struct {
	Login           string `json:"login"`
	Graph           string `json:"graph"`
	ResourceManager string `json:"resource_manager"`
	Admin           string `json:"simulator_admin"`
}

const (
	maxReplicas    = 64
	defaultMinLife = 60 * time.Minute
	defaultMaxLife = 90 * time.Minute
)

func (c Config) withDefaults() (Config, error) {
	var errs []error
	if c.Replicas == 0 {
		c.Replicas = 3
	}
	if c.Replicas < 0 || c.Replicas > maxReplicas {
		errs = append(errs, fmt.Errorf("replicas: %d is not within 1 to %d", c.Replicas, maxReplicas))
	}
	if c.TokenLife == (Range{}) {
		c.TokenLife = Range{Min: defaultMinLife, Max: defaultMaxLife}
	}
	if c.TokenLife.Min < 2*time.Second || c.TokenLife.Max < c.TokenLife.Min {
		errs = append(errs, fmt.Errorf("token life: %v to %v is not a span of at least two seconds", c.TokenLife.Min, c.TokenLife.Max))
	}
	for name, r := range map[string]Range{
		"graph": c.Lags.Graph, "application": c.Lags.Application, "secret": c.Lags.Secret,
		"federated": c.Lags.Federated, "principal": c.Lags.Principal, "role": c.Lags.Role, "removal": c.Lags.Removal,
	} {
		if r.Min < 0 || r.Max < r.Min {
			errs = append(errs, fmt.Errorf("lag %s: %v to %v is not a span", name, r.Min, r.Max))
		}
	}
	var err error
	c.Budgets, err = c.Budgets.withDefaults()
	errs = append(errs, err, c.WriteConflicts.check())
	if err := c.LoginLoop.check(); err != nil {
		errs = append(errs, fmt.Errorf("login loop: %w", err))
	}
	if c.MaxCredentials < 0 {
		errs = append(errs, fmt.Errorf("credentials of an object: %d is below zero", c.MaxCredentials))
	}
	if c.MaxCredentials == 0 {
		c.MaxCredentials = 600
	}
	if c.JournalLife < 0 {
		errs = append(errs, fmt.Errorf("journal life: %v is below zero", c.JournalLife))
	}
	if c.JournalRequests <= 0 {
		c.JournalRequests = 100_000
	}
	c.BaseURL = strings.TrimSuffix(c.BaseURL, "/")
	for _, text := range []string{c.BaseURL, c.Endpoints.Login, c.Endpoints.Graph, c.Endpoints.ResourceManager, strings.TrimSuffix(c.Endpoints.Admin, adminPath)} {
		u, err := url.Parse(text)
		if text != "" && (err != nil || u.Host == "" || u.Path != "" || (u.Scheme != "https" && u.Scheme != "http")) {
			errs = append(errs, fmt.Errorf("base URL or endpoint: %q is not an origin such as https://127.0.0.1:8443", text))
		}
	}
	if c.Issuers == nil {
		c.Issuers = &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: issuerTimeout,
			MaxIdleConns: 16, IdleConnTimeout: keysLife, MaxResponseHeaderBytes: 1 << 16,
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, errors.Join(errs...)
}

func (c Config) endpoints() Endpoints {
	usual := Endpoints{
		Login:           "https://login.microsoftonline.com",
		Graph:           "https://graph.microsoft.com",
		ResourceManager: "https://management.azure.com",
		Admin:           "https://admin.entrasim.invalid" + adminPath,
	}
	if c.BaseURL != "" {
		usual = Endpoints{Login: c.BaseURL, Graph: c.BaseURL, ResourceManager: c.BaseURL, Admin: c.BaseURL + adminPath}
	}
	return Endpoints{
		Login:           cmp.Or(c.Endpoints.Login, usual.Login),
		Graph:           cmp.Or(c.Endpoints.Graph, usual.Graph),
		ResourceManager: cmp.Or(c.Endpoints.ResourceManager, usual.ResourceManager),
		Admin:           cmp.Or(c.Endpoints.Admin, usual.Admin),
	}
}
