package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgram_Restored(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "registryd.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
listen: "127.0.0.1:0"
home_tenants: [6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f000f]
database: {driver: sqlite, path: %s}
tls: {cert_file: a, key_file: b, ca_file: c}
identities:
  - {id: "spiffe://phasekey.dev/platform", role: platform, accounts: ["*"]}
`, filepath.Join(dir, "registry.db")), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := program().Run(t.Context(), []string{"restored", "--config", file}, nil, &out)
	if err == nil || !strings.Contains(err.Error(), "no registry has used this database") {
		t.Fatalf("a database without a registry: %v\n%s", err, &out)
	}
}
