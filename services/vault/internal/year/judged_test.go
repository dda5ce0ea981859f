package year_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/lease"
)

// secretLike finds the simulator's secrets, tokens and assertions.
var secretLike = regexp.MustCompile(`8Q~|eyJ`)

// lived is what a process says that lives through a day, or what else the flags say, and how that ended; its temporary files are in the folder.
func lived(t *testing.T, folder string, flags ...string) (violations []string, said string, err error) {
	t.Helper()
	process := exec.CommandContext(t.Context(), os.Args[0], append([]string{
		"-test.run=^TestYear$", "-test.v", "-year.days=1", "-year.integrations=4", "-year.federated=3", "-year.leases=4",
	}, flags...)...)
	process.Env = append(os.Environ(), "TMPDIR="+folder)
	out, err := process.CombinedOutput()
	return regexp.MustCompile(`2000-01-0\S+ I2: .*`).FindAllString(string(out), -1), string(out), err
}

// What was violated is found again in the journal that is kept then, word for word; and no secret is.
func TestJournal_IsJudgedAgain(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	violated, said, err := lived(t, folder, "-year.proofs=9", "-year.replay=2")
	if err == nil || len(violated) == 0 || !bytes.Contains([]byte(said), []byte("seed 1 failed at attempt 1 of 2")) {
		t.Fatalf("nine proofs are demanded of a vault that has eight: %v\n%s", err, said)
	}
	kept, err := filepath.Glob(filepath.Join(folder, "year-1-*"))
	must(t, err)
	if len(kept) != 1 {
		t.Fatalf("kept are %q:\n%s", kept, said)
	}
	again, said, err := lived(t, folder, "-year.judge="+kept[0])
	if diff := cmp.Diff(violated, again); err == nil || diff != "" {
		t.Errorf("judged again it comes to something else: %v\n%s\n%s", err, diff, said)
	}

	written, err := os.ReadFile(kept[0])
	must(t, err)
	zip, err := gzip.NewReader(bytes.NewReader(written))
	must(t, err)
	text, err := io.ReadAll(zip)
	must(t, err)
	if found := secretLike.Find(text); found != nil {
		t.Errorf("I7: the journal has %q", found)
	}

	// A process that was killed leaves less.
	must(t, os.WriteFile(kept[0], written[:len(written)/2], 0o600))
	j, cut, err := judgeAgain(kept[0])
	must(t, err)
	if !cut || len(j.failures) > len(violated) || j.now.IsZero() {
		t.Errorf("half of a journal: cut short %t, until %s, violations: %q", cut, j.now, j.failures)
	}
}

// Of what went well nothing is kept, unless it is asked for.
func TestJournal_IsNotKeptOfWhatWentWell(t *testing.T) {
	t.Parallel()
	folder, journals := t.TempDir(), t.TempDir()
	if _, said, err := lived(t, folder); err != nil {
		t.Fatal(said)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	_, said, err := lived(t, folder, "-year.journal="+journals)
	if left, dir := os.ReadDir(journals); err != nil || dir != nil || len(left) != 1 {
		t.Errorf("asked for is one, and kept are %v: %v, %v\n%s", left, err, dir, said)
	}
}

// That a secret was logged is told without it: what is told is in the journal.
func TestLog_TellsOfASecretWithoutIt(t *testing.T) {
	t.Parallel()
	l := newLog()
	l.know("s3cret")
	_, err := l.Write([]byte("level=INFO msg=\"sent s3cret\" to=somebody\n"))
	must(t, err)
	var told []string
	l.reveal(func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) })
	l.reveal(func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) })
	if want := []string{"I7: a secret is in the log: level=INFO msg=\"sent [a secret]\" to=somebody\n"}; !slices.Equal(told, want) {
		t.Errorf("told %q", told)
	}
}

// A runner may be without a token only as long as nobody was there to give it one.
func TestJudge_ARunnerWithoutAToken(t *testing.T) {
	t.Parallel()
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name    string
		between map[time.Duration]event
		want    string
	}{
		{name: "a replica answers all the time", want: "had no token from 2000-01-01 01:00:00 +0000 UTC to 2000-01-01 01:15:00 +0000 UTC"},
		{name: "no replica answers", between: map[time.Duration]event{30 * time.Minute: answers{"vault-0/1", false}, 70 * time.Minute: answers{"vault-0/2", true}}},
		{name: "Entra is away, and still is", between: map[time.Duration]event{30 * time.Minute: clouds{noEntra, true}}},
		{name: "Entra was away for a moment", between: map[time.Duration]event{30 * time.Minute: clouds{noEntra, true}, 31 * time.Minute: clouds{noEntra, false}}, want: "had no token"},
		{name: "another replica does", between: map[time.Duration]event{
			20 * time.Minute: answers{"vault-1/1", true}, 30 * time.Minute: answers{"vault-0/1", false}, 70 * time.Minute: answers{"vault-0/2", true},
		}, want: "had no token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			j := newJudge()
			take := func(after time.Duration, events ...event) {
				for _, e := range events {
					j.take(start.Add(after).UnixNano(), e)
				}
			}
			given := func(after time.Duration, generation int64) {
				take(after, recorded{Record: fmt.Sprint(generation), Lease: "lease", Grant: "grant", Generation: generation, Time: start.Add(after).UnixMicro()}, receipt{
					Job: "job", Integration: "uid", Grant: "grant", Lease: "lease", Generation: generation, Material: lease.AccessToken,
					Issue: start.Add(after), Expire: start.Add(after + time.Hour),
				})
			}
			take(-time.Hour, begun{Timing: stretched()}, answers{"vault-0/1", true}, wanted{Integration: "uid", Name: "i"}, consented{"uid", true})
			given(0, 1)
			for _, after := range slices.Sorted(maps.Keys(c.between)) {
				take(after, c.between[after])
			}
			given(75*time.Minute, 2)
			if c.want == "" && len(j.failures) > 0 || c.want != "" && (len(j.failures) != 1 || !strings.Contains(j.failures[0], c.want)) {
				t.Errorf("violated are %q, and it should be %q", j.failures, c.want)
			}
		})
	}
}

// A delivery to many at once is on record once, by the record of all and by its own, which takes that one's place.
func TestJudge_ADeliveryToManyIsRecordedOnce(t *testing.T) {
	t.Parallel()
	together := []any{"writer", int64(7), []byte(`[{"kind":"CredentialDelivered","lease_uid":"lease","grant_uid":"grant","generation":1,"time":1},{"kind":"CredentialDelivered","lease_uid":"other","grant_uid":"grant","generation":1,"time":1}]`)}
	alone := []any{"writer", int64(7), "CredentialDelivered", "lease", "grant", int64(1), int64(1)}
	twice := []any{"writer", int64(8), "CredentialDelivered", "lease", "grant", int64(1), int64(1)}
	recorded := sqldbtest.Change{Table: "audit_fanouts", New: together}
	expanded := []sqldbtest.Change{{Table: "audit_fanouts", Old: together}, {Table: "audit_events", New: alone}}
	for _, c := range []struct {
		name    string
		commits [][]sqldbtest.Change
		want    string
	}{
		{name: "with others", commits: [][]sqldbtest.Change{{recorded}}},
		{name: "with others, and then by itself", commits: [][]sqldbtest.Change{{recorded}, expanded}},
		{name: "with others, and once more", commits: [][]sqldbtest.Change{{recorded}, {{Table: "audit_events", New: twice}}}, want: "there are 2 records"},
		{name: "not at all", want: "there are 0 records"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			j := newJudge()
			for _, e := range []event{begun{Timing: stretched()}, wanted{Integration: "uid", Name: "i"}} {
				j.take(0, e)
			}
			for _, changes := range c.commits {
				for _, e := range eventsOf(changes) {
					j.take(1, e)
				}
			}
			j.take(2, receipt{Job: "job", Integration: "uid", Grant: "grant", Lease: "lease", Generation: 1, Material: lease.AccessToken})
			if c.want == "" && len(j.failures) > 0 || c.want != "" && (len(j.failures) != 1 || !strings.Contains(j.failures[0], c.want)) {
				t.Errorf("violated are %q, and it should be %q", j.failures, c.want)
			}
		})
	}
}

// What the vault may not do, told as plain events of one integration: its secret, and a job that is given something.
func TestJudge_Finds(t *testing.T) {
	t.Parallel()
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		tell func(take func(time.Duration, ...event), given func(time.Duration, int64, lease.Material))
		want string
	}{
		{name: "a stream by which nothing comes any more", tell: func(take func(time.Duration, ...event), given func(time.Duration, int64, lease.Material)) {
			given(0, 1, lease.AccessToken)
			take(20*time.Hour, over{"job"})
		}, want: "had no token"},
		{name: "one that is read no longer in time", tell: func(take func(time.Duration, ...event), given func(time.Duration, int64, lease.Material)) {
			given(0, 1, lease.AccessToken)
			take(time.Hour+time.Minute, released{"job"})
			take(20*time.Hour, over{"job"})
		}},
		{name: "half a day without a token for ten minutes of rain", tell: func(take func(time.Duration, ...event), given func(time.Duration, int64, lease.Material)) {
			given(0, 1, lease.AccessToken)
			take(5*time.Minute, clouds{noEntra, true})
			take(16*time.Minute, clouds{noEntra, false})
			given(13*time.Hour, 2, lease.AccessToken)
		}, want: "had no token"},
		{name: "an older token, from another replica", tell: func(take func(time.Duration, ...event), given func(time.Duration, int64, lease.Material)) {
			given(0, 1, lease.AccessToken)
			take(30*time.Minute, givenOf(2, lease.AccessToken, "", start.Add(30*time.Minute), 5*time.Minute)...)
			given(50*time.Minute, 3, lease.AccessToken)
		}},
		{name: "an older token, in place of one that somebody may have", tell: func(take func(time.Duration, ...event), given func(time.Duration, int64, lease.Material)) {
			given(0, 1, lease.AccessToken)
			take(30*time.Minute, givenOf(2, lease.AccessToken, delivery.Compromised, start.Add(30*time.Minute), 5*time.Minute)...)
			given(50*time.Minute, 3, lease.AccessToken)
		}, want: "had no token"},
		{name: "a secret that is given after its removal", tell: func(take func(time.Duration, ...event), given func(time.Duration, int64, lease.Material)) {
			take(0, added("known", start), versionOf("known", "ACTIVE", start))
			take(time.Hour, changed{Kind: "password.removed", Application: "client", Key: "known", Time: start.Add(time.Hour)})
			given(2*time.Hour, 1, lease.ClientSecret)
		}, want: "I3: "},
		{name: "a secret that nobody knows, between two looks", tell: func(take func(time.Duration, ...event), _ func(time.Duration, int64, lease.Material)) {
			take(0, day{}, added("stray", start))
			take(23*time.Hour, changed{Kind: "password.removed", Application: "client", Key: "stray", Time: start.Add(23 * time.Hour)})
		}, want: "I4: "},
		{name: "an ACTIVE secret that has ended, and another that was given up", tell: func(take func(time.Duration, ...event), _ func(time.Duration, int64, lease.Material)) {
			other := versionOf("other", "ABANDONED", start.Add(20*time.Hour))
			other.ID, other.Number, other.Activate = "other", 2, 0
			take(0, added("known", start), versionOf("known", "ACTIVE", start))
			take(20*time.Hour, added("other", start.Add(20*time.Hour)), other)
			take(72*time.Hour, day{})
		}, want: "I1: "},
		{name: "a secret that ended while consent was withdrawn, and the next one half an hour after", tell: func(take func(time.Duration, ...event), _ func(time.Duration, int64, lease.Material)) {
			awayWhileItEnds(take, start, 36*time.Hour, 30*time.Minute)
		}},
		{name: "a secret that ended while consent was withdrawn, and the next one hours after", tell: func(take func(time.Duration, ...event), _ func(time.Duration, int64, lease.Material)) {
			awayWhileItEnds(take, start, 36*time.Hour, 3*time.Hour)
		}, want: "I1: "},
		{name: "the next one hours after, while Entra was away", tell: func(take func(time.Duration, ...event), _ func(time.Duration, int64, lease.Material)) {
			awayWhileItEnds(take, start, 36*time.Hour, 3*time.Hour, weatherAt{36*time.Hour + time.Minute, clouds{noEntra, true}}, weatherAt{38*time.Hour + 30*time.Minute, clouds{noEntra, false}})
		}},
		{name: "a secret that ended half an hour after consent had come back, and the next one twenty minutes after", tell: func(take func(time.Duration, ...event), _ func(time.Duration, int64, lease.Material)) {
			awayWhileItEnds(take, start, 36*time.Hour+30*time.Minute, 20*time.Minute)
		}, want: "I1: "},
		{name: "a secret that was removed while consent was withdrawn, with one before it that ended then", tell: func(take func(time.Duration, ...event), _ func(time.Duration, int64, lease.Material)) {
			before, one, next := versionOf("before", "REVOKED", start), versionOf("one", "RETIRING", start.Add(10*time.Hour)), versionOf("next", "ACTIVE", start.Add(36*time.Hour+55*time.Minute))
			before.End, before.Retire, before.Revoke = start.Add(33*time.Hour).UnixMicro(), one.Activate, start.Add(11*time.Hour).UnixMicro()
			one.ID, one.Number, one.Retire = "one", 2, next.Activate
			next.ID, next.Number = "next", 3
			take(0, added("before", start))
			take(10*time.Hour, added("one", start.Add(10*time.Hour)))
			take(11*time.Hour, changed{Kind: "password.removed", Application: "client", Key: "before", Time: start.Add(11 * time.Hour)})
			take(30*time.Hour, consented{"uid", false})
			take(31*time.Hour, changed{Kind: "password.removed", Application: "client", Key: "one", Time: start.Add(31 * time.Hour)})
			take(36*time.Hour, consented{"uid", true}, added("next", start.Add(36*time.Hour)))
			take(37*time.Hour, before, one, next, day{})
		}, want: "I1: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			j := newJudge()
			take := func(after time.Duration, events ...event) {
				for _, e := range events {
					j.take(start.Add(after).UnixNano(), e)
				}
			}
			timing := stretched()
			timing.Proofs = 0
			take(-time.Hour, begun{Timing: timing}, answers{"vault-0/1", true}, wanted{Integration: "uid", Name: "i"}, consented{"uid", true},
				reported{Integration: "uid", Client: "client", Ready: true})
			c.tell(take, func(after time.Duration, generation int64, material lease.Material) {
				take(after, givenOf(generation, material, "", start.Add(after), time.Hour)...)
			})
			found := slices.ContainsFunc(j.failures, func(f string) bool { return strings.Contains(f, c.want) })
			if c.want == "" && len(j.failures) > 0 || c.want != "" && !found {
				t.Errorf("violated are %q, and it should be %q", j.failures, c.want)
			}
		})
	}
}

// givenOf is that the job is given something for so long.
func givenOf(generation int64, material lease.Material, reason delivery.Reason, at time.Time, life time.Duration) []event {
	return []event{
		recorded{Record: fmt.Sprint(generation), Lease: "lease", Grant: "grant", Generation: generation, Time: at.UnixMicro()},
		receipt{
			Job: "job", Integration: "uid", Grant: "grant", Lease: "lease", Generation: generation, Version: 1, Client: "client", Material: material, Reason: reason,
			Issue: at, Expire: at.Add(life), GrantExpire: at.Add(10 * time.Hour),
		},
	}
}

// weatherAt is that something comes or goes.
type weatherAt struct {
	after time.Duration
	clouds
}

// awayWhileItEnds tells of a secret of so long a life, of consent that is away for the six hours before the end of its 36th, of the weather since, and of another secret that is ACTIVE so long after the first one's
// end, an hour after which that is revoked.
func awayWhileItEnds(take func(time.Duration, ...event), start time.Time, life, next time.Duration, weather ...weatherAt) {
	one := versionOf("known", "ACTIVE", start)
	one.End = start.Add(life).UnixMicro()
	take(0, added("known", start), one)
	take(30*time.Hour, consented{"uid", false})
	take(36*time.Hour, consented{"uid", true})
	for _, w := range weather {
		take(w.after, w.clouds)
	}
	at := life + next
	other := versionOf("other", "ACTIVE", start.Add(at))
	other.ID, other.Number = "other", 2
	take(at, added("other", start.Add(at)), other)
	one.State, one.Retire, one.Revoke = "REVOKING", start.Add(at).UnixMicro(), start.Add(at+time.Hour).UnixMicro()
	take(at+time.Hour, one)
	take(48*time.Hour, day{})
	take(72*time.Hour, day{})
}

func added(key string, at time.Time) changed {
	return changed{Kind: "password.added", Application: "client", Key: key, Time: at}
}

func versionOf(key, state string, at time.Time) version {
	return version{Integration: "uid", ID: key, Key: key, State: state, Number: 1, Add: at.UnixMicro(), Activate: at.UnixMicro(), End: at.Add(36 * time.Hour).UnixMicro()}
}
