package rotation_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/signingkey"
	"phasekey.dev/services/vault/internal/store"
)

// issuing makes the stage's vault an issuer, with a master of the keys for as long as the test runs.
func (s *stage) issuing() *signer.Signer {
	s.t.Helper()
	sign := signer.New(signer.Config{Issuer: issuerURL, Store: s.store, Keyring: fakeKeyring{}, Poll: 5 * time.Minute, Log: s.config.Log})
	site, err := signer.NewSite(sign, s.config.Log, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.config.Signer = sign
	s.entra.federation = &fakeFederation{site: site, subjects: map[string]int{}, signed: map[string]int{}, shown: map[string]bool{}}
	ctx := s.t.Context()
	go func() { _ = sign.Run(ctx) }()
	return sign
}

// keep has the stage's master keep the keys too.
func (s *stage) keep(m election.Mastership) {
	keeper := &signer.Keeper{Store: s.store, Keyring: fakeKeyring{}, Timing: signingkey.Production(), Poll: 5 * time.Minute, Log: s.config.Log}
	go func() { _ = keeper.Serve(s.t.Context(), m) }()
}

func (s *stage) serveFederated() {
	s.t.Helper()
	s.issuing()
	m := s.take()
	s.keep(m)
	ctx, cancel := context.WithCancel(s.t.Context())
	s.stop, s.served = cancel, make(chan error, 1)
	served := s.served
	go func() { served <- s.serveAs(ctx, m) }()
}

// aliveFederated is as alive, of an integration without a secret.
func aliveFederated(t *testing.T, edit ...func(s *stage)) (s *stage, first credential.Version) {
	t.Helper()
	s = newStage(t)
	for _, e := range edit {
		e(s)
	}
	s.want(store.Integration{Federated: true})
	s.serveFederated()
	first, _ = s.live().ByState(credential.Active)
	return s, first
}

// Whoever may write to our application can let themselves in. That is said, and left to people.
func TestForeign_CredentialsAreReportedAndLeftAlone(t *testing.T) {
	for name, plant := range map[string]func(app *fakeApp){
		"a password": func(app *fakeApp) {
			app.passwords["theirs"] = &fakePassword{Password: directory.Password{KeyID: "theirs", DisplayName: "theirs", EndTime: time.Now().Add(365 * 24 * time.Hour)}}
		},
		"a trust": func(app *fakeApp) {
			app.trusts["theirs"] = &fakeTrust{Trust: directory.Trust{Name: "theirs", Issuer: "https://elsewhere.example", Subject: "theirs", Audience: directory.AssertionAudience}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := aliveFederated(t)
				stands := func(step, reason string, count float64) {
					t.Helper()
					time.Sleep(2 * time.Hour)
					if _, conditions := s.registry.last(); conditions != reason+"+ PrincipalFound+ Proven+" {
						t.Errorf("%s: conditions are %s", step, conditions)
					}
					if got := s.measured()["phasekey_vault_applications_with_foreign_credentials 0"]; got != count {
						t.Errorf("%s: %v applications have foreign credentials", step, got)
					}
				}
				each := func(do func(app *fakeApp)) {
					s.entra.set(func(d *fakeDirectory) {
						for _, app := range d.apps {
							do(app)
						}
					})
				}
				stands("before", "Replicated", 0)
				each(plant)
				stands("there", "ForeignCredentials", 1)
				time.Sleep(3 * 24 * time.Hour)
				each(func(app *fakeApp) {
					if len(app.passwords)+len(app.trusts) != 3 {
						t.Errorf("passwords %v and trusts %v are there", app.passwords, app.trusts)
					}
					delete(app.passwords, "theirs")
					delete(app.trusts, "theirs")
				})
				stands("gone", "Replicated", 0)
				if err := s.end(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestFederated_ComesAliveWithoutASecret(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.want(store.Integration{Federated: true})
		s.entra.lag = 5 * time.Minute
		s.serveFederated()
		s.until("replicated", time.Hour, ready)
		time.Sleep(time.Hour)
		if _, conditions := s.registry.last(); conditions != "Replicated+ AwaitingConsent AwaitingConsent" {
			t.Errorf("before consent conditions are %s", conditions)
		}
		f := s.live()
		time.Sleep(time.Minute)
		v, _ := f.ByState(credential.Active)
		if !v.Federated() || v.Sealed != nil || v.KeyID != "" || !v.EndTime.IsZero() {
			t.Errorf("it is %+v", v)
		}
		if got := s.entra.trusts(); !slices.Equal(got, []string{"read", "write"}) {
			t.Errorf("the application trusts %v", got)
		}
		if got := s.entra.keys(); len(got) != 0 || s.entra.count("add") != 0 {
			t.Errorf("it has passwords: %v", got)
		}
		s.entra.set(func(d *fakeDirectory) {
			if d.federation.subjects["integration:"+uid+":read"] < 4 || d.federation.subjects["integration:"+uid+":write"] != 4 {
				t.Errorf("it was proven by %v", d.federation.subjects)
			}
		})
		if slices.Contains(s.entra.happened(), "assertion shown again") {
			t.Error("an assertion was shown twice")
		}
		if report, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Proven+" || report.PrincipalObjectID != "principal" {
			t.Errorf("conditions are %s, %+v", conditions, report)
		}
		// For ever: there is nothing to rotate, and nothing is written.
		writes := s.entra.count("trust") + s.entra.count("ensure")
		time.Sleep(10 * 24 * time.Hour)
		if after := s.facts(); len(after.Versions) != 1 {
			t.Errorf("after ten days versions are %v", after.Versions)
		}
		if now := s.entra.count("trust") + s.entra.count("ensure"); now > writes+22 {
			t.Errorf("%d looks at the application in ten days", now-writes)
		}
		s.stop()
	})
}

func TestFederated_ANewKeyIsProvenBeforeTheOldOneGoesAndGraphIsNotAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := aliveFederated(t, func(s *stage) { s.look = 15 * time.Second }) // for what must be so at every look
		time.Sleep(48 * time.Hour)
		trusts := s.entra.count("trust")
		if err := s.store.WantSigningKey(t.Context(), time.Now(), grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		f := s.until("proven under the new key", 6*time.Hour, func(f store.Facts) bool {
			v, ok := f.ByState(credential.Active)
			if !ok {
				t.Fatal("nothing is ACTIVE")
			}
			return v.SigningKey != first.SigningKey
		})
		v, _ := f.ByState(credential.Active)
		if v.Number != first.Number+1 || v.ActivateTime.Sub(v.AddTime) < 20*time.Minute {
			t.Errorf("version %d settled for %s", v.Number, v.ActivateTime.Sub(v.AddTime))
		}
		if old, ok := f.ByState(credential.Retiring); !ok || old.ID != first.ID {
			t.Errorf("the one before is gone at once: %v", f.Versions)
		}
		s.until("the old one gone", 2*time.Hour, func(f store.Facts) bool { return len(f.Versions) == 1 })
		if got := s.entra.count("trust"); got != trusts {
			t.Errorf("Graph was asked %d times", got-trusts)
		}
		// Its key retires, and is shown for a day.
		time.Sleep(5 * time.Minute)
		keys, err := s.store.SigningKeys(t.Context())
		if err != nil || keys[len(keys)-1].State != signingkey.Retired {
			t.Errorf("keys are %+v, %v", keys, err)
		}
		time.Sleep(25 * time.Hour)
		if keys, err = s.store.SigningKeys(t.Context()); err != nil || keys[len(keys)-1].State != signingkey.Removed {
			t.Errorf("a day later keys are %+v, %v", keys, err)
		}
		s.stop()
	})
}

func TestFederated_ADroppedKeyIsOverAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := aliveFederated(t)
		time.Sleep(48 * time.Hour)
		if err := s.store.DropSigningKey(t.Context(), time.Now(), first.SigningKey, grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		dropped := time.Now()
		s.until("told", 11*time.Minute, func(f store.Facts) bool {
			_, ok := f.ByState(credential.Active)
			return !ok
		})
		f := s.until("active again", time.Hour, active)
		v, _ := f.ByState(credential.Active)
		// The next key had been shown for two days, so Entra knew it.
		if v.SigningKey == first.SigningKey || v.ActivateTime.Sub(dropped) > 15*time.Minute {
			t.Errorf("it took %s", v.ActivateTime.Sub(dropped))
		}
		s.entra.set(func(d *fakeDirectory) {
			if d.federation.signed[v.SigningKey] < 8 {
				t.Errorf("it was proven by %d tokens", d.federation.signed[v.SigningKey])
			}
		})
		s.stop()
	})
}

// A key is replaced by schedule, and then it turns out that somebody has the old one: most integrations are under it still.
func TestFederated_ADroppedKeyThatIsNotTheNewestIsOverAtOnceToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := aliveFederated(t, func(s *stage) { s.config.Poll = time.Minute })
		time.Sleep(48 * time.Hour)
		if err := s.store.WantSigningKey(t.Context(), time.Now(), grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		s.until("the next key signs", 11*time.Minute, func(f store.Facts) bool { return f.Trust.Key != first.SigningKey })
		time.Sleep(5 * time.Minute)
		f := s.facts()
		if v, _ := f.ByState(credential.Active); v.ID != first.ID || len(f.Trust.Usable) != 2 {
			t.Fatalf("ACTIVE is %v, and %v sign", v, f.Trust.Usable)
		}
		if err := s.store.DropSigningKey(t.Context(), time.Now(), first.SigningKey, grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		s.until("over", 2*s.config.Poll, func(f store.Facts) bool {
			v, ok := f.ByState(credential.Active)
			return !ok || v.ID != first.ID
		})
		f = s.until("active again", time.Hour, active)
		if v, _ := f.ByState(credential.Active); v.SigningKey == first.SigningKey {
			t.Errorf("it is %v again, under the key that was dropped", v)
		}
		s.stop()
	})
}

// usable fails unless a version of the integration works at Entra at this moment.
func (s *stage) usable(f store.Facts) {
	s.t.Helper()
	for _, v := range f.Versions {
		if v.State != credential.Active && v.State != credential.Retiring {
			continue
		}
		if v.Federated() && slices.Equal(s.entra.trusts(), []string{"read", "write"}) || !v.Federated() && s.entra.works(v.KeyID) {
			return
		}
	}
	s.t.Errorf("nothing works: %v, at Entra %v and %v", f.Versions, s.entra.keys(), s.entra.trusts())
}

func TestFederated_TheKindChangesWithoutAGap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.look = 15 * time.Second // for what must be so at every look
		s.entra.lag = time.Minute
		s.serveFederated()
		f := s.live()
		secretVersion, _ := f.ByState(credential.Active)
		if secretVersion.Federated() {
			t.Fatal("it has no secret")
		}
		time.Sleep(2 * time.Hour)
		for step, federated := range []bool{true, false, true} {
			s.want(store.Integration{Federated: federated})
			s.until("of the other kind", 3*time.Hour, func(f store.Facts) bool {
				s.usable(f)
				v, ok := f.ByState(credential.Active)
				return ok && v.Federated() == federated
			})
			f := s.until("what was before is gone", 8*time.Hour, func(f store.Facts) bool {
				s.usable(f)
				if federated {
					return len(s.entra.keys()) == 0 && len(s.entra.trusts()) == 2 && len(f.Versions) == 1
				}
				return len(s.entra.keys()) == 1 && len(s.entra.trusts()) == 0 && len(f.Versions) == 1
			})
			if v, _ := f.ByState(credential.Active); v.Federated() != federated {
				t.Errorf("step %d: versions are %v", step, f.Versions)
			}
			if !federated && (len(s.entra.keys()) != 1 || len(s.entra.trusts()) != 0 || !f.Application.TrustSendTime.IsZero()) {
				t.Errorf("step %d: at Entra are %v and %v", step, s.entra.keys(), s.entra.trusts())
			}
			if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Proven+" {
				t.Errorf("step %d: conditions are %s", step, conditions)
			}
		}
		s.stop()
	})
}

func TestFederated_RepairsWhatSomebodyRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := aliveFederated(t)
		time.Sleep(30 * time.Minute)
		s.entra.set(func(d *fakeDirectory) {
			for _, app := range d.apps {
				clear(app.trusts)
			}
		})
		if err := s.store.WantProbe(t.Context(), uid, time.Now()); err != nil { // as a refused mint does
			t.Fatal(err)
		}
		s.until("repaired", time.Hour, func(store.Facts) bool { return len(s.entra.trusts()) == 2 })
		s.until("active", time.Hour, func(f store.Facts) bool {
			v, ok := f.ByState(credential.Active)
			return ok && v.Works(time.Now(), s.config.Timing)
		})
		s.stop()
	})
}

func TestFederated_WithoutAnIssuerItSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.want(store.Integration{Federated: true})
		s.serve()
		time.Sleep(time.Hour)
		if _, conditions := s.registry.last(); !strings.HasSuffix(conditions, " IssuerMissing") {
			t.Errorf("conditions are %s", conditions)
		}
		if got := s.entra.count("add") + s.entra.count("trust"); got != 0 {
			t.Errorf("%d requests for a credential", got)
		}
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
}

// Nobody is told to remove the vault's own federated credentials, neither while it is no issuer nor when it is one again; and somebody's are told of then.
func TestFederated_AnIssuerThatIsBackKnowsItsOwn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		others     int
	}{{"they are its own", "Replicated+", 0}, {"one is somebody's", "ForeignCredentials+", 1}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := aliveFederated(t)
				sign := s.config.Signer
				if err := s.end(); err != nil {
					t.Fatal(err)
				}
				s.entra.set(func(d *fakeDirectory) {
					for _, app := range d.apps {
						for range tt.others {
							app.trusts["theirs"] = &fakeTrust{Trust: directory.Trust{Name: "theirs", Issuer: "https://elsewhere.example", Subject: "theirs", Audience: directory.AssertionAudience}}
						}
					}
				})
				of := func() string {
					_, conditions := s.registry.last()
					first, _, _ := strings.Cut(conditions, " ")
					return first
				}

				s.config.Signer = nil
				s.serve()
				time.Sleep(2 * time.Hour)
				if got := of(); got != "IssuerMissing+" {
					t.Errorf("without an issuer the application is %s", got)
				}
				if err := s.end(); err != nil {
					t.Fatal(err)
				}

				s.config.Signer = sign
				s.serve()
				s.until("whose they are", 2*time.Minute, func(f store.Facts) bool { return f.Application.UnknownTrusts == 0 && of() == tt.want })
				if got := s.facts().Application.ForeignTrusts; got != tt.others {
					t.Errorf("%d are somebody's, want %d", got, tt.others)
				}
				if err := s.end(); err != nil {
					t.Error(err)
				}
				for _, r := range s.registry.all() {
					for _, c := range r.Conditions {
						if tt.others == 0 && c.Reason == "ForeignCredentials" {
							t.Errorf("the vault's own are said to be somebody's: %+v", c)
						}
					}
				}
			})
		})
	}
}

// TestFederated_AnIssuerThatIsBackIsWorkedWithAtOnce has the configuration name no issuer for 30 hours, while Graph answers each third time.
func TestFederated_AnIssuerThatIsBackIsWorkedWithAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := aliveFederated(t)
		sign := s.config.Signer
		if err := s.end(); err != nil {
			t.Fatal(err)
		}

		s.config.Signer = nil
		found, asked := 0, s.entra.count("token")
		s.entra.set(func(d *fakeDirectory) {
			d.before = func(_ context.Context, op string) error {
				if op != "find" && op != "ensure" {
					return nil
				}
				if found++; found%3 == 0 {
					return nil
				}
				return refuse(directory.Transient, "ServiceUnavailable")
			}
		})
		s.serve()
		time.Sleep(30 * time.Hour)
		if _, conditions := s.registry.last(); !strings.HasSuffix(conditions, " IssuerMissing") {
			t.Errorf("without an issuer conditions are %s", conditions)
		}
		f := s.facts()
		if f.Application.Failures > 2 || f.Versions[0].Attempts > 0 || s.entra.count("token") != asked {
			t.Errorf("without an issuer it failed %d times in a row, and was asked with %d times", f.Application.Failures, f.Versions[0].Attempts)
		}
		if found < 60 {
			t.Errorf("without an issuer it was looked at %d times", found)
		}
		if err := s.end(); err != nil {
			t.Fatal(err)
		}

		s.config.Signer = sign
		trusted := 0
		s.entra.set(func(d *fakeDirectory) {
			for _, app := range d.apps {
				clear(app.trusts)
			}
			d.before = func(_ context.Context, op string) error {
				if op != "trust" {
					return nil
				}
				if trusted++; trusted > 1 {
					return nil
				}
				return refuse(directory.Transient, "ServiceUnavailable")
			}
		})
		s.serve()
		s.until("trusted again", 2*time.Minute, func(store.Facts) bool { return len(s.entra.trusts()) == 2 })
		if s.entra.count("token") == asked {
			t.Error("nobody is asked with it though there is an issuer")
		}
		s.until("told", time.Hour, func(store.Facts) bool {
			_, conditions := s.registry.last()
			return strings.HasSuffix(conditions, " Proven+")
		})
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestFederated_IsTakenApartWithItsApplication(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := aliveFederated(t)
		s.want(store.Integration{Federated: true, Deleting: true})
		s.until("gone", 2*time.Hour, forgotten)
		s.entra.set(func(d *fakeDirectory) {
			for app := range maps.Values(d.apps) {
				if !app.purged {
					t.Error("the application is there still")
				}
			}
		})
		s.stop()
	})
}
