package web

import (
	"fmt"
	"log/slog"
	"net/http"
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
	session, err := s.session(r)
	if err != nil {
		return err
	}
	v := view{Session: session, Subscription: session.SubscriptionID, ReturnURI: s.returnURI(r, session)}
	if v.Subscription == "" {
		v.Subscription = placeholder
	}
	var name string
	switch consent.PageOf(time.Now(), session) {
	case consent.PageWaiting:
		name, v.Title, v.Refresh = "waiting", "Not quite ready yet", lookAgain
	case consent.PageLanding:
		name, v.Title, v.Notice = "landing", fmt.Sprintf("Connect %s to your Azure tenant", s.cfg.Platform), noticeOf(session.LastCallback)
	case consent.PagePending:
		name, v.Title, v.Refresh = "pending", "Waiting for your tenant", lookAgain
	case consent.PageResult:
		name, v.Title = "result", "You have consented"
	default:
		name, v.Title = "expired", "This link has expired"
		v.Deleted = session.LastRefusal == consent.RefusalIntegrationGone || session.LastRefusal == consent.RefusalIntegrationDeleting
	}
	return s.render(w, http.StatusOK, name, v)
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
	session, err := s.session(r)
	if err != nil {
		return err
	}
	now := time.Now()
	if !consent.MayBegin(now, session) {
		see(w, s.cfg.Links.PageURI(session))
		return nil
	}
	attempt, state, browser := consent.Begin(now, session.Name, s.cfg.AttemptLife)
	to, err := s.cfg.Links.EntraURI(session, state)
	if err != nil {
		return err
	}
	if err := s.cfg.Store.Begin(r.Context(), session.IntegrationUID, attempt, consent.MaxAttempts); err != nil {
		return stored(err)
	}
	s.cfg.Log.InfoContext(r.Context(), "an administrator goes to Entra ID",
		slog.String(obs.KeyResource, session.Name.String()), slog.String(keyAttempt, attempt.ID))
	give(w, attempt.ID, browser, s.cfg.AttemptLife)
	return s.render(w, http.StatusOK, "leaving", view{Title: "To Microsoft", To: to})
}

// callback is GET of where Entra ID sends browsers back to.
func (s *Site) callback(w http.ResponseWriter, r *http.Request) error {
	said, err := consent.ParseCallback(r.URL.RawQuery)
	if err != nil {
		s.callbacks.WithLabelValues(string(consent.OutcomeMalformed)).Inc()
		s.cfg.Log.WarnContext(r.Context(), "a callback is refused", slog.String(keyOutcome, string(consent.OutcomeMalformed)),
			slog.String(obs.KeyAddress, r.RemoteAddr), slog.Any(obs.KeyError, err))
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
	about := []slog.Attr{slog.String(keyOutcome, string(v.Outcome)), slog.String(keyAttempt, used), slog.String(obs.KeyAddress, r.RemoteAddr)}
	if used != "" {
		about = append(about, slog.String(obs.KeyResource, v.Session.Name.String()))
	}
	switch {
	case v.Consumed:
		s.cfg.Log.LogAttrs(r.Context(), slog.LevelInfo, "an administrator is back from Entra ID", append(about, slog.String(keySaid, said.Code))...)
		forget(w, used)
		see(w, s.cfg.Links.PageURI(v.Session))
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
