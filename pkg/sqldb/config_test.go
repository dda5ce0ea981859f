package sqldb_test

import (
	"strings"
	"testing"

	"phasekey.dev/pkg/sqldb"
)

func TestConfig_Validate(t *testing.T) {
	for _, test := range []struct {
		name     string
		config   sqldb.Config
		problems []string // what the error must name; none for a good configuration
	}{
		{"sqlite", sqldb.Config{Driver: "sqlite", Path: "x.db"}, nil},
		{"socket", sqldb.Config{Driver: "postgres", DSN: "host=/run/postgresql dbname=x"}, nil},
		{"loopback", sqldb.Config{Driver: "postgres", DSN: "postgres://u@127.0.0.1:5432/x?sslmode=disable"}, nil},
		{"verified", sqldb.Config{Driver: "postgres", DSN: "postgres://u@db.example/x?sslmode=verify-full", PasswordFile: "p"}, nil},
		{"no driver", sqldb.Config{}, []string{"driver"}},
		{"sqlite without a file", sqldb.Config{Driver: "sqlite"}, []string{"path"}},
		{"sqlite with a dsn", sqldb.Config{Driver: "sqlite", Path: "x", DSN: "host=/x"}, []string{"dsn"}},
		{"postgres without a dsn", sqldb.Config{Driver: "postgres"}, []string{"dsn"}},
		{"not a dsn", sqldb.Config{Driver: "postgres", DSN: "postgres://u@host:port/x"}, []string{"dsn"}},
		{"plaintext", sqldb.Config{Driver: "postgres", DSN: "postgres://u@db.example/x?sslmode=disable", PasswordFile: "p"}, []string{"verify-full"}},
		{"plaintext as a way out", sqldb.Config{Driver: "postgres", DSN: "postgres://u@db.example/x?sslmode=prefer", PasswordFile: "p"}, []string{"verify-full"}},
		{"not said", sqldb.Config{Driver: "postgres", DSN: "postgres://u@db.example/x", PasswordFile: "p"}, []string{"verify-full"}},
		{"not verified", sqldb.Config{Driver: "postgres", DSN: "postgres://u@db.example/x?sslmode=require", PasswordFile: "p"}, []string{"verify-full"}},
		{"name not verified", sqldb.Config{Driver: "postgres", DSN: "host=db.example sslmode=verify-ca", PasswordFile: "p"}, []string{"verify-full"}},
		{"second host in plaintext", sqldb.Config{Driver: "postgres", DSN: "host=/run/postgresql,db.example sslmode=disable", PasswordFile: "p"}, []string{"db.example"}},
		{"no password", sqldb.Config{Driver: "postgres", DSN: "postgres://u@db.example/x?sslmode=verify-full"}, []string{"password_file"}},
		{"password in the URL", sqldb.Config{Driver: "postgres", DSN: "postgres://u:hunter2@127.0.0.1/x"}, []string{"password_file"}},
		{"password among the parameters", sqldb.Config{Driver: "postgres", DSN: "postgres://u@127.0.0.1/x?password=hunter2"}, []string{"password_file"}},
		{"a key's password among the parameters", sqldb.Config{Driver: "postgres", DSN: "postgres://u@127.0.0.1/x?sslpassword=hunter2"}, []string{"password_file"}},
		{"a key's password as a key", sqldb.Config{Driver: "postgres", DSN: "host=127.0.0.1 sslpassword=hunter2"}, []string{"password_file"}},
		{"password as a key", sqldb.Config{Driver: "postgres", DSN: "host=127.0.0.1 Password = hunter2"}, []string{"password_file"}},
		{"several at once", sqldb.Config{Driver: "sqlite", MaxConns: -1, LockTimeout: -1}, []string{"path", "max_conns", "lock_timeout"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.config.Validate()
			if (err == nil) != (test.problems == nil) {
				t.Fatalf("got %v", err)
			}
			for _, problem := range test.problems {
				if !strings.Contains(err.Error(), problem) {
					t.Errorf("%q does not name %s", err, problem)
				}
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%q tells the password", err)
			}
		})
	}
}
