package signingkey_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/signingkey"
)

var (
	now    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	timing = signingkey.Production()
)

func ago(d time.Duration) time.Time { return now.Add(-d) }

func published(number int64, since time.Duration) signingkey.Key {
	return signingkey.Key{ID: fmt.Sprint("k", number), Number: number, State: signingkey.Published, PublishTime: ago(since), Sealed: []byte("private")}
}

func signs(number int64, since time.Duration) signingkey.Key {
	k := published(number, since+timing.Publish)
	k.State, k.SignTime = signingkey.Signing, ago(since)
	return k
}

func replaced(k signingkey.Key, since time.Duration) signingkey.Key {
	k.ReplaceTime = ago(since)
	return k
}

func retired(number int64, since time.Duration) signingkey.Key {
	k := signs(number, since+timing.Period)
	k.State, k.RetireTime = signingkey.Retired, ago(since)
	return k
}

// with is a key in another state.
func with(k signingkey.Key, change func(*signingkey.Key)) signingkey.Key {
	change(&k)
	return k
}

func TestDecide(t *testing.T) {
	const day = 24 * time.Hour
	begins := func(k *signingkey.Key) { k.State, k.SignTime = signingkey.Signing, now }
	for _, tt := range []struct {
		name  string
		facts signingkey.Facts
		want  signingkey.Action
	}{
		{"nothing yet", signingkey.Facts{}, signingkey.Make{Number: 1}},
		{"the first key signs at once", signingkey.Facts{Keys: []signingkey.Key{published(1, 0)}, LastNumber: 1},
			signingkey.Move{From: signingkey.Published, Key: with(published(1, 0), begins)}},
		{"a next key is published long before it is needed", signingkey.Facts{Keys: []signingkey.Key{signs(1, 0)}, LastNumber: 1}, signingkey.Make{Number: 2}},
		{"numbers are never used again", signingkey.Facts{Keys: []signingkey.Key{signs(1, 0)}, LastNumber: 7}, signingkey.Make{Number: 8}},
		{"in the middle of a period", signingkey.Facts{Keys: []signingkey.Key{signs(1, 5*day), published(2, 5*day)}}, signingkey.Wait{Until: now.Add(time.Minute)}},
		{"the period is over", signingkey.Facts{Keys: []signingkey.Key{signs(1, 30*day), published(2, 30*day)}},
			signingkey.Move{From: signingkey.Published, Key: with(published(2, 30*day), begins)}},
		{"the period is over, and the next key is not known everywhere", signingkey.Facts{Keys: []signingkey.Key{signs(1, 30*day), published(2, day-time.Second)}},
			signingkey.Wait{Until: now.Add(time.Second)}},
		{"wanted, and published for a day", signingkey.Facts{Keys: []signingkey.Key{replaced(signs(1, 2*day), time.Second), published(2, day)}},
			signingkey.Move{From: signingkey.Published, Key: with(published(2, day), begins)}},
		{"wanted, and published a moment ago", signingkey.Facts{Keys: []signingkey.Key{replaced(signs(1, 2*day), time.Second), published(2, time.Hour)}},
			signingkey.Wait{Until: now.Add(time.Minute)}},
		{"the one before is still used", signingkey.Facts{Keys: []signingkey.Key{signs(1, 31*day), signs(2, day), published(3, day)}, Used: []string{"k1", "k2"}},
			signingkey.Wait{Until: now.Add(time.Minute)}},
		{"the one before is not used any more", signingkey.Facts{Keys: []signingkey.Key{signs(1, 31*day), signs(2, day), published(3, day)}, Used: []string{"k2"}},
			signingkey.Move{From: signingkey.Signing, Key: with(signs(1, 31*day), func(k *signingkey.Key) { k.State, k.RetireTime = signingkey.Retired, now })}},
		{"the newest stays although nobody uses it", signingkey.Facts{Keys: []signingkey.Key{signs(2, day), published(3, day)}}, signingkey.Wait{Until: now.Add(time.Minute)}},
		{"what it signed last has not been over for a day", signingkey.Facts{Keys: []signingkey.Key{retired(1, day+11*time.Minute-time.Second), signs(2, day), published(3, day)}},
			signingkey.Wait{Until: now.Add(time.Second)}},
		{"nothing that it signed has been good for a day", signingkey.Facts{Keys: []signingkey.Key{retired(1, day+11*time.Minute), signs(2, day), published(3, day)}},
			signingkey.Move{From: signingkey.Retired, Key: with(retired(1, day+11*time.Minute), func(k *signingkey.Key) { k.State, k.RemoveTime, k.Sealed = signingkey.Removed, now, nil })}},
		{"the key that signed was dropped: the next one does at once", signingkey.Facts{Keys: []signingkey.Key{
			with(signs(1, day), func(k *signingkey.Key) { k.State, k.Reason = signingkey.Removed, signingkey.Compromised }), published(2, 0)}, LastNumber: 2},
			signingkey.Move{From: signingkey.Published, Key: with(published(2, 0), begins)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, signingkey.Decide(now, tt.facts, timing)); diff != "" {
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
		at, f := now, signingkey.Facts{}
		changes := 0
		for range 3000 {
			var usable []signingkey.Key
			for _, k := range f.Keys {
				if k.State == signingkey.Signing {
					usable = append(usable, k)
				}
			}
			switch a := signingkey.Decide(at, f, timing).(type) {
			case signingkey.Make:
				f.LastNumber = a.Number
				f.Keys = append(f.Keys, signingkey.Key{ID: fmt.Sprint("k", a.Number), Number: a.Number, State: signingkey.Published, PublishTime: at})
			case signingkey.Move:
				i := slices.IndexFunc(f.Keys, func(k signingkey.Key) bool { return k.ID == a.Key.ID })
				before := f.Keys[i]
				if !signingkey.Allowed(a.From, a.Key.State) || before.State != a.From {
					t.Fatalf("seed %d: %s from %s", seed, a.Key.State, before.State)
				}
				if a.Key.State == signingkey.Signing {
					changes++
					if len(usable) > 0 && at.Sub(before.PublishTime) < timing.Publish {
						t.Fatalf("seed %d: a key signs %s after it was published", seed, at.Sub(before.PublishTime))
					}
					f.Used = append(f.Used, a.Key.ID)
				}
				if a.Key.State == signingkey.Removed && at.Sub(before.RetireTime) < timing.Keep {
					t.Fatalf("seed %d: a key is removed %s after it signed", seed, at.Sub(before.RetireTime))
				}
				f.Keys[i] = a.Key
			case signingkey.Wait:
				if !a.Until.After(at) {
					t.Fatalf("seed %d: it waits for what is over", seed)
				}
				at = at.Add(time.Duration(dice.Int64N(int64(6 * time.Hour))))
				switch dice.IntN(20) {
				case 0:
					if k, ok := signingkey.Current(f.Keys); ok {
						i := slices.IndexFunc(f.Keys, func(o signingkey.Key) bool { return o.ID == k.ID })
						f.Keys[i].ReplaceTime = at
					}
				case 1:
					if len(f.Used) > 1 {
						f.Used = f.Used[1:]
					}
				case 2:
					if dice.IntN(10) == 0 {
						for i := range f.Keys {
							f.Keys[i].State = signingkey.Removed
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
	keys := []signingkey.Key{signs(1, time.Hour), published(2, time.Hour)}
	if got, want := signingkey.SignTime(keys, timing), ago(time.Hour).Add(timing.Period); !got.Equal(want) {
		t.Errorf("in the ordinary course at %s, want %s", got, want)
	}
	keys[0] = replaced(keys[0], 0)
	if got, want := signingkey.SignTime(keys, timing), ago(time.Hour).Add(timing.Publish); !got.Equal(want) {
		t.Errorf("once wanted at %s, want %s", got, want)
	}
	if got := signingkey.SignTime(keys[:1], timing); !got.IsZero() {
		t.Errorf("without a next key at %s", got)
	}
}

func TestTiming_Validate(t *testing.T) {
	impatient := signingkey.Timing{Period: time.Hour, Publish: time.Hour, Keep: time.Hour}
	for _, tt := range []struct {
		name        string
		timing      signingkey.Timing
		development bool
		want        string
	}{
		{"production", signingkey.Production(), false, ""},
		{"daily", signingkey.Timing{Period: 24 * time.Hour, Publish: 24 * time.Hour, Keep: 24 * time.Hour}, false, ""},
		{"development", signingkey.Development(), true, ""},
		{"impatient", impatient, true, ""},
		{"impatient in production", impatient, false, "period: must be at least 24h0m0s\npublish: must be at least 24h0m0s\nkeep: must be at least 24h0m0s"},
		{"nothing", signingkey.Timing{}, true, "period: must be at least 1s\npublish: must be at least 1s\nkeep: must be at least 1s"},
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
