package web

import (
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/internal/consent"
)

// lookAgain is after how many seconds a page that waits is loaded again.
const lookAgain = 5

// placeholder stands where a subscription's ID belongs.
const placeholder = "YOUR-SUBSCRIPTION-ID"

// show is GET of a session's page.
func (s *Site) show(w http.ResponseWriter, r *http.Request) error {
	session, err := s.standing(r)
	if err != nil {
		return err
	}
	now := time.Now()
	page := consent.PageOf(now, session)
	v := s.viewOf(r, session, page)
	switch page {
	case consent.PageWaiting:
		v.Title, v.Refresh, v.Waited = "Not quite ready yet", lookAgain, seconds(now.Sub(session.CreateTime))
	case consent.PageLanding:
		v.Title = fmt.Sprintf("Connect %s to your Azure tenant", s.cfg.Platform)
	case consent.PageLost:
		v.Problem = lossOf(session.Loss)
		v.Title = v.Problem.Title
		if !v.Problem.Again {
			v.Steps = nil // it is not consent that is missing
		}
	case consent.PageProblem:
		v.Problem = problemOf(session.LastCallback)
		v.Title = v.Problem.Title
		if v.Problem.Wait {
			v.Refresh = lookAgain
		}
	case consent.PageMisnamed:
		v.Title = "The application has a misleading name"
	case consent.PagePending:
		v.Title, v.Refresh, v.Waited = "Waiting for your tenant", lookAgain, seconds(now.Sub(session.CallbackTime))
	case consent.PageResult:
		v.Title, v.Roles, v.Looks = "You have consented", rolesOf(session), consent.LooksForRoles(now, session)
		v.Again = now.Before(session.ExpireTime)
		if session.Permissions.Any() {
			v.Steps[len(v.Steps)-1] = step{Title: v.Steps[len(v.Steps)-1].Title, Done: true}
		}
	default:
		v.Title = "This link has expired"
		if session.Lost() {
			v.Problem = lossOf(session.Loss)
		}
		switch {
		case session.Bereft():
			v.Deleted, v.Title = true, "The integration was deleted"
		case session.LastRefusal == consent.RefusalCancelled:
			v.Cancelled, v.Title = true, "This link was withdrawn"
		}
	}
	return s.render(w, http.StatusOK, v.Page, v)
}

// viewOf is what all pages of a session show.
func (s *Site) viewOf(r *http.Request, session consent.Session, page consent.Page) view {
	link := consent.PagePath + r.PathValue("link")
	if session.Misnamed() {
		session.ApplicationName = ""
	}
	v := view{
		Page: pageNames[page], Session: session, Subscription: session.SubscriptionID, ReturnURI: s.returnURI(r, session),
		Link: link, Steps: stepsOf(page), Helped: helped(),
	}
	if v.Subscription == "" {
		v.Subscription = placeholder
	}
	if !final(time.Now(), session) {
		v.Live = link + "/events"
	}
	return v
}

// help is GET of what to say about an error that Microsoft showed on a page of its own.
func (s *Site) help(w http.ResponseWriter, r *http.Request) error {
	session, err := s.session(r)
	if err != nil {
		return err
	}
	found, ok := helpOf(r.PathValue("code"))
	if !ok {
		return consent.ErrNotFound
	}
	if !consent.MayBegin(time.Now(), session) {
		see(w, s.cfg.Links.PageURI(session))
		return nil
	}
	v := s.viewOf(r, session, consent.PageProblem)
	// It is about what the reader saw, not about the session, and stays.
	v.Problem, v.Title, v.Live = found, found.Title, ""
	return s.render(w, http.StatusOK, "problem", v)
}

// look is POST of the other button of a result's page: have another look for roles, for browsers that run no scripts.
func (s *Site) look(w http.ResponseWriter, r *http.Request) error {
	session, err := s.session(r)
	if err != nil {
		return err
	}
	if err := s.cfg.Roles.Look(r.Context(), session); err != nil {
		return stored(err)
	}
	see(w, s.cfg.Links.PageURI(session))
	return nil
}

// rolesOf says which roles are seen; empty when there is nothing to say.
func rolesOf(session consent.Session) string {
	switch p := session.Permissions; {
	case session.SubscriptionID == "":
		return ""
	case p.Write == consent.Full:
		return "A role is assigned: the application may read and change things in this subscription."
	case p.Write == consent.Partial:
		return "A role is assigned: the application may change some things in this subscription, or in parts of it."
	case p.Read == consent.Full:
		return "A role is assigned: the application may read this subscription, and change nothing."
	case p.Read == consent.Partial:
		return "A role is assigned: the application may read some things in this subscription, or parts of it, and change nothing."
	case p.Denied:
		return "No role gives the application anything in this subscription: a deny assignment takes it away, or may."
	case p.Read == consent.None:
		return "No role is seen yet. It takes some minutes until one that was assigned shows."
	default:
		return "No role has been looked for yet: first the credential is proven, which takes some minutes after consent."
	}
}

func seconds(d time.Duration) int { return max(int(d/time.Second), 0) }

// step is one of the steps to consent.
type step struct {
	Title string
	// Done and Current say where it is; neither means that it is to come.
	Done, Current bool
}

// stepsOf are the steps of a page: none for one that leads nowhere.
func stepsOf(page consent.Page) []step {
	current, on := map[consent.Page]int{
		consent.PageWaiting: 0, consent.PageMisnamed: 0, consent.PageLanding: 1, consent.PageLost: 1, consent.PageProblem: 1, consent.PagePending: 2, consent.PageResult: 3,
	}[page]
	if !on {
		return nil
	}
	var out []step
	for i, title := range []string{"Application prepared", "You consent at Microsoft", "Your tenant confirms", "Azure roles are assigned"} {
		out = append(out, step{Title: title, Done: i < current, Current: i == current})
	}
	return out
}

// returnURI is where a page may lead in the end. What was allowed when the session was created may not be now.
func (s *Site) returnURI(r *http.Request, session consent.Session) string {
	if session.ReturnURI == "" {
		return ""
	}
	if err := s.cfg.Origins.Check(session.ReturnURI); err != nil {
		s.cfg.Log.WarnContext(r.Context(), "a return link is not shown", slog.String(obs.KeyResource, session.Name.String()), slog.Any(obs.KeyError, err))
		return ""
	}
	return session.ReturnURI
}

// begin is POST of a session's page: the button. Its answer is a page that sends the browser on, not a redirection: Chromium holds all
// that redirections after a form lead to against the form-action of our policy, and Entra ID may lead on to wherever the tenant's
// people sign in.
func (s *Site) begin(w http.ResponseWriter, r *http.Request) error {
	session, err := s.standing(r)
	if err != nil {
		return err
	}
	now := time.Now()
	if !consent.MayBegin(now, session) {
		see(w, s.cfg.Links.PageURI(session))
		return nil
	}
	if wait, ok := s.mayPress(now, sourceOf(r), session.Name); !ok {
		w.Header().Set("Retry-After", strconv.Itoa(1+seconds(wait)))
		s.plain(w, r, http.StatusTooManyRequests, "Too often", fmt.Sprintf("The button was pressed too often. Wait %d seconds, and open the link again.", 1+seconds(wait)))
		return nil
	}
	attempt, state, browser := consent.Begin(now, session.Name, s.cfg.Links.Key.SourceOf(sourceOf(r)), s.cfg.AttemptLife)
	to, err := s.cfg.Links.EntraURI(session, state)
	if err != nil {
		return err
	}
	if err := s.cfg.Store.Begin(r.Context(), session.IntegrationUID, attempt, kept); err != nil {
		return stored(err)
	}
	s.cfg.Log.InfoContext(r.Context(), "an administrator goes to Entra ID",
		slog.String(obs.KeyResource, session.Name.String()), slog.String(keyAttempt, attempt.ID))
	makeRoom(w, r)
	give(w, attempt.ID, browser, s.cfg.AttemptLife)
	return s.render(w, http.StatusOK, "leaving", view{Title: "To Microsoft", To: to})
}

// callback is GET of where Entra ID sends browsers back to.
func (s *Site) callback(w http.ResponseWriter, r *http.Request) error {
	said, err := consent.ParseCallback(r.URL.RawQuery)
	if err != nil {
		s.callbacks.WithLabelValues(string(consent.OutcomeMalformed)).Inc()
		s.cfg.Log.WarnContext(r.Context(), "a callback is refused", slog.String(keyOutcome, string(consent.OutcomeMalformed)),
			slog.String(obs.KeyAddress, clientOf(r)), slog.Any(obs.KeyError, err))
		s.refuse(w, r)
		return nil
	}
	now, browser := time.Now(), browserOf(r)
	var used string
	v, err := s.cfg.Store.Return(r.Context(), now, consent.Hash(said.State), func(a *consent.Attempt, session consent.Session) consent.Verdict {
		if a != nil {
			used = a.ID
		}
		return consent.Judge(now, said, browser, a, session)
	})
	if err != nil {
		return stored(err)
	}
	s.callbacks.WithLabelValues(string(v.Outcome)).Inc()
	about := []slog.Attr{slog.String(keyOutcome, string(v.Outcome)), slog.String(keyAttempt, used), slog.String(obs.KeyAddress, clientOf(r))}
	if used != "" {
		about = append(about, slog.String(obs.KeyResource, v.Session.Name.String()))
	}
	switch {
	case v.Consumed:
		s.cfg.Log.LogAttrs(r.Context(), slog.LevelInfo, "an administrator is back from Entra ID", append(about, slog.String(keySaid, said.Code))...)
		forget(w, used)
		see(w, s.cfg.Links.PageURI(v.Session))
	case v.Bound && (v.Outcome == consent.OutcomeWrongTenant || v.Outcome == consent.OutcomeExpired):
		s.cfg.Log.LogAttrs(r.Context(), slog.LevelWarn, "a callback is refused", about...)
		return s.astray(w, v)
	case v.Outcome == consent.OutcomeOtherBrowser:
		s.cfg.Log.LogAttrs(r.Context(), slog.LevelInfo, "a browser came back that had not been sent", about...)
		s.plain(w, r, http.StatusOK, "You began in another browser",
			"This page changes nothing. If you have consented, that shows by itself within some minutes, to whoever sent you the link too. You can close this window.")
	default:
		s.cfg.Log.LogAttrs(r.Context(), slog.LevelWarn, "a callback is refused", about...)
		s.refuse(w, r)
	}
	return nil
}

// astray is the answer to the administrator who pressed the button, and comes back with what does not count.
func (s *Site) astray(w http.ResponseWriter, verdict consent.Verdict) error {
	v := view{Title: "You took too long at Microsoft", Session: verdict.Session, Link: strings.TrimPrefix(s.cfg.Links.PageURI(verdict.Session), s.cfg.Links.PublicURL)}
	if verdict.Outcome == consent.OutcomeWrongTenant {
		v.Title, v.Elsewhere = "That was another tenant", true
	}
	return s.render(w, http.StatusBadRequest, "astray", v)
}

// refuse is the one answer to all that should not have come, so that it teaches nothing.
func (s *Site) refuse(w http.ResponseWriter, r *http.Request) {
	s.plain(w, r, http.StatusBadRequest, "This cannot be used",
		"It is too old, was used before, or did not come from Microsoft, so this page changed nothing. If you have consented at Microsoft, that counts nevertheless, and shows by itself. Open the link that you were sent and go on from there.")
}

// see sends the browser elsewhere, by GET.
func see(w http.ResponseWriter, where string) {
	w.Header().Set("Location", where)
	w.WriteHeader(http.StatusSeeOther)
}
