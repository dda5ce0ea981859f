package app

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/displayname"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/web"
)

// Config is a broker's configuration.
type Config struct {
	// Listen is the address of the gRPC listener for services and operators, for example ":7443".
	Listen string `yaml:"listen"`
	// HTTPSListen is the address of the consent pages, for example ":8443".
	HTTPSListen string `yaml:"https_listen"`
	// HTTPSCertFile and HTTPSKeyFile are PEM files with a certificate that browsers trust, and its key; they are read again when
	// they change. Without them the pages have the service's own certificate, for a proxy in front that trusts it.
	HTTPSCertFile string `yaml:"https_cert_file"`
	HTTPSKeyFile  string `yaml:"https_key_file"`
	// MetricsListen is the address for metrics and liveness; empty serves neither. Beyond loopback it is HTTPS.
	MetricsListen string `yaml:"metrics_listen"`
	// ProfileListen is the address, on loopback, for Go's profiles of the process (/debug/pprof/); empty serves none.
	ProfileListen string `yaml:"profile_listen"`
	// Development allows what production must not have: a ProbeInterval under ten seconds.
	Development bool `yaml:"development"`
	// PublicURL is the origin under which browsers reach the broker's pages, for example "https://consent.example.com".
	// Entra ID sends them back to its RedirectPath, so the vault, which puts that on the applications, must have the same.
	PublicURL string `yaml:"public_url"`
	// PlatformName is what customers know the platform as: 1 to 60 characters. The pages show it.
	PlatformName string `yaml:"platform_name"`
	// Pages are what the pages have of the platform's own: a logo, texts and links.
	Pages web.Brand `yaml:"pages"`
	// ReturnOrigins are the https origins to which pages may lead in the end, for example "https://app.example.com"; none of
	// them means that no page does.
	ReturnOrigins []string `yaml:"return_origins"`
	// TrustedProxies are the networks (CIDR) of proxies in front of the pages: their word in X-Forwarded-For, on whom they speak for, is
	// taken for limits and logs. Without it all browsers behind a proxy are taken for one.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// AttemptLife is how long an administrator may take at Entra ID, from the button to the return: a minute to a day.
	AttemptLife time.Duration `yaml:"attempt_life"`
	// StateKeyFile is 32 random bytes, mode 0600, the same for all replicas: what makes the links of sessions. It is made
	// when neither it nor anything in the database exists.
	StateKeyFile string                `yaml:"state_key_file"`
	Log          obs.LogConfig         `yaml:"log"`
	Database     sqldb.Config          `yaml:"database"`
	TLS          mtls.Config           `yaml:"tls"`
	Identities   []grpcserver.Identity `yaml:"identities"`
	Limits       grpcserver.Limits     `yaml:"limits"`
	Registry     Upstream              `yaml:"registry"`
	Vault        Upstream              `yaml:"vault"`
	// Clouds are where Microsoft's clouds are, by the names that integrations give them. What a file says replaces the
	// default map as a whole.
	Clouds map[string]Cloud `yaml:"clouds"`
	// ProbeInterval is the least time between two questions to the vault about one integration: at least ten seconds,
	// unless Development.
	ProbeInterval time.Duration `yaml:"probe_interval"`
	// PollInterval is how often the registry is asked whether an application is ready.
	PollInterval time.Duration `yaml:"poll_interval"`
	// WatchInterval is how often the sessions that somebody watches are read from the database, all at once.
	WatchInterval time.Duration `yaml:"watch_interval"`
	// MaxOpenSessions is how many sessions of one integration may be open at once.
	MaxOpenSessions int `yaml:"max_open_sessions"`
	// Retention is how long ended sessions are kept: at least a day, since a request ID lives that long.
	Retention time.Duration `yaml:"retention"`
	// Drain bounds the graceful stop.
	Drain time.Duration `yaml:"drain"`
}

// Upstream is a service that the broker asks.
type Upstream struct {
	// Target is a gRPC target: "host:port", or "dns:///name:port".
	Target string `yaml:"target"`
	// ID is the SPIFFE ID that it must have.
	ID string `yaml:"id"`
}

// Cloud is where one of Microsoft's clouds is.
type Cloud struct {
	// LoginURL is the origin of its login pages.
	LoginURL string `yaml:"login_url"`
	// GraphURL is the origin of its Graph.
	GraphURL string `yaml:"graph_url"`
}

// RedirectPath is where Entra ID sends browsers back to, under PublicURL.
const RedirectPath = consent.CallbackPath

// The bounds of what may be configured.
const (
	minProbeInterval            = 10 * time.Second
	minProbeIntervalDevelopment = 100 * time.Millisecond
	maxInterval                 = time.Hour
	minInterval                 = 50 * time.Millisecond
	minRetention                = 24 * time.Hour
	maxOpenSessions             = 1000
	minAttemptLife              = time.Minute
	maxAttemptLife              = 24 * time.Hour
	maxPlatformName             = 60
)

// DefaultConfig is what holds unless it is configured otherwise. It is not complete.
func DefaultConfig() Config {
	return Config{
		Clouds: map[string]Cloud{
			"public":       {LoginURL: "https://login.microsoftonline.com", GraphURL: "https://graph.microsoft.com"},
			"usgovernment": {LoginURL: "https://login.microsoftonline.us", GraphURL: "https://graph.microsoft.us"},
			"china":        {LoginURL: "https://login.partner.microsoftonline.cn", GraphURL: "https://microsoftgraph.chinacloudapi.cn"},
		},
		ProbeInterval:   minProbeInterval,
		PollInterval:    2 * time.Second,
		WatchInterval:   time.Second,
		AttemptLife:     30 * time.Minute,
		MaxOpenSessions: 20,
		Retention:       30 * 24 * time.Hour,
		Drain:           10 * time.Second,
	}
}

// Validate returns all problems at once, each naming its key.
func (c Config) Validate() error {
	var problems confload.Problems
	add, required := problems.Add, problems.Require
	required("listen", c.Listen)
	required("https_listen", c.HTTPSListen)
	if (c.HTTPSCertFile == "") != (c.HTTPSKeyFile == "") {
		add("https_cert_file", errors.New("goes together with https_key_file"))
	}
	required("state_key_file", c.StateKeyFile)
	add("public_url", confload.CheckOrigin(c.PublicURL))
	add("platform_name", checkName(c.PlatformName))
	for i, origin := range c.ReturnOrigins {
		add(fmt.Sprintf("return_origins[%d]", i), confload.CheckOrigin(origin))
	}
	brand := c.Pages.Problems()
	for _, key := range slices.Sorted(maps.Keys(brand)) {
		add("pages."+key, brand[key])
	}
	for i, network := range c.TrustedProxies {
		_, err := parseNetwork(network)
		add(fmt.Sprintf("trusted_proxies[%d]", i), err)
	}
	add("attempt_life", confload.CheckSpan(c.AttemptLife, minAttemptLife, maxAttemptLife))
	add("database", c.Database.Validate())
	add("tls", c.checkTLS())
	required("registry.target", c.Registry.Target)
	add("registry.id", confload.CheckSPIFFEID(c.Registry.ID))
	required("vault.target", c.Vault.Target)
	add("vault.id", confload.CheckSPIFFEID(c.Vault.ID))
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
	for name, cloud := range c.Clouds {
		add("clouds."+name+".login_url", confload.CheckOrigin(cloud.LoginURL))
		add("clouds."+name+".graph_url", confload.CheckOrigin(cloud.GraphURL))
	}
	least := minProbeInterval
	if c.Development {
		least = minProbeIntervalDevelopment
	}
	add("probe_interval", confload.CheckSpan(c.ProbeInterval, least, maxInterval))
	add("poll_interval", confload.CheckSpan(c.PollInterval, minInterval, maxInterval))
	add("watch_interval", confload.CheckSpan(c.WatchInterval, minInterval, time.Minute))
	add("drain", confload.CheckSpan(c.Drain, time.Millisecond, maxInterval))
	if c.Retention < minRetention {
		add("retention", fmt.Errorf("%s is less than %s", c.Retention, minRetention))
	}
	if c.MaxOpenSessions < 1 || c.MaxOpenSessions > maxOpenSessions {
		add("max_open_sessions", fmt.Errorf("%d is not from 1 to %d", c.MaxOpenSessions, maxOpenSessions))
	}
	return errors.Join(problems...)
}

// checkTLS adds to the certificates' own rules that a server has one.
func (c Config) checkTLS() error {
	err := c.TLS.Validate()
	if c.TLS.WorkloadAPI == "" && c.TLS.CertFile == "" {
		err = errors.Join(err, errors.New("cert_file: required without workload_api"))
	}
	return err
}

// checkName refuses what would not read well on a page.
func checkName(text string) error {
	switch n := utf8.RuneCountInString(text); {
	case text == "":
		return confload.ErrRequired
	case n > maxPlatformName:
		return fmt.Errorf("has %d characters, at most %d", n, maxPlatformName)
	case strings.TrimSpace(text) != text, strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("must be printable, without space around it")
	}
	return displayname.Check(text)
}

// parseNetwork reads a proxy's network. Whoever trusts everybody trusts what anybody writes.
func parseNetwork(text string) (netip.Prefix, error) {
	network, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("must be a network, such as 10.0.0.0/8 or 192.0.2.7/32")
	case network != network.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits beyond its length; %s is meant?", network.Masked())
	case network.Bits() == 0:
		return netip.Prefix{}, errors.New("must not be everybody")
	}
	return network, nil
}
