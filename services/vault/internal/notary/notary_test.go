package notary_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/chain"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/notary"
	"phasekey.dev/services/vault/internal/store"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// office is a database with a notary and two replicas that record.
type office struct {
	t        testing.TB
	db       *sqldb.DB
	replicas []*store.Store
	log      bytes.Buffer
	metrics  *prometheus.Registry // of the notary that was made last
	file     string
	now      time.Time
	n        int
}

func inOffice(t *testing.T, test func(o *office)) {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	sqldbtest.Run(t, migrations, func(t *testing.T, db *sqldb.DB) {
		o := &office{t: t, db: db, now: start, file: filepath.Join(t.TempDir(), "checkpoints")}
		for range 2 {
			o.replicas = append(o.replicas, store.New(db, audittest.Keys(1)))
		}
		test(o)
	})
}

// record has a replica record so many events.
func (o *office) record(replica, n int) {
	o.t.Helper()
	for range n {
		o.n++
		_, err := o.replicas[replica].FreezeAccount(o.t.Context(), o.now, fmt.Sprint("account-", o.n), "a reason", grant.Caller{Identity: "spiffe://phasekey.dev/operator"})
		if err != nil {
			o.t.Fatal(err)
		}
	}
}

func (o *office) notary(keys audit.Keys) *notary.Notary {
	o.metrics = prometheus.NewRegistry()
	return notary.New(notary.Config{
		Store: o.replicas[0], Keys: keys, Taken: store.ErrChanged, Retention: 40 * 24 * time.Hour, Log: slog.New(slog.NewTextHandler(&o.log, nil)),
		Metrics: o.metrics,
	})
}

// sign lets time pass, and has the notary sign.
func (o *office) sign(n *notary.Notary, after time.Duration) {
	o.t.Helper()
	o.now = o.now.Add(after)
	if err := n.Checkpoint(o.t.Context(), o.now); err != nil {
		o.t.Fatal(err)
	}
}

func (o *office) exec(query string, args ...any) {
	o.t.Helper()
	if err := o.db.Tx(o.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	}); err != nil {
		o.t.Fatal(err)
	}
}

// verify reads the trail from a time on as anybody may who has the key of data key 1.
func (o *office) verify(from time.Time) chain.Report {
	o.t.Helper()
	signer, err := audit.Signer(o.t.Context(), audittest.Keys(1), 1)
	if err != nil {
		o.t.Fatal(err)
	}
	v := chain.NewVerifier(audit.Public(signer), 2*notary.Interval)
	err = notary.Export(o.t.Context(), o.replicas[1], from, time.Time{}, func(item notary.Item) error {
		if item.Checkpoint != nil {
			v.Checkpoint(item.Checkpoint.Signed)
			return nil
		}
		r, err := item.Chained()
		v.Record(r)
		return err
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return v.Report()
}

// fanOut has a replica give so many runners something, each by itself and then all at once.
func (o *office) fanOut(replica, n int) {
	o.t.Helper()
	s, ctx := o.replicas[replica], o.t.Context()
	if err := o.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, 1) }); err != nil {
		o.t.Fatal(err)
	}
	at := store.Projection{Incarnation: "registry", Revision: 1, BookmarkTime: o.now}
	if err := s.ReplaceProjection(ctx, o.now, at, store.Wanted{
		Integrations: []store.Integration{{UID: "uid", Name: "accounts/acme/integrations/read", TenantID: "tenant", Cloud: "public"}},
		Projects:     []store.Project{{UID: "network", Name: "accounts/acme/projects/network"}},
		Attachments:  []store.Attachment{{UID: "att", IntegrationUID: "uid", ProjectUID: "network", Reads: true}},
	}); err != nil {
		o.t.Fatal(err)
	}
	o.exec(`INSERT INTO applications (integration_uid, shard, next_time, client_id) VALUES ('uid', 0, 0, 'client') ON CONFLICT (integration_uid) DO NOTHING`)
	o.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time, end_time, propagate_time,
		prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since, attempts, next_time, reason)
		VALUES ('v', 'uid', 1, 'ACTIVE', 'v', '', NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '') ON CONFLICT (id) DO NOTHING`)
	fan := store.FanOut{VersionID: "v", Material: lease.AccessToken, Reason: "ROTATED", Audience: "https://management.azure.com", ExpireTime: o.now.Add(time.Hour)}
	for range n {
		o.n++
		_, hash := grant.Mint()
		g, err := grant.New(o.now, fmt.Sprint("grant-", o.n), grant.Request{Account: "acme", Project: "accounts/acme/projects/network", Phase: grant.Planning, Run: "run"},
			grant.Resolution{Integration: "accounts/acme/integrations/read", IntegrationUID: "uid", ProjectUID: "network", SubscriptionID: "sub", Incarnation: "registry", Revision: 1})
		if err != nil {
			o.t.Fatal(err)
		}
		if _, err := s.CreateGrant(ctx, o.now, g, hash, grant.RequestKey{}, grant.Caller{}); err != nil {
			o.t.Fatal(err)
		}
		if _, err := s.Deliver(ctx, o.now, store.Delivery{GrantUID: g.UID, InstanceID: "a", VersionID: "v", Material: lease.AccessToken, Reason: "INITIAL", ExpireTime: o.now.Add(time.Hour)}); err != nil {
			o.t.Fatal(err)
		}
		fan.To = append(fan.To, store.Recipient{GrantUID: g.UID, InstanceID: "a"})
	}
	reached, err := s.FanOut(ctx, o.now, fan)
	if err != nil || reached[0].Lease.Generation != 2 {
		o.t.Fatal(reached, err)
	}
}

func (o *office) count(query string) (n int) {
	o.t.Helper()
	if err := o.db.ReadTx(o.t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return tx.QueryRow(ctx, query).Scan(&n) }); err != nil {
		o.t.Fatal(err)
	}
	return n
}

// A fan-out is signed as it was recorded, and says the same when it has become the events that it stands for, which is soon.
func TestNotary_SignsAndExpandsFanOuts(t *testing.T) {
	inOffice(t, func(o *office) {
		o.now = time.Now().Add(-time.Hour).Truncate(time.Microsecond)
		n := o.notary(audittest.Keys(1))
		o.fanOut(0, 20) // with 3 records each, and then one
		o.sign(n, 0)
		o.record(0, 1)
		o.fanOut(0, 3)
		o.sign(n, time.Minute)
		o.fanOut(1, 2)
		pending := `SELECT COUNT(*) FROM audit_fanouts`
		if left := o.count(pending); left != 3 {
			o.t.Errorf("%d are yet to be expanded", left)
		}
		ctx, stop := context.WithCancel(o.t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Run(ctx) }()
		for late := time.After(time.Minute); o.count(pending) > 0; {
			select {
			case <-late:
				o.t.Fatal("it expands nothing")
			case <-time.After(time.Millisecond):
			}
		}
		stop()
		if err := <-ended; err != nil {
			o.t.Error(err)
		}
		if r := o.verify(time.Time{}); !r.Whole() || r.Records != 60+1+1+9+1+6+1 || strings.Contains(o.log.String(), "changed") {
			o.t.Errorf("%+v, %s", r, &o.log)
		}
		if events := o.count(`SELECT COUNT(*) FROM audit_events WHERE place > 0`); events != 19+2+1 {
			o.t.Errorf("%d events that are not their record's first", events)
		}
	})
}

func TestNotary_SignsWhatCanBeVerified(t *testing.T) {
	inOffice(t, func(o *office) {
		n := o.notary(audittest.Keys(1))
		o.record(0, 3)
		o.record(1, 2)
		o.sign(n, 0)
		o.record(0, 4)
		o.sign(n, time.Minute)
		o.sign(n, 30*time.Second) // not due
		o.record(1, 1)
		r := o.verify(time.Time{})
		if !r.Whole() || r.Records != 10 || r.Checkpoints != 2 || r.Unsigned != 1 || !r.SignedUntil.Equal(start.Add(time.Minute)) {
			o.t.Errorf("%+v", r)
		}
	})
}

// Whoever has the database but no key is found, whatever is done to the records.
func TestNotary_FindsWhatWasDone(t *testing.T) {
	const second = `(SELECT MIN(writer) FROM audit_events)`
	for _, tt := range []struct {
		name string
		do   []string
		want chain.Kind
	}{
		{"changed", []string{`UPDATE audit_events SET account = 'other' WHERE seq = 2`}, chain.Changed},
		{"a hash of its own", []string{`UPDATE audit_events SET account = 'other', hash = 'abababababababababababababababababababababababababababababababab' WHERE seq = 2`}, chain.Changed},
		{"one is missing", []string{`DELETE FROM audit_events WHERE seq = 4`}, chain.Gap},
		{"the end is missing", []string{`DELETE FROM audit_events WHERE seq > 2`}, chain.Truncated},
		{"two changed places", []string{`UPDATE audit_events SET seq = 100 WHERE seq = 2`, `UPDATE audit_events SET seq = 2 WHERE seq = 3`, `UPDATE audit_events SET seq = 3 WHERE seq = 100`}, chain.Changed},
		{"an event was added to a record", []string{`INSERT INTO audit_events (writer, seq, place, time, kind, actor, request_id, account, grant_uid, lease_uid, instance_id, generation, integration_uid, project_uid,
			version_id, reason, audience, client_request_id, expire_time) SELECT writer, seq, 1, time, kind, actor, request_id, account, grant_uid, 'l', instance_id,
			generation, integration_uid, project_uid, version_id, reason, audience, client_request_id, expire_time FROM audit_events WHERE seq = 2`}, chain.Changed},
		{"a foreign writer's", []string{`INSERT INTO audit_events (writer, seq, place, time, kind, actor, request_id, account, grant_uid, lease_uid, instance_id, generation,
			integration_uid, project_uid, version_id, reason, audience, client_request_id, expire_time) SELECT 'somebody', 1, 0, time + 90000000, kind, actor, request_id, account,
			grant_uid, '', instance_id, generation, integration_uid, project_uid, version_id, reason, audience, client_request_id, expire_time FROM audit_events
			WHERE seq = 2 AND writer = ` + second}, chain.Foreign},
		{"a checkpoint is missing", []string{`DELETE FROM audit_checkpoints WHERE number = 2`}, chain.Checkpoints},
		{"a checkpoint was changed", []string{`UPDATE audit_checkpoints SET signature = payload WHERE number = 2`}, chain.Signature},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inOffice(t, func(o *office) {
				n := o.notary(audittest.Keys(1))
				for range 4 {
					o.record(0, 3)
					o.record(1, 3)
					o.sign(n, time.Minute)
				}
				if r := o.verify(time.Time{}); !r.Whole() {
					t.Fatalf("before: %+v", r)
				}
				for _, query := range tt.do {
					o.exec(query)
				}
				r := o.verify(time.Time{})
				found := false
				for _, p := range r.Problems {
					found = found || p.Kind == tt.want
				}
				if r.Whole() || !found {
					t.Errorf("%+v, want %s", r, tt.want)
				}
			})
		})
	}
}

// What is changed before it is signed is not signed: without the key nobody writes a record that bears its MAC.
func TestNotary_SignsNothingThatTheVaultDidNotWrite(t *testing.T) {
	inOffice(t, func(o *office) {
		n := o.notary(audittest.Keys(1))
		o.record(0, 2)
		o.record(1, 2)
		o.sign(n, 0)
		o.record(0, 2)
		o.record(1, 2)
		// As whoever knows how hashes are made can: the last record and the writer's row anew, with all hashes right.
		forged, err := o.replicas[0].AuditRecords(t.Context(), o.writers()[0], 2, 4)
		if err != nil || len(forged) != 2 {
			t.Fatal(err, forged)
		}
		forged[1].Entries[0].Account = "innocent"
		content, err := audit.Content(forged[1].Entries)
		if err != nil {
			t.Fatal(err)
		}
		hash := chain.Next(forged[0].Hash, forged[1].Writer, 4, content).String()
		o.exec(`UPDATE audit_events SET account = 'innocent', hash = $1 WHERE writer = $2 AND seq = 4`, hash, forged[1].Writer)
		o.exec(`UPDATE audit_writers SET hash = $1 WHERE writer = $2`, hash, forged[1].Writer)
		o.sign(n, time.Minute)
		if !strings.Contains(o.log.String(), "changed by somebody else") || !strings.Contains(o.log.String(), forged[1].Writer) {
			t.Errorf("log: %s", o.log.String())
		}
		// The other chain goes on being signed, and of this one what is whole.
		if r := o.verify(time.Time{}); !r.Whole() || r.Unsigned != 1 {
			t.Errorf("%+v", r)
		}
		for range 4 {
			o.sign(n, time.Minute)
		}
		if r := o.verify(time.Time{}); r.Whole() || r.Problems[0].Kind != chain.Foreign {
			t.Errorf("later: %+v", r)
		}
	})
}

// Whatever was done to a chain since the last checkpoint, it is told, and signed no further than it is whole; the other chain goes on.
func TestNotary_TellsOfChainsThatWereChanged(t *testing.T) {
	for name, tt := range map[string]struct {
		do    string
		whole int64
	}{
		"contents under the same hash": {`UPDATE audit_events SET account = 'innocent' WHERE writer = $1 AND seq = 4`, 3},
		"the newest was removed":       {`DELETE FROM audit_events WHERE writer = $1 AND seq = 4`, 3},
		"all since then was removed":   {`DELETE FROM audit_events WHERE writer = $1 AND seq > 2`, 2},
		"its end was set back":         {`UPDATE audit_writers SET seq = 1 WHERE writer = $1`, 2},
		"one in between was removed":   {`DELETE FROM audit_events WHERE writer = $1 AND seq = 3`, 2},
	} {
		t.Run(name, func(t *testing.T) {
			inOffice(t, func(o *office) {
				n := o.notary(audittest.Keys(1))
				for replica := range 2 {
					o.record(replica, 2)
				}
				o.sign(n, 0)
				for replica := range 2 {
					o.record(replica, 2)
				}
				if got := o.alarm(); got != 0 {
					t.Fatalf("alarm %v before", got)
				}
				writer := o.writers()[0]
				o.exec(tt.do, writer)
				o.sign(n, time.Minute)
				if said := o.log.String(); o.alarm() != 1 || !strings.Contains(said, writer) || !strings.Contains(said, fmt.Sprint("whole_until=", tt.whole)) {
					t.Errorf("alarm %v, log: %s", o.alarm(), said)
				}
				heads, err := o.replicas[0].AuditHeads(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				signed := map[bool]int64{}
				for _, h := range heads {
					signed[h.Writer == writer] = h.Seq
				}
				if signed[true] != tt.whole || signed[false] != 4 {
					t.Errorf("signed until %v, want %d, and 4 of the other", signed, tt.whole)
				}
			})
		})
	}
}

// A checkpoint that the vault has not signed, or not as that one, is not followed: what it says would be believed from then on.
func TestNotary_FollowsNoForgedCheckpoint(t *testing.T) {
	for name, do := range map[string]string{
		"signed by nobody":    `UPDATE audit_checkpoints SET signature = payload WHERE number = 2`,
		"with other contents": `UPDATE audit_checkpoints SET payload = (SELECT payload FROM audit_checkpoints WHERE number = 1) WHERE number = 2`,
		"an earlier one": `UPDATE audit_checkpoints SET payload = (SELECT payload FROM audit_checkpoints WHERE number = 1),
			signature = (SELECT signature FROM audit_checkpoints WHERE number = 1) WHERE number = 2`,
	} {
		t.Run(name, func(t *testing.T) {
			inOffice(t, func(o *office) {
				n := o.notary(audittest.Keys(1))
				o.record(0, 2)
				o.sign(n, 0)
				o.record(0, 2)
				o.sign(n, time.Minute)
				o.exec(do)
				o.record(0, 2)
				err := n.Checkpoint(t.Context(), o.now.Add(time.Minute))
				if err == nil || !strings.Contains(err.Error(), "audit checkpoint 2 was changed") || o.alarm() != 1 {
					t.Errorf("error %v, alarm %v", err, o.alarm())
				}
				if last, err := o.replicas[0].LastCheckpoint(t.Context()); err != nil || last.Number != 2 {
					t.Errorf("the newest is %d, %v", last.Number, err)
				}
			})
		})
	}
}

// alarm is how many chains the notary that was made last says are broken.
func (o *office) alarm() float64 {
	o.t.Helper()
	families, err := o.metrics.Gather()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "phasekey_vault_audit_broken_chains" {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	o.t.Fatal("there is no such gauge")
	return 0
}

func (o *office) writers() []string {
	o.t.Helper()
	all, err := o.replicas[0].AuditWriters(o.t.Context(), "", 10)
	if err != nil {
		o.t.Fatal(err)
	}
	return all
}

// With another data key records and checkpoints are made by its keys; whoever trusts the former key is led to it.
func TestNotary_HandsOverToTheNextKey(t *testing.T) {
	inOffice(t, func(o *office) {
		o.record(0, 2)
		o.sign(o.notary(audittest.Keys(1)), 0)
		o.replicas = append(o.replicas, store.New(o.db, audittest.Keys(2)))
		o.record(2, 2)
		n := o.notary(audittest.Keys(2))
		o.sign(n, time.Minute)
		o.record(0, 1)
		o.sign(n, time.Minute)
		// A replica that has not heard of it yet.
		o.sign(o.notary(audittest.Keys(1)), time.Minute)
		if r := o.verify(time.Time{}); !r.Whole() || r.Checkpoints != 4 || r.Records != 5 {
			t.Errorf("%+v", r)
		}
	})
}

func TestNotary_ForgetsWhatIsOld(t *testing.T) {
	inOffice(t, func(o *office) {
		n := o.notary(audittest.Keys(1))
		for day := range 60 {
			o.record(0, 2)
			o.sign(n, 24*time.Hour)
			if day != 30 {
				continue
			}
			// Nothing is old yet.
			if err := n.Forget(t.Context(), o.now); err != nil {
				t.Fatal(err)
			}
			if r := o.verify(time.Time{}); !r.Whole() || r.Records != 62 || r.Checkpoints != 31 {
				t.Errorf("after a month %+v", r)
			}
		}
		o.record(1, 1)
		before := o.verify(time.Time{})
		if err := n.Forget(t.Context(), o.now); err != nil {
			t.Fatal(err)
		}
		r := o.verify(time.Time{})
		if !before.Whole() || !r.Whole() || before.Records != 121 || r.Records != 81 || r.Checkpoints != 41 {
			t.Errorf("before %+v, after %+v", before, r)
		}
		// From the middle: one begins at the full checkpoint before.
		if r := o.verify(o.now.Add(-36 * time.Hour)); !r.Whole() || r.Records != 5 {
			t.Errorf("%+v", r)
		}
	})
}

// The file goes on where it ended, also when it ended with half a line.
func TestNotary_WritesCheckpointsToAFile(t *testing.T) {
	inOffice(t, func(o *office) {
		n := o.notary(audittest.Keys(1))
		write := func(numbers ...int64) {
			t.Helper()
			if err := notary.WriteFile(t.Context(), o.file, o.replicas[0]); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(o.file)
			if err != nil {
				t.Fatal(err)
			}
			var have []int64
			for line := range strings.Lines(string(text)) {
				var s chain.Signed
				if err := json.Unmarshal([]byte(line), &s); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				c, err := s.Unverified()
				if err != nil {
					t.Fatal(err)
				}
				have = append(have, c.Number)
			}
			if fmt.Sprint(have) != fmt.Sprint(numbers) {
				t.Errorf("file has %v, want %v", have, numbers)
			}
		}
		o.record(0, 1)
		o.sign(n, 0)
		o.sign(n, time.Minute)
		write(1, 2)
		f, err := os.OpenFile(o.file, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(`{"payload":"e`); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		o.sign(n, time.Minute)
		write(1, 2, 3)
	})
}
