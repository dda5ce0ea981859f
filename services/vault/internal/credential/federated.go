package credential

import (
	"slices"
	"time"
)

// Trust is what federated versions stand on: federated credentials at Entra, the same for all versions of an integration, and the vault's
// signing keys, the same for all integrations.
type Trust struct {
	// Digest stands for the federated credentials that the application of a federated integration shall have; empty where the vault is
	// no issuer.
	Digest string
	// Key is the signing key that new versions are under, since KeyTime; empty while there is none.
	Key     string
	KeyTime time.Time
	// Usable are all keys that sign.
	Usable []string
}

// reasonIssuerMissing is why nothing comes of a federated version while the vault is no issuer.
const reasonIssuerMissing = "IssuerMissing"

// Federated reports whether the version is a trust, and not a client secret: the application's federated credentials under one signing
// key. It has no text and no end.
func (v Version) Federated() bool { return v.SigningKey != "" }

// ended reports whether the version's end has come, if it has one.
func (v Version) ended(now time.Time) bool { return !v.EndTime.IsZero() && !now.Before(v.EndTime) }

// fits reports whether the version is of the kind that is wanted, under the key that new versions are under.
func (f Facts) fits(v Version) bool {
	return v.Federated() == f.Wanted.Federated && (!v.Federated() || v.SigningKey == f.Trust.Key)
}

// trusted reports whether the application has the federated credentials that are wanted, as far as is known.
func (f Facts) trusted() bool {
	return f.Trust.Digest != "" && f.Application.TrustDigest == f.Trust.Digest
}

// mayTrust reports whether the application may have federated credentials of the vault's.
func (f Facts) mayTrust() bool { return f.Wanted.Federated || !f.Application.TrustSendTime.IsZero() }

// mute reports whether nobody can be asked with the version: it is federated, and the vault is no issuer. It is not tried, so that nothing is put off once the
// vault is one.
func (f Facts) mute(v Version) bool { return v.Federated() && f.Trust.Digest == "" }

// usable returns the ACTIVE version, and whether tokens can be had with it as far as is known.
func (f Facts) usable(now time.Time, t Timing) (Version, bool) {
	v, ok := f.ByState(Active)
	return v, ok && v.Works(now, t) && !f.mute(v)
}

// spread is how long after a new key began to sign a version is begun under it: not all integrations at once.
func (v Version) spread(period time.Duration) time.Duration {
	return time.Duration((1 + v.jitter()) * float64(period) / 20)
}

// dropped finds what follows for a version whose signing key does not sign any more, though the version is not through: somebody may
// have the key, so it is over at once.
func (p *plan) dropped(v Version) (Change, bool) {
	const reason = "SigningKeyDropped"
	if !v.Federated() || slices.Contains(p.facts.Trust.Usable, v.SigningKey) {
		return Change{}, false
	}
	next := v
	switch v.State {
	case Staged, Propagating:
		return revoke(p.now, v, reason), true
	case Active:
		next.State, next.RetireTime, next.EndTime, next.Reason = Retiring, p.now, p.now, reason
		return Change{Moves: []Move{{From: Active, Version: next}}}, true
	case Retiring:
		if v.ended(p.now) {
			return Change{}, false
		}
		next.EndTime, next.Reason = p.now, reason
		return Change{Moves: []Move{{From: Retiring, Version: next}}}, true
	case Intended, Revoking, Revoked, Abandoned:
	}
	return Change{}, false
}

// unwanted reports whether a version that was begun is not worth going on with, because the kind that is wanted changed meanwhile and a
// version of the right one works.
func (p *plan) unwanted(v Version) bool {
	active, ok := p.facts.ByState(Active)
	return v.Federated() != p.facts.Wanted.Federated && ok && p.facts.fits(active) && active.Works(p.now, p.t)
}

// trust has the application's federated credentials made, or repaired.
func (p *plan) trust() Action {
	f, a := p.facts, p.facts.Application
	if !f.Wanted.Federated || f.Trust.Digest == "" || a.ObjectID == "" {
		return nil
	}
	if f.trusted() && !p.due(a.TrustTime.Add(p.t.EnsureInterval)) && !p.doubted() {
		return nil
	}
	if p.retry(a.NextTime) && p.writable() {
		return EnsureTrust{}
	}
	return nil
}

// doubted reports whether Entra refuses a federated version for so long that somebody may have removed what it stands on, and nobody has
// looked since.
func (p *plan) doubted() bool {
	return slices.ContainsFunc(p.facts.Versions, func(v Version) bool {
		return v.Federated() && v.State.HasPassword() && v.Refusals >= p.t.RefusalLimit && p.facts.Application.TrustTime.Before(v.RefusedSince)
	})
}

// untrust has the federated credentials removed of an application that is to have none, once nothing stands on them and every replica
// shows them.
func (p *plan) untrust() Action {
	f, a := p.facts, p.facts.Application
	if f.Wanted.Federated || a.TrustSendTime.IsZero() || a.ObjectID == "" {
		return nil
	}
	for _, v := range f.Versions {
		if v.Federated() {
			return nil
		}
	}
	if p.due(a.TrustSendTime.Add(p.t.PropagationLimit)) && p.retry(a.NextTime) && p.writable() {
		return Untrust{}
	}
	return nil
}

// Trusting is stored before the federated credentials are ensured: from then on there may be some.
func (f Facts) Trusting(now time.Time) Change {
	a := f.Application
	a.TrustSendTime, a.WriteTime = now, now
	return Change{Application: &a}
}

// Trusted takes in that one of the federated credentials was made or found, and how many are left to be.
func (f Facts) Trusted(now time.Time, left int) Change {
	a := f.Application
	a.WriteTime = now
	if left == 0 {
		a.TrustDigest, a.TrustTime = f.Trust.Digest, now
	}
	f.reached(&a)
	return Change{Application: &a}
}

// Untrusted takes in that one of the federated credentials is gone, and how many are left.
func (f Facts) Untrusted(now time.Time, left int) Change {
	a := f.Application
	a.WriteTime = now
	// Not what they were any more, whatever is left.
	a.TrustDigest, a.TrustTime = "", time.Time{}
	if left == 0 {
		a.TrustSendTime = time.Time{}
	}
	f.reached(&a)
	return Change{Application: &a}
}

// Begun is stored as a federated version begins: id is the new version's. Entra is not asked for anything.
func (f Facts) Begun(now time.Time, id string) Change {
	a := f.Application
	a.AddCode, a.AddRefusal = "", ""
	v := Version{
		ID: id, IntegrationUID: f.Wanted.UID, Number: f.LastNumber + 1, State: Staged, SigningKey: f.Trust.Key, Recovery: f.Recovery.Number,
		IntendTime: now, AddTime: now, StartTime: now,
	}
	if a.Consented {
		v.State, v.PropagateTime = Propagating, now
	} else {
		a.AddFailures = 0
	}
	return Change{Application: &a, Intent: &v}
}
