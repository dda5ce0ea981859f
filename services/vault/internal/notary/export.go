package notary

import (
	"context"
	"math"
	"time"

	"phasekey.dev/pkg/chain"
	"phasekey.dev/services/vault/internal/audit"
)

// exportLimit is how many checkpoints, or writers, are read at once.
const exportLimit = 200

// trail is what an export reads; see store.Store.
type trail interface {
	AuditRecords(ctx context.Context, writer string, after, upTo int64) ([]audit.Record, error)
	AuditWriters(ctx context.Context, after string, limit int) ([]string, error)
	FullCheckpoint(ctx context.Context, before time.Time) (audit.Checkpoint, error)
	Checkpoints(ctx context.Context, after int64, limit int) ([]audit.Checkpoint, error)
}

// Item is a record or a checkpoint of an export.
type Item struct {
	Record     *audit.Record
	Checkpoint *audit.Checkpoint
}

// Chained is the item's record as package chain takes it.
func (i Item) Chained() (chain.Record, error) {
	content, err := audit.Content(i.Record.Entries)
	return chain.Record{
		Writer: i.Record.Writer, Seq: i.Record.Seq, Time: time.UnixMicro(i.Record.Entries[0].Time).UTC(), Content: content, Hash: i.Record.Hash,
	}, err
}

// Export gives the trail in the order in which a chain.Verifier takes it. It begins with the newest full checkpoint of from or before; where there
// is none, with the oldest full one that is kept, or at the very beginning. It ends with the first checkpoint of until or later; where there is none, or until is
// zero, with all records that no checkpoint covers, whoever wrote them.
func Export(ctx context.Context, from trail, start, until time.Time, give func(Item) error) error {
	e := exporter{from: from, give: give, heads: map[string]int64{}}
	begin, err := from.FullCheckpoint(ctx, start)
	if err != nil {
		return err
	}
	number := int64(0)
	if begin.Number > 1 || begin.Number == 1 && !begin.Time.After(start) {
		said, err := begin.Unverified()
		if err != nil {
			return err
		}
		for _, h := range said.Heads {
			e.heads[h.Writer] = h.Seq
		}
		number = begin.Number
		if err := give(Item{Checkpoint: &begin}); err != nil {
			return err
		}
	}
	for {
		some, err := from.Checkpoints(ctx, number, exportLimit)
		if err != nil {
			return err
		}
		for _, c := range some {
			if err := e.checkpoint(ctx, c); err != nil {
				return err
			}
			number = c.Number
			if !until.IsZero() && !c.Time.Before(until) {
				return nil
			}
		}
		if len(some) == 0 {
			return e.rest(ctx)
		}
	}
}

type exporter struct {
	from  trail
	give  func(Item) error
	heads map[string]int64 // the newest record of each chain that was given
}

// checkpoint gives the records that a checkpoint covers, and the checkpoint.
func (e exporter) checkpoint(ctx context.Context, c audit.Checkpoint) error {
	// What cannot be read covers nothing, and is given for whoever verifies to see.
	said, _ := c.Unverified()
	for _, h := range said.Heads {
		if err := e.records(ctx, h.Writer, e.heads[h.Writer], h.Seq); err != nil {
			return err
		}
		e.heads[h.Writer] = max(e.heads[h.Writer], h.Seq)
	}
	return e.give(Item{Checkpoint: &c})
}

// rest gives what no checkpoint covers.
func (e exporter) rest(ctx context.Context) error {
	after := ""
	for {
		writers, err := e.from.AuditWriters(ctx, after, exportLimit)
		if err != nil || len(writers) == 0 {
			return err
		}
		for _, w := range writers {
			if err := e.records(ctx, w, e.heads[w], math.MaxInt64); err != nil {
				return err
			}
			after = w
		}
	}
}

func (e exporter) records(ctx context.Context, writer string, after, upTo int64) error {
	for after < upTo {
		some, err := e.from.AuditRecords(ctx, writer, after, upTo)
		if err != nil || len(some) == 0 {
			return err
		}
		for i := range some {
			after = some[i].Seq
			if err := e.give(Item{Record: &some[i]}); err != nil {
				return err
			}
		}
	}
	return nil
}
