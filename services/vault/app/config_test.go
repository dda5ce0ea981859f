package app_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/app"
)

// complete is a configuration without a problem.
func complete() app.Config {
	cfg := app.DefaultConfig()
	cfg.Listen, cfg.RunnersListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.DeploymentID = "test"
	cfg.RedirectURI = "https://consent.example.com/consent/callback"
	cfg.KEK = "file:///var/lib/phasekey/kek"
	cfg.Database = sqldb.Config{Driver: sqldb.DriverSQLite, Path: "/var/lib/phasekey/vault.db"}
	cfg.Redis = redisconn.Config{Addrs: []string{"127.0.0.1:6379"}}
	cfg.TLS = mtls.Config{CertFile: "vault.pem", KeyFile: "vault-key.pem", CAFile: "ca.pem"}
	cfg.Identities = []grpcserver.Identity{
		{ID: "spiffe://phasekey.dev/platform", Role: "platform", Accounts: []string{"*"}},
		{ID: "spiffe://phasekey.dev/broker", Role: "broker", Accounts: []string{"*"}},
	}
	cfg.Registry = app.Upstream{Target: "127.0.0.1:1", ID: "spiffe://phasekey.dev/registry"}
	cfg.Clouds = map[string]app.Cloud{"public": {
		LoginURL: "https://login.example.com", GraphURL: "https://graph.example.com", ResourceManagerURL: "https://management.example.com",
		HomeTenantID: "11111111-1111-4111-8111-111111111111", ClientID: "22222222-2222-4222-8222-222222222222", Credential: app.CloudCredential{ClientSecretFile: "/etc/phasekey/secret"},
	}}
	return cfg
}

func TestConfig_Validate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*app.Config)
		// keys each begin one line of the error, and there are no other lines.
		keys []string
	}{
		{"complete", func(*app.Config) {}, nil},
		{"nothing but the defaults", func(c *app.Config) { *c = app.DefaultConfig() }, []string{
			"listen", "runners_listen", "kek", "registry.target", "registry.id", "deployment_id", "redirect_uri", "database", "redis.addrs",
			"tls", "tls.cert_file", "identities", "clouds"}},
		{"several of one part", func(c *app.Config) {
			c.Database = sqldb.Config{Driver: sqldb.DriverSQLite, MaxConns: -1}
			c.Redis.DB, c.Redis.Timeout = -1, -1
			c.TLS.CAFile, c.TLS.KeyFile = "", ""
			c.Timing.Proofs, c.Timing.Settling = 0, 0
		}, []string{"database: path", "database: max_conns", "redis: db", "redis: timeout", "tls", "tls", "timing: proofs", "timing: settling"}},

		{"grants that are forgotten while their request IDs live", func(c *app.Config) { c.Grants.Retention = 23 * time.Hour }, []string{"grants.retention"}},
		{"a trail that is too short", func(c *app.Config) { c.Audit.Retention = 29 * 24 * time.Hour }, []string{"audit.retention"}},
		{"more of Graph than there is", func(c *app.Config) { c.Graph.Writes, c.Graph.AloneShare = 3001, 2 }, []string{"graph: writes", "graph: alone_share"}},
		{"more of a simulated Graph", func(c *app.Config) { c.Graph.Writes, c.Development = 30_000, true }, nil},
		{"the longest deployment", func(c *app.Config) { c.DeploymentID = "a2345678901234567-9z" }, nil},
		{"a longer deployment", func(c *app.Config) { c.DeploymentID = "a23456789012345678901" }, []string{"deployment_id"}},
		{"a deployment that ends with a dash", func(c *app.Config) { c.DeploymentID = "prod-" }, []string{"deployment_id"}},
		{"a deployment in capitals", func(c *app.Config) { c.DeploymentID = "Prod" }, []string{"deployment_id"}},
		{"no prefix", func(c *app.Config) { c.ApplicationPrefix = "" }, []string{"application_prefix"}},
		{"a long prefix", func(c *app.Config) { c.ApplicationPrefix = strings.Repeat("p", 41) }, []string{"application_prefix"}},
		{"a prefix with a line break", func(c *app.Config) { c.ApplicationPrefix = "Phase\nkey" }, []string{"application_prefix"}},
		{"a redirect over HTTP", func(c *app.Config) { c.RedirectURI = "http://consent.example.com/consent/callback" }, []string{"redirect_uri"}},
		{"a redirect with a query", func(c *app.Config) { c.RedirectURI += "?x=1" }, []string{"redirect_uri"}},
		{"a redirect to nowhere", func(c *app.Config) { c.RedirectURI = "https:///consent/callback" }, []string{"redirect_uri"}},
		{"not a SPIFFE ID", func(c *app.Config) { c.Registry.ID = "https://phasekey.dev/registry" }, []string{"registry.id"}},
		{"a SPIFFE ID of a whole domain", func(c *app.Config) { c.Registry.ID = "spiffe://phasekey.dev/" }, []string{"registry.id"}},

		{"waits as long as allowed", func(c *app.Config) {
			c.Database.LockTimeout, c.Database.IdleInTransactionTimeout = 3*time.Second-1, 3*time.Second-1
		}, nil},
		{"waits that a lock has no room for", func(c *app.Config) {
			c.Database.LockTimeout, c.Database.IdleInTransactionTimeout = 3*time.Second, 3*time.Second
		}, []string{"database.lock_timeout", "database.idle_in_transaction_timeout"}},
		{"a wait that a short lock has no room for", func(c *app.Config) {
			c.Database.LockTimeout, c.Election.LockTTL = time.Second, 5*time.Second
		}, []string{"database.lock_timeout"}},
		{"no life", func(c *app.Config) { c.Election.LockTTL = 0 }, []string{"election.lock_ttl"}},
		{"a short life", func(c *app.Config) { c.Election.LockTTL = time.Second - 1 }, []string{"election.lock_ttl"}},
		{"a long life", func(c *app.Config) { c.Election.LockTTL = 5*time.Minute + 1 }, []string{"election.lock_ttl"}},
		{"no shards", func(c *app.Config) { c.Election.Shards = 0 }, []string{"election.shards"}},
		{"too many shards", func(c *app.Config) { c.Election.Shards = 1025 }, []string{"election.shards"}},
		{"no Redis", func(c *app.Config) { c.Redis = redisconn.Config{} }, []string{"redis.addrs"}},
		{"a static master without Redis", func(c *app.Config) { c.Redis, c.Election.StaticMaster = redisconn.Config{}, true }, nil},
		{"a static master whose Redis is wrong", func(c *app.Config) { c.Redis.Addrs[0], c.Election.StaticMaster = "redis", true }, []string{"redis: addrs"}},
		{"Redis elsewhere in plaintext", func(c *app.Config) { c.Redis.Addrs[0] = "redis.example.com:6379" }, []string{"redis: tls, password_file"}},

		{"no certificate", func(c *app.Config) { c.TLS.CertFile, c.TLS.KeyFile = "", "" }, []string{"tls.cert_file"}},
		{"a Workload API", func(c *app.Config) { c.TLS = mtls.Config{WorkloadAPI: "unix:///run/agent.sock"} }, nil},
		{"an identity without accounts", func(c *app.Config) { c.Identities[0].Accounts = nil }, []string{"identities[0]"}},
		{"an empty cloud", func(c *app.Config) { c.Clouds["own"] = app.Cloud{} }, []string{
			"clouds.own.client_id", "clouds.own.credential", "clouds.own.graph_url", "clouds.own.home_tenant_id", "clouds.own.login_url",
			"clouds.own.resource_manager_url"}},
		{"clouds over HTTP, with a path, a user, and an end", func(c *app.Config) {
			for name, origin := range map[string]string{"a": "http://x.example.com", "b": "https://x.example.com/p", "c": "https://u:p@x.example.com", "d": "https://x.example.com/"} {
				cloud := c.Clouds["public"]
				cloud.LoginURL = origin
				c.Clouds[name] = cloud
			}
		}, []string{"clouds.a.login_url", "clouds.b.login_url", "clouds.c.login_url", "clouds.d.login_url"}},
		{"impatient", func(c *app.Config) { c.Timing = app.DevelopmentTiming(); c.Timing.Proofs = 8 }, []string{
			"timing: proof_spacing", "timing: settling", "timing: retiring", "timing: remove_delay", "timing: propagation_limit", "timing: write_spacing",
			"timing: consent_window", "timing: probe_spacing", "timing: reconcile_interval", "timing: ensure_interval", "timing: consent_interval",
			"timing: await_interval", "timing: retry_min", "timing: hold_margin"}},
		{"impatient in development", func(c *app.Config) { c.Timing, c.Development = app.DevelopmentTiming(), true }, nil},
		{"an issuer", func(c *app.Config) { c.Issuer.URL, c.Issuer.Listen = "https://issuer.example.com/vault", ":443" }, nil},
		{"half an issuer", func(c *app.Config) { c.Issuer.URL, c.Issuer.CertFile = "https://issuer.example.com", "issuer.pem" },
			[]string{"issuer.cert_file", "issuer.listen"}},
		{"a listener for no issuer", func(c *app.Config) { c.Issuer.Listen = ":443" }, []string{"issuer.url"}},
		{"an issuer over HTTP", func(c *app.Config) { c.Issuer.URL, c.Issuer.Listen = "http://issuer.example.com", ":443" }, []string{"issuer.url"}},
		{"an issuer with a slash", func(c *app.Config) { c.Issuer.URL, c.Issuer.Listen = "https://issuer.example.com/", ":443" }, []string{"issuer.url"}},
		{"an issuer with a query", func(c *app.Config) { c.Issuer.URL, c.Issuer.Listen = "https://issuer.example.com?a=b", ":443" }, []string{"issuer.url"}},
		{"an issuer with a crooked path", func(c *app.Config) { c.Issuer.URL, c.Issuer.Listen = "https://issuer.example.com/a/../b", ":443" }, []string{"issuer.url"}},
		{"an issuer that is too long", func(c *app.Config) {
			c.Issuer.URL, c.Issuer.Listen = "https://issuer.example.com/"+strings.Repeat("a", 600), ":443"
		}, []string{"issuer.url"}},
		{"an issuer with hasty keys", func(c *app.Config) {
			c.Issuer.URL, c.Issuer.Listen, c.Issuer.Keys = "https://issuer.example.com", ":443", app.DevelopmentKeys()
		}, []string{"issuer.keys: publish", "issuer.keys: keep"}},
		{"no time to drain", func(c *app.Config) { c.Drain = 0 }, []string{"drain"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := complete()
			cfg.Clouds = maps.Clone(cfg.Clouds)
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
