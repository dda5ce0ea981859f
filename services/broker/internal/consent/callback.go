package consent

import (
	"crypto/subtle"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"phasekey.dev/pkg/secret"
)

// CallbackApproved is a session's LastCallback when a browser said that the administrator approved. No code is like it.
const CallbackApproved = "APPROVED"

// codeUnnamed is the code of an error that has no name.
const codeUnnamed = "unnamed"

// Callback is what a browser came back with. It is a browser's word.
type Callback struct {
	State secret.Text
	// Tenant is empty when the browser says none, as after an error.
	Tenant string
	// Code is what went wrong, `AADSTS` and a number or else a word; empty when the administrator approved.
	Code string
}

// The bounds of a callback, in bytes. Entra ID's descriptions are a few hundred.
const (
	maxQuery       = 8 << 10
	maxParameter   = 200
	maxDescription = 4 << 10
	maxCode        = 40
)

var (
	aadsts    = regexp.MustCompile(`AADSTS\d{1,9}`)
	notOfCode = regexp.MustCompile(`[^a-z_]+`)
)

// ParseCallback reads the query of a callback. ErrCallback if it is not one that Entra ID sends: a parameter is there twice or
// too long, there is no state, or nothing says how it went. Parameters that are not known are left alone.
func ParseCallback(query string) (Callback, error) {
	if len(query) > maxQuery {
		return Callback{}, fmt.Errorf("%w: query of %d bytes", ErrCallback, len(query))
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		// What is wrong stands in the error, and may be the state.
		return Callback{}, fmt.Errorf("%w: query cannot be read", ErrCallback)
	}
	for name, all := range values {
		if len(all) > 1 {
			return Callback{}, fmt.Errorf("%w: a parameter is there twice", ErrCallback)
		}
		most := maxParameter
		switch name {
		case "state", "tenant", "admin_consent", "error":
		case "error_description":
			most = maxDescription
		default:
			continue
		}
		if len(all[0]) > most {
			return Callback{}, fmt.Errorf("%w: %s of %d bytes", ErrCallback, name, len(all[0]))
		}
	}
	c := Callback{State: secret.New(values.Get("state")), Tenant: values.Get("tenant")}
	switch {
	case c.State.IsZero():
		return Callback{}, fmt.Errorf("%w: no state", ErrCallback)
	case values.Has("error"):
		// Also beside admin_consent=True, which Entra ID sends either way.
		c.Code = codeOf(values.Get("error"), values.Get("error_description"))
	case !strings.EqualFold(values.Get("admin_consent"), "true"):
		return Callback{}, fmt.Errorf("%w: neither consent nor an error", ErrCallback)
	}
	return c, nil
}

// codeOf names an error, in characters that may be shown anywhere.
func codeOf(name, description string) string {
	if code := aadsts.FindString(description); code != "" {
		return code
	}
	name = notOfCode.ReplaceAllString(strings.ToLower(name), "")
	if name == "" {
		return codeUnnamed
	}
	return name[:min(len(name), maxCode)]
}

// Declined reports whether a callback's code says that the administrator did not want to.
func Declined(code string) bool {
	switch code {
	case "AADSTS65004", "access_denied", "permission_denied":
		return true
	default:
		return false
	}
}

// Browser is what a browser has in its cookies, by the IDs of attempts.
type Browser map[string][]secret.Text

// Outcome is what a callback amounts to: a word for logs and metrics.
type Outcome string

// The outcomes. The first four use up the attempt; the others change nothing.
const (
	// OutcomeApproved: the browser says that the administrator approved.
	OutcomeApproved Outcome = "approved"
	// OutcomeDeclined: the browser says that the administrator did not want to.
	OutcomeDeclined Outcome = "declined"
	// OutcomeFailed: the browser says that something else went wrong.
	OutcomeFailed Outcome = "failed"
	// OutcomeLate: the session had ended, or consent that was lost is there again.
	OutcomeLate Outcome = "late"
	// OutcomeOtherBrowser: it is not the browser in which the button was pressed. The link may have been passed on.
	OutcomeOtherBrowser Outcome = "other_browser"
	// OutcomeMalformed: Entra ID sends nothing like it.
	OutcomeMalformed Outcome = "malformed"
	// OutcomeUnknown: nobody was given this state, or it was forgotten.
	OutcomeUnknown Outcome = "unknown_state"
	// OutcomeExpired: the attempt is too old.
	OutcomeExpired Outcome = "expired_state"
	// OutcomeReplayed: the state was used before.
	OutcomeReplayed Outcome = "replayed_state"
	// OutcomeWrongCookie: the browser has a cookie of the attempt, and another secret in it.
	OutcomeWrongCookie Outcome = "wrong_cookie"
	// OutcomeWrongTenant: the browser names another tenant than the session's.
	OutcomeWrongTenant Outcome = "wrong_tenant"
)

// Verdict is what becomes of a callback.
type Verdict struct {
	Outcome Outcome
	// Bound means that the browser is the one that pressed the button, whatever came of it.
	Bound bool
	// Consumed means that the attempt is used up. Without it, nothing is to change.
	Consumed bool
	// Hastened means that the tenant is to be asked as soon as it may be.
	Hastened bool
	// Session is the session afterwards, nameless if the state is nobody's; Changed says whether it differs.
	Session Session
	Changed bool
}

// Judge decides what becomes of a callback, given the attempt that has its state (nil for none), that attempt's session, and the
// browser's cookies. The tenant that it names is compared and never believed: it is the session's that is asked.
func Judge(now time.Time, c Callback, b Browser, a *Attempt, s Session) Verdict {
	if a == nil {
		return Verdict{Outcome: OutcomeUnknown, Session: s}
	}
	shown := b[a.ID]
	wrong := len(shown) > 1 || len(shown) == 1 && subtle.ConstantTimeCompare(Hash(shown[0]), a.BrowserHash) != 1
	bound := len(shown) == 1 && !wrong
	refused := func(o Outcome) Verdict { return Verdict{Outcome: o, Session: s, Bound: bound} }
	switch {
	case !a.UseTime.IsZero():
		return refused(OutcomeReplayed)
	case !now.Before(a.ExpireTime):
		return refused(OutcomeExpired)
	case wrong:
		return refused(OutcomeWrongCookie)
	case c.Tenant != "" && !strings.EqualFold(c.Tenant, s.TenantID):
		return refused(OutcomeWrongTenant)
	case len(shown) == 0:
		return refused(OutcomeOtherBrowser)
	case !s.Awaits(now):
		return Verdict{Outcome: OutcomeLate, Bound: true, Consumed: true, Session: s}
	}
	v := Verdict{Bound: true, Consumed: true, Session: s, Changed: true}
	said := c.Code
	switch {
	case said == "":
		said = CallbackApproved
		v.Outcome, v.Hastened = OutcomeApproved, true
	case Declined(said):
		v.Outcome = OutcomeDeclined
	default:
		v.Outcome = OutcomeFailed
	}
	if said != s.LastCallback {
		v.Session.Version++
	}
	v.Session.LastCallback, v.Session.CallbackTime = said, stored(now)
	return v
}
