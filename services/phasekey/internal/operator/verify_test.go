package operator

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/chain"
)

var signer = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

const rounds = 3

// exported is a trail of three minutes, in each of which two processes record, one twice, and a checkpoint is signed; then one record more.
func exported(t *testing.T, now time.Time) (items []*vaultv1.ExportAuditEventsResponse, kept []chain.Signed) {
	t.Helper()
	now = now.Add(-rounds * time.Minute)
	heads := map[string]chain.Head{}
	add := func(writer string) {
		h := heads[writer]
		content := fmt.Appendf(nil, `[{"kind":"GrantCreated","run":"%s-%d"}]`, writer, h.Seq+1)
		h = chain.Head{Writer: writer, Seq: h.Seq + 1, Hash: chain.Next(h.Hash, writer, h.Seq+1, content)}
		heads[writer] = h
		items = append(items, &vaultv1.ExportAuditEventsResponse{Item: &vaultv1.ExportAuditEventsResponse_Record{Record: &vaultv1.AuditRecord{
			Writer: writer, Sequence: h.Seq, RecordTime: timestamppb.New(now), Content: content, Hash: h.Hash[:], Mac: []byte("mac"), MacKeyId: 1,
		}}})
	}
	var previous chain.Hash
	for n := range int64(rounds) {
		add("a")
		add("a")
		add("b")
		now = now.Add(time.Minute)
		signed, err := chain.Sign(chain.Checkpoint{Number: n + 1, Time: now, Previous: previous, Full: n == 0, Heads: []chain.Head{heads["a"], heads["b"]}}, signer)
		if err != nil {
			t.Fatal(err)
		}
		previous = signed.Digest()
		kept = append(kept, signed)
		items = append(items, &vaultv1.ExportAuditEventsResponse{Item: &vaultv1.ExportAuditEventsResponse_Checkpoint{Checkpoint: &vaultv1.AuditCheckpoint{
			Number: n + 1, SignTime: timestamppb.New(now), Payload: signed.Payload, Signature: signed.Signature,
		}}})
	}
	add("a")
	return items, kept
}

// written is a trail as `audit export` writes it.
func written(t *testing.T, items []*vaultv1.ExportAuditEventsResponse) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, item := range items {
		line, err := protojson.Marshal(item)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(line, '\n'))
	}
	return out.Bytes()
}

// verified runs `audit verify` on a file.
func verified(t *testing.T, export []byte, key ed25519.PublicKey, args ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "export.jsonl")
	if err := os.WriteFile(file, export, 0o600); err != nil {
		t.Fatal(err)
	}
	commands := Commands(func(string) (string, bool) { return "", false })
	c := commands[slices.IndexFunc(commands, func(c *cobra.Command) bool { return c.Name() == "audit" })]
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&out)
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(append([]string{"verify", "--file", file, "--key", base64.StdEncoding.EncodeToString(key)}, args...))
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestVerifyAudit(t *testing.T) {
	public := signer.Public().(ed25519.PublicKey)
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	type trail = []*vaultv1.ExportAuditEventsResponse
	keptFile := func(kept []chain.Signed) string {
		file := filepath.Join(t.TempDir(), "kept")
		var text bytes.Buffer
		for _, s := range kept {
			if err := json.NewEncoder(&text).Encode(s); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	now := time.Now()
	_, kept := exported(t, now)
	ago := func(d time.Duration) string { return now.Add(-d).Format(time.RFC3339Nano) }
	for _, tt := range []struct {
		name   string
		change func(trail) trail
		key    ed25519.PublicKey
		args   []string
		// says are what is printed; a trail is whole when whole is so.
		says  []string
		whole bool
	}{
		{name: "as it was written", says: []string{"10 records, 3 checkpoints", "1 records not signed yet"}, whole: true},
		{name: "a record was changed", change: func(items trail) trail {
			items[5].GetRecord().Content = []byte(`[{"kind":"GrantCreated","run":"other"}]`)
			return items
		}, says: []string{"CHANGED writer a record 4"}},
		{name: "a record was changed, and its hash", change: func(items trail) trail {
			r := items[6].GetRecord()
			r.Content = []byte(`[{"kind":"GrantCreated","run":"other"}]`)
			hash := chain.Next(chain.Hash(items[2].GetRecord().GetHash()), "b", 2, r.GetContent())
			r.Hash = hash[:]
			return items
		}, says: []string{"REPLACED writer b record 2"}},
		{name: "a record is missing", change: func(items trail) trail { return slices.Delete(items, 4, 5) }, says: []string{"GAP writer a record 4"}},
		{name: "the newest of a minute are missing", change: func(items trail) trail { return slices.Delete(items, 9, 10) }, says: []string{"TRUNCATED writer a record 6"}},
		{name: "two records changed places", change: func(items trail) trail {
			items[4], items[5] = items[5], items[4]
			return items
		}, says: []string{"GAP writer a"}},
		{name: "a record was added", change: func(items trail) trail {
			content := []byte(`[{"kind":"GrantCreated"}]`)
			hash := chain.Next(chain.Hash{}, "c", 1, content)
			return append(items, &vaultv1.ExportAuditEventsResponse{Item: &vaultv1.ExportAuditEventsResponse_Record{Record: &vaultv1.AuditRecord{
				Writer: "c", Sequence: 1, RecordTime: timestamppb.New(time.Now().Add(-time.Hour)), Content: content, Hash: hash[:],
			}}})
		}, says: []string{"FOREIGN writer c record 1"}},
		{name: "a checkpoint is missing", change: func(items trail) trail { return slices.Delete(items, 7, 8) }, says: []string{"CHECKPOINTS"}},
		{name: "the beginning is missing", change: func(items trail) trail { return items[7:] }, says: []string{"BEGIN"}},
		{name: "the end was cut off with its checkpoint", change: func(items trail) trail { return items[:8] },
			says: []string{"6 records, 2 checkpoints"}, whole: true}, // which nobody can tell who kept nothing
		{name: "the same, by who kept checkpoints", change: func(items trail) trail { return items[:8] }, args: []string{"--checkpoints", keptFile(kept)},
			says: []string{"KEPT checkpoint 3 was kept, and the trail ends at checkpoint 2"}},
		{name: "another checkpoint was kept", args: []string{"--checkpoints", keptFile([]chain.Signed{kept[0], {Payload: []byte(`{"number":2}`)}, kept[2]})},
			says: []string{"KEPT checkpoint 2: another one was kept"}},
		{name: "what was kept agrees", args: []string{"--checkpoints", keptFile(kept)}, says: []string{"10 records"}, whole: true},
		{name: "another key", key: stranger, says: []string{"SIGNATURE", "UNSIGNED"}},
		{name: "nothing", change: func(trail) trail { return nil }, says: []string{"UNSIGNED"}},
		{name: "an old file", args: []string{"--max-age", "1ns"}, says: []string{"OLD: the newest checkpoint is"}},
		{name: "an older export, judged at its end", change: func(items trail) trail { return items[:8] },
			args: []string{"--checkpoints", keptFile(kept), "--end", ago(90 * time.Second)}, says: []string{"6 records, 2 checkpoints"}, whole: true},
		{name: "an older export whose end was cut off", change: func(items trail) trail { return items[:4] },
			args: []string{"--checkpoints", keptFile(kept), "--end", ago(time.Minute)},
			says: []string{"KEPT checkpoint 2 was kept, and the trail ends at checkpoint 1"}},
		{name: "an end that the trail does not reach", change: func(items trail) trail { return items[:8] },
			args: []string{"--end", ago(10 * time.Second), "--max-age", "40s"}, says: []string{"OLD: the newest checkpoint is 50s older than --end"}},
		{name: "an end that an old file does not reach", change: func(trail) trail {
			items, _ := exported(t, now.Add(-time.Hour))
			return items
		}, args: []string{"--end", ago(30 * time.Minute)}, says: []string{"OLD: the newest checkpoint is 30m0s older than --end"}},
		{name: "an end of long ago", args: []string{"--end", "2001-01-01T00:00:00Z"}, says: []string{"10 records"}, whole: true},
		{name: "an end to come", change: func(items trail) trail { return items[:8] }, args: []string{"--end", ago(-time.Hour)}, says: []string{"6 records"}, whole: true},
		{name: "for programs", args: []string{"-o", "json"}, says: []string{`"whole": true`, `"records": 10`}, whole: true},
		{name: "for programs, not whole", change: func(items trail) trail { return slices.Delete(items, 4, 5) }, args: []string{"-o", "json"}, says: []string{`"whole": false`, `"GAP"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			items, _ := exported(t, now)
			if tt.change == nil {
				tt.change = func(items trail) trail { return items }
			}
			if tt.key == nil {
				tt.key = public
			}
			out, err := verified(t, written(t, tt.change(items)), tt.key, tt.args...)
			for _, want := range tt.says {
				if !strings.Contains(out, want) {
					t.Errorf("does not say %q:\n%s", want, out)
				}
			}
			if (err == nil) != tt.whole {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}

func TestVerifyAudit_WhatIsNoExport(t *testing.T) {
	public := signer.Public().(ed25519.PublicKey)
	items, _ := exported(t, time.Now())
	whole := written(t, items)
	for name, tt := range map[string]struct {
		export []byte
		key    ed25519.PublicKey
		args   []string
		says   string
	}{
		"cut within a line": {whole[:len(whole)-20], public, nil, "--file: line 13: it is not whole"},
		"another file":      {[]byte("{\"hello\":1}\n"), public, nil, "--file: line 1 is not of an export"},
		"no hash":           {bytes.Replace(whole, []byte(`"hash":"`), []byte(`"hash":"AAAA`), 1), public, nil, "record 1 of a"},
		"no key":            {whole, public[:31], nil, "--key: say the key"},
		"a part of a file":  {whole, public, []string{"--start", "2026-01-02T15:04:05Z"}, "--start: a file is verified from its beginning"},
		"no time":           {whole, public, []string{"--end", "yesterday"}, "--end: say a time like"},
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := verified(t, tt.export, tt.key, tt.args...); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
