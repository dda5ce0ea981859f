package operator

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/chain"
)

var eventView = view[*vaultv1.AuditEvent]{
	{head: "TIME", cell: func(e *vaultv1.AuditEvent) string { return at(e.GetEventTime()) }},
	{head: "KIND", cell: (*vaultv1.AuditEvent).GetKind},
	{head: "WHO", cell: (*vaultv1.AuditEvent).GetActor},
	{head: "RUN", cell: (*vaultv1.AuditEvent).GetRun},
	{head: "PROJECT", cell: func(e *vaultv1.AuditEvent) string { return id(e.GetProject()) }},
	{head: "INTEGRATION", cell: func(e *vaultv1.AuditEvent) string { return id(e.GetIntegration()) }},
	{head: "GRANT", cell: func(e *vaultv1.AuditEvent) string { return id(e.GetGrant()) }},
	{head: "INSTANCE", cell: (*vaultv1.AuditEvent).GetInstanceId},
	{head: "REASON", cell: (*vaultv1.AuditEvent).GetReason},
}

func audit(o *options) *cobra.Command {
	return noun("audit", "What happened, and whether that is still all of it", o.listAudit(), o.tailAudit(), o.exportAudit(), o.auditKey(), o.verifyAudit())
}

func (s *session) audit() (vaultv1.AuditServiceClient, error) {
	conn, err := s.vault()
	return vaultv1.NewAuditServiceClient(conn), err
}

func (o *options) listAudit() *cobra.Command {
	var filter string
	c := o.long(o.watchable(o.verb("list", "Show what happened in an account, the newest first", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.audit()
		if err != nil {
			return err
		}
		parent, err := s.parent()
		if err != nil {
			return err
		}
		return show(ctx, s.printer, eventView, func(ctx context.Context, size int32, token string) (*vaultv1.ListAuditEventsResponse, error) {
			return client.ListAuditEvents(ctx, &vaultv1.ListAuditEventsRequest{Parent: parent, PageSize: size, PageToken: token, Filter: filter})
		}, func(r *vaultv1.ListAuditEventsResponse) *[]*vaultv1.AuditEvent { return &r.AuditEvents })
	})))
	c.Flags().StringVar(&filter, "filter", "", `which, after AIP-160: 'kind = CredentialDelivered AND run = "run-1"'`)
	return c
}

// exportRange has the flags of an export.
type exportRange struct{ start, end string }

func (r *exportRange) flags(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&r.start, "start", "", "from a day before this time (RFC 3339) at the earliest; everything otherwise")
	c.Flags().StringVar(&r.end, "end", "", "to the first checkpoint of this time (RFC 3339); to the end otherwise")
	return c
}

func (r *exportRange) request() (*vaultv1.ExportAuditEventsRequest, error) {
	req := &vaultv1.ExportAuditEventsRequest{}
	for _, f := range []struct {
		flag, text string
		to         **timestamppb.Timestamp
	}{{"start", r.start, &req.StartTime}, {"end", r.end, &req.EndTime}} {
		if f.text == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, f.text)
		if err != nil {
			return nil, fmt.Errorf("--%s: say a time like 2006-01-02T15:04:05Z", f.flag)
		}
		*f.to = timestamppb.New(t)
	}
	return req, nil
}

// export calls give with each item of the trail.
func (s *session) export(ctx context.Context, r *exportRange, give func(*vaultv1.ExportAuditEventsResponse) error) error {
	req, err := r.request()
	if err != nil {
		return err
	}
	client, err := s.audit()
	if err != nil {
		return err
	}
	stream, err := client.ExportAuditEvents(ctx, req)
	if err != nil {
		return err
	}
	for {
		item, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := give(item); err != nil {
			return err
		}
	}
}

func (o *options) exportAudit() *cobra.Command {
	var r exportRange
	return r.flags(o.verb("export", "Write the trail of all accounts to standard output, a line of JSON a record, to be kept and verified", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		out := bufio.NewWriter(s.out)
		if err := s.export(ctx, &r, func(item *vaultv1.ExportAuditEventsResponse) error {
			line, err := protojson.MarshalOptions{}.Marshal(item)
			if err != nil {
				return err
			}
			_, err = out.Write(append(line, '\n'))
			return err
		}); err != nil {
			return errors.Join(err, out.Flush())
		}
		return out.Flush()
	}))
}

func (o *options) auditKey() *cobra.Command {
	return o.verb("key", "Print the public key that signs the next checkpoint, to be kept where the vault's operators cannot change it", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.audit()
		if err != nil {
			return err
		}
		answer, err := client.ListAuditCheckpoints(ctx, &vaultv1.ListAuditCheckpointsRequest{PageSize: 1})
		if err != nil {
			return err
		}
		if s.json {
			return s.document(answer)
		}
		_, err = fmt.Fprintln(s.out, base64.StdEncoding.EncodeToString(answer.GetPublicKey()))
		return err
	})
}

// verifyLag is how much older than the newest checkpoint a record may be that none covers: two come in that time.
const verifyLag = 3 * time.Minute

func (o *options) verifyAudit() *cobra.Command {
	var (
		r               exportRange
		key, file, kept string
		maxAge          time.Duration
		check           *trailCheck
	)
	c := o.verb("verify", "Find out whether the trail is whole: nothing changed, missing, moved, added or cut off", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		if err := s.export(ctx, &r, check.take); err != nil {
			return err
		}
		return check.finish(s.out, s.json, time.Now(), maxAge)
	})
	live := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if maxAge < 0 {
			return errors.New("--max-age: say how old it may be, such as 10m; 0 for any age")
		}
		public, err := base64.StdEncoding.DecodeString(key)
		if err != nil || len(public) != ed25519.PublicKeySize {
			return errors.New("--key: say the key that `phasekey audit key` printed when the trail began")
		}
		req, err := r.request()
		if err != nil {
			return err
		}
		check = &trailCheck{verifier: chain.NewVerifier(public, verifyLag)}
		if end := req.GetEndTime(); end != nil {
			check.end = end.AsTime()
		}
		if kept != "" {
			if err := check.keep(kept); err != nil {
				return fmt.Errorf("--checkpoints: %w", err)
			}
		}
		if file == "" {
			return live(c, args)
		}
		if r.start != "" {
			return errors.New("--start: a file is verified from its beginning; `phasekey audit export --start` writes one that begins later")
		}
		if check.end.IsZero() && !c.Flags().Changed("max-age") {
			maxAge = 0 // a file grows old
		}
		if err := readItems(file, check.take); err != nil {
			return fmt.Errorf("--file: %w", err)
		}
		return check.finish(c.OutOrStdout(), o.output == outputJSON, time.Now(), maxAge)
	}
	r.flags(c)
	c.Flags().Lookup("end").Usage = "judge the trail up to this time (RFC 3339), not up to now; a file must reach it"
	c.Flags().StringVar(&key, "key", "", "the public key of the first checkpoint, as `phasekey audit key` printed it")
	c.Flags().StringVar(&file, "file", "", "verify what `phasekey audit export` wrote, and ask nobody")
	c.Flags().StringVar(&kept, "checkpoints", "", "checkpoints that were kept elsewhere (audit.checkpoint_file): the trail must agree with them")
	c.Flags().DurationVar(&maxAge, "max-age", 10*time.Minute, "how old the newest checkpoint may be, now or at --end; 0 for any age")
	return c
}

// readItems reads what `audit export` wrote.
func readItems(name string, give func(*vaultv1.ExportAuditEventsResponse) error) error {
	f, err := os.Open(name) //nolint:gosec // the file that the flag names
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d: it is not whole", n)
		}
		var item vaultv1.ExportAuditEventsResponse
		if err := protojson.Unmarshal(line, &item); err != nil {
			return fmt.Errorf("line %d is not of an export", n)
		}
		if err := give(&item); err != nil {
			return err
		}
	}
}

// trailCheck verifies a trail as it comes.
type trailCheck struct {
	verifier *chain.Verifier
	// end is up to when the trail is judged; zero for now.
	end time.Time
	// kept are the digests of checkpoints that were kept elsewhere, by number; newest is the last of them until end, seen the last of the trail.
	kept         map[int64]chain.Hash
	newest, seen int64
	differ       []int64
}

func (t *trailCheck) keep(name string) error {
	f, err := os.Open(name) //nolint:gosec // the file that the flag names
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	t.kept = map[int64]chain.Hash{}
	lines := json.NewDecoder(bufio.NewReader(f))
	for {
		var s chain.Signed
		err := lines.Decode(&s)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c, err := s.Unverified()
		if err != nil {
			return err
		}
		t.kept[c.Number] = s.Digest()
		if t.end.IsZero() || !c.Time.After(t.end) {
			t.newest = max(t.newest, c.Number)
		}
	}
}

func (t *trailCheck) take(item *vaultv1.ExportAuditEventsResponse) error {
	if c := item.GetCheckpoint(); c != nil {
		s := chain.Signed{Payload: c.GetPayload(), Signature: c.GetSignature()}
		if said, err := s.Unverified(); err == nil {
			t.seen = max(t.seen, said.Number)
			if digest, ok := t.kept[said.Number]; ok && digest != s.Digest() {
				t.differ = append(t.differ, said.Number)
			}
		}
		t.verifier.Checkpoint(s)
		return nil
	}
	r := item.GetRecord()
	record := chain.Record{Writer: r.GetWriter(), Seq: r.GetSequence(), Time: r.GetRecordTime().AsTime(), Content: r.GetContent()}
	if len(r.GetHash()) > 0 {
		var err error
		if record.Hash, err = chain.HashOf(r.GetHash()); err != nil {
			return fmt.Errorf("record %d of %s: %w", record.Seq, record.Writer, err)
		}
	}
	t.verifier.Record(record)
	return nil
}

var errNotWhole = errors.New("the audit trail is not whole: keep the export, and find out who could write to the vault's database")

// finish says what was found; its error is not nil when anything is wrong.
func (t *trailCheck) finish(out io.Writer, asJSON bool, now time.Time, maxAge time.Duration) error {
	report := t.verifier.Report()
	var more []string
	for _, n := range t.differ {
		more = append(more, fmt.Sprintf("KEPT checkpoint %d: another one was kept", n))
	}
	if t.seen < t.newest {
		more = append(more, fmt.Sprintf("KEPT checkpoint %d was kept, and the trail ends at checkpoint %d", t.newest, t.seen))
	}
	reached, old := now, "old"
	if !t.end.IsZero() && t.end.Before(now) {
		reached, old = t.end, "older than --end"
	}
	switch age := reached.Sub(report.SignedUntil); {
	case report.Checkpoints == 0:
		more = append(more, "UNSIGNED: there is no checkpoint that the key signed")
	case maxAge > 0 && age > maxAge:
		more = append(more, fmt.Sprintf("OLD: the newest checkpoint is %s %s", age.Round(time.Second), old))
	}
	if asJSON {
		text, err := json.MarshalIndent(struct {
			chain.Report
			Kept  []string `json:"kept,omitempty"`
			Whole bool     `json:"whole"`
		}{report, more, report.Whole() && len(more) == 0}, "", "  ")
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, string(text)); err != nil {
			return err
		}
	} else {
		for _, p := range report.Problems {
			more = append(more, p.String())
		}
		if rest := report.Found - int64(len(report.Problems)); rest > 0 {
			more = append(more, fmt.Sprintf("and %d problems more", rest))
		}
		for _, line := range more {
			if _, err := fmt.Fprintln(out, clean(line)); err != nil {
				return err
			}
		}
		until := none
		if !report.SignedUntil.IsZero() {
			until = report.SignedUntil.UTC().Format(time.RFC3339)
		}
		if _, err := fmt.Fprintf(out, "%d records, %d checkpoints, signed until %s; %d records not signed yet\n", report.Records, report.Checkpoints, until, report.Unsigned); err != nil {
			return err
		}
		if report.Unchained > 0 {
			if _, err := fmt.Fprintf(out, "%d records of before there were chains: nothing is known of them\n", report.Unchained); err != nil {
				return err
			}
		}
	}
	if !report.Whole() || len(more) > 0 {
		return errNotWhole
	}
	return nil
}
