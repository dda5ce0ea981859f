package fault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/test/internal/rigtest"
)

// TestKeys does what docs/operations.md says of keys that are replaced, may have been seen, or are lost, while runners use what they are given.
func TestKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.onboard(t)
	trail := w.beginTrail(t)
	stop := w.work(t)
	for _, step := range []struct {
		name string
		meet func(t *testing.T)
	}{
		{"the key-encryption key may have been seen", w.replaceKEK},
		{"the CA of the certificates is replaced", w.replaceCA},
		{"the key-encryption key is lost, and brought back", w.loseKEK},
	} {
		t.Run(step.name, func(t *testing.T) {
			began := time.Now()
			step.meet(t)
			w.rotated(t, again)
			t.Logf("it took %s", time.Since(began).Round(time.Second))
			w.judge.pronounce(t)
		})
	}
	stop()
	w.judge.pronounce(t)
	t.Run("the audit trail is whole, by the first key", func(t *testing.T) { w.verifyTrail(t, trail) })
	t.Run("a signing key may have been seen", func(t *testing.T) {
		w.dropSigningKey(t, trail)
		w.rotated(t, again)
	})
	t.Run("all signing keys are lost", func(t *testing.T) {
		_, err := w.shards.ExecContext(t.Context(), `DELETE FROM signing_keys`)
		rigtest.Must(t, err)
		for _, v := range w.vaults {
			v.Stop(t)
		}
		for _, v := range w.vaults {
			v.Start(t)
		}
		w.rotated(t, again)
	})
	t.Run("the key-encryption key is lost for good", w.beginAnew)
}

// beginAnew gives the vaults an empty database and a new key. The registry knows what there is to be, and Entra ID has the applications: customers are asked for nothing, and what
// runs may hold stays for now.
func (w *world) beginAnew(t *testing.T) {
	for _, v := range w.vaults {
		v.Stop(t)
	}
	stay := w.passwordsStay(t) // from now on: until then what was replaced was removed in its time
	empty := database(w.postgres.Config(t))
	for _, v := range w.vaults {
		w.set(t, v, map[string]any{"kek": "file://" + filepath.Join(w.Dir, "anew.key"), "database": empty})
	}
	w.vaultd(t, "init")
	w.vaultd(t, "recover")
	for _, v := range w.vaults {
		v.Start(t)
	}
	w.rotated(t, again)
	stop := w.work(t)
	w.rotated(t, again)
	w.rotated(t, again)
	stop()
	w.judge.pronounce(t)
	stay()
}

// dropSigningKey drops the key that signs, which no replica serves then.
func (w *world) dropSigningKey(t *testing.T, trail *auditTrail) {
	states := func() map[string]string {
		out, err := w.phasekey(t, trail, "signing-keys", "list", "-o", "json")
		rigtest.Must(t, err)
		var listed struct {
			SigningKeys []struct{ Name, State string }
		}
		rigtest.Must(t, json.Unmarshal([]byte(out), &listed))
		found := map[string]string{}
		for _, k := range listed.SigningKeys {
			found[strings.TrimPrefix(k.Name, "signingKeys/")] = k.State
		}
		return found
	}
	seen := ""
	for key, state := range states() {
		if state == "STATE_SIGNING" {
			seen = key
		}
	}
	_, err := w.phasekey(t, trail, "signing-keys", "rotate", "--compromised", seen, "--yes")
	rigtest.Must(t, err)
	if now := states()[seen]; now != "STATE_REMOVED" {
		t.Errorf("%s is %s", seen, now)
	}
	pem, err := os.ReadFile(w.CA.CAFile())
	rigtest.Must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	way := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: "localhost"}, DisableKeepAlives: true}
	for _, v := range w.vaults {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://vaults/.well-known/jwks.json", http.NoBody)
		rigtest.Must(t, err)
		rigtest.Await(t, again, func(context.Context) error {
			answer, err := ask(way, request, v.issuer)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(answer.Body)
			if err == nil && bytes.Contains(text, []byte(seen)) {
				return notYet("%s still serves %s", v.Name, seen)
			}
			return err
		})
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	rigtest.Must(t, err)
	rigtest.Must(t, os.WriteFile(to, text, 0o600))
}

// set changes a vault's configuration for its next start; nil takes a setting out.
func (w *world) set(t *testing.T, v *vault, changes map[string]any) {
	t.Helper()
	file := v.Command[len(v.Command)-1]
	text, err := os.ReadFile(file)
	rigtest.Must(t, err)
	var config map[string]any
	rigtest.Must(t, json.Unmarshal(text, &config))
	for name, value := range changes {
		if value == nil {
			delete(config, name)
			continue
		}
		config[name] = value
	}
	w.Configure(t, v.Name, config)
}

// restart stops and starts every vault, one after another, each with the changes.
func (w *world) restart(t *testing.T, changes map[string]any) {
	t.Helper()
	for _, v := range w.vaults {
		w.set(t, v, changes)
		v.Stop(t)
		v.Start(t)
	}
}

func (w *world) vaultd(t *testing.T, command string, arguments ...string) {
	t.Helper()
	execute(t, rigtest.Binary(t, "vaultd"), append([]string{command, "--config", filepath.Join(w.Dir, "vault-1.yaml")}, arguments...)...)
}

// replaceKEK replaces the key-encryption key, and the data key that whoever had it could have unwrapped.
func (w *world) replaceKEK(t *testing.T) {
	former, next := w.kek, filepath.Join(w.Dir, "vault-2.key")
	w.restart(t, map[string]any{"next_kek": "file://" + next})
	w.vaultd(t, "rewrap", "--to", "file://"+next)
	w.restart(t, map[string]any{"kek": "file://" + next, "next_kek": nil})
	rigtest.Must(t, os.Remove(former))
	w.kek = next
	w.vaultd(t, "rekey")
}

// loseKEK takes the key-encryption key away, and brings it back from its copy. Meanwhile no vault starts, and those that run go on.
func (w *world) loseKEK(t *testing.T) {
	rigtest.Must(t, os.Rename(w.kek, w.kek+".copy"))
	v := w.vaults[0]
	v.Stop(t)
	again := rigtest.Process{Name: v.Name, Command: v.Command}
	again.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), rigtest.StartTimeout)
	defer cancel()
	if err := again.Ended(ctx); err == nil || !strings.Contains(again.Output.Tail(), "key file is missing") {
		t.Errorf("without the key a vault ends with %v:\n%s", err, again.Output.Tail())
	}
	w.rotated(t, 2*time.Minute)
	rigtest.Must(t, os.Rename(w.kek+".copy", w.kek))
	v.Start(t)
}

// replaceCA replaces the CA of all services' certificates and clients', and these, without a restart. Then a certificate of the former CA is worth nothing.
func (w *world) replaceCA(t *testing.T) {
	dir := filepath.Dir(w.CA.CAFile())
	next := w.nextCA
	former := rigtest.Files{CertFile: filepath.Join(w.Dir, "former.pem"), KeyFile: filepath.Join(w.Dir, "former-key.pem"), CAFile: next.CAFile()}
	copyFile(t, filepath.Join(dir, "platform.pem"), former.CertFile)
	copyFile(t, filepath.Join(dir, "platform-key.pem"), former.KeyFile)

	w.reloaded(t, "both CAs", func() {
		old, err := os.ReadFile(w.CA.CAFile())
		rigtest.Must(t, err)
		added, err := os.ReadFile(next.CAFile())
		rigtest.Must(t, err)
		rigtest.Must(t, os.WriteFile(w.CA.CAFile(), append(old, added...), 0o600))
	})
	w.reloaded(t, "the new CA's certificates", func() {
		for _, role := range []string{"registry", "vault", "platform", "operator"} {
			made, err := next.Issue(time.Now(), role, devca.Leaf{ID: rigtest.TrustDomain + role, DNS: []string{"localhost"}, IPs: []net.IP{net.ParseIP(w.IP)}})
			rigtest.Must(t, err)
			copyFile(t, made.Key, filepath.Join(dir, role+"-key.pem"))
			copyFile(t, made.Cert, filepath.Join(dir, role+".pem"))
		}
	})
	for _, address := range w.listeners() {
		rigtest.Await(t, again, func(ctx context.Context) error { return shows(ctx, address, next.CAFile()) })
	}
	w.reloaded(t, "the new CA alone", func() { copyFile(t, next.CAFile(), w.CA.CAFile()) })
	source := rigtest.Follow(t, mtls.Config{CertFile: former.CertFile, KeyFile: former.KeyFile, CAFile: former.CAFile})
	for _, v := range w.vaults {
		conn := rigtest.Dial(t, grpcclient.Config{Target: v.services, TLS: source.ClientConfig(rigtest.TrustDomain + "vault")})
		_, err := vaultv1.NewRotationServiceClient(conn).ListCredentialVersions(t.Context(), &vaultv1.ListCredentialVersionsRequest{Parent: w.integrations[0].name})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s answers a certificate of the former CA: %v", v.Name, err)
		}
	}
	w.vaults[0].Stop(t)
	w.vaults[0].Start(t)
}

// listeners are where somebody is shown a service's certificate.
func (w *world) listeners() []string {
	all := []string{w.registryd.Answers[0]}
	for _, v := range w.vaults {
		all = append(all, v.Answers...)
	}
	return all
}

// shows reports whether a listener shows a certificate of a CA's.
func shows(ctx context.Context, address, caFile string) error {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conn, err := (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost"}}).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	return conn.Close()
}

// reloaded changes certificates' files, and waits until each service says that it has read them again.
func (w *world) reloaded(t *testing.T, what string, change func()) {
	t.Helper()
	all := []*rigtest.Process{w.registryd}
	for _, v := range w.vaults {
		all = append(all, &v.Process)
	}
	before := map[string]int{}
	for _, p := range all {
		before[p.Name] = len(records(p, "certificate files reloaded"))
	}
	change()
	for _, p := range all {
		rigtest.Await(t, again, func(context.Context) error {
			if len(records(p, "certificate files reloaded")) == before[p.Name] {
				return notYet("%s has not read %s", p.Name, what)
			}
			return nil
		})
	}
}

// auditTrail is what an auditor has.
type auditTrail struct {
	contexts, key, kept string
	// begun is when there was one checkpoint.
	begun time.Time
}

// phasekey runs the command as an operator, and returns what it prints. What reads the audit it runs again for as long as the database does not answer, as the
// command says: whoever stood still in the midst of reading was cut off.
func (w *world) phasekey(t *testing.T, trail *auditTrail, arguments ...string) (string, error) {
	t.Helper()
	for late := time.Now().Add(again); ; pause(t, time.Second) {
		command := exec.CommandContext(t.Context(), rigtest.Binary(t, "phasekey"), append(slices.Clone(arguments), "--contexts-file", trail.contexts)...)
		var out, said bytes.Buffer
		command.Stdout, command.Stderr = &out, &said
		err := command.Run()
		if err != nil && arguments[0] == "audit" && strings.Contains(said.String(), "DEPENDENCY_UNAVAILABLE") && time.Now().Before(late) {
			continue
		}
		if err != nil {
			err = fmt.Errorf("phasekey %v: %w: %s%s", arguments, err, out.Bytes(), said.Bytes())
		}
		return strings.TrimSpace(out.String()), err
	}
}

// beginTrail takes down the key that signs the first checkpoint.
func (w *world) beginTrail(t *testing.T) *auditTrail {
	t.Helper()
	me := w.Certificate(t, "operator")
	trail := &auditTrail{contexts: filepath.Join(w.Dir, "contexts.yaml"), kept: filepath.Join(w.Dir, "kept")}
	_, err := w.phasekey(t, trail, "context", "set", "fault", "--vault", w.vaults[2].services, "--ca", me.CAFile, "--cert", me.CertFile, "--key", me.KeyFile, "--default-account", "acme")
	rigtest.Must(t, err)
	_, err = w.phasekey(t, trail, "context", "use", "fault")
	rigtest.Must(t, err)
	trail.key, err = w.phasekey(t, trail, "audit", "key")
	rigtest.Must(t, err)
	rigtest.Await(t, 2*time.Minute, func(context.Context) error {
		_, err := w.phasekey(t, trail, "audit", "verify", "--key", trail.key)
		return err
	})
	trail.begun = time.Now()
	return trail
}

// verified is what `audit verify -o json` says.
type verified struct {
	Checkpoints int
	Whole       bool
	Kept        []string
}

func (w *world) verify(t *testing.T, trail *auditTrail, arguments ...string) (v verified, err error) {
	t.Helper()
	out, err := w.phasekey(t, trail, append([]string{"audit", "verify", "--key", trail.key, "-o", "json"}, arguments...)...)
	if jsonErr := json.Unmarshal([]byte(out), &v); jsonErr != nil {
		t.Fatalf("%v: %v: %s", err, jsonErr, out)
	}
	return v, err
}

// verifyTrail has the living trail verified: all of it, up to a time, and after its end was cut off.
func (w *world) verifyTrail(t *testing.T, trail *auditTrail) {
	var whole verified
	rigtest.Await(t, 3*time.Minute, func(context.Context) (err error) {
		if whole, err = w.verify(t, trail); err == nil && whole.Checkpoints < 3 {
			return notYet("there are %d checkpoints", whole.Checkpoints)
		}
		return err
	})
	out, err := w.phasekey(t, trail, "audit", "export")
	rigtest.Must(t, err)
	var kept strings.Builder
	for line := range strings.SplitSeq(out, "\n") {
		var item struct{ Checkpoint json.RawMessage }
		rigtest.Must(t, json.Unmarshal([]byte(line), &item))
		if item.Checkpoint != nil {
			kept.Write(append(item.Checkpoint, '\n'))
		}
	}
	rigtest.Must(t, os.WriteFile(trail.kept, []byte(kept.String()), 0o600))

	end := trail.begun.UTC().Format(time.RFC3339)
	until, err := w.verify(t, trail, "--end", end, "--checkpoints", trail.kept)
	if err != nil || until.Checkpoints >= whole.Checkpoints {
		t.Errorf("up to %s: %+v, of %+v in all: %v", end, until, whole, err)
	}
	// Somebody who can write to the database takes the end away, with its checkpoint.
	var last, before int64
	rigtest.Must(t, w.shards.QueryRowContext(t.Context(), `SELECT number, time FROM audit_checkpoints ORDER BY number DESC LIMIT 1`).Scan(&last, &before))
	rigtest.Must(t, w.shards.QueryRowContext(t.Context(), `SELECT (time + $2) / 2 FROM audit_checkpoints WHERE number = $1`, last-1, before).Scan(&before))
	_, err = w.shards.ExecContext(t.Context(), `DELETE FROM audit_checkpoints WHERE number >= $1`, last)
	rigtest.Must(t, err)
	// The one before may cover what came some time after its own: its time is that of the moment at which it was begun.
	_, err = w.shards.ExecContext(t.Context(), `DELETE FROM audit_events WHERE time > $1`, before)
	rigtest.Must(t, err)
	if v, err := w.verify(t, trail, "--checkpoints", trail.kept); err == nil || len(v.Kept) == 0 {
		t.Errorf("after its end was cut off: %+v, %v", v, err)
	}
	if v, err := w.verify(t, trail, "--end", end, "--checkpoints", trail.kept); err != nil || !v.Whole {
		t.Errorf("up to %s, before the cut: %+v, %v", end, v, err)
	}
}
