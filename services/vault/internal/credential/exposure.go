package credential

import "time"

const (
	// removalLag is how long Entra may take to refuse a removed secret everywhere: as long as it takes at most to know a new one.
	removalLag = 20 * time.Minute
	// tokenLife is the longest that Entra chooses by default for an access token, 60 to 90 minutes at random. Source: "Access tokens in the
	// Microsoft identity platform", token lifetime. The tokens of continuous access evaluation, which live for a day, are not for applications of many tenants:
	// "Continuous access evaluation for workload identities", prerequisites.
	tokenLife = 90 * time.Minute
)

// Exposure is for how long whoever has an old secret, or a token made from one, can use it.
type Exposure struct {
	// EndTime is when it ends at the latest; zero when there was nothing to be exposed, or no end is known.
	EndTime time.Time
	// RemovalLag and TokenLife are what was reckoned with.
	RemovalLag, TokenLife time.Duration
	// Remedies are what would shorten it, for people; none once it is over.
	Remedies []string
}

// ExposureOf says how long what a rotation replaces can be used.
func ExposureOf(now time.Time, r RotationStatus) Exposure {
	e := Exposure{RemovalLag: removalLag, TokenLife: tokenLife}
	switch {
	case r.UpTo == 0:
		return e
	case r.SigningKey != "":
		// The new version is under the same key, and when Entra ID learns that a key was dropped nobody promises.
		e.Remedies = []string{"If somebody may have the vault's signing key, which this rotation does not replace: RotateSigningKeys with the reason COMPROMISED, of signingKeys/" +
			r.SigningKey + ". It is every federated integration's."}
		e.Remedies = append(e.Remedies, customersRemedies()...)
		return e
	case !r.RemoveTime.IsZero():
		e.EndTime = r.RemoveTime.Add(removalLag + tokenLife)
	case !r.OldEndTime.IsZero():
		e.EndTime = r.OldEndTime.Add(tokenLife)
	}
	if !e.EndTime.IsZero() && !now.Before(e.EndTime) {
		return e
	}
	if r.RemoveTime.IsZero() {
		e.Remedies = r.remedies()
	}
	e.Remedies = append(e.Remedies, customersRemedies()...)
	return e
}

// remedies are what whoever looks at the rotation can do while what it replaces is there.
func (r Rotation) remedies() (all []string) {
	if r.removalFails() {
		all = append(all, "Have the old secret removed by hand, if its removal, which is tried again and again, goes on failing with "+r.StateReason+": its key ID is in the vault's log.")
	}
	switch {
	case r.State == RotationAbandoned && r.StateReason == reasonSuperseded:
		all = append(all, "Look at the rotation for a compromise that took this one's place: what this one was to replace goes with that.")
	case r.State == RotationAbandoned: // with the integration that is being deleted
	case r.StateReason == reasonNoCloud:
		all = append(all, "Name the integration's cloud in the configuration of every vault: until then nothing is made or removed there. Or have the old secret removed by hand: its key ID is in the vault's log.")
	case r.Reason == Scheduled:
		all = append(all, "If somebody may have the old secret: ask for a rotation with the reason COMPROMISED, which waits neither for those who hold it nor for an hour.")
	case r.Begun() && !r.Immediately:
		all = append(all, "Ask for the rotation again with immediately: the old secret is removed before the new one is proven, and runs fail meanwhile.")
	}
	return all
}

// customersRemedies are what the customer can do.
func customersRemedies() []string {
	return []string{
		"Have the customer's administrator disable the service principal: no new tokens are issued then, not to runs either. What was issued is taken until it expires.",
		"Have the customer remove the principal's role assignments: tokens that live on open nothing then, within ten minutes as a rule.",
	}
}
