package devca_test

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"phasekey.dev/pkg/devca"
)

var leaf = devca.Leaf{ID: "spiffe://phasekey.dev/vault", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}

func TestIssue_Reuses(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "tls")
	now := time.Now()
	read := func(now time.Time, name string, l devca.Leaf) (ca, cert []byte) {
		t.Helper()
		a, err := devca.Open(dir, now)
		if err != nil {
			t.Fatal(err)
		}
		files, err := a.Issue(now, name, l)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []struct {
			path string
			to   *[]byte
		}{{a.CAFile(), &ca}, {files.Cert, &cert}} {
			if *f.to, err = os.ReadFile(f.path); err != nil {
				t.Fatal(err)
			}
		}
		return ca, cert
	}
	ca, cert := read(now, "vault", leaf)
	otherNames := leaf
	otherNames.DNS = []string{"vault"}
	for _, step := range []struct {
		name  string
		after time.Duration
		leaf  devca.Leaf
		same  bool
	}{
		{"a month later", 31 * 24 * time.Hour, leaf, true},
		{"with other names", 31 * 24 * time.Hour, otherNames, false},
		{"as before", 31 * 24 * time.Hour, leaf, false},
		{"with less than a third left", (31 + 61) * 24 * time.Hour, leaf, false},
	} {
		ca2, cert2 := read(now.Add(step.after), "vault", step.leaf)
		if !bytes.Equal(ca, ca2) {
			t.Errorf("%s: another CA", step.name)
		}
		if bytes.Equal(cert, cert2) != step.same {
			t.Errorf("%s: same certificate: %t", step.name, !step.same)
		}
		cert = cert2
	}
	for _, name := range []string{"ca-key.pem", "vault-key.pem"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 4 {
		t.Errorf("the folder holds %v, %v", left, err)
	}
}

func TestOpen_Refuses(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		name  string
		spoil func(dir string) error
		later time.Duration
	}{
		{name: "half a CA", spoil: func(dir string) error { return os.Remove(filepath.Join(dir, "ca-key.pem")) }},
		{name: "another's key", spoil: func(dir string) error {
			return os.Rename(filepath.Join(dir, "vault-key.pem"), filepath.Join(dir, "ca-key.pem"))
		}},
		{name: "an expired CA", spoil: func(string) error { return nil }, later: 11 * 365 * 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			a, err := devca.Open(dir, now)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Issue(now, "vault", leaf); err != nil {
				t.Fatal(err)
			}
			if err := tt.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := devca.Open(dir, now.Add(tt.later)); err == nil {
				t.Error("opened")
			}
		})
	}
	a, err := devca.Open(t.TempDir(), now)
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]devca.Leaf{"ca": leaf, "../vault": leaf, "vault": {ID: "https://phasekey.dev"}} {
		if _, err := a.Issue(now, name, l); err == nil {
			t.Errorf("issued %s for %s", name, l.ID)
		}
	}
}
