package consent

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Page is what a session's page shows.
type Page int

// The pages.
const (
	// PageWaiting: Entra ID may not know the application everywhere yet.
	PageWaiting Page = iota + 1
	// PageLanding: the administrator can go to Entra ID.
	PageLanding
	// PageLost: likewise, after consent that was given has been lost.
	PageLost
	// PageProblem: the administrator came back without consent, or with a word that nothing bears out; and can try again.
	PageProblem
	// PagePending: the browser said that the administrator approved, and the tenant does not show it yet.
	PagePending
	// PageResult: consent is proven.
	PageResult
	// PageExpired: the session ended without, or consent was lost since and the link is too old to give it again.
	PageExpired
	// PageMisnamed: the application has a name that would mislead, and nobody is asked to consent to it.
	PageMisnamed
)

// pendingTime is how long a browser's word that consent was given keeps the button away. What Entra ID was told shows within
// twenty minutes; then something was wrong with that word, and the administrator may try again.
const pendingTime = 20 * time.Minute

// PageOf says which page a session shows. The deadline counts though nobody has written down yet that it has passed.
func PageOf(now time.Time, s Session) Page {
	switch {
	case s.Bereft():
		return PageExpired
	case s.State == Completed && !s.Lost():
		return PageResult
	case !s.Awaits(now):
		return PageExpired
	case s.State == WaitingForApplication:
		return PageWaiting
	case s.LastCallback == CallbackApproved && now.Before(s.CallbackTime.Add(pendingTime)):
		return PagePending
	case s.Misnamed():
		return PageMisnamed
	case s.LastCallback != "":
		return PageProblem
	case s.Loss != "":
		return PageLost
	default:
		return PageLanding
	}
}

// MayBegin reports whether the administrator can be sent to Entra ID.
func MayBegin(now time.Time, s Session) bool {
	return s.State != WaitingForApplication && !s.Misnamed() && s.Awaits(now)
}

// Origins are the https origins to which a page may lead in the end, such as https://app.example.com.
type Origins []string

// Check returns ErrReturn unless a page may have a link to this address.
func (o Origins) Check(uri string) error {
	// A browser reads some characters otherwise than we do, a backslash for instance.
	if strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }) {
		return fmt.Errorf("%w: has a character that is not of a URL", ErrReturn)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return fmt.Errorf("%w: cannot be read", ErrReturn)
	}
	if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Contains(uri, "#") {
		return ErrReturn
	}
	host := canonical(u.Host)
	if !slices.ContainsFunc(o, func(origin string) bool { return canonical(strings.TrimPrefix(origin, "https://")) == host }) {
		return fmt.Errorf("%w: not https://%s", ErrReturn, host)
	}
	return nil
}

// canonical writes a host as an origin has it.
func canonical(host string) string { return strings.TrimSuffix(strings.ToLower(host), ":443") }
