// Package notary watches over the audit trail: it reads what has been recorded, signs once a minute how long each process's chain is, writes that
// to a file outside of the database, writes records of fan-outs as the events that they stand for, and forgets what is older than it is to be kept.
//
// It guarantees that it signs nothing that it has not read and found whole: each record follows the one before it, and bears the vault's HMAC. A chain that
// is broken is not signed any further, and is reported for as long as it is so. It guarantees that what is left after forgetting can be verified: a signed
// checkpoint says where each chain goes on. Every replica runs one; whoever comes first signs, and the database refuses a second checkpoint of one number.
package notary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/chain"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/vault/internal/audit"
)

const (
	// Interval is how often there is a checkpoint.
	Interval = time.Minute
	// lookInterval is how often each replica looks whether one is due.
	lookInterval = 10 * time.Second
	// fullInterval is how often a checkpoint names all chains.
	fullInterval = 24 * time.Hour
	// lookTimeout bounds a look. What it did not get to is for the next.
	lookTimeout = 2 * time.Minute
	// maxRecords is how many records of a chain are read for one checkpoint; the rest is for the next.
	maxRecords = 200_000
	// forgetInterval is how often is looked for what is too old, forgetLimit how much is deleted in a transaction.
	forgetInterval = time.Hour
	forgetLimit    = 500
)

// store is what a Notary needs of the store; see store.Store.
type store interface {
	AuditGrowth(ctx context.Context) ([]audit.Growth, error)
	AuditHeads(ctx context.Context) ([]chain.Head, error)
	AuditRecords(ctx context.Context, writer string, after, upTo int64) ([]audit.Record, error)
	LastCheckpoint(ctx context.Context) (audit.Checkpoint, error)
	FullCheckpoint(ctx context.Context, before time.Time) (audit.Checkpoint, error)
	Checkpoints(ctx context.Context, after int64, limit int) ([]audit.Checkpoint, error)
	AddCheckpoint(ctx context.Context, c audit.Checkpoint, heads []chain.Head) error
	ForgetCheckpoints(ctx context.Context, before int64, limit int) (int64, error)
	ForgetRecords(ctx context.Context, writer string, upTo int64, limit int) (int64, error)
	ForgetUnchained(ctx context.Context, before time.Time, limit int) (int64, error)
	ExpandFanOuts(ctx context.Context) error
}

// Config is what a Notary is made from.
type Config struct {
	Store store
	Keys  audit.Keys
	// Taken is the error that Store.AddCheckpoint gives for a number that there is.
	Taken error
	// Retention is for how long records are kept at least; 0 is for ever.
	Retention time.Duration
	// File gets every checkpoint as a line of JSON, appended; empty for none.
	File string
	Log  *slog.Logger
	// Metrics is where metrics are registered; nil registers none.
	Metrics prometheus.Registerer
}

// Notary watches over the audit trail. Its methods are for one goroutine.
type Notary struct {
	config Config
	file   *file
	// told are the chains that were said to be broken, by writer, and at which record.
	told   map[string]int64
	broken prometheus.Gauge
	signed prometheus.Gauge
	forgot time.Time
}

// New makes a Notary.
func New(config Config) *Notary {
	n := &Notary{
		config: config, told: map[string]int64{},
		broken: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "phasekey_vault_audit_broken_chains",
			Help: "Chains of audit records that were changed by somebody else than the vault, as this replica last found them. Anything but 0 is an alarm.",
		}),
		signed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "phasekey_vault_audit_signed_time_seconds",
			Help: "When the newest audit checkpoint that this replica knows was signed, in seconds since 1970. More than five minutes ago is an alarm.",
		}),
	}
	if config.File != "" {
		n.file = &file{name: config.File}
	}
	if config.Metrics != nil {
		config.Metrics.MustRegister(n.broken, n.signed)
	}
	return n
}

// Run watches until ctx ends; it returns nil. A failure is logged once; what was missed is done when it is over.
func (n *Notary) Run(ctx context.Context) error {
	failing := false
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		err := n.look(ctx)
		switch {
		case ctx.Err() != nil:
			return n.file.close()
		case err != nil && !failing:
			n.config.Log.ErrorContext(ctx, "the audit trail cannot be signed", obs.KeyError, err)
		case err == nil && failing:
			n.config.Log.InfoContext(ctx, "the audit trail is signed again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return n.file.close()
		case <-tick.C:
		}
	}
}

func (n *Notary) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	now := time.Now().Truncate(time.Microsecond)
	problems := []error{n.Checkpoint(ctx, now), n.config.Store.ExpandFanOuts(ctx)}
	if n.file != nil {
		problems = append(problems, n.file.follow(ctx, n.config.Store))
	}
	if n.config.Retention > 0 && now.Sub(n.forgot) >= forgetInterval {
		err := n.Forget(ctx, now)
		if err == nil {
			n.forgot = now
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// Checkpoint signs how long the chains are, if the newest checkpoint is older than Interval.
func (n *Notary) Checkpoint(ctx context.Context, now time.Time) error {
	last, err := n.config.Store.LastCheckpoint(ctx)
	if err != nil {
		return err
	}
	if last.Number > 0 {
		n.signed.Set(float64(last.Time.UnixMicro()) / 1e6)
		if now.Sub(last.Time) < Interval {
			return nil
		}
	}
	next, err := n.follow(ctx, now, last)
	if err != nil {
		return err
	}
	grown, err := n.read(ctx)
	if err != nil {
		return err
	}
	next.Heads = grown
	if next.Full {
		if next.Heads, err = n.all(ctx, grown); err != nil {
			return err
		}
	}
	stored := audit.Checkpoint{Number: next.Number, Time: now, Full: next.Full, KeyID: max(last.NextID, 1), NextID: n.config.Keys.Current()}
	if last.Number == 0 {
		stored.KeyID = stored.NextID
	}
	stored.NextID = max(stored.NextID, stored.KeyID)
	if stored.NextID != stored.KeyID {
		following, err := audit.Signer(ctx, n.config.Keys, stored.NextID)
		if err != nil {
			return err
		}
		next.NextKey = audit.Public(following)
	}
	signer, err := audit.Signer(ctx, n.config.Keys, stored.KeyID)
	if err != nil {
		return err
	}
	if stored.Signed, err = chain.Sign(next, signer); err != nil {
		return err
	}
	err = n.config.Store.AddCheckpoint(ctx, stored, grown)
	if errors.Is(err, n.config.Taken) {
		return nil // by another replica
	}
	if err == nil {
		n.signed.Set(float64(now.UnixMicro()) / 1e6)
	}
	return err
}

// follow is a checkpoint that follows the last one, without its heads. One that the vault has not signed is not followed.
func (n *Notary) follow(ctx context.Context, now time.Time, last audit.Checkpoint) (chain.Checkpoint, error) {
	if last.Number == 0 {
		return chain.Checkpoint{Number: 1, Time: now, Full: true}, nil
	}
	signer, err := audit.Signer(ctx, n.config.Keys, last.KeyID)
	if err != nil {
		return chain.Checkpoint{}, err
	}
	said, err := last.Open(audit.Public(signer))
	if err == nil && said.Number != last.Number {
		err = errors.New("it has another number inside")
	}
	if err != nil {
		n.broken.Set(1)
		return chain.Checkpoint{}, fmt.Errorf("audit checkpoint %d was changed: %w", last.Number, err)
	}
	full, err := n.config.Store.FullCheckpoint(ctx, now)
	if err != nil {
		return chain.Checkpoint{}, err
	}
	return chain.Checkpoint{Number: last.Number + 1, Time: now, Previous: last.Digest(), Full: now.Sub(full.Time) >= fullInterval}, nil
}

// read reads what was recorded since the last checkpoint, and returns how far each chain is whole.
func (n *Notary) read(ctx context.Context) ([]chain.Head, error) {
	grown, err := n.config.Store.AuditGrowth(ctx)
	if err != nil {
		return nil, err
	}
	var heads []chain.Head
	broken := 0
	for _, g := range grown {
		head, problem, err := n.readChain(ctx, g)
		if err != nil {
			return nil, err
		}
		if head.Seq > g.From.Seq {
			heads = append(heads, head)
		}
		if problem == nil {
			delete(n.told, head.Writer)
			continue
		}
		broken++
		if at, ok := n.told[head.Writer]; !ok || at != head.Seq {
			n.told[head.Writer] = head.Seq
			n.config.Log.ErrorContext(ctx, "audit records were changed by somebody else than the vault; they are not signed", slog.String("writer", head.Writer),
				slog.Int64("whole_until", head.Seq), slog.Any(obs.KeyError, problem))
		}
	}
	n.broken.Set(float64(broken))
	return heads, nil
}

// readChain follows a chain; problem says why it went no further.
func (n *Notary) readChain(ctx context.Context, g audit.Growth) (head chain.Head, problem, err error) {
	head = g.From
	if g.To < head.Seq {
		return head, fmt.Errorf("it ended at record %d, and ends at %d", head.Seq, g.To), nil
	}
	for read := 0; head.Seq < g.To && read < maxRecords; {
		some, err := n.config.Store.AuditRecords(ctx, head.Writer, head.Seq, g.To)
		if err != nil {
			return head, nil, err
		}
		if len(some) == 0 {
			return head, fmt.Errorf("record %d is missing", head.Seq+1), nil
		}
		read += len(some)
		for _, r := range some {
			if r.Seq != head.Seq+1 {
				return head, fmt.Errorf("record %d is missing", head.Seq+1), nil
			}
			content, err := audit.Content(r.Entries)
			if err != nil {
				return head, nil, err
			}
			if chain.Next(head.Hash, r.Writer, r.Seq, content) != r.Hash {
				return head, fmt.Errorf("record %d, or the one before it, is not what its hash says", r.Seq), nil
			}
			if err := audit.Check(ctx, n.config.Keys, r); errors.Is(err, audit.ErrMAC) {
				return head, fmt.Errorf("record %d: %w", r.Seq, err), nil
			} else if err != nil {
				return head, nil, err
			}
			head.Seq, head.Hash = r.Seq, r.Hash
		}
	}
	return head, nil, nil
}

// all are the heads of all chains, those that have grown as they are now.
func (n *Notary) all(ctx context.Context, grown []chain.Head) ([]chain.Head, error) {
	heads, err := n.config.Store.AuditHeads(ctx)
	if err != nil {
		return nil, err
	}
	at := make(map[string]int, len(heads))
	for i, h := range heads {
		at[h.Writer] = i
	}
	for _, h := range grown {
		if i, ok := at[h.Writer]; ok {
			heads[i] = h
		} else {
			heads = append(heads, h)
		}
	}
	return heads, nil
}

// Forget deletes what is older than Retention, as far as a full checkpoint says where the chains go on.
func (n *Notary) Forget(ctx context.Context, now time.Time) error {
	before := now.Add(-n.config.Retention)
	begin, err := n.config.Store.FullCheckpoint(ctx, before)
	if err != nil || begin.Number == 0 || begin.Time.After(before) {
		return err
	}
	said, err := begin.Unverified()
	if err != nil {
		return err
	}
	// Checkpoints first: a trail that began at an earlier one would lack records.
	for {
		n, err := n.config.Store.ForgetCheckpoints(ctx, begin.Number, forgetLimit)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	for _, h := range said.Heads {
		for {
			n, err := n.config.Store.ForgetRecords(ctx, h.Writer, h.Seq, forgetLimit)
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
		}
	}
	for {
		n, err := n.config.Store.ForgetUnchained(ctx, before, forgetLimit)
		if err != nil || n == 0 {
			return err
		}
	}
}
