package app

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/watch"
)

// Config is a registry's configuration.
type Config struct {
	// Listen is the address of the gRPC listener for services and operators, for example ":7441".
	Listen string `yaml:"listen"`
	// MetricsListen is the address for metrics and liveness; empty serves neither. Beyond loopback it is HTTPS.
	MetricsListen string `yaml:"metrics_listen"`
	// ProfileListen is the address, on loopback, for Go's profiles of the process (/debug/pprof/); empty serves none.
	ProfileListen string `yaml:"profile_listen"`
	// Development allows what production must not have: rotation periods under an hour.
	Development bool `yaml:"development"`
	// HomeTenants are the tenants in which the platform's applications live, as UUIDs: never an integration's tenant.
	HomeTenants []string `yaml:"home_tenants"`
	// Clouds are those that integrations may be in, by the names that the vault's configuration gives them.
	Clouds     []string              `yaml:"clouds"`
	Log        obs.LogConfig         `yaml:"log"`
	Database   sqldb.Config          `yaml:"database"`
	TLS        mtls.Config           `yaml:"tls"`
	Identities []grpcserver.Identity `yaml:"identities"`
	Limits     grpcserver.Limits     `yaml:"limits"`
	// Quotas are how many resources an account may have.
	Quotas quota.Config `yaml:"quotas"`
	// PollInterval is how soon watchers hear of a change that another replica made; one's own are told at once.
	PollInterval time.Duration `yaml:"poll_interval"`
	// BookmarkInterval is how often an idle watcher hears that it has missed nothing.
	BookmarkInterval time.Duration `yaml:"bookmark_interval"`
	// ChangeRetention is how long changes are kept: a watcher that stays away longer has to list again.
	ChangeRetention time.Duration `yaml:"change_retention"`
	// Drain bounds the graceful stop.
	Drain time.Duration `yaml:"drain"`
}

// The bounds of what may be configured.
const (
	minPollInterval = 10 * time.Millisecond
	maxPollInterval = 10 * time.Second
	// maxBookmarkInterval stays well below the time after which a vault without bookmarks stops delivering.
	maxBookmarkInterval = 2 * time.Minute
	minChangeRetention  = time.Hour
	maxDrain            = time.Hour
	// bookmarkPolls is how many polls must fit between two bookmarks, each of which rests on one of them.
	bookmarkPolls = 3
)

// DefaultConfig is what holds unless it is configured otherwise. It is not complete.
func DefaultConfig() Config {
	return Config{
		Clouds:           []string{integration.DefaultCloud, "usgovernment", "china"},
		Quotas:           quota.Default(),
		PollInterval:     watch.DefaultPoll,
		BookmarkInterval: watch.DefaultBookmark,
		ChangeRetention:  7 * 24 * time.Hour,
		Drain:            10 * time.Second,
	}
}

// cloudName is what the proto lets a cloud be called.
var cloudName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,29}$`)

// Validate returns all problems at once, each naming its key.
func (c Config) Validate() error {
	var problems confload.Problems
	add := problems.Add
	problems.Require("listen", c.Listen)
	if len(c.HomeTenants) == 0 {
		add("home_tenants", confload.ErrRequired)
	}
	for i, tenant := range c.HomeTenants {
		if _, err := uuid.Parse(tenant); err != nil || len(tenant) != 36 {
			add(fmt.Sprintf("home_tenants[%d]", i), errors.New("must be a UUID"))
		}
	}
	if len(c.Clouds) == 0 {
		add("clouds", confload.ErrRequired)
	}
	for i, cloud := range c.Clouds {
		if !cloudName.MatchString(cloud) {
			add(fmt.Sprintf("clouds[%d]", i), errors.New("must be 1 to 30 of a-z, 0-9 and hyphen, beginning with a letter"))
		}
	}
	add("database", c.Database.Validate())
	add("tls", c.TLS.Validate())
	if c.TLS.WorkloadAPI == "" && c.TLS.CertFile == "" {
		add("tls.cert_file", errors.New("required without workload_api"))
	}
	if len(c.Identities) == 0 {
		add("identities", confload.ErrRequired)
	}
	if err := grpcserver.ValidateIdentities(c.Identities); err != nil {
		problems = append(problems, err) // names its keys itself
	}
	add("limits", c.Limits.Validate())
	add("quotas", c.Quotas.Validate())
	add("poll_interval", confload.CheckSpan(c.PollInterval, minPollInterval, maxPollInterval))
	add("bookmark_interval", confload.CheckSpan(c.BookmarkInterval, bookmarkPolls*c.PollInterval, maxBookmarkInterval))
	add("drain", confload.CheckSpan(c.Drain, time.Millisecond, maxDrain))
	if c.ChangeRetention < minChangeRetention {
		add("change_retention", fmt.Errorf("%s is less than %s", c.ChangeRetention, minChangeRetention))
	}
	return errors.Join(problems...)
}
