package chain_test

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"
	"time"

	"phasekey.dev/pkg/chain"
)

var (
	start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key   = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	other = ed25519.NewKeyFromSeed([]byte("another seed of thirty-two bytes"))
)

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

// trail is what a verifier reads: records and checkpoints in order.
type trail []any

// written has so many rounds, a minute each: two records of writer a, one of b, and a checkpoint, which is full every third time.
func written(t *testing.T, rounds int, sign func(round int) (by ed25519.PrivateKey, next ed25519.PublicKey)) trail {
	t.Helper()
	var out trail
	heads := map[string]chain.Head{}
	var previous chain.Hash
	for round := 1; round <= rounds; round++ {
		now := start.Add(time.Duration(round) * time.Minute)
		for i, writer := range []string{"a", "a", "b"} {
			h := heads[writer]
			content := fmt.Appendf(nil, `{"round":%d,"i":%d}`, round, i)
			next := chain.Head{Writer: writer, Seq: h.Seq + 1, Hash: chain.Next(h.Hash, writer, h.Seq+1, content)}
			heads[writer] = next
			out = append(out, chain.Record{Writer: writer, Seq: next.Seq, Time: now, Content: content, Hash: next.Hash})
		}
		by, next := sign(round)
		signed, err := chain.Sign(chain.Checkpoint{
			Number: int64(round), Time: now, Previous: previous, Full: round%3 == 1, Heads: []chain.Head{heads["a"], heads["b"]}, NextKey: next,
		}, by)
		if err != nil {
			t.Fatal(err)
		}
		previous = signed.Digest()
		out = append(out, signed)
	}
	return out
}

func (tr trail) verify(by ed25519.PublicKey) chain.Report {
	v := chain.NewVerifier(by, 2*time.Minute)
	for _, item := range tr {
		switch item := item.(type) {
		case chain.Record:
			v.Record(item)
		case chain.Signed:
			v.Checkpoint(item)
		}
	}
	return v.Report()
}

func alone(int) (ed25519.PrivateKey, ed25519.PublicKey) { return key, nil }

func TestVerifier_FindsWhereATrailWasCut(t *testing.T) {
	longer := written(t, 7, alone) // of four items each round
	whole := longer[:24]
	// Whoever has the key, or had it, signs what does not follow from what was signed before.
	last, err := whole[23].(chain.Signed).Open(public(key))
	if err != nil {
		t.Fatal(err)
	}
	forked, back := last, last
	forked.Previous = whole[15].(chain.Signed).Digest()
	back.Heads = []chain.Head{{Writer: "a", Seq: 9, Hash: whole[16].(chain.Record).Hash}, last.Heads[1]}
	for name, tt := range map[string]struct {
		trail trail
		want  chain.Kind // empty for none
	}{
		"whole":                                {whole, ""},
		"from a full checkpoint":               {whole[15:], ""}, // the fourth
		"from one that is not full":            {whole[11:], chain.Begin},
		"from records in the middle":           {whole[12:], chain.Gap},
		"from the second round's records":      {whole[4:], chain.Gap},
		"without its end":                      {whole[:20], ""}, // which only somebody finds who keeps checkpoints
		"without its end, but a checkpoint":    {slices.Concat(whole[:20], whole[23:]), chain.Truncated},
		"without a round":                      {slices.Concat(whole[:8], whole[12:]), chain.Gap},
		"without a checkpoint":                 {slices.Concat(whole[:7], whole[8:]), chain.Checkpoints},
		"with a checkpoint twice":              {slices.Concat(whole[:8], whole[7:]), chain.Checkpoints},
		"with checkpoints in another order":    {slices.Concat(whole[:3], whole[7:8], whole[4:7], whole[3:4], whole[8:]), chain.Checkpoints},
		"with a checkpoint of another past":    {slices.Concat(whole[:23], trail{signed(t, forked)}), chain.Checkpoints},
		"with a checkpoint that takes back":    {slices.Concat(whole[:20], whole[22:23], trail{signed(t, back)}), chain.Checkpoints},
		"with a record twice":                  {slices.Concat(whole[:2], whole[1:]), chain.Gap},
		"with a record before its time":        {slices.Concat(whole[:23], longer[24:25], whole[23:]), chain.Gap},
		"with records that nobody ever signed": {slices.Concat(whole, records("c", start)), chain.Foreign},
		"with an old one before a new one":     {slices.Concat(whole, records("c", start, start.Add(5*time.Minute))), chain.Foreign},
		"with records that are too new":        {slices.Concat(whole, records("c", start.Add(5*time.Minute))), ""},
	} {
		r := tt.trail.verify(public(key))
		found := r.Whole() && tt.want == "" || slices.ContainsFunc(r.Problems, func(p chain.Problem) bool { return p.Kind == tt.want })
		if !found || r.Whole() != (tt.want == "") {
			t.Errorf("%s: %+v, want %q", name, r, tt.want)
		}
	}
}

func signed(t *testing.T, c chain.Checkpoint) chain.Signed {
	t.Helper()
	s, err := chain.Sign(c, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// records are a chain from its beginning.
func records(writer string, at ...time.Time) trail {
	var out trail
	content, before := []byte("{}"), chain.Hash{}
	for i, each := range at {
		seq := int64(i + 1)
		before = chain.Next(before, writer, seq, content)
		out = append(out, chain.Record{Writer: writer, Seq: seq, Time: each, Content: content, Hash: before})
	}
	return out
}

// Each key names the next; whoever makes one up is not believed.
func TestVerifier_FollowsKeys(t *testing.T) {
	handed := written(t, 4, func(round int) (ed25519.PrivateKey, ed25519.PublicKey) {
		switch {
		case round == 2:
			return key, public(other)
		case round > 2:
			return other, nil
		default:
			return key, nil
		}
	})
	if r := handed.verify(public(key)); !r.Whole() || r.Checkpoints != 4 {
		t.Errorf("handed over: %+v", r)
	}
	if r := handed.verify(public(other)); r.Whole() || r.Problems[0].Kind != chain.Signature {
		t.Errorf("by the later key: %+v", r)
	}
	if r := handed[15:].verify(public(other)); !r.Whole() {
		t.Errorf("by the later key, from its own: %+v", r)
	}
	taken := written(t, 4, func(round int) (ed25519.PrivateKey, ed25519.PublicKey) {
		if round > 2 {
			return other, nil
		}
		return key, nil
	})
	if r := taken.verify(public(key)); r.Whole() || r.Problems[0].Kind != chain.Signature {
		t.Errorf("taken over: %+v", r)
	}
}

// FuzzNext: what differs in anything has another hash, wherever writer and content part.
func FuzzNext(f *testing.F) {
	f.Add("a", int64(1), "bc", "ab", int64(1), "c")
	f.Add("", int64(0), "", "", int64(-1), "")
	f.Fuzz(func(t *testing.T, w1 string, s1 int64, c1, w2 string, s2 int64, c2 string) {
		same := w1 == w2 && s1 == s2 && c1 == c2
		if (chain.Next(chain.Hash{1}, w1, s1, []byte(c1)) == chain.Next(chain.Hash{1}, w2, s2, []byte(c2))) != same {
			t.Errorf("%q %d %q and %q %d %q", w1, s1, c1, w2, s2, c2)
		}
		if h := chain.Next(chain.Hash{1}, w1, s1, []byte(c1)); true {
			var back chain.Hash
			if err := back.UnmarshalText([]byte(h.String())); err != nil || back != h {
				t.Errorf("%s: %v", h, err)
			}
			if back.UnmarshalText([]byte(h.String()[:63])) == nil || back.UnmarshalText([]byte(h.String()+"0")) == nil {
				t.Error("a hash of another length is taken")
			}
		}
	})
}
