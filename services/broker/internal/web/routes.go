package web

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/broker/internal/consent"
)

// pageOther is the page of what nobody serves.
const pageOther = "other"

// linkPattern is what matches a session's page.
const linkPattern = consent.PagePath + "{link}"

// The patterns of what is below a session's page.
const (
	eventsPattern = linkPattern + "/events"
	checkPattern  = linkPattern + "/check"
	errorPattern  = linkPattern + "/errors/{code}"
)

// routes are all there is. The names of pages, for metrics, are by pattern.
func (s *Site) routes() (http.Handler, error) {
	var protection http.CrossOriginProtection
	// Behind a proxy the Host may not be what browsers see.
	if err := protection.AddTrustedOrigin(s.cfg.Links.PublicURL); err != nil {
		return nil, err
	}
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.cfg.Log.WarnContext(r.Context(), "another site has pressed the button")
		s.plain(w, r, http.StatusForbidden, "That came from elsewhere", "Open the link that you were sent, and press the button there.")
	}))
	mux := http.NewServeMux()
	handle := func(pattern string, serve func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := serve(w, r); err != nil {
				s.problem(w, r, err)
			}
		})
	}
	handle("GET "+linkPattern, s.show)
	mux.Handle("POST "+linkPattern, protection.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.begin(w, r); err != nil {
			s.problem(w, r, err)
		}
	})))
	handle("GET "+errorPattern, s.help)
	mux.Handle("POST "+checkPattern, protection.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.look(w, r); err != nil {
			s.problem(w, r, err)
		}
	})))
	handle("GET "+consent.CallbackPath, s.callback)
	handle("GET "+stylesheetPath, stylesheet)
	handle("GET "+scriptPath, script)
	if s.logo != nil {
		handle("GET "+s.logo.path, func(w http.ResponseWriter, _ *http.Request) error { return asset(w, s.logo.kind, s.logo.data) })
	}
	s.streams = http.NewServeMux()
	s.streams.HandleFunc("GET "+eventsPattern, func(w http.ResponseWriter, r *http.Request) {
		if err := s.events(w, r); err != nil {
			s.problem(w, r, err)
		}
	})
	mux.HandleFunc("HEAD "+eventsPattern, func(w http.ResponseWriter, r *http.Request) { s.notAllowed(w, r, "GET") })
	for _, method := range []string{"HEAD", "POST"} {
		// The one would consume as GET does, and the other's pattern is the button's.
		mux.HandleFunc(method+" "+consent.CallbackPath, func(w http.ResponseWriter, r *http.Request) { s.notAllowed(w, r, "GET") })
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !tidy(r) {
			s.problem(w, r, consent.ErrNotFound)
			return
		}
		serve, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		// What the mux would say of its own, in our words.
		said := answer{header: http.Header{}}
		serve.ServeHTTP(&said, r)
		if said.status == http.StatusMethodNotAllowed {
			s.notAllowed(w, r, said.header.Get("Allow"))
			return
		}
		s.problem(w, r, consent.ErrNotFound)
	}), nil
}

// follows reports whether a request is one that goes on.
func (s *Site) follows(r *http.Request) bool {
	if r.Method != http.MethodGet || !tidy(r) {
		return false
	}
	_, pattern := s.streams.Handler(r)
	return pattern != ""
}

// tidy reports whether a path is as it would be written. The mux would send others elsewhere, in words of its own.
func tidy(r *http.Request) bool { return r.URL.Path == path.Clean(r.URL.Path) }

func (s *Site) notAllowed(w http.ResponseWriter, r *http.Request, allowed string) {
	w.Header().Set("Allow", allowed)
	s.plain(w, r, http.StatusMethodNotAllowed, "That cannot be done here", "Open the link that you were sent.")
}

// pageName names the page of a pattern, for metrics.
func pageName(pattern string) string {
	switch pattern {
	case "GET " + linkPattern:
		return "session"
	case "POST " + linkPattern:
		return "begin"
	case "GET " + consent.CallbackPath:
		return "callback"
	case "GET " + eventsPattern:
		return "events"
	case "POST " + checkPattern:
		return "check"
	case "GET " + errorPattern:
		return "error"
	case "GET " + stylesheetPath:
		return "stylesheet"
	case "GET " + scriptPath:
		return "script"
	default:
		return pageOther
	}
}

// session returns the session of a request's link.
func (s *Site) session(r *http.Request) (consent.Session, error) {
	if len(r.PathValue("link")) != consent.TokenSize {
		return consent.Session{}, consent.ErrNotFound
	}
	found, err := s.cfg.Store.ByLink(r.Context(), consent.Hash(linkOf(r)))
	return found, stored(err)
}

// standing is session, after a look whether consent that was given still holds.
func (s *Site) standing(r *http.Request) (consent.Session, error) {
	session, err := s.session(r)
	if err != nil {
		return session, err
	}
	return s.stand(r.Context(), session), nil
}

// stand is a session after that look; as it is known when there is no answer.
func (s *Site) stand(ctx context.Context, session consent.Session) consent.Session {
	looked, err := s.cfg.Standing.Look(ctx, session)
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Log.WarnContext(ctx, "it cannot be recorded whether consent holds", slog.String(obs.KeyResource, session.Name.String()), slog.Any(obs.KeyError, err))
		}
		return session
	}
	return looked
}

func linkOf(r *http.Request) secret.Text { return secret.New(r.PathValue("link")) }

// errStore means that the database did not do what it was asked, whatever the reason.
var errStore = errors.New("the database does not answer")

func stored(err error) error {
	if err == nil || errors.Is(err, consent.ErrNotFound) {
		return err
	}
	return errors.Join(errStore, err)
}

// problem turns an error into a page.
func (s *Site) problem(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, consent.ErrNotFound) {
		s.plain(w, r, http.StatusNotFound, "There is no such page", "The link may be incomplete, or too old. Ask whoever sent it to you for a new one.")
		return
	}
	status := http.StatusInternalServerError
	if errors.Is(err, errStore) {
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", retryAfter)
	}
	// Of a browser that went away there is nothing to say.
	if !errors.Is(r.Context().Err(), context.Canceled) {
		s.cfg.Log.ErrorContext(r.Context(), "a page cannot be made", slog.Any(obs.KeyError, err))
	}
	s.plain(w, r, status, "This does not work right now", "Try again in a minute, with the link that you were sent.")
}
