package chain

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"
)

// Kind is what is wrong with a trail.
type Kind string

// The kinds of problems there are.
const (
	// Signature: a checkpoint is not signed by the key that it should be.
	Signature Kind = "SIGNATURE"
	// Checkpoints: one is missing, out of order, or does not follow the one before it.
	Checkpoints Kind = "CHECKPOINTS"
	// Begin: the trail does not begin at a first record, nor at a full checkpoint.
	Begin Kind = "BEGIN"
	// Gap: records of a chain are missing, or out of order.
	Gap Kind = "GAP"
	// Changed: a record is not what its hash says.
	Changed Kind = "CHANGED"
	// Truncated: a checkpoint names a record that is not there.
	Truncated Kind = "TRUNCATED"
	// Replaced: a record is not the one that a checkpoint names.
	Replaced Kind = "REPLACED"
	// Foreign: a record that a later checkpoint should cover, and none does.
	Foreign Kind = "FOREIGN"
)

// Problem is one thing that is wrong.
type Problem struct {
	Kind Kind `json:"kind"`
	// Writer and Seq are the record's; empty where it is about a checkpoint.
	Writer string `json:"writer,omitempty"`
	Seq    int64  `json:"seq,omitempty"`
	// Checkpoint is the number of the one at which it was found; 0 before the first.
	Checkpoint int64  `json:"checkpoint,omitempty"`
	Detail     string `json:"detail"`
}

func (p Problem) String() string {
	at := ""
	if p.Writer != "" {
		at = fmt.Sprintf(" writer %s record %d", p.Writer, p.Seq)
	}
	if p.Checkpoint != 0 {
		at += fmt.Sprintf(" checkpoint %d", p.Checkpoint)
	}
	return fmt.Sprintf("%s%s: %s", p.Kind, at, p.Detail)
}

// maxProblems bounds what is kept: the first say what happened.
const maxProblems = 100

// Record is one record of a chain, as it was exported.
type Record struct {
	Writer  string
	Seq     int64
	Time    time.Time
	Content []byte
	// Hash is what the record says of itself.
	Hash Hash
}

// Report is what a Verifier found.
type Report struct {
	Records     int64 `json:"records"`
	Checkpoints int64 `json:"checkpoints"`
	// SignedUntil is the newest checkpoint's time, zero without one; Unsigned counts records that it does not cover.
	SignedUntil time.Time `json:"signed_until"`
	Unsigned    int64     `json:"unsigned"`
	// Unchained counts records without a hash, of before records were chained: nothing is known of them.
	Unchained int64 `json:"unchained"`
	// Problems are at most the first 100; Found is how many there were.
	Problems []Problem `json:"problems,omitempty"`
	Found    int64     `json:"found"`
}

// Whole tells whether nothing is wrong.
func (r Report) Whole() bool { return r.Found == 0 }

// Verifier reads a trail in this order: a full checkpoint to begin at, or nothing for a trail from its very beginning; then, for each
// checkpoint, the records that it covers, by writer and number, and the checkpoint; then the records that none covers. It holds no more than the chains'
// heads. It is for one goroutine.
type Verifier struct {
	// lag is how much older than the newest checkpoint a record may be that no checkpoint covers.
	lag    time.Duration
	key    ed25519.PublicKey
	begun  bool      // something came
	first  time.Time // of the first checkpoint
	number int64
	digest Hash
	report Report
	heads  map[string]*head
}

type head struct {
	seq    int64
	hash   Hash
	signed int64 // the newest number that a checkpoint covers
	// lost: the chain is broken, and was said to be; it goes on from the next record that says where.
	lost bool
	// tail are the times of the oldest record that no checkpoint covers.
	tail time.Time
}

// NewVerifier makes a verifier that trusts the key, and those to which it hands over. A record that is older than the newest checkpoint by more than
// lag, and covered by none, is Foreign.
func NewVerifier(key ed25519.PublicKey, lag time.Duration) *Verifier {
	return &Verifier{key: key, lag: lag, heads: map[string]*head{}}
}

func (v *Verifier) problem(p Problem) {
	v.report.Found++
	if len(v.report.Problems) < maxProblems {
		v.report.Problems = append(v.report.Problems, p)
	}
}

// Checkpoint takes the next checkpoint.
func (v *Verifier) Checkpoint(s Signed) {
	c, err := s.Open(v.key)
	if err != nil {
		claimed, _ := s.Unverified()
		v.problem(Problem{Kind: Signature, Checkpoint: claimed.Number, Detail: err.Error()})
		return
	}
	v.report.Checkpoints++
	v.report.SignedUntil = c.Time
	if v.first.IsZero() {
		v.first = c.Time
	}
	if len(c.NextKey) > 0 {
		v.key = c.NextKey
	}
	if !v.begun && v.number == 0 {
		v.begin(c, s)
		return
	}
	switch {
	case v.number == 0 && c.Number != 1:
		v.problem(Problem{Kind: Checkpoints, Checkpoint: c.Number, Detail: "the trail begins with first records, and this is not the first checkpoint"})
	case c.Number != v.number+1 || c.Previous != v.digest:
		v.problem(Problem{Kind: Checkpoints, Checkpoint: c.Number, Detail: fmt.Sprintf("does not follow checkpoint %d", v.number)})
	}
	v.number, v.digest = c.Number, s.Digest()
	for _, h := range c.Heads {
		v.cover(c, h)
	}
}

// begin takes a full checkpoint as where everything goes on.
func (v *Verifier) begin(c Checkpoint, s Signed) {
	v.begun, v.number, v.digest = true, c.Number, s.Digest()
	if !c.Full {
		v.problem(Problem{Kind: Begin, Checkpoint: c.Number, Detail: "it does not name all chains, so none can begin at it"})
	}
	for _, h := range c.Heads {
		v.heads[h.Writer] = &head{seq: h.Seq, hash: h.Hash, signed: h.Seq}
	}
}

func (v *Verifier) cover(c Checkpoint, named Head) {
	have := v.heads[named.Writer]
	if have == nil {
		have = &head{}
		v.heads[named.Writer] = have
	}
	at := Problem{Writer: named.Writer, Seq: named.Seq, Checkpoint: c.Number}
	switch {
	case named.Seq < have.signed:
		at.Kind, at.Detail = Checkpoints, fmt.Sprintf("an earlier checkpoint named record %d", have.signed)
	case named.Seq > have.seq:
		at.Kind, at.Detail = Truncated, fmt.Sprintf("the chain ends at record %d", have.seq)
	case named.Seq < have.seq:
		at.Kind, at.Detail = Gap, fmt.Sprintf("record %d came before this checkpoint", have.seq)
	case named.Hash != have.hash && !have.lost:
		at.Kind, at.Detail = Replaced, "another record has this number"
	}
	if at.Kind != "" {
		v.problem(at)
	}
	*have = head{seq: named.Seq, hash: named.Hash, signed: named.Seq}
}

// Record takes the next record.
func (v *Verifier) Record(r Record) {
	v.begun = true
	v.report.Records++
	if r.Hash == (Hash{}) {
		v.report.Unchained++
		if !v.first.IsZero() && r.Time.After(v.first) {
			v.problem(Problem{Kind: Foreign, Writer: r.Writer, Seq: r.Seq, Checkpoint: v.number, Detail: "it has no hash, and is of a time when all had one"})
		}
		return
	}
	have := v.heads[r.Writer]
	if have == nil {
		have = &head{}
		v.heads[r.Writer] = have
	}
	at := Problem{Writer: r.Writer, Seq: r.Seq}
	if v.number > 0 {
		at.Checkpoint = v.number
	}
	before := have.hash
	switch {
	case r.Seq != have.seq+1:
		at.Kind, at.Detail = Gap, fmt.Sprintf("record %d was due", have.seq+1)
		v.problem(at)
		have.lost = true
	case Next(before, r.Writer, r.Seq, r.Content) != r.Hash:
		at.Kind, at.Detail = Changed, "its contents, or the record before it, are not what its hash says"
		v.problem(at)
		have.lost = true
	}
	// From what it says of itself, so that one mistake is one problem.
	have.seq, have.hash = r.Seq, r.Hash
	if have.tail.IsZero() || r.Time.Before(have.tail) {
		have.tail = r.Time
	}
}

// Report says what was found; nothing may follow.
func (v *Verifier) Report() Report {
	for _, writer := range sortedWriters(v.heads) {
		h := v.heads[writer]
		if h.seq <= h.signed {
			continue
		}
		v.report.Unsigned += h.seq - h.signed
		if !v.report.SignedUntil.IsZero() && h.tail.Before(v.report.SignedUntil.Add(-v.lag)) {
			v.problem(Problem{Kind: Foreign, Writer: writer, Seq: h.signed + 1, Checkpoint: v.number,
				Detail: fmt.Sprintf("it is of %s, and no checkpoint covers it", h.tail.UTC().Format(time.RFC3339))})
		}
	}
	return v.report
}

func sortedWriters(heads map[string]*head) []string {
	all := make([]string, 0, len(heads))
	for writer := range heads {
		all = append(all, writer)
	}
	slices.Sort(all)
	return all
}
