package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"phasekey.dev/test/internal/rigtest"
)

// baoStorages are where OpenBao keeps its leases. Raft waits for its disk with each; files do not, so they are for orientation.
var baoStorages = []struct { //nolint:gochecknoglobals // a constant
	name     string
	promised bound
}{{"raft", bound{least: 10}}, {"file", bound{}}}

// bao is a server of OpenBao, a peer that makes leases too.
type bao struct {
	rigtest.Process
	origin string
	token  string // root's
	http   *http.Client
}

// newBao starts a server with one place in its storage for leases: one-time passwords for SSH, which cost it nothing but the lease.
func (w *world) newBao(t *testing.T, binary, storage string) *bao {
	t.Helper()
	cert := w.Certificate(t, "vault")
	address, cluster := w.at(t), w.at(t)
	folder := filepath.Join(w.Dir, "bao-"+storage)
	kept := map[string]any{"path": folder}
	if storage == "raft" {
		kept["node_id"] = "one"
	}
	b := &bao{origin: "https://" + address, http: w.callBao()}
	b.Process = rigtest.Process{Name: "OpenBao on " + storage, Answers: []string{address}, Command: []string{binary, "server", "-log-level=error", "-config", w.Configure(t, "bao-"+storage, map[string]any{
		"storage":  map[string]any{storage: kept},
		"listener": []map[string]any{{"tcp": map[string]any{"address": address, "cluster_address": cluster, "tls_cert_file": cert.CertFile, "tls_key_file": cert.KeyFile}}},
		"api_addr": b.origin, "cluster_addr": "https://" + cluster,
	})}}
	rigtest.Must(t, os.Mkdir(folder, 0o700))
	b.Start(t)
	t.Cleanup(func() { b.Kill(t) })
	var made struct {
		Keys      []string `json:"keys"`
		RootToken string   `json:"root_token"`
	}
	rigtest.Must(t, b.call(t.Context(), b.http, http.MethodPut, "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1}, &made))
	rigtest.Must(t, b.call(t.Context(), b.http, http.MethodPut, "sys/unseal", map[string]any{"key": made.Keys[0]}, nil))
	b.token = made.RootToken
	rigtest.Await(t, rigtest.StartTimeout, func(ctx context.Context) error { // it has to become its own leader first
		return b.call(ctx, b.http, http.MethodPost, "sys/mounts/ssh", map[string]any{"type": "ssh"}, nil)
	})
	rigtest.Must(t, b.call(t.Context(), b.http, http.MethodPost, "ssh/roles/runner", map[string]any{
		"key_type": "otp", "default_user": "runner", "cidr_list": "0.0.0.0/0", "ttl": "1h",
	}, nil))
	return b
}

// callBao makes a client with a connection of its own.
func (w *world) callBao() *http.Client {
	config := w.runner.Clone()
	config.NextProtos = nil
	return &http.Client{Timeout: callTimeout, Transport: &http.Transport{TLSClientConfig: config}}
}

// lease has it make a lease.
func (b *bao) lease(ctx context.Context, client *http.Client) error {
	var made struct {
		LeaseID string `json:"lease_id"`
	}
	err := b.call(ctx, client, http.MethodPost, "ssh/creds/runner", map[string]any{"ip": "192.0.2.1"}, &made)
	if err == nil && made.LeaseID == "" {
		err = errors.New("OpenBao has made no lease")
	}
	return err
}

func (b *bao) call(ctx context.Context, client *http.Client, method, path string, body, into any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, b.origin+"/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("X-Vault-Token", b.token)
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	content, err := io.ReadAll(answer.Body)
	switch {
	case err != nil:
		return err
	case answer.StatusCode >= http.StatusMultipleChoices:
		return fmt.Errorf("OpenBao's %s: %s: %s", path, answer.Status, content)
	case into == nil:
		return nil
	}
	return json.Unmarshal(content, into)
}

// leases has callers have leases made for so long.
func (w *world) leases(t *testing.T, of *bao, callers int, d time.Duration) fetched {
	t.Helper()
	return called(t, &of.Process, callers, func() (caller, error) {
		client := w.callBao()
		return caller{
			call:  func(ctx context.Context) error { return of.lease(ctx, client) },
			leave: client.CloseIdleConnections,
		}, nil
	}, nothing, pass(d))
}
