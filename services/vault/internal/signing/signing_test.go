package signing_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/signing"
)

var (
	now    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	timing = signing.Production()
)

func ago(d time.Duration) time.Time { return now.Add(-d) }

func published(number int64, since time.Duration) signing.Key {
	return signing.Key{ID: fmt.Sprint("k", number), Number: number, State: signing.Published, PublishTime: ago(since), Sealed: []byte("private")}
}

func signs(number int64, since time.Duration) signing.Key {
	k := published(number, since+timing.Publish)
	k.State, k.SignTime = signing.Signing, ago(since)
	return k
}

func replaced(k signing.Key, since time.Duration) signing.Key {
	k.ReplaceTime = ago(since)
	return k
}

func retired(number int64, since time.Duration) signing.Key {
	k := signs(number, since+timing.Period)
	k.State, k.RetireTime = signing.Retired, ago(since)
	return k
}

// with is a key in another state.
func with(k signing.Key, change func(*signing.Key)) signing.Key {
	change(&k)
	return k
}

func TestDecide(t *testing.T) {
	const day = 24 * time.Hour
	begins := func(k *signing.Key) { k.State, k.SignTime = signing.Signing, now }
	for _, tt := range []struct {
		name  string
		facts signing.Facts
		want  signing.Action
	}{
		{"nothing yet", signing.Facts{}, signing.Make{Number: 1}},
		{"the first key signs at once", signing.Facts{Keys: []signing.Key{published(1, 0)}, LastNumber: 1},
			signing.Move{From: signing.Published, Key: with(published(1, 0), begins)}},
		{"a next key is published long before it is needed", signing.Facts{Keys: []signing.Key{signs(1, 0)}, LastNumber: 1}, signing.Make{Number: 2}},
		{"numbers are never used again", signing.Facts{Keys: []signing.Key{signs(1, 0)}, LastNumber: 7}, signing.Make{Number: 8}},
		{"in the middle of a period", signing.Facts{Keys: []signing.Key{signs(1, 5*day), published(2, 5*day)}}, signing.Wait{Until: now.Add(time.Minute)}},
		{"the period is over", signing.Facts{Keys: []signing.Key{signs(1, 30*day), published(2, 30*day)}},
			signing.Move{From: signing.Published, Key: with(published(2, 30*day), begins)}},
		{"the period is over, and the next key is not known everywhere", signing.Facts{Keys: []signing.Key{signs(1, 30*day), published(2, day-time.Second)}},
			signing.Wait{Until: now.Add(time.Second)}},
		{"wanted, and published for a day", signing.Facts{Keys: []signing.Key{replaced(signs(1, 2*day), time.Second), published(2, day)}},
			signing.Move{From: signing.Published, Key: with(published(2, day), begins)}},
		{"wanted, and published a moment ago", signing.Facts{Keys: []signing.Key{replaced(signs(1, 2*day), time.Second), published(2, time.Hour)}},
			signing.Wait{Until: now.Add(time.Minute)}},
		{"the one before is still used", signing.Facts{Keys: []signing.Key{signs(1, 31*day), signs(2, day), published(3, day)}, Used: []string{"k1", "k2"}},
			signing.Wait{Until: now.Add(time.Minute)}},
		{"the one before is not used any more", signing.Facts{Keys: []signing.Key{signs(1, 31*day), signs(2, day), published(3, day)}, Used: []string{"k2"}},
			signing.Move{From: signing.Signing, Key: with(signs(1, 31*day), func(k *signing.Key) { k.State, k.RetireTime = signing.Retired, now })}},
		{"the newest stays although nobody uses it", signing.Facts{Keys: []signing.Key{signs(2, day), published(3, day)}}, signing.Wait{Until: now.Add(time.Minute)}},
		{"what it signed last has not been over for a day", signing.Facts{Keys: []signing.Key{retired(1, day+11*time.Minute-time.Second), signs(2, day), published(3, day)}},
			signing.Wait{Until: now.Add(time.Second)}},
		{"nothing that it signed has been good for a day", signing.Facts{Keys: []signing.Key{retired(1, day+11*time.Minute), signs(2, day), published(3, day)}},
			signing.Move{From: signing.Retired, Key: with(retired(1, day+11*time.Minute), func(k *signing.Key) { k.State, k.RemoveTime, k.Sealed = signing.Removed, now, nil })}},
		{"the key that signed was dropped: the next one does at once", signing.Facts{Keys: []signing.Key{
			with(signs(1, day), func(k *signing.Key) { k.State, k.Reason = signing.Removed, signing.Compromised }), published(2, 0)}, LastNumber: 2},
			signing.Move{From: signing.Published, Key: with(published(2, 0), begins)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, signing.Decide(now, tt.facts, timing)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A hundred lives, in which somebody wants and drops keys at random and versions move on late: no key signs that was not published for as long as the
// timing says, unless none signed; every transition is allowed; what signs is never removed but by being dropped.
func TestDecide_OverManyPeriods(t *testing.T) {
	for seed := range uint64(100) {
		dice := rand.New(rand.NewPCG(seed, 1))
		at, f := now, signing.Facts{}
		changes := 0
		for range 3000 {
			var usable []signing.Key
			for _, k := range f.Keys {
				if k.State == signing.Signing {
					usable = append(usable, k)
				}
			}
			switch a := signing.Decide(at, f, timing).(type) {
			case signing.Make:
				f.LastNumber = a.Number
				f.Keys = append(f.Keys, signing.Key{ID: fmt.Sprint("k", a.Number), Number: a.Number, State: signing.Published, PublishTime: at})
			case signing.Move:
				i := slices.IndexFunc(f.Keys, func(k signing.Key) bool { return k.ID == a.Key.ID })
				before := f.Keys[i]
				if !signing.Allowed(a.From, a.Key.State) || before.State != a.From {
					t.Fatalf("seed %d: %s from %s", seed, a.Key.State, before.State)
				}
				if a.Key.State == signing.Signing {
					changes++
					if len(usable) > 0 && at.Sub(before.PublishTime) < timing.Publish {
						t.Fatalf("seed %d: a key signs %s after it was published", seed, at.Sub(before.PublishTime))
					}
					f.Used = append(f.Used, a.Key.ID)
				}
				if a.Key.State == signing.Removed && at.Sub(before.RetireTime) < timing.Keep {
					t.Fatalf("seed %d: a key is removed %s after it signed", seed, at.Sub(before.RetireTime))
				}
				f.Keys[i] = a.Key
			case signing.Wait:
				if !a.Until.After(at) {
					t.Fatalf("seed %d: it waits for what is over", seed)
				}
				at = at.Add(time.Duration(dice.Int64N(int64(6 * time.Hour))))
				switch dice.IntN(20) {
				case 0:
					if k, ok := signing.Current(f.Keys); ok {
						i := slices.IndexFunc(f.Keys, func(o signing.Key) bool { return o.ID == k.ID })
						f.Keys[i].ReplaceTime = at
					}
				case 1:
					if len(f.Used) > 1 {
						f.Used = f.Used[1:]
					}
				case 2:
					if dice.IntN(10) == 0 {
						for i := range f.Keys {
							f.Keys[i].State = signing.Removed
						}
					}
				}
			}
		}
		if changes < 5 {
			t.Errorf("seed %d: only %d keys ever signed", seed, changes)
		}
	}
}

func TestSignTime_IsToldBefore(t *testing.T) {
	keys := []signing.Key{signs(1, time.Hour), published(2, time.Hour)}
	if got, want := signing.SignTime(keys, timing), ago(time.Hour).Add(timing.Period); !got.Equal(want) {
		t.Errorf("in the ordinary course at %s, want %s", got, want)
	}
	keys[0] = replaced(keys[0], 0)
	if got, want := signing.SignTime(keys, timing), ago(time.Hour).Add(timing.Publish); !got.Equal(want) {
		t.Errorf("once wanted at %s, want %s", got, want)
	}
	if got := signing.SignTime(keys[:1], timing); !got.IsZero() {
		t.Errorf("without a next key at %s", got)
	}
}

func TestTiming_Validate(t *testing.T) {
	impatient := signing.Timing{Period: time.Hour, Publish: time.Hour, Keep: time.Hour}
	for _, tt := range []struct {
		name        string
		timing      signing.Timing
		development bool
		want        string
	}{
		{"production", signing.Production(), false, ""},
		{"daily", signing.Timing{Period: 24 * time.Hour, Publish: 24 * time.Hour, Keep: 24 * time.Hour}, false, ""},
		{"development", signing.Development(), true, ""},
		{"impatient", impatient, true, ""},
		{"impatient in production", impatient, false, "period: must be at least 24h0m0s\npublish: must be at least 24h0m0s\nkeep: must be at least 24h0m0s"},
		{"nothing", signing.Timing{}, true, "period: must be at least 1s\npublish: must be at least 1s\nkeep: must be at least 1s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := tt.timing.Validate(tt.development); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
