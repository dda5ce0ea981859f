package app_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/broker/app"
)

// complete is a configuration without a problem.
func complete() app.Config {
	cfg := app.DefaultConfig()
	cfg.Clouds = maps.Clone(cfg.Clouds)
	cfg.Listen = "127.0.0.1:0"
	cfg.HTTPSListen = "127.0.0.1:0"
	cfg.PublicURL = "https://consent.example.com"
	cfg.PlatformName = "Example IaC"
	cfg.StateKeyFile = "/var/lib/phasekey/state.key"
	cfg.Database = sqldb.Config{Driver: sqldb.DriverSQLite, Path: "/var/lib/phasekey/broker.db"}
	cfg.TLS = mtls.Config{CertFile: "broker.pem", KeyFile: "broker-key.pem", CAFile: "ca.pem"}
	cfg.Identities = []grpcserver.Identity{{ID: "spiffe://phasekey.dev/platform", Role: "platform", Accounts: []string{"*"}}}
	cfg.Registry = app.Upstream{Target: "127.0.0.1:1", ID: "spiffe://phasekey.dev/registry"}
	cfg.Vault = app.Upstream{Target: "127.0.0.1:2", ID: "spiffe://phasekey.dev/vault"}
	return cfg
}

func TestConfig_Validate(t *testing.T) {
	if err := complete().Validate(); err != nil {
		t.Errorf("a complete configuration: %v", err)
	}
	for _, tc := range []struct {
		name   string
		change func(*app.Config)
		// keys each begin one line of the error, and there are no other lines.
		keys []string
	}{
		{"nothing but the defaults", func(c *app.Config) { *c = app.DefaultConfig() }, []string{
			"listen", "https_listen", "state_key_file", "public_url", "platform_name", "database", "tls", "tls", "registry.target", "registry.id", "vault.target", "vault.id", "identities"}},
		{"all times wrong", func(c *app.Config) {
			c.ProbeInterval, c.PollInterval, c.WatchInterval, c.Drain, c.Retention = 0, -1, time.Hour, 0, time.Hour
		}, []string{"probe_interval", "poll_interval", "watch_interval", "drain", "retention"}},
		{"probing too often", func(c *app.Config) { c.ProbeInterval = 10*time.Second - 1 }, []string{"probe_interval"}},
		{"probing often in development", func(c *app.Config) { c.ProbeInterval, c.Development = time.Second, true }, nil},
		{"plain HTTP", func(c *app.Config) { c.PublicURL = "http://consent.example.com" }, []string{"public_url"}},
		{"half a certificate for browsers", func(c *app.Config) { c.HTTPSCertFile = "web.pem" }, []string{"https_cert_file"}},
		{"a name too long", func(c *app.Config) { c.PlatformName = strings.Repeat("é", 61) }, []string{"platform_name"}},
		{"a name of 60", func(c *app.Config) { c.PlatformName = strings.Repeat("é", 60) }, nil},
		{"a name that turns its text around", func(c *app.Config) { c.PlatformName = "a\u202eb" }, []string{"platform_name"}},
		{"a name that looks like another", func(c *app.Config) { c.PlatformName = "Micr\u043esoft" }, []string{"platform_name"}},
		{"a name with space around it", func(c *app.Config) { c.PlatformName = "a " }, []string{"platform_name"}},
		{"return origins that are none", func(c *app.Config) {
			c.ReturnOrigins = []string{"https://app.example.com", "http://app.example.com", "https://app.example.com/path"}
		}, []string{"return_origins[1]", "return_origins[2]"}},
		{"pages that cannot be", func(c *app.Config) {
			c.Pages.LogoFile, c.Pages.Introduction, c.Pages.Support = "config_test.go", strings.Repeat("é", 501), "a\u202eb"
			c.Pages.SupportURL, c.Pages.PrivacyURL, c.Pages.TermsURL = "http://example.com", "javascript:alert(1)", "https://u:p@example.com"
		}, []string{"pages.introduction", "pages.logo_file", "pages.privacy_url", "pages.support", "pages.support_url", "pages.terms_url"}},
		{"pages that can be", func(c *app.Config) {
			c.Pages.Introduction, c.Pages.Support, c.Pages.SupportURL = "Hello,\nyou.", "Ask us.", "https://example.com/support?a=b"
		}, nil},
		{"a logo that is not there", func(c *app.Config) { c.Pages.LogoFile = "/nowhere.svg" }, []string{"pages.logo_file"}},
		{"proxies that are none", func(c *app.Config) {
			c.TrustedProxies = []string{"10.0.0.0/8", "2001:db8::/32", "10.0.0.1", "10.0.0.1/8", "0.0.0.0/0"}
		}, []string{"trusted_proxies[2]", "trusted_proxies[3]", "trusted_proxies[4]"}},
		{"attempts that live too long", func(c *app.Config) { c.AttemptLife = 25 * time.Hour }, []string{"attempt_life"}},
		{"attempts that do not live", func(c *app.Config) { c.AttemptLife = 0 }, []string{"attempt_life"}},
		{"a path in the origin", func(c *app.Config) { c.PublicURL = "https://consent.example.com/" }, []string{"public_url"}},
		{"a user in the origin", func(c *app.Config) { c.PublicURL = "https://u:p@consent.example.com" }, []string{"public_url"}},
		{"a port in the origin", func(c *app.Config) { c.PublicURL = "https://127.0.0.1:8443" }, nil},
		{"no certificate", func(c *app.Config) { c.TLS.CertFile, c.TLS.KeyFile = "", "" }, []string{"tls"}},
		{"a cloud without hosts", func(c *app.Config) { c.Clouds["own"] = app.Cloud{} }, []string{"clouds.own.login_url", "clouds.own.graph_url"}},
		{"no clouds", func(c *app.Config) { c.Clouds = nil }, []string{"clouds"}},
		{"not a SPIFFE ID", func(c *app.Config) { c.Vault.ID = "vault" }, []string{"vault.id"}},
		{"too many sessions", func(c *app.Config) { c.MaxOpenSessions = 1001 }, []string{"max_open_sessions"}},
		{"limits that let nobody in", func(c *app.Config) { c.Limits.Read.Burst, c.Limits.Write.Burst = -1, -1 }, []string{"limits", "limits"}},
		{"an identity without accounts", func(c *app.Config) { c.Identities[0].Accounts = nil }, []string{"identities[0]"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := complete()
			tc.change(&cfg)
			var lines []string
			if err := cfg.Validate(); err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != len(tc.keys) {
				t.Fatalf("%d problems, want %d:\n%s", len(lines), len(tc.keys), strings.Join(lines, "\n"))
			}
			for i, key := range tc.keys {
				if !strings.HasPrefix(lines[i], key+":") {
					t.Errorf("problem %d is %q, want one of %s", i, lines[i], key)
				}
			}
		})
	}
}
