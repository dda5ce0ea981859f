package integration

import (
	"slices"
	"strings"
	"time"

	"phasekey.dev/services/registry/internal/resource"
)

// ConditionType names what was observed.
type ConditionType string

// The conditions there are.
const (
	// ApplicationReady: the application exists, and the home tenant's token service knows it.
	ApplicationReady ConditionType = "APPLICATION_READY"
	// Consented: the customer's tenant has a service principal of the application.
	Consented ConditionType = "CONSENTED"
	// CredentialReady: a proven credential is live.
	CredentialReady ConditionType = "CREDENTIAL_READY" //nolint:gosec // the name of a condition
	// PermissionsVerified: the service principal has an Azure role. The state does not rest on it: what a role has to allow, the platform
	// does not know.
	PermissionsVerified ConditionType = "PERMISSIONS_VERIFIED"
)

// conditionTypes is the order in which conditions are kept.
func conditionTypes() []ConditionType {
	return []ConditionType{ApplicationReady, Consented, CredentialReady, PermissionsVerified}
}

// ConditionStatus is what is known about a condition.
type ConditionStatus string

// The statuses there are.
const (
	True    ConditionStatus = "TRUE"
	False   ConditionStatus = "FALSE"
	Unknown ConditionStatus = "UNKNOWN"
)

// Condition is one observation.
type Condition struct {
	Type    ConditionType
	Status  ConditionStatus
	Reason  string
	Message string
	// LastTransition is when Status last changed.
	LastTransition time.Time
	// Holds is what was last known for certain: UNKNOWN leaves it as it was. The state rests on it, so that not being able to
	// look is not taken for trouble.
	Holds bool
}

// State says in one word what the conditions say in full.
type State string

// The states there are.
const (
	// Provisioning: the vault has work to do before anybody else can: the application, or, after consent, its credential.
	Provisioning State = "PROVISIONING"
	// AwaitingConsent: the customer's administrator has to consent.
	AwaitingConsent State = "AWAITING_CONSENT"
	// Active: consented, with a proven credential.
	Active State = "ACTIVE"
	// Degraded: it was ACTIVE, and is not now.
	Degraded State = "DEGRADED"
	// Deleting: the vault removes the application for good.
	Deleting State = "DELETING"
)

// State derives the state. The order of the questions is the rule:
//
//	deletion asked for                          DELETING
//	all three conditions hold                   ACTIVE
//	they all did once                           DEGRADED
//	the application is not ready                PROVISIONING
//	nobody has consented, or not any more       AWAITING_CONSENT
//	the first credential is being proven        PROVISIONING
func (i Integration) State() State {
	application, consented, credential := i.holds(ApplicationReady), i.holds(Consented), i.holds(CredentialReady)
	switch {
	case i.Deleting():
		return Deleting
	case application && consented && credential:
		return Active
	case i.EverActive:
		return Degraded
	case !application:
		return Provisioning
	case !consented:
		return AwaitingConsent
	default:
		return Provisioning
	}
}

func (i Integration) holds(t ConditionType) bool {
	at := slices.IndexFunc(i.Conditions, func(c Condition) bool { return c.Type == t })
	return at >= 0 && i.Conditions[at].Holds
}

// Report is what the vault found out. Empty texts and absent conditions leave what is known.
type Report struct {
	// Conditions has at most one of each type; LastTransition and Holds are not read.
	Conditions               []Condition
	ApplicationDisplayName   string
	ClientID                 string
	ServicePrincipalObjectID string
}

// Mastership is the vault replica that works on a shard. Of two, the one with the higher epoch is newer; a database
// fail-over may give an epoch out twice, and then only the holder that reported first is believed.
type Mastership struct {
	Shard  int32
	Epoch  int64
	Holder string
}

// maxEpochLead is how far an epoch may be ahead of the registry's clock. Epochs are the microseconds of the vault's clock, or one more than the last.
const maxEpochLead = 24 * time.Hour

// Check says what is wrong with the mastership of a report. An epoch of far in the future would be believed, and every later mastership of the
// shard refused, until that future comes.
func (m Mastership) Check(now time.Time) []resource.Violation {
	if m.Epoch <= now.Add(maxEpochLead).UnixMicro() {
		return nil
	}
	return []resource.Violation{{Field: "epoch", Description: "must not be of a time more than a day from now, in microseconds since 1970"}}
}

// News is what a report amounts to.
type News int

// The news there are, the greater the more.
const (
	// NoNews: everything was known.
	NoNews News = iota
	// Wording: nothing but messages. They are kept, for whoever reads the integration, and watchers are not told: a message may have a time or a
	// request's number in it, and differ each time.
	Wording
	// Substance: anything else, which watchers are told.
	Substance
)

// Observe takes in a report. The wanted state, and so the etag and the update time, stay.
func (i Integration) Observe(now time.Time, report Report) (next Integration, news News) {
	set := func(field *string, value string) {
		if value != "" && *field != value {
			*field, news = value, Substance
		}
	}
	set(&i.ApplicationDisplayName, report.ApplicationDisplayName)
	set(&i.ClientID, strings.ToLower(report.ClientID))
	set(&i.ServicePrincipalObjectID, strings.ToLower(report.ServicePrincipalObjectID))

	var conditions []Condition
	for _, t := range conditionTypes() {
		ofType := func(c Condition) bool { return c.Type == t }
		before := slices.IndexFunc(i.Conditions, ofType)
		seen := slices.IndexFunc(report.Conditions, ofType)
		switch {
		case before < 0 && seen < 0:
		case seen < 0:
			conditions = append(conditions, i.Conditions[before])
		case before < 0:
			conditions = append(conditions, Condition{}.observe(now, report.Conditions[seen]))
			news = Substance
		default:
			c := i.Conditions[before].observe(now, report.Conditions[seen])
			conditions = append(conditions, c)
			news = max(news, c.newsSince(i.Conditions[before]))
		}
	}
	i.Conditions = conditions
	i.EverActive = i.EverActive || i.State() == Active
	return i, news
}

// newsSince compares the condition with what it was.
func (c Condition) newsSince(before Condition) News {
	if c == before {
		return NoNews
	}
	before.Message = c.Message
	if c == before {
		return Wording
	}
	return Substance
}

func (c Condition) observe(now time.Time, seen Condition) Condition {
	next := Condition{
		Type: seen.Type, Status: seen.Status, Reason: seen.Reason, Message: seen.Message,
		LastTransition: c.LastTransition, Holds: c.Holds,
	}
	if c.Status != seen.Status {
		next.LastTransition = now
	}
	if seen.Status != Unknown {
		next.Holds = seen.Status == True
	}
	return next
}
