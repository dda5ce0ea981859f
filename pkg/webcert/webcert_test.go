package webcert_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/webcert"
)

// folder is where certificates are issued and put in place.
type folder struct {
	t  *testing.T
	ca *devca.Authority
	webcert.Config
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	dir := t.TempDir()
	ca, err := devca.Open(filepath.Join(dir, "ca"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := &folder{t: t, ca: ca, Config: webcert.Config{CertFile: filepath.Join(dir, "web.pem"), KeyFile: filepath.Join(dir, "web-key.pem")}}
	f.put("first", "first")
	return f
}

// put puts the certificate of one name and the key of another in place.
func (f *folder) put(cert, key string) {
	f.t.Helper()
	issue := func(name string) devca.Files {
		files, err := f.ca.Issue(time.Now(), name, devca.Leaf{ID: "spiffe://phasekey.dev/" + name, DNS: []string{name}})
		if err != nil {
			f.t.Fatal(err)
		}
		return files
	}
	for to, from := range map[string]string{f.CertFile: issue(cert).Cert, f.KeyFile: issue(key).Key} {
		text, err := os.ReadFile(from)
		if err != nil {
			f.t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
}

// shown is whose certificate a handshake shows.
func shown(t *testing.T, s *webcert.Source) string {
	t.Helper()
	there, here := net.Pipe()
	defer func() { _, _ = there.Close(), here.Close() }()
	served := make(chan error, 1)
	go func() { served <- tls.Server(there, s.TLSConfig()).HandshakeContext(t.Context()) }()
	var name string
	client := tls.Client(here, &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, VerifyConnection: func(state tls.ConnectionState) error {
		name = state.PeerCertificates[0].DNSNames[0]
		if state.Version != tls.VersionTLS13 {
			t.Errorf("TLS version %x", state.Version)
		}
		return nil // in a bubble no certificate is valid yet
	}})
	go func() {
		// A pipe has no buffer: what the server sends after its handshake has to be read.
		_, _ = client.Read(make([]byte, 1))
	}()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return name
}

func TestOpen_FailsOnWhatCannotBeUsed(t *testing.T) {
	f := newFolder(t)
	log := slog.New(slog.DiscardHandler)
	if _, err := webcert.Open(webcert.Config{CertFile: f.CertFile}, log); !errors.Is(err, webcert.ErrIncomplete) {
		t.Errorf("without a key: %v", err)
	}
	if _, err := webcert.Open(webcert.Config{CertFile: f.CertFile, KeyFile: f.KeyFile + "x"}, log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key file that is not there: %v", err)
	}
	f.put("first", "second")
	if _, err := webcert.Open(f.Config, log); err == nil || !strings.Contains(err.Error(), f.CertFile) {
		t.Errorf("a key of another certificate: %v", err)
	}
}

func TestOpen_RefusesEmptyFiles(t *testing.T) {
	f := newFolder(t)
	for _, name := range []string{f.CertFile, f.KeyFile} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := webcert.Open(f.Config, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("there is no certificate, and nobody says so")
	}
}

func TestSource_FollowsTheFilesAndKeepsWhatWorks(t *testing.T) {
	f := newFolder(t)
	var log logtest.Transcript
	synctest.Test(t, func(t *testing.T) {
		s, err := webcert.Open(f.Config, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		for _, step := range []struct {
			name, cert, key, want, says string
		}{
			{"as it was", "first", "first", "first", ""},
			{"renewed", "second", "second", "second", "reloaded"},
			{"half written", "third", "second", "second", "keeping the previous one"},
			{"written", "third", "third", "third", "reloaded"},
		} {
			f.put(step.cert, step.key)
			time.Sleep(10*time.Second + 1)
			synctest.Wait()
			if got := shown(t, s); got != step.want {
				t.Errorf("step %s: %s", step.name, got)
			}
			if step.says != "" && !strings.Contains(log.String(), step.says) {
				t.Errorf("step %s: the log does not say %q", step.name, step.says)
			}
		}
		if err := os.Remove(f.KeyFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := shown(t, s); got != "third" {
			t.Errorf("a file that is gone: %s", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
