package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"phasekey.dev/pkg/confload"
)

const good = `
listen: 127.0.0.1:0
https_listen: 127.0.0.1:0
public_url: https://consent.example.com
platform_name: Example IaC
state_key_file: /var/lib/phasekey/state.key
database:
  driver: sqlite
  path: /var/lib/phasekey/broker.db
tls:
  cert_file: broker.pem
  key_file: broker-key.pem
  ca_file: ca.pem
identities:
  - {id: "spiffe://phasekey.dev/platform", role: platform, accounts: ["*"]}
registry: {target: "127.0.0.1:1", id: "spiffe://phasekey.dev/registry"}
vault: {target: "127.0.0.1:2", id: "spiffe://phasekey.dev/vault"}
clouds:
  own: {login_url: "https://login.example.com", graph_url: "https://graph.example.com"}
`

func TestRun_ChecksTheConfiguration(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		args       []string
		// wants stand in the output, or in the error if there is one.
		wants []string
		fails bool
	}{
		{"good", good, nil, []string{"configuration is good", "probe_interval: 10s", "https://login.example.com"}, false},
		{"a flag wins over the file", good, []string{"--listen=127.0.0.1:9"}, []string{"listen: 127.0.0.1:9"}, false},
		{"all that is wrong at once", good + "bogus: 1\nprobe_interval: 1s\nretention: 1h\n", nil, []string{"bogus", "probe_interval", "retention"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "broker.yaml")
			if err := os.WriteFile(path, []byte(tc.file), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err := program().Run(t.Context(), append([]string{"--config=" + path, "--check-config"}, tc.args...), nil, &out)
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
		})
	}
}

func TestRun_DoesNotStartWithoutWhatItNeeds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.yaml")
	file := strings.ReplaceAll(good, "/var/lib/phasekey", t.TempDir())
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	err := program().Run(context.Background(), []string{"--config=" + path}, nil, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "broker.pem") {
		t.Errorf("without certificates: error %v", err)
	}
}
