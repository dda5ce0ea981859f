package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/keyring"
)

const good = `
listen: 127.0.0.1:0
runners_listen: 127.0.0.1:0
deployment_id: test
redirect_uri: https://consent.example.com/consent/callback
kek: file:///var/lib/phasekey/kek
database:
  driver: sqlite
  path: /var/lib/phasekey/vault.db
redis: {addrs: ["127.0.0.1:6379"]}
tls:
  cert_file: vault.pem
  key_file: vault-key.pem
  ca_file: ca.pem
identities:
  - {id: "spiffe://phasekey.dev/platform", role: platform, accounts: ["*"]}
registry: {target: "127.0.0.1:1", id: "spiffe://phasekey.dev/registry"}
clouds:
  public:
    login_url: https://login.microsoftonline.com
    graph_url: https://graph.microsoft.com
    resource_manager_url: https://management.azure.com
    home_tenant_id: 11111111-1111-4111-8111-111111111111
    client_id: 22222222-2222-4222-8222-222222222222
    credential: {client_secret_file: /etc/phasekey/secret}
`

// config writes a configuration whose files are in a folder of the test's own, and returns the flag that names it.
func config(t *testing.T, text string) (flag, dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "vault.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "/var/lib/phasekey", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	return "--config=" + path, dir
}

func TestRun_ChecksTheConfiguration(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		args, env  []string
		// wants stand in the output, or in the error if there is one.
		wants []string
		fails bool
	}{
		{"good", good, nil, nil, []string{"configuration is good", "proofs: 8", "lock_ttl: 15s", "https://login.microsoftonline.com"}, false},
		{"a flag wins over the file", good, []string{"--election.shards=4"}, nil, []string{"shards: 4"}, false},
		{"the environment too", good, nil, []string{"PHASEKEY_DEPLOYMENT_ID=prod"}, []string{"deployment_id: prod"}, false},
		{"all that is wrong at once", good + "bogus: 1\ndrain: 0s\nelection: {lock_ttl: 1h}\ntiming: {proofs: 1}\n", nil, nil,
			[]string{"bogus", "drain", "election.lock_ttl", "timing: proofs"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			flag, dir := config(t, tc.file)
			var out bytes.Buffer
			err := program().Run(t.Context(), append([]string{flag, "--check-config"}, tc.args...), tc.env, &out)
			text := out.String()
			if tc.fails {
				var problems *confload.Error
				if !errors.As(err, &problems) {
					t.Fatalf("error %v", err)
				}
				text = err.Error()
			} else if err != nil {
				t.Fatal(err)
			}
			for _, want := range tc.wants {
				if !strings.Contains(text, want) {
					t.Errorf("lacks %q:\n%s", want, text)
				}
			}
			if made, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(made) != 1 {
				t.Errorf("checking made %v, error %v", made, err)
			}
		})
	}
}

func TestRun_InitializesOnceThenNeedsWhatItServesWith(t *testing.T) {
	flag, dir := config(t, good)
	run := func(args ...string) error {
		return program().Run(t.Context(), append(args, flag), nil, &bytes.Buffer{})
	}
	if err := run(); !errors.Is(err, keyring.ErrKeyMissing) {
		t.Errorf("before init: error %v", err)
	}
	if err := run("init"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "kek"))
	if err != nil || info.Size() != 32 || info.Mode() != 0o600 {
		t.Errorf("init made %v, error %v", info, err)
	}
	if err := run("init"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("init again: error %v", err)
	}
	if err := run(); err == nil || !strings.Contains(err.Error(), "vault.pem") {
		t.Errorf("without certificates: error %v", err)
	}
}

func TestRun_ReshardsThenRefusesTheFormerNumber(t *testing.T) {
	flag, _ := config(t, good)
	run := func(args ...string) error {
		return program().Run(t.Context(), append(args, flag), nil, &bytes.Buffer{})
	}
	if err := run("init"); err != nil {
		t.Fatal(err)
	}
	if err := run("reshard", "--shards=5"); !errors.Is(err, fence.ErrNoShard) || !strings.Contains(err.Error(), "no replica has started") || strings.Contains(err.Error(), "repeated") {
		t.Errorf("before anything was divided: error %v", err)
	}
	if err := run(); err == nil || errors.Is(err, fence.ErrShardCount) { // it lacks certificates, and has divided the database by then
		t.Errorf("error %v", err)
	}
	for _, args := range [][]string{{"reshard", "--shards=5"}, {"reshard", "--shards", "5"}} { // again is fine
		if err := run(args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(); !errors.Is(err, fence.ErrShardCount) {
		t.Errorf("with the former number: error %v", err)
	}
	if err := run("--election.shards=5"); errors.Is(err, fence.ErrShardCount) {
		t.Errorf("with the new number: error %v", err)
	}
	if err := run("--shards=5"); err == nil || !strings.Contains(err.Error(), "shards") {
		t.Errorf("the short flag without the command: error %v", err)
	}
}
