package sqldb

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"

	"phasekey.dev/pkg/loopback"
)

// The engines a Config may name.
const (
	DriverSQLite   = "sqlite"
	DriverPostgres = "postgres"
)

// Config says which database to open. SQLite needs Path, PostgreSQL needs DSN; everything else has a default.
type Config struct {
	// Driver is DriverSQLite or DriverPostgres.
	Driver string `yaml:"driver"`
	// Volatile has SQLite trust the operating system to write in time, and takes a PostgreSQL that does (synchronous_commit or fsync off): a power cut loses what
	// was committed, or breaks the database. For simulations and tests.
	Volatile bool `yaml:"volatile"`

	// Path is SQLite's file. It is made, with mode 0600, when it does not exist, as is its folder.
	Path string `yaml:"path"`
	// DSN is PostgreSQL's connection URL or its key=value form, without a password. Of several hosts the one that takes writes is used. A server that is neither on a loopback address nor behind a Unix
	// socket needs sslmode=verify-full in it, and a PasswordFile.
	DSN string `yaml:"dsn"`
	// PasswordFile holds PostgreSQL's password; line breaks at its end are ignored. It is read for every connection, so a changed password needs no restart.
	PasswordFile string `yaml:"password_file"`
	// MaxConns limits PostgreSQL's connections; 16 when zero.
	MaxConns int `yaml:"max_conns"`
	// LockTimeout is how long a PostgreSQL statement waits for a lock; 2 s when zero.
	LockTimeout time.Duration `yaml:"lock_timeout"`
	// IdleInTransactionTimeout is how long PostgreSQL lets a transaction hold its locks without a statement; 3 s when zero.
	IdleInTransactionTimeout time.Duration `yaml:"idle_in_transaction_timeout"`
	// StatementTimeout is how long PostgreSQL lets a statement run; 30 s when zero.
	StatementTimeout time.Duration `yaml:"statement_timeout"`
}

const (
	defaultMaxConns                 = 16
	defaultLockTimeout              = 2 * time.Second
	defaultIdleInTransactionTimeout = 3 * time.Second
	defaultStatementTimeout         = 30 * time.Second
)

// Validate returns all problems of the configuration at once. It opens no connection, and of files reads only the certificates that a DSN names.
func (c Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	switch c.Driver {
	case DriverSQLite:
		if c.Path == "" {
			add("path: required with driver %s", DriverSQLite)
		}
		if c.DSN != "" || c.PasswordFile != "" {
			add("dsn, password_file: only with driver %s", DriverPostgres)
		}
	case DriverPostgres:
		if c.Path != "" {
			add("path: only with driver %s", DriverSQLite)
		}
		if c.DSN == "" {
			add("dsn: required with driver %s", DriverPostgres)
			break
		}
		if hasPassword(c.DSN) {
			add("dsn: must not hold a password, name a password_file")
			break
		}
		parsed, err := pgx.ParseConfig(c.DSN)
		if err != nil {
			add("dsn: %w", err)
			break
		}
		if err := c.checkTransport(parsed); err != nil {
			problems = append(problems, err)
		}
	default:
		add("driver: must be %s or %s, not %q", DriverSQLite, DriverPostgres, c.Driver)
	}
	if c.MaxConns < 0 {
		add("max_conns: must not be negative")
	}
	if c.LockTimeout < 0 || c.IdleInTransactionTimeout < 0 || c.StatementTimeout < 0 {
		add("lock_timeout, idle_in_transaction_timeout, statement_timeout: must not be negative")
	}
	return errors.Join(problems...)
}

func (c Config) withDefaults() Config {
	c.MaxConns = orDefault(c.MaxConns, defaultMaxConns)
	c.LockTimeout = orDefault(c.LockTimeout, defaultLockTimeout)
	c.IdleInTransactionTimeout = orDefault(c.IdleInTransactionTimeout, defaultIdleInTransactionTimeout)
	c.StatementTimeout = orDefault(c.StatementTimeout, defaultStatementTimeout)
	return c
}

func orDefault[T int | time.Duration](value, otherwise T) T {
	if value == 0 {
		return otherwise
	}
	return value
}

// checkTransport refuses a server beyond this machine without verified TLS and a password. pgx keeps the alternatives of a DSN (more hosts, or sslmode=prefer's
// attempt in plaintext) as fallbacks, so every one of them is looked at.
func (c Config) checkTransport(parsed *pgx.ConnConfig) error {
	type attempt struct {
		host     string
		verified bool
	}
	attempts := []attempt{{parsed.Host, parsed.TLSConfig != nil && !parsed.TLSConfig.InsecureSkipVerify}}
	for _, f := range parsed.Fallbacks {
		attempts = append(attempts, attempt{f.Host, f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify})
	}
	for _, a := range attempts {
		if loopback.Host(a.host) {
			continue
		}
		if !a.verified {
			return fmt.Errorf("dsn: host %q is beyond this machine and needs sslmode=verify-full", a.host)
		}
		if c.PasswordFile == "" {
			return fmt.Errorf("password_file: required, for host %q is beyond this machine", a.host)
		}
	}
	return nil
}

// passwordKey finds a password, or that of a client key.
var passwordKey = regexp.MustCompile(`(?i)(^|\s)(ssl)?password\s*=`)

func hasPassword(dsn string) bool {
	if u, err := url.Parse(dsn); err == nil && u.Scheme != "" {
		_, inUser := u.User.Password()
		return inUser || u.Query().Has("password") || u.Query().Has("sslpassword")
	}
	return passwordKey.MatchString(dsn)
}
