package app

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/arm"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/entra"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/rolecheck"
	"phasekey.dev/services/vault/internal/signingkey"
)

// Config is a vault's configuration.
type Config struct {
	// Listen is the address of the gRPC listener for services and operators, for example ":7453".
	Listen string `yaml:"listen"`
	// RunnersListen is the address of the gRPC listener for runners, who show a grant and need no certificate.
	RunnersListen string `yaml:"runners_listen"`
	// MetricsListen is the address for metrics and liveness; empty serves neither. Beyond loopback it is HTTPS.
	MetricsListen string `yaml:"metrics_listen"`
	// ProfileListen is the address, on loopback, for Go's profiles of the process (/debug/pprof/); empty serves none.
	ProfileListen string `yaml:"profile_listen"`
	// Development allows what production must not have: a Timing less patient than the default.
	Development bool `yaml:"development"`
	// DeploymentID stands in the names of everything that the vault makes at Entra: 1 to 20 of a-z0-9-. It must differ
	// between deployments that share a home tenant, and must never change.
	DeploymentID string `yaml:"deployment_id"`
	// ApplicationPrefix begins the display name of each integration's application: the platform's name.
	ApplicationPrefix string `yaml:"application_prefix"`
	// RedirectURI is where Entra ID sends administrators' browsers after consent: the broker's public URL and
	// /consent/callback.
	RedirectURI string `yaml:"redirect_uri"`
	// KEK is the URL of the key-encryption key, the same for all replicas: file:///path for 32 random bytes, mode 0600,
	// which `vaultd init` makes.
	KEK string `yaml:"kek"`
	// NextKEK is the URL of a key-encryption key that is about to take the place of KEK, or just has, by `vaultd rewrap`: while it is
	// set either will do. It need not be there yet.
	NextKEK    string                `yaml:"next_kek"`
	Log        obs.LogConfig         `yaml:"log"`
	Database   sqldb.Config          `yaml:"database"`
	Redis      redisconn.Config      `yaml:"redis"`
	TLS        mtls.Config           `yaml:"tls"`
	Identities []grpcserver.Identity `yaml:"identities"`
	Limits     grpcserver.Limits     `yaml:"limits"`
	Registry   Upstream              `yaml:"registry"`
	// Clouds are Microsoft's clouds, by the names that integrations give them, each with the platform's home tenant in it.
	Clouds   map[string]Cloud  `yaml:"clouds"`
	Election Election          `yaml:"election"`
	Issuer   Issuer            `yaml:"issuer"`
	Timing   credential.Timing `yaml:"timing"`
	// Graph is how much all replicas together ask of Microsoft Graph, in each cloud.
	Graph  budget.Limits `yaml:"graph"`
	Audit  Audit         `yaml:"audit"`
	Grants Grants        `yaml:"grants"`
	// Drain bounds the graceful stop.
	Drain time.Duration `yaml:"drain"`
}

// Upstream is a service that the vault asks.
type Upstream struct {
	// Target is a gRPC target: "host:port", or "dns:///name:port".
	Target string `yaml:"target"`
	// ID is the SPIFFE ID that it must have.
	ID string `yaml:"id"`
}

// Election says how replicas divide the work.
type Election struct {
	// Shards is into how many parts the integrations are divided; all replicas must say the same, and `vaultd reshard` changes
	// it later. 1 is plain leader election.
	Shards int `yaml:"shards"`
	// LockTTL is how long a replica that died keeps its shards.
	LockTTL time.Duration `yaml:"lock_ttl"`
	// StaticMaster makes this replica the master of every shard, without Redis. At most one replica may be told so: to
	// work on while Redis is lost.
	StaticMaster bool `yaml:"static_master"`
}

// Cloud is one of Microsoft's clouds, and who the platform is there.
type Cloud struct {
	// LoginURL, GraphURL and ResourceManagerURL are the origins of its services.
	LoginURL           string `yaml:"login_url"`
	GraphURL           string `yaml:"graph_url"`
	ResourceManagerURL string `yaml:"resource_manager_url"`
	// GraphAudience and ResourceManagerAudience are what tokens are asked for, where that is not the URL.
	GraphAudience           string `yaml:"graph_audience"`
	ResourceManagerAudience string `yaml:"resource_manager_audience"`
	// HomeTenantID is the platform's own tenant.
	HomeTenantID string `yaml:"home_tenant_id"`
	// ClientID is the platform's own application there, with the permission Application.ReadWrite.OwnedBy.
	ClientID string `yaml:"client_id"`
	// Credential is how that application shows who it is.
	Credential CloudCredential `yaml:"credential"`
	// CAFile verifies the cloud's hosts instead of the system's roots.
	CAFile string `yaml:"ca_file"`
}

// CloudCredential says how the platform's own application shows who it is. What is set is tried in the order of the keys, and nothing else is. Files are read again
// when they change.
type CloudCredential struct {
	// WorkloadIdentityTokenFile has a token of the workload's, which the application trusts: in AKS the file that AZURE_FEDERATED_TOKEN_FILE names.
	WorkloadIdentityTokenFile string `yaml:"workload_identity_token_file"`
	// ManagedIdentity is user_assigned, with the identity's client ID as client_id, or system_assigned: the application is then that identity itself.
	ManagedIdentity string `yaml:"managed_identity"`
	// CertificateFile has a certificate and its private key, PEM.
	CertificateFile string `yaml:"certificate_file"`
	// ClientSecretFile has a client secret; white space around it is ignored.
	ClientSecretFile string `yaml:"client_secret_file"`
}

// Audit says what becomes of audit records.
type Audit struct {
	// Retention is for how long they are kept at least; what is older goes a day at a time.
	Retention time.Duration `yaml:"retention"`
	// CheckpointFile gets every signed checkpoint of the trail, a line of JSON each, to be brought where the database's administrators cannot
	// change it; empty writes none.
	CheckpointFile string `yaml:"checkpoint_file"`
}

// Grants says what becomes of grants.
type Grants struct {
	// Retention is for how long a grant is kept after its end, with its leases: at least a day, for a request ID lives that long. Its audit
	// records are kept by Audit.Retention.
	Retention time.Duration `yaml:"retention"`
}

const (
	// minRetention is a month: a trail that is shorter serves nobody.
	minRetention      = 30 * 24 * time.Hour
	minGrantRetention = grant.RequestIDLife
)

// DefaultConfig is what holds unless it is configured otherwise. It is not complete.
func DefaultConfig() Config {
	return Config{
		ApplicationPrefix: "Phasekey",
		Election:          Election{Shards: 16, LockTTL: 15 * time.Second},
		Timing:            credential.Production(),
		Graph:             budget.DefaultLimits(),
		Issuer:            Issuer{Keys: signingkey.Production()},
		Audit:             Audit{Retention: 400 * 24 * time.Hour},
		Grants:            Grants{Retention: 30 * 24 * time.Hour},
		Drain:             10 * time.Second,
	}
}

// DevelopmentTiming is the timing for a simulated Entra that lags by three seconds at most.
func DevelopmentTiming() credential.Timing { return credential.Development() }

var (
	errUUID = errors.New("must be a UUID")

	deploymentID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)
)

const (
	maxShards     = 1024
	minLockTTL    = time.Second
	maxLockTTL    = 5 * time.Minute
	maxPrefixSize = 40
	// waitsPerTTL is how many waits for the database fit into a lock's life, unless configured otherwise.
	waitsPerTTL = 6
)

// Validate returns all problems at once, each naming its key.
func (c Config) Validate() error {
	var problems confload.Problems
	add, required := problems.Add, problems.Require
	required("listen", c.Listen)
	required("runners_listen", c.RunnersListen)
	required("kek", c.KEK)
	required("registry.target", c.Registry.Target)
	add("registry.id", confload.CheckSPIFFEID(c.Registry.ID))
	if !deploymentID.MatchString(c.DeploymentID) {
		add("deployment_id", errors.New("must be 1 to 20 of a-z, 0-9 and -, not beginning or ending with -"))
	}
	if c.ApplicationPrefix == "" || len(c.ApplicationPrefix) > maxPrefixSize || strings.ContainsFunc(c.ApplicationPrefix, notPrintable) {
		add("application_prefix", fmt.Errorf("must be 1 to %d printable characters", maxPrefixSize))
	}
	if u, err := url.Parse(c.RedirectURI); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		add("redirect_uri", errors.New("must be an https URL without query and fragment"))
	}
	add("database", c.Database.Validate())
	add("database.lock_timeout", c.Election.checkWait(c.Database.LockTimeout))
	add("database.idle_in_transaction_timeout", c.Election.checkWait(c.Database.IdleInTransactionTimeout))
	switch {
	case len(c.Redis.Addrs) > 0:
		add("redis", c.Redis.Validate())
	case !c.Election.StaticMaster:
		add("redis.addrs", errors.New("required without election.static_master"))
	}
	add("tls", c.TLS.Validate())
	if c.TLS.WorkloadAPI == "" && c.TLS.CertFile == "" {
		add("tls.cert_file", errors.New("required without workload_api"))
	}
	if len(c.Identities) == 0 {
		add("identities", confload.ErrRequired)
	}
	if err := grpcserver.ValidateIdentities(c.Identities); err != nil {
		problems = append(problems, err) // names its key itself
	}
	add("limits", c.Limits.Validate())
	if len(c.Clouds) == 0 {
		add("clouds", confload.ErrRequired)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Clouds)) {
		problems := c.Clouds[name].problems()
		for _, key := range slices.Sorted(maps.Keys(problems)) {
			add("clouds."+name+"."+key, problems[key])
		}
	}
	if c.Election.Shards < 1 || c.Election.Shards > maxShards {
		add("election.shards", fmt.Errorf("must be from 1 to %d", maxShards))
	}
	if c.Election.LockTTL < minLockTTL || c.Election.LockTTL > maxLockTTL {
		add("election.lock_ttl", fmt.Errorf("must be from %s to %s", minLockTTL, maxLockTTL))
	}
	add("timing", c.Timing.Validate(c.Development))
	wrong := c.Issuer.problems(c.Development)
	for _, key := range slices.Sorted(maps.Keys(wrong)) {
		add("issuer."+key, wrong[key])
	}
	add("graph", c.Graph.Validate(c.Development))
	if c.Audit.Retention < minRetention {
		add("audit.retention", fmt.Errorf("must be at least %s", minRetention))
	}
	if c.Grants.Retention < minGrantRetention {
		add("grants.retention", fmt.Errorf("must be at least %s", minGrantRetention))
	}
	if c.Drain <= 0 {
		add("drain", errors.New("must be positive"))
	}
	return errors.Join(problems...)
}

// checkWait refuses a wait for the database that a lock's life has no room for.
func (e Election) checkWait(wait time.Duration) error {
	if wait > 0 && wait >= e.LockTTL/5 {
		return errors.New("must be under a fifth of election.lock_ttl")
	}
	return nil
}

// database is the database's configuration with waits that suit the locks: a take-over waits for a former master's open
// transaction, so that must be over well before the lock's life is.
func (c Config) database() sqldb.Config {
	out := c.Database
	patience := c.Election.LockTTL / waitsPerTTL
	if out.LockTimeout == 0 {
		out.LockTimeout = min(patience, 2*time.Second)
	}
	if out.IdleInTransactionTimeout == 0 {
		out.IdleInTransactionTimeout = min(patience, 3*time.Second)
	}
	return out
}

func (c Cloud) problems() map[string]error {
	out := map[string]error{
		"login_url":            confload.CheckOrigin(c.LoginURL),
		"graph_url":            confload.CheckOrigin(c.GraphURL),
		"resource_manager_url": confload.CheckOrigin(c.ResourceManagerURL),
	}
	for key, id := range map[string]string{"home_tenant_id": c.HomeTenantID, "client_id": c.ClientID} {
		if uuid.Validate(id) != nil {
			out[key] = errUUID
		}
	}
	switch identity := entra.ManagedIdentity(c.Credential.ManagedIdentity); {
	case c.Credential == (CloudCredential{}):
		out["credential"] = confload.ErrRequired
	case identity != entra.NoIdentity && identity != entra.UserAssigned && identity != entra.SystemAssigned:
		out["credential.managed_identity"] = fmt.Errorf("must be %s or %s", entra.UserAssigned, entra.SystemAssigned)
	}
	return out
}

// open reads what the cloud's configuration names.
func (c Cloud) open() (*entra.Directory, error) {
	config := entra.Config{
		GraphAudience:           c.GraphAudience,
		ResourceManagerAudience: c.ResourceManagerAudience,
		HomeTenantID:            c.HomeTenantID,
		ClientID:                c.ClientID,
		Credential: entra.Credential{
			TokenFile: c.Credential.WorkloadIdentityTokenFile, ManagedIdentity: entra.ManagedIdentity(c.Credential.ManagedIdentity),
			CertificateFile: c.Credential.CertificateFile, SecretFile: c.Credential.ClientSecretFile,
		},
	}
	for _, u := range []struct {
		text string
		to   **url.URL
	}{{c.LoginURL, &config.Login}, {c.GraphURL, &config.Graph}, {c.ResourceManagerURL, &config.ResourceManager}} {
		parsed, err := url.Parse(u.text)
		if err != nil {
			return nil, err
		}
		*u.to = parsed
	}
	var err error
	if config.RootCAs, err = c.roots(); err != nil {
		return nil, err
	}
	return entra.New(config)
}

// roots are what verifies the cloud's hosts; nil means the system's.
func (c Cloud) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca_file: %s has no certificate", c.CAFile)
	}
	return roots, nil
}

// roles is where the cloud's roles are looked at.
func (c Cloud) roles() (rolecheck.Cloud, error) {
	base, err := url.Parse(c.ResourceManagerURL)
	if err != nil {
		return rolecheck.Cloud{}, err
	}
	roots, err := c.roots()
	if err != nil {
		return rolecheck.Cloud{}, err
	}
	audience := strings.TrimSuffix(c.ResourceManagerAudience, "/")
	if audience == "" {
		audience = c.ResourceManagerURL
	}
	return rolecheck.Cloud{Viewer: arm.New(arm.Config{URL: base, RootCAs: roots}), Audience: audience}, nil
}

func notPrintable(r rune) bool { return r < ' ' || r == 0x7f || r > 0x7f }
