package credential_test

import (
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

// federated returns a federated version under a signing key, in the ordinary course of its life at epoch.
func federated(id string, number int64, state credential.State, key string, edit ...func(*credential.Version)) credential.Version {
	return version(id, number, state, append([]func(*credential.Version){func(v *credential.Version) {
		v.Name, v.KeyID, v.SigningKey, v.EndTime = "", "", key, time.Time{}
	}}, edit...)...)
}

// trusting returns the facts of a healthy federated integration with these versions, under key "k2", which began to sign ten hours ago; "k1" signs too.
func trusting(versions ...credential.Version) credential.Facts {
	f := facts(versions...)
	f.Wanted.Federated = true
	f.Trust = credential.Trust{Digest: "trust", Key: "k2", KeyTime: epoch.Add(-10 * time.Hour), Usable: []string{"k2", "k1"}}
	f.Application.TrustDigest, f.Application.TrustTime, f.Application.TrustSendTime = "trust", epoch.Add(-11*time.Hour), epoch.Add(-11*time.Hour)
	return f
}

func TestDecide_Federated(t *testing.T) {
	ago := func(d time.Duration) time.Time { return epoch.Add(-d) }
	with := func(f credential.Facts, edits ...func(*credential.Facts)) credential.Facts {
		for _, e := range edits {
			e(&f)
		}
		return f
	}
	secretWanted := func(f *credential.Facts) { f.Wanted.Federated = false }
	federatedWanted := func(f *credential.Facts) {
		g := trusting()
		f.Wanted.Federated, f.Trust = true, g.Trust
	}
	trusted := func(f *credential.Facts) {
		f.Application.TrustDigest, f.Application.TrustTime, f.Application.TrustSendTime = "trust", ago(time.Hour), ago(time.Hour)
	}
	unsettled := func(v *credential.Version) { v.AddTime, v.Proofs = ago(time.Minute), 8 }
	for _, tt := range []struct {
		name  string
		facts credential.Facts
		want  string
		check func(t *testing.T, a credential.Action)
	}{
		{"first its trust is made", with(trusting(), func(f *credential.Facts) { f.Application.TrustDigest = "" }), "ensure_federated_credentials", nil},
		{"then it begins", trusting(), "begin_federated", nil},
		{"without an issuer it waits", with(trusting(), func(f *credential.Facts) { f.Trust.Digest = "" }), "wait", nil},
		{"without an issuer nobody is asked with it", with(trusting(federated("a", 1, credential.Active, "k2")), func(f *credential.Facts) {
			f.Trust.Digest, f.Application.ObserveTime = "", ago(5*time.Hour)
		}), "wait", nil},
		{"without an issuer it is not proven", with(trusting(federated("a", 1, credential.Propagating, "k2", func(v *credential.Version) {
			v.Proofs, v.ProbeTime = 1, ago(time.Hour)
		})), func(f *credential.Facts) { f.Trust.Digest = "" }), "wait", nil},
		{"without an issuer the home tenant is not asked with it", with(trusting(federated("a", 1, credential.Staged, "k2")), func(f *credential.Facts) {
			f.Trust.Digest, f.Application.Consented, f.Application.ReadyTime = "", false, time.Time{}
		}), "wait", nil},
		{"without a key that signs it waits", with(trusting(), func(f *credential.Facts) { f.Trust.Key = "" }), "wait", nil},
		{"trust is repaired now and then", with(trusting(federated("a", 1, credential.Active, "k2")), func(f *credential.Facts) {
			f.Application.TrustTime = ago(24 * time.Hour)
		}), "ensure_federated_credentials", nil},
		{"what Entra refuses may stand on nothing any more", trusting(federated("a", 1, credential.Active, "k2", func(v *credential.Version) {
			v.Refusals, v.RefusedSince = 3, ago(time.Minute)
		})), "ensure_federated_credentials", nil},
		{"once that was looked at another version is begun", with(trusting(federated("a", 1, credential.Active, "k2", func(v *credential.Version) {
			v.Refusals, v.RefusedSince = 3, ago(time.Minute)
		})), func(f *credential.Facts) { f.Application.TrustTime = ago(time.Second) }), "begin_federated", nil},
		{"it has no end and needs no successor", trusting(federated("a", 1, credential.Active, "k2")), "wait", nil},
		{"its period is nothing to it", trusting(federated("a", 1, credential.Active, "k2", func(v *credential.Version) { v.ActivateTime = ago(5000 * time.Hour) })), "wait", nil},
		{"a new key has a version of its own begun", trusting(federated("a", 1, credential.Active, "k1")), "begin_federated", nil},
		{"not everybody's at once", with(trusting(federated("a", 1, credential.Active, "k1")), func(f *credential.Facts) { f.Trust.KeyTime = epoch }), "wait",
			func(t *testing.T, a credential.Action) {
				if until := a.(credential.Wait).Until; !until.After(epoch) {
					t.Errorf("it waits until %s", until)
				}
			}},
		{"it is proven like any other", trusting(federated("a", 1, credential.Active, "k1"), federated("b", 2, credential.Propagating, "k2", func(v *credential.Version) {
			v.AddTime, v.ProbeTime, v.PropagateTime = ago(20*time.Minute), time.Time{}, ago(20*time.Minute)
		})), "prove", nil},
		{"it settles like any other", trusting(federated("a", 1, credential.Active, "k1"), federated("b", 2, credential.Propagating, "k2", unsettled)), "wait", nil},
		{"it is promoted like any other", trusting(federated("a", 1, credential.Active, "k1"), federated("b", 2, credential.Propagating, "k2", func(v *credential.Version) { v.Proofs = 8 })), "apply Proven", nil},
		{"a version that was replaced goes without a request", trusting(federated("a", 1, credential.Revoking, "k1"), federated("b", 2, credential.Active, "k2")), "apply Removed", nil},
		{"its key was dropped", trusting(federated("a", 1, credential.Active, "k0")), "apply SigningKeyDropped", func(t *testing.T, a credential.Action) {
			m := a.(credential.Apply).Change.Moves[0]
			if m.Version.State != credential.Retiring || m.Version.Works(epoch, credential.Production()) {
				t.Errorf("it is %+v", m.Version)
			}
		}},
		{"its key was dropped before it was proven", trusting(federated("a", 1, credential.Propagating, "k0")), "apply SigningKeyDropped", func(t *testing.T, a credential.Action) {
			if m := a.(credential.Apply).Change.Moves[0]; m.Version.State != credential.Revoking {
				t.Errorf("it is %s", m.Version.State)
			}
		}},
		{"its key was dropped after it was replaced", trusting(federated("a", 1, credential.Retiring, "k0", func(v *credential.Version) { v.RetireTime = epoch }),
			federated("b", 2, credential.Active, "k2")), "apply SigningKeyDropped", func(t *testing.T, a credential.Action) {
			m := a.(credential.Apply).Change.Moves[0]
			if m.Version.State != credential.Retiring || m.Version.Works(epoch, credential.Production()) {
				t.Errorf("it is %+v", m.Version)
			}
		}},
		{"its key was dropped, and it is over", trusting(federated("a", 1, credential.Retiring, "k0", func(v *credential.Version) {
			v.RetireTime, v.EndTime = epoch, epoch
		})), "begin_federated", nil},

		{"a secret is to be a trust", with(facts(version("a", 1, credential.Active)), federatedWanted), "ensure_federated_credentials", nil},
		{"a secret is to be a trust that there is", with(facts(version("a", 1, credential.Active)), federatedWanted, trusted), "begin_federated", nil},
		{"a secret works until the trust does", with(facts(version("a", 1, credential.Active), federated("b", 2, credential.Propagating, "k2", unsettled)), federatedWanted, trusted), "wait", nil},
		{"a secret that is intended is not asked for any more", with(facts(version("a", 1, credential.Active), version("b", 2, credential.Intended)), federatedWanted, trusted), "apply KindChanged", nil},
		{"a secret that nobody can use yet gives way", with(facts(version("a", 1, credential.Staged)), federatedWanted, trusted, func(f *credential.Facts) {
			f.Application.Consented, f.Application.ActivateTime = false, time.Time{}
		}), "begin_federated", nil},
		{"a trust is to be a secret", with(trusting(federated("a", 1, credential.Active, "k2")), secretWanted), "add_password", nil},
		{"a trust works until the secret does", with(trusting(federated("a", 1, credential.Active, "k2"), version("b", 2, credential.Propagating, unsettled)), secretWanted), "wait", nil},
		{"a trust that works no more without an issuer is not waited for", with(trusting(federated("a", 1, credential.Active, "k2"), version("b", 2, credential.Propagating, unsettled)),
			secretWanted, func(f *credential.Facts) { f.Trust.Digest = "" }), "apply Proven", nil},
		{"nothing stands on it: the trust goes", with(trusting(version("b", 2, credential.Active)), secretWanted), "remove_federated_credentials", nil},
		{"somebody may fall back to it: the trust stays", with(trusting(federated("a", 1, credential.Retiring, "k2", func(v *credential.Version) { v.RetireTime = ago(time.Minute) }),
			version("b", 2, credential.Active)), secretWanted), "wait", nil},
		{"a replica may not show it yet: the trust stays", with(trusting(version("b", 2, credential.Active)), secretWanted, func(f *credential.Facts) {
			f.Application.TrustSendTime = ago(time.Minute)
		}), "wait", nil},
		{"somebody thought better of it", with(trusting(federated("a", 1, credential.Active, "k2"), version("b", 2, credential.Propagating, unsettled))), "apply KindChanged", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := credential.Decide(epoch, tt.facts, credential.Production())
			got := a.Op()
			if apply, ok := a.(credential.Apply); ok {
				got += " " + apply.Why
			}
			if got != tt.want {
				t.Fatalf("%s, want %s (%+v)", got, tt.want, a)
			}
			if tt.check != nil {
				tt.check(t, a)
			}
		})
	}
}

func TestTrust_IsThereOnceNothingIsLeft(t *testing.T) {
	f := trusting()
	f.Application.TrustDigest, f.Application.TrustTime, f.Application.TrustSendTime = "", time.Time{}, time.Time{}
	f = f.With(f.Trusting(epoch))
	if f.Application.TrustSendTime.IsZero() || f.Application.TrustDigest != "" {
		t.Errorf("before the request %+v", f.Application)
	}
	f = f.With(f.Trusted(epoch, 1))
	if f.Application.TrustDigest != "" {
		t.Error("one of two is taken for both")
	}
	f = f.With(f.Trusted(epoch.Add(time.Minute), 0))
	if f.Application.TrustDigest != "trust" || !f.Application.TrustTime.Equal(epoch.Add(time.Minute)) {
		t.Errorf("with both %+v", f.Application)
	}
	f = f.With(f.Untrusted(epoch, 1))
	if f.Application.TrustDigest != "" || f.Application.TrustSendTime.IsZero() {
		t.Error("with one of two gone it is taken for what it was, or for nothing")
	}
	if f = f.With(f.Untrusted(epoch, 0)); !f.Application.TrustSendTime.IsZero() {
		t.Error("with both gone something is to be removed still")
	}
}

// TestConditions_WhoseTrustsThereAre has a read find federated credentials that are not those of the vault's issuer.
func TestConditions_WhoseTrustsThereAre(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(f *credential.Facts, found *credential.MadeApplication)
		want string
	}{
		{"somebody's", func(*credential.Facts, *credential.MadeApplication) {}, "ForeignCredentials"},
		{"without an issuer they may be its own", func(f *credential.Facts, _ *credential.MadeApplication) { f.Trust.Digest = "" }, "IssuerMissing"},
		{"without an issuer a secret is wanted again", func(f *credential.Facts, _ *credential.MadeApplication) {
			f.Trust.Digest, f.Wanted.Federated = "", false
		}, "IssuerMissing"},
		{"without an issuer there were none of its own", func(f *credential.Facts, _ *credential.MadeApplication) {
			f.Trust.Digest, f.Wanted.Federated, f.Application.TrustSendTime = "", false, time.Time{}
		}, "ForeignCredentials"},
		{"without an issuer a password is somebody's all the same", func(f *credential.Facts, found *credential.MadeApplication) {
			f.Trust.Digest, found.Passwords = "", []credential.MadePassword{{KeyID: "hand", Name: "made by hand"}}
		}, "ForeignCredentials"},
		{"without an issuer there are none", func(f *credential.Facts, found *credential.MadeApplication) {
			f.Trust.Digest, found.ForeignTrusts = "", 0
		}, "Replicated"},
	} {
		f, found := trusting(federated("a", 1, credential.Active, "k2")), credential.MadeApplication{ObjectID: "object", ForeignTrusts: 2}
		tt.edit(&f, &found)
		f = f.With(f.ReadFound(epoch, "test", found))
		if c := credential.Conditions(epoch, f, credential.Production())[0]; c.Reason != tt.want || !c.True {
			t.Errorf("%s: %+v, want %s", tt.name, c, tt.want)
		}
	}
}

func TestConditions_Federated(t *testing.T) {
	unproven := trusting()
	unproven.Trust.Digest = ""
	refused := trusting()
	refused.Application.TrustDigest, refused.Application.Failures, refused.Application.FailureCode = "", 1, "InvalidFederatedIdentityCredentialValue"
	for name, tt := range map[string]struct {
		facts credential.Facts
		want  string
		holds bool
	}{
		"works":                  {trusting(federated("a", 1, credential.Active, "k2")), "Proven", true},
		"the vault is no issuer": {unproven, "IssuerMissing", false},
		"the vault is none any more": {func() credential.Facts {
			f := unproven
			f.Versions = []credential.Version{federated("a", 1, credential.Active, "k2")}
			return f
		}(), "IssuerMissing", false},
		"the issuer is not allowed": {refused, "InvalidFederatedIdentityCredentialValue", false},
		"a secret works meanwhile": {func() credential.Facts {
			f := unproven
			f.Versions = []credential.Version{version("a", 1, credential.Active)}
			return f
		}(), "IssuerMissing", true},
		"the secret from before is over": {func() credential.Facts {
			f := unproven
			f.Versions = []credential.Version{version("a", 1, credential.Active, func(v *credential.Version) { v.EndTime = epoch })}
			return f
		}(), "IssuerMissing", false},
		"a secret works until the trust does": {trusting(version("a", 1, credential.Active)), "Proven", true},
		"a secret is wanted again": {func() credential.Facts {
			f := unproven
			f.Wanted.Federated, f.Versions = false, []credential.Version{federated("a", 1, credential.Active, "k2")}
			return f
		}(), "IssuerMissing", false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range credential.Conditions(epoch, tt.facts, credential.Production()) {
				if c.Type == credential.CredentialReady && (c.Reason != tt.want || c.True != tt.holds) {
					t.Errorf("%+v, want %s", c, tt.want)
				}
			}
		})
	}
}
