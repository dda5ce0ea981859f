package credential

import (
	"slices"
	"time"

	"phasekey.dev/services/vault/internal/permission"
)

// ConditionType names an observation that people see.
type ConditionType string

// The conditions there are.
const (
	// ApplicationReady: the application exists, and the home tenant's token service knows it.
	ApplicationReady ConditionType = "ApplicationReady"
	// Consented: the customer's tenant has a service principal of it.
	Consented ConditionType = "Consented"
	// CredentialReady: a proven version is live.
	CredentialReady ConditionType = "CredentialReady"
	// PermissionsVerified: the principal has an Azure role in the default subscription, and no deny assignment takes away from it.
	PermissionsVerified ConditionType = "PermissionsVerified"
)

// Condition is an observation in words.
type Condition struct {
	Type ConditionType
	// True says whether it holds; if not, Reason and Message say why.
	True bool
	// Reason is one CamelCase word.
	Reason string
	// Message is for people. It changes only when the reason does.
	Message string
}

// Conditions says in words what is known, one condition of each type; that of permissions once they were looked at.
func Conditions(now time.Time, f Facts, t Timing) []Condition {
	all := []Condition{applicationReady(f), consented(f), credentialReady(now, f, t)}
	if !f.Permissions.Time.IsZero() {
		all = append(all, permissionsVerified(f.Permissions))
	}
	return all
}

func permissionsVerified(p permission.Check) Condition {
	c := Condition{Type: PermissionsVerified, True: true}
	switch {
	case p.Denied:
		c.True, c.Reason = false, "DenyAssignment"
		c.Message = "A deny assignment takes away from what the principal's roles give in the default subscription, or may; CheckPermissions names it. No role helps against it."
	case p.Write == permission.Full:
		c.Reason, c.Message = "CanWrite", "The principal may read and change things in the default subscription."
	case p.Write == permission.Partial:
		c.Reason, c.Message = "CanWriteSome", "The principal may change some things in the default subscription, or in parts of it."
	case p.Read == permission.Full:
		c.Reason, c.Message = "CanRead", "The principal may read the default subscription, and change nothing."
	case p.Read == permission.Partial:
		c.Reason, c.Message = "CanReadSome", "The principal may read some things in the default subscription, or in parts of it, and change nothing."
	default:
		c.True, c.Reason = false, "NoRole"
		c.Message = "No Azure role of the principal is seen in the default subscription; CheckPermissions has the commands that assign one."
	}
	return c
}

// reasonNoCloud is why nothing is done about an integration whose cloud the configuration does not name.
const reasonNoCloud = "CloudUnknown"

// reasonBeingDeleted is why versions go whose integration is being deleted.
const reasonBeingDeleted = "Deleting"

func applicationReady(f Facts) Condition {
	a := f.Application
	c := Condition{Type: ApplicationReady}
	switch {
	case f.Wanted.NoCloud && a.ObjectID == "":
		c.Reason, c.Message = reasonNoCloud, "The vault's configuration does not name the integration's cloud: the application cannot be made."
	case f.Wanted.Deleting && (!a.DeleteTime.IsZero() || a.MissingReads >= 2):
		c.Reason, c.Message = reasonBeingDeleted, "The application is gone, or in the directory's bin, which it is removed from too."
	case a.ObjectID != "" && a.MissingReads >= 2:
		c.Reason, c.Message = "ApplicationMissing", "The application is gone from the home tenant. Restore it from the directory's deleted applications."
	case a.ObjectID == "" && a.Failures > 0:
		c.Reason, c.Message = reasonOf(a.FailureCode), "The application could not be made; it is tried again."
	case a.ObjectID == "":
		c.Reason, c.Message = "Creating", "The application is being made."
	case a.ReadyTime.IsZero():
		c.Reason, c.Message = "ReplicationPending", "The application has not reached all of Entra ID yet."
	case a.ForeignPasswords+a.ForeignTrusts > 0:
		c.True, c.Reason = true, "ForeignCredentials"
		c.Message = "The application has client secrets or federated credentials that Phasekey did not make, and leaves alone: whoever made them can act as it. Look who did, and remove them."
	case a.UnknownTrusts > 0 && f.Trust.Digest == "":
		c.True, c.Reason = true, reasonIssuerMissing
		c.Message = "The application has federated credentials, and whether they are Phasekey's own is not known: the vault's configuration names no issuer. Leave them until it does."
	case slices.ContainsFunc(f.Strays, Stray.stuck), slices.ContainsFunc(f.Versions, Version.stuck):
		c.True, c.Reason = true, "StrayCredentials"
		c.Message = "The application has a client secret that is to go and that Entra ID does not let Phasekey remove. Unless the answer to the request for it was lost, whoever was given it can use it until it ends. Remove it by hand: its key ID is in the vault's log."
	default:
		c.True, c.Reason = true, "Replicated"
	}
	return c
}

// reasonAwaitingConsent is why nobody can use what there is: the customer has not consented, or not again.
const reasonAwaitingConsent = "AwaitingConsent"

func consented(f Facts) Condition {
	a := f.Application
	c := Condition{Type: Consented}
	switch {
	case a.Consented:
		c.True, c.Reason = true, "PrincipalFound"
	case a.ConsentTime.IsZero():
		c.Reason, c.Message = reasonAwaitingConsent, "The customer's administrator has not consented yet."
	default:
		c.Reason = a.ConsentCode
		if c.Reason == "" {
			c.Reason = "ConsentLost"
		}
		c.Message = "The customer's tenant refuses the application: consent was withdrawn, or the service principal was disabled or deleted."
	}
	return c
}

func credentialReady(now time.Time, f Facts, t Timing) Condition {
	a := f.Application
	c := Condition{Type: CredentialReady}
	active, ok := f.ByState(Active)
	switch {
	case f.Wanted.NoCloud:
		c.Reason = reasonNoCloud
		c.Message = "The vault's configuration does not name the integration's cloud: nothing is delivered, and no secret is replaced or removed. What was delivered works until it ends. Name the cloud at every replica."
	case f.Wanted.Deleting:
		c.Reason, c.Message = reasonBeingDeleted, "The integration is being deleted: nothing is delivered any more, and what there was is removed."
	case ok && !a.Consented:
		c.Reason, c.Message = "ConsentLost", "The credential is of no use until the customer's tenant takes the application again."
	case ok && f.mute(active), f.Wanted.Federated && f.Trust.Digest == "":
		_, c.True = f.usable(now, t)
		c.Reason = reasonIssuerMissing
		c.Message = "The vault is not an issuer: its configuration names none. A client secret that there is works until it ends; make the integration CLIENT_SECRET until the vault is an issuer."
	case a.AddRefusal != "" && !f.Wanted.Federated:
		c.True, c.Reason = ok && active.Works(now, t), a.AddRefusal
		c.Message = "No other client secret can be made until people mend what the reason names. Where a policy forbids it: exempt the application from the policy, or make the integration FEDERATED, which needs no secret."
	case ok && active.ended(now):
		c.Reason, c.Message = "SecretExpired", "The credential has expired and could not be replaced in time."
	case ok && active.unreadable():
		c.Reason = reasonUnreadable
		c.Message = "The vault cannot open the client secret that it has stored: the data key that sealed it is gone from the database, or the record was changed. A new secret is being made."
	case ok && !active.Works(now, t):
		c.Reason, c.Message = "SecretRefused", "Entra ID refuses the credential; a new one is being made."
	case ok && !active.Federated() && active.putOff(now, f.PauseEndTime, t) && !now.Before(active.RotateTime(f.Wanted.period(), t)):
		c.True, c.Reason, c.Message = true, "RotationPaused", "The credential is due to be replaced, and rotation is paused; it still works."
	case ok && active.late(now, f.Wanted.period()):
		c.True, c.Reason, c.Message = true, "RotationLate", "The credential could not be replaced when it was due; it still works."
	case ok:
		c.True, c.Reason = true, "Proven"
	case f.upTo(Rotation.compromisingAtOnce) > 0:
		c.Reason, c.Message = reasonCompromised, "The credential was removed because it was compromised; a new one is being proven."
	case f.Wanted.Federated && !f.trusted() && a.Failures > 0:
		c.Reason, c.Message = reasonOf(a.FailureCode), "The federated credentials could not be made; it is tried again."
	case a.AddCode != "":
		c.Reason, c.Message = a.AddCode, "No credential could be made and proven so far; it is tried again."
	case !a.Consented:
		c.Reason, c.Message = reasonAwaitingConsent, "A credential is proven once the customer's administrator has consented."
	default:
		c.Reason, c.Message = "Proving", "The credential is being proven."
	}
	return c
}

// Expiring reports whether people are to be told that the version, which is ACTIVE, was not replaced: it is late, and no pause until then is why. A period of zero means
// DefaultPeriod.
func (v Version) Expiring(now time.Time, period time.Duration, pauseEnd time.Time, t Timing) bool {
	return v.late(now, Wanted{Period: period}.period()) && (!v.Works(now, t) || !v.putOff(now, pauseEnd, t))
}

// late reports whether the version should have been replaced: less than a period of its life is left, or, where a policy keeps lives
// so short that there never is much more, less than a quarter of it.
func (v Version) late(now time.Time, period time.Duration) bool {
	if v.Federated() {
		return false
	}
	least := period
	if v.Life()/3 < period {
		least = v.Life() / 4
	}
	return v.EndTime.Sub(now) < least
}
