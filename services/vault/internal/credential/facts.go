package credential

import (
	"slices"
	"time"

	"phasekey.dev/services/vault/internal/permission"
)

// Facts is everything that is known about one integration when a decision is made.
type Facts struct {
	Wanted      Wanted
	Application Application
	// Versions holds those that are not final, and the ABANDONED ones whose password is known and not removed yet.
	Versions []Version
	// LastNumber is the highest number that any of the integration's versions ever had.
	LastNumber int64
	// Probe is what the customer's tenant said last, asked by whichever replica.
	Probe Probe
	// Permissions is which Azure roles were last seen, by whichever replica.
	Permissions permission.Check
	// Strays are passwords at Entra that bear this deployment's name and belong to no version with a password.
	Strays []Stray
	// Recovery is the last recovery from a backup; zero if there never was one.
	Recovery Recovery
	// FailOverTime is when the database last went on from another point of its history: what it was told shortly before may be lost. Zero if it never did.
	FailOverTime time.Time
	// Trust is what federated versions stand on.
	Trust Trust
	// Rotations are those that somebody asked for and that have not ended.
	Rotations []Rotation
	// PauseEndTime is when rotation by schedule goes on; it may be over.
	PauseEndTime time.Time
}

// DefaultPeriod is how often a credential is replaced unless something else is wanted.
const DefaultPeriod = 24 * time.Hour

// Wanted is what the registry wants.
type Wanted struct {
	UID string
	// Present is false for an integration that the registry does not list: an alarm, never a command.
	Present bool
	// Deleting is true once the integration was read in state DELETING.
	Deleting bool
	// NoCloud is true while the vault's configuration does not name the integration's cloud, so that nobody can be asked anything about it.
	NoCloud bool
	// Period is how often the credential is replaced; zero means DefaultPeriod.
	Period time.Duration
	// Federated is true when the application shall prove who it is by assertions of the vault's, not by a client secret.
	Federated bool
	// SpecDigest stands for all properties that the application shall have.
	SpecDigest string
}

func (w Wanted) period() time.Duration {
	if w.Period <= 0 {
		return DefaultPeriod
	}
	return w.Period
}

// Application is what is known about the integration's application at Entra.
type Application struct {
	IntegrationUID string
	// ObjectID addresses it in Graph, ClientID in token requests; empty until it was made.
	ObjectID, ClientID string
	// DisplayName is what it was given.
	DisplayName string
	// SpecDigest is the digest of the properties it was last given, at EnsureTime. EnsureSendTime is when making it was
	// first tried: from then on it may exist.
	SpecDigest     string
	EnsureSendTime time.Time
	EnsureTime     time.Time
	// TrustDigest stands for the federated credentials that it was found to have, or last given, at TrustTime; empty while there are none.
	// TrustSendTime is when giving it some was last tried: from then on it may have some.
	TrustDigest              string
	TrustTime, TrustSendTime time.Time
	// ReadTime is when its passwords were last read.
	ReadTime time.Time
	// WriteTime is when it was last written to, successfully or not.
	WriteTime time.Time
	// ForeignPasswords and ForeignTrusts count the passwords and the federated credentials which that read found and which nobody here
	// made. They are left alone.
	ForeignPasswords, ForeignTrusts int
	// UnknownTrusts counts the federated credentials that it found while the vault was no issuer, of an application that may have some of its own.
	UnknownTrusts int
	// MissingReads counts reads in a row, spaced, that did not find it, the last at MissingTime.
	MissingReads int
	MissingTime  time.Time

	// HomeProofs counts token requests in a row that showed that the home tenant's token service knows it, the last at
	// HomeTime; ReadyTime is when there were enough.
	HomeProofs int
	HomeTime   time.Time
	ReadyTime  time.Time

	// Consented says whether the customer's tenant has a principal of it; since ConsentTime.
	Consented   bool
	ConsentTime time.Time
	// ActivateTime is when a version of it was ACTIVE for the first time.
	ActivateTime time.Time
	// PrincipalObjectID is that principal, from the first token on.
	PrincipalObjectID string
	// ObserveTime is when the last word of the tenant was taken in. SeenProbeTime is the time of the last Probe that was, by the
	// clock of whoever asked; SeenWantTime likewise that of the last wish which was met.
	ObserveTime, SeenProbeTime, SeenWantTime time.Time
	// ConsentRefusals counts refusals in a row for want of consent, from ConsentRefusedSince on; ConsentCode is the last
	// one's AADSTS code.
	ConsentRefusals     int
	ConsentRefusedSince time.Time
	ConsentCode         string

	// Failures counts what failed in a row at Graph for the application as a whole; FailureCode is the last one's.
	// Nothing of the kind is tried before NextTime.
	Failures    int
	FailureCode string
	NextTime    time.Time
	// AddFailures counts versions in a row that came to nothing, AddCode says why the last did. The next one is not
	// intended before AddNextTime.
	AddFailures int
	AddCode     string
	AddNextTime time.Time
	// AddRefusal is the code of the last refusal to make a password that only people can mend; empty since one was made.
	AddRefusal string
	// LifeLimit is the longest life of a password that the home tenant's policy may take; 0 without one.
	LifeLimit time.Duration

	// LeaseEndTime is when the leases of an integration that is being deleted were last ended.
	LeaseEndTime time.Time
	// Absences counts requests in a row to delete it, or, from DeleteTime on, to purge it, that did not find it, spaced, the
	// last at AbsenceTime.
	Absences    int
	AbsenceTime time.Time
	// DeleteTime is when it was deleted, PurgeTime when for good, ForgetTime when the registry knew.
	DeleteTime, PurgeTime, ForgetTime time.Time

	// ReportDigest stands for the conditions that the registry last accepted, at ReportTime.
	ReportDigest string
	ReportTime   time.Time
}

// Probe is the last answer of the customer's tenant to "do you know this application?".
type Probe struct {
	// Time is when it was asked; zero if it never was.
	Time time.Time
	// VersionID is the version it was asked with.
	VersionID string
	Finding   Finding
	// Code is the refusal's AADSTS code.
	Code string
	// PrincipalObjectID comes from the token, if there was one.
	PrincipalObjectID string
	// WantTime is when somebody last had reason to have it asked again at once: a token that could not be minted.
	WantTime time.Time
}

// Finding is what one token request told.
type Finding string

// The findings there are.
const (
	// Unsure: nothing; no answer, or one that says nothing about credential and consent.
	Unsure Finding = ""
	// Works: a token was issued.
	Works Finding = "WORKS"
	// ConsentMissing: the tenant does not know the application, or has no usable principal of it.
	ConsentMissing Finding = "CONSENT_MISSING"
	// PrincipalMissing: likewise, and the token service does know the application.
	PrincipalMissing Finding = "PRINCIPAL_MISSING"
	// SecretRefused: the secret is wrong, or has not replicated.
	SecretRefused Finding = "SECRET_REFUSED"
	// SecretExpired: its time is over.
	SecretExpired Finding = "SECRET_EXPIRED"
	// Unreadable: the vault cannot open its text any more. Nobody was asked.
	Unreadable Finding = "UNREADABLE"
)

// Stray is a password at Entra that nobody here can use, seen first and last by reads at these times.
type Stray struct {
	KeyID string
	Name  string
	// StartTime is when it was made, by Entra's clock; zero if that is not known.
	StartTime time.Time
	FirstTime time.Time
	LastTime  time.Time
	// Attempts counts removals of it that failed in a row; the next is tried at NextTime.
	Attempts int
	NextTime time.Time
}

// StuckAttempts is how many removals of a password must have failed in a row for people to be told: by Production's back-off that is well over an hour, or ten minutes
// where the password is compromised.
const StuckAttempts = 10

func (s Stray) stuck() bool { return s.Attempts >= StuckAttempts }

// ByState returns the newest version in one of the states.
func (f Facts) ByState(states ...State) (Version, bool) {
	var found Version
	for _, v := range f.Versions {
		if slices.Contains(states, v.State) && v.Number > found.Number {
			found = v
		}
	}
	return found, found.ID != ""
}

// ProbeVersion returns the version that the customer's tenant is asked with: the ACTIVE one while it works, otherwise the
// newest that has a password.
func (f Facts) ProbeVersion(now time.Time, t Timing) (Version, bool) {
	if v, ok := f.ByState(Active); ok && v.Works(now, t) {
		return v, true
	}
	return f.ByState(Staged, Propagating, Active)
}

// Move is a version's new row, and the state that the row must have before.
type Move struct {
	From    State
	Version Version
	// DespiteHolders lets a version go to REVOKING that is held.
	DespiteHolders bool
}

// Change is what one step makes of the facts: rows to be written in one transaction.
type Change struct {
	// Application is its new row; nil leaves it.
	Application *Application
	// Intent is a version that is new.
	Intent *Version
	// Moves are versions that change. A version that goes to REVOKING must not be held, unless the move says so.
	Moves []Move
	// Rotations are those that came further.
	Rotations []RotationMove
	// Strays replaces the strays when ReplaceStrays is set.
	Strays        []Stray
	ReplaceStrays bool
}

// With returns the facts after a change.
func (f Facts) With(c Change) Facts {
	if c.Application != nil {
		f.Application = *c.Application
	}
	f.Versions = slices.Clone(f.Versions)
	for _, m := range c.Moves {
		i := slices.IndexFunc(f.Versions, func(v Version) bool { return v.ID == m.Version.ID })
		if i >= 0 {
			f.Versions[i] = m.Version
		}
	}
	if c.Intent != nil {
		f.Versions = append(f.Versions, *c.Intent)
		f.LastNumber = max(f.LastNumber, c.Intent.Number)
	}
	f.Versions = slices.DeleteFunc(f.Versions, func(v Version) bool { return !v.Open() })
	f.Rotations = slices.Clone(f.Rotations)
	for _, m := range c.Rotations {
		i := slices.IndexFunc(f.Rotations, func(r Rotation) bool { return r.ID == m.Rotation.ID })
		if i >= 0 {
			f.Rotations[i] = m.Rotation
		}
	}
	f.Rotations = slices.DeleteFunc(f.Rotations, func(r Rotation) bool { return !r.Open() })
	if c.ReplaceStrays {
		f.Strays = c.Strays
	}
	return f
}

// Open reports whether there is anything left to do for the version.
func (v Version) Open() bool {
	return !v.State.Final() || v.State == Abandoned && v.KeyID != "" && v.RemoveTime.IsZero()
}
