// Package redisconn makes clients of Redis: standalone, Sentinel or Cluster, by one configuration.
//
// It guarantees that nothing is sent in plaintext, or without a password, to a server beyond this machine, also not to one that Sentinel or Cluster names later; and that no
// command waits for long: Redis is a place for locks and hints, and an answer that comes late is no answer. It does not guarantee that a server is there: Open makes no connection.
package redisconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"phasekey.dev/pkg/loopback"
	"phasekey.dev/pkg/secret"
)

// ErrInsecure means a server beyond this machine would have been spoken to without TLS, or without a password.
var ErrInsecure = errors.New("redis beyond this machine needs TLS and a password")

const defaultTimeout = time.Second

// Config says which Redis to use. Addrs is required; everything else has a default.
type Config struct {
	// Addrs are host:port, or the path of a Unix socket. With MasterName they are the Sentinels, with Cluster some nodes, otherwise it is one server.
	Addrs []string `yaml:"addrs"`
	// MasterName is the name under which Sentinels know the master.
	MasterName string `yaml:"master_name"`
	// Cluster says that Addrs are nodes of a Redis Cluster.
	Cluster bool `yaml:"cluster"`
	// DB is the number of the database; only 0 with Cluster.
	DB int `yaml:"db"`

	// Username is for servers with access control lists; "default" when empty.
	Username string `yaml:"username"`
	// PasswordFile holds the password. It is read for every connection, so a changed password needs no restart.
	PasswordFile string `yaml:"password_file"`
	// SentinelPasswordFile holds the Sentinels' own password, which those beyond this machine need as servers do. It is read once.
	SentinelPasswordFile string `yaml:"sentinel_password_file"`

	// TLS is needed for any server that is neither on a loopback address nor behind a Unix socket.
	TLS bool `yaml:"tls"`
	// CAFile holds the authorities that servers' certificates are checked against; the system's when empty.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are this client's certificate, if the servers want one.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName is what the servers' certificates must name, when it is not the host of their address.
	ServerName string `yaml:"server_name"`

	// Timeout bounds connecting, sending and waiting for an answer, each; 1 s when zero. It must be well under any lock's life.
	Timeout time.Duration `yaml:"timeout"`
}

// Validate returns all problems of the configuration at once. It reads no file and opens no connection.
func (c Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if len(c.Addrs) == 0 {
		add("addrs: required")
	}
	if len(c.Addrs) > 1 && c.MasterName == "" && !c.Cluster {
		add("addrs: more than one needs master_name or cluster")
	}
	if c.MasterName != "" && c.Cluster {
		add("master_name, cluster: only one of them")
	}
	if c.DB < 0 || c.DB != 0 && c.Cluster {
		add("db: must be 0 with cluster, and never negative")
	}
	for _, addr := range c.Addrs {
		if !strings.HasPrefix(addr, "/") {
			if _, _, err := net.SplitHostPort(addr); err != nil {
				add("addrs: %q is neither host:port nor a socket's path", addr)
				continue
			}
		}
		if loopback.Address(addr) {
			continue
		}
		if !c.TLS || c.PasswordFile == "" {
			add("tls, password_file: %q: %w", addr, ErrInsecure)
		}
		if c.MasterName != "" && c.SentinelPasswordFile == "" {
			add("sentinel_password_file: %q: %w", addr, ErrInsecure)
		}
	}
	if !c.TLS && (c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" || c.ServerName != "") {
		add("ca_file, cert_file, key_file, server_name: only with tls")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		add("cert_file, key_file: both or none")
	}
	if c.Timeout < 0 {
		add("timeout: must not be negative")
	}
	return errors.Join(problems...)
}

// Open makes a client, to be closed by the caller. It reads the files but makes no connection: Redis may be down.
func Open(config Config) (redis.UniversalClient, error) {
	err := config.Validate()
	if err != nil {
		return nil, fmt.Errorf("redis configuration: %w", err)
	}
	timeout := config.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	options := &redis.UniversalOptions{
		Addrs:         config.Addrs,
		MasterName:    config.MasterName,
		IsClusterMode: config.Cluster,
		DB:            config.DB,
		ClientName:    "phasekey",

		DialTimeout:           timeout,
		ReadTimeout:           timeout,
		WriteTimeout:          timeout,
		PoolTimeout:           timeout,
		DialerRetries:         1,
		MaxRetries:            1,
		ContextTimeoutEnabled: true,
		// Not in every server, and of use only to hosted ones during an upgrade.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if config.PasswordFile != "" {
		if _, err := secret.ReadFile(config.PasswordFile); err != nil {
			return nil, fmt.Errorf("redis password: %w", err)
		}
		options.CredentialsProviderContext = func(context.Context) (username, password string, err error) {
			text, err := secret.ReadFile(config.PasswordFile)
			if err != nil {
				return "", "", fmt.Errorf("redis password: %w", err)
			}
			return config.Username, text.Expose(), nil
		}
	}
	if config.SentinelPasswordFile != "" {
		text, err := secret.ReadFile(config.SentinelPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("redis sentinels' password: %w", err)
		}
		options.SentinelPassword = text.Expose()
	}
	options.Dialer, err = config.dialer(timeout)
	if err != nil {
		return nil, err
	}
	return redis.NewUniversalClient(options), nil
}

// LogTo sends what the Redis library has to say to log, at level debug: errors worth attention come back from commands. It holds for the whole process, so only a main package
// calls it, before anything else of Redis. Without it the library writes to standard error.
func LogTo(log *slog.Logger) { redis.SetLogger(libraryLog{log}) }

type libraryLog struct{ log *slog.Logger }

// Printf is what the library calls.
func (l libraryLog) Printf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, "redis library", "text", fmt.Sprintf(format, args...))
}

// dialer makes connections, and no insecure one: Sentinel and Cluster name further servers as they like.
func (c Config) dialer(timeout time.Duration) (func(ctx context.Context, network, addr string) (net.Conn, error), error) {
	plain := &net.Dialer{Timeout: timeout, KeepAlive: 15 * time.Second}
	dial := plain.DialContext
	if c.TLS {
		config, err := c.tlsConfig()
		if err != nil {
			return nil, err
		}
		dial = (&tls.Dialer{NetDialer: plain, Config: config}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !loopback.Address(addr) && (!c.TLS || c.PasswordFile == "") {
			return nil, fmt.Errorf("connect to %s: %w", addr, ErrInsecure)
		}
		return dial(ctx, network, addr)
	}, nil
}

func (c Config) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName} // hosted servers are not all at 1.3
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("redis authorities: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("redis authorities: no certificate in %s", c.CAFile)
		}
	}
	if c.CertFile != "" {
		// Read for each connection, so that a renewed one needs no restart.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("redis client certificate: %w", err)
			}
			return &pair, nil
		}
		if _, err := config.GetClientCertificate(nil); err != nil {
			return nil, err
		}
	}
	return config, nil
}
