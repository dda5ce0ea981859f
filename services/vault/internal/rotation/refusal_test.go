package rotation_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

func TestWorker_ObeysRetryAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var asked []time.Time
		s.entra.before = func(_ context.Context, op string) error {
			if op != "add" {
				return nil
			}
			asked = append(asked, time.Now())
			if len(asked) <= 3 {
				return &directory.Error{Op: op, Class: directory.Throttled, Code: "TooManyRequests", RetryAfter: 5 * time.Minute, Err: errors.New("throttled")}
			}
			return nil
		}
		s.serve()
		f := s.live()
		for i := range asked[1:] {
			if gap := asked[i+1].Sub(asked[i]); gap < 5*time.Minute {
				t.Errorf("attempt %d came %s after the one before", i+2, gap)
			}
		}
		if len(asked) != 4 || f.LastNumber != 1 {
			t.Errorf("%d attempts for %d versions, want 4 for one", len(asked), f.LastNumber)
		}
	})
}

func TestWorker_ShortensLivesForAPolicy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		limited := &limitedDirectory{fakeDirectory: s.entra, limit: 20 * time.Hour}
		s.config.Clouds = rotation.Clouds{"public": limited}
		s.serve()
		f := s.live()
		if life := f.Versions[0].Life(); life > limited.limit {
			t.Errorf("it lives for %s", life)
		}
		time.Sleep(2 * 24 * time.Hour)
		if f := s.facts(); !active(f) || f.LastNumber < 4 {
			t.Errorf("after two days there were %d versions: %v", f.LastNumber, f.Versions)
		}
	})
}

// limitedDirectory has a policy on the life of passwords.
type limitedDirectory struct {
	*fakeDirectory
	limit time.Duration
}

func (d *limitedDirectory) AddPassword(ctx context.Context, objectID, displayName string, end time.Time) (directory.Password, secret.Text, error) {
	if time.Until(end) > d.limit {
		return directory.Password{}, secret.Text{}, refuse(directory.LifetimeRefused, "CredentialInvalidLifetimeAsPerAppPolicy")
	}
	return d.fakeDirectory.AddPassword(ctx, objectID, displayName, end)
}

// TestWorker_SaysThatNoPasswordMayBeMade forbids it, by policies, while Graph is now and then too busy to say so.
func TestWorker_SaysThatNoPasswordMayBeMade(t *testing.T) {
	for code, class := range map[string]directory.Class{
		"CredentialTypeNotAllowedAsPerAppPolicy":  directory.BlockedByPolicy,
		"CredentialInvalidLifetimeAsPerAppPolicy": directory.LifetimeRefused, // however short a life is asked for
	} {
		t.Run(code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := alive(t)
				asked := 0
				forbid := func(_ context.Context, op string) error {
					if op != "add" {
						return nil
					}
					if asked++; asked%3 == 0 {
						return refuse(directory.Transient, "")
					}
					return refuse(class, code)
				}
				s.entra.set(func(d *fakeDirectory) { d.before = forbid })
				reported := func(want string) {
					t.Helper()
					s.until(want, 80*time.Hour, func(store.Facts) bool {
						_, conditions := s.registry.last()
						return conditions == "Replicated+ PrincipalFound+ "+want
					})
				}
				reported(code + "+")
				taken, _ := s.registry.counts()
				time.Sleep(24 * time.Hour)
				if now, _ := s.registry.counts(); now != taken {
					_, conditions := s.registry.last()
					t.Errorf("in a day in which nothing changed the registry was told %d times, last %s", now-taken, conditions)
				}
				reported(code) // the secret is over
				report, _ := s.registry.last()
				if message := report.Conditions[2].Message; !strings.Contains(message, "exempt") || !strings.Contains(message, "FEDERATED") {
					t.Errorf("people are told %q", message)
				}
				s.entra.set(func(d *fakeDirectory) { d.before = nil })
				reported("Proven+")
			})
		})
	}
}

// TestWorker_SaysThatAPasswordCannotBeRemoved has Graph let none be removed: one whose answer was lost, and one that was replaced.
func TestWorker_SaysThatAPasswordCannotBeRemoved(t *testing.T) {
	for _, tt := range []struct {
		name string
		// lost is how many answers to requests for a password are.
		lost int
		// stays is the password that is to go, and how often its removal failed.
		stays func(f store.Facts) (keyID string, attempts int)
		log   string
	}{
		{"its answer was lost", 1, func(f store.Facts) (string, int) {
			if len(f.Strays) == 0 {
				return "", 0
			}
			return f.Strays[0].KeyID, f.Strays[0].Attempts
		}, "password that nobody can use could not be removed"},
		{"it was replaced", 0, func(f store.Facts) (string, int) {
			v, _ := f.ByState(credential.Revoking)
			return v.KeyID, v.Attempts
		}, "password that is to go could not be removed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, _ := alive(t, func(s *stage) {
					s.config.Clouds = rotation.Clouds{"public": lockedDirectory{s.entra}}
					s.entra.after = func(_ context.Context, op string) error {
						if op == "add" && s.entra.count("add") <= tt.lost {
							return refuse(directory.OutcomeUnknown, "")
						}
						return nil
					}
				})
				stands := func(step, reason string, count float64) {
					t.Helper()
					time.Sleep(time.Hour) // until it is measured, which is once in a poll
					if _, conditions := s.registry.last(); conditions != reason+"+ PrincipalFound+ Proven+" {
						t.Errorf("%s: conditions are %s", step, conditions)
					}
					if got := s.measured()["phasekey_vault_applications_with_stray_passwords 0"]; got != count {
						t.Errorf("%s: %v applications have stray passwords", step, got)
					}
				}
				var keyID string
				refused := func(step string, limit time.Duration, times int) {
					t.Helper()
					s.until(step, limit, func(f store.Facts) bool {
						var attempts int
						keyID, attempts = tt.stays(f)
						return attempts >= times
					})
				}
				refused("refused a few times", 30*time.Hour, 4)
				if _, conditions := s.registry.last(); !strings.HasPrefix(conditions, "Replicated+ ") {
					t.Errorf("of what may pass people are told %s", conditions)
				}
				refused("refused time and again", 4*time.Hour, credential.StuckAttempts)
				stands("refused", "StrayCredentials", 1)
				warned := slices.ContainsFunc(strings.Split(s.log.String(), "\n"), func(line string) bool {
					return strings.Contains(line, "level=WARN") && strings.Contains(line, tt.log) &&
						strings.Contains(line, "key_id="+keyID) && strings.Contains(line, "code=Authorization_RequestDenied")
				})
				if !warned {
					t.Errorf("the log does not warn of %s", keyID)
				}
				if strings.Contains(s.log.String(), "was removed") {
					t.Error("by the log one was removed")
				}
				s.entra.set(func(d *fakeDirectory) {
					for _, app := range d.apps {
						delete(app.passwords, keyID)
					}
				})
				time.Sleep(time.Hour) // until it is looked at
				stands("removed by hand", "Replicated", 0)
				if err := s.end(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// lockedDirectory lets no password be removed that there is.
type lockedDirectory struct{ *fakeDirectory }

func (d lockedDirectory) RemovePassword(ctx context.Context, objectID, keyID string) error {
	if slices.Contains(d.keys(), keyID) {
		return refuse(directory.Denied, "Authorization_RequestDenied")
	}
	return d.fakeDirectory.RemovePassword(ctx, objectID, keyID)
}

// TestWorker_GivesUpWhatIsAlwaysRefused refuses one version for days, by a code that says nothing about secret or consent.
func TestWorker_GivesUpWhatIsAlwaysRefused(t *testing.T) {
	for _, class := range []directory.Class{directory.Unclassified, directory.Malformed, directory.IssuerUnread, directory.Denied} {
		t.Run(class.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, first := alive(t)
				s.refuseSecond(first.Number+1, refuse(class, "AADSTS999"))
				f := s.until("another one is proven", 30*time.Hour, func(f store.Facts) bool {
					v, ok := f.ByState(credential.Active)
					return ok && v.Number == first.Number+2
				})
				if v, ok := f.ByState(credential.Retiring); !ok || v.ID != first.ID {
					t.Errorf("the first one is gone: %v", f.Versions)
				}
				s.until("what was refused is removed", 2*time.Hour, func(store.Facts) bool { return len(s.entra.keys()) == 1 })
			})
		})
	}
}

// TestWorker_GivesNothingUpWhileEntraIsAway has it answer for hours that it does not.
func TestWorker_GivesNothingUpWhileEntraIsAway(t *testing.T) {
	for _, class := range []directory.Class{directory.Throttled, directory.Transient} {
		t.Run(class.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, first := alive(t)
				s.refuseSecond(first.Number+1, refuse(class, "AADSTS90033"))
				f := s.until("propagating", 30*time.Hour, func(f store.Facts) bool {
					_, ok := f.ByState(credential.Propagating)
					return ok
				})
				time.Sleep(12 * time.Hour)
				if v, ok := s.facts().ByState(credential.Propagating); !ok || v.Number != f.LastNumber {
					t.Errorf("there are %v", s.facts().Versions)
				}
			})
		})
	}
}

// TestWorker_ClassifiesEveryRefusal lets each class be the answer to every proof: none is taken for a grant, and each has a
// name of its own in the metrics.
func TestWorker_ClassifiesEveryRefusal(t *testing.T) {
	names := map[string]directory.Class{}
	for class := directory.Unclassified; class <= directory.Malformed; class++ {
		synctest.Test(t, func(t *testing.T) {
			s := newStage(t)
			s.serve()
			s.until("replicated", time.Hour, ready)
			s.entra.set(func(d *fakeDirectory) { d.consented = true })
			s.until("propagating", time.Hour, func(f store.Facts) bool {
				_, ok := f.ByState(credential.Propagating)
				return ok
			})
			s.entra.set(func(d *fakeDirectory) {
				d.after = func(_ context.Context, op string) error {
					if op == "token" {
						return refuse(class, "Code")
					}
					return nil
				}
			})
			time.Sleep(10 * time.Minute)
			if f := s.facts(); active(f) {
				t.Errorf("class %d promotes: %v", class, f.Versions)
			}
			families, err := s.metrics.Load().Gather()
			if err != nil {
				t.Fatal(err)
			}
			seen := ""
			for _, family := range families {
				for _, m := range family.GetMetric() {
					labels := map[string]string{}
					for _, l := range m.GetLabel() {
						labels[l.GetName()] = l.GetValue()
					}
					if labels["op"] == "prove" && labels["class"] != "ok" {
						seen = labels["class"]
					}
				}
			}
			if other, twice := names[seen]; seen == "" || twice {
				t.Errorf("class %d is called %q, as is class %d", class, seen, other)
			}
			names[seen] = class
		})
	}
}

// awayKeyring cannot be reached when it is to open something, and counts how often that was tried.
type awayKeyring struct {
	fakeKeyring
	tries atomic.Int64
	away  atomic.Bool
}

func (k *awayKeyring) Open(ctx context.Context, identity string, sealed []byte) (secret.Text, error) {
	if k.away.Load() {
		k.tries.Add(1)
		return secret.Text{}, errors.New("away")
	}
	return k.fakeKeyring.Open(ctx, identity, sealed)
}

// TestWorker_WhatFailsRests has a turn fail by nothing that Entra or Graph say: it is not repeated at each look at the shard, and is gone on with.
func TestWorker_WhatFailsRests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		keyring := &awayKeyring{}
		keyring.away.Store(true)
		s.config.Keyring, s.config.Poll = keyring, time.Second
		s.serve()
		time.Sleep(10 * time.Minute)
		if n := keyring.tries.Load(); n < 30 || n > 61 {
			t.Errorf("it was tried %d times in ten minutes, want once each %s", n, s.config.Timing.RetryMin)
		}
		keyring.away.Store(false)
		s.live()
	})
}

// TestWorker_TellsStreamsOfWhatTheyAreGiven has others told of each state of a version, and of consent.
func TestWorker_TellsStreamsOfWhatTheyAreGiven(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		told := make(chan string, 1000)
		s.config.Notify = func(uid string) { told <- uid }
		s.serve()
		s.live()
		if n := len(told); n < 4 || n > 6 { // staged, consented, propagating, active
			t.Errorf("streams were told %d times of a version that came alive", n)
		}
		for len(told) > 0 {
			if got := <-told; got != uid {
				t.Errorf("they were told of %q", got)
			}
		}
		time.Sleep(12 * time.Hour)
		if n := len(told); n != 0 {
			t.Errorf("streams were told %d times while nothing happened", n)
		}
	})
}
