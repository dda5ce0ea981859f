package web

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/internal/consent"
)

const (
	// maxLive is how many pages may be live at once, and maxLivePerSource how many of one source: people behind one address.
	maxLive          = 4096
	maxLivePerSource = 64
	// liveTime is how long a page is told without asking again. Browsers ask again by themselves.
	liveTime = 15 * time.Minute
	// beat is how often a page is told that nothing has happened: so that proxies keep the connection, and so that the dead are found.
	beat = 15 * time.Second
	// liveWrite bounds the sending of one event.
	liveWrite = 10 * time.Second
	// comeBack is after how many milliseconds a browser asks again.
	comeBack = 3000
)

// event is what a page is told. It loads itself anew then: what it shows is said in one place.
type event struct {
	Page    string `json:"page"`
	Version int64  `json:"version"`
}

// names of pages, for scripts.
var pageNames = map[consent.Page]string{
	consent.PageWaiting: "waiting", consent.PageLanding: "landing", consent.PageProblem: "problem", consent.PagePending: "pending",
	consent.PageLost: "lost", consent.PageResult: "result", consent.PageExpired: "expired", consent.PageMisnamed: "misnamed",
}

// events is GET of what becomes of a session, as server-sent events.
func (s *Site) events(w http.ResponseWriter, r *http.Request) error {
	session, err := s.session(r)
	if err != nil {
		return err
	}
	source := sourceOf(r)
	if !s.livePerSource.Enter(source) {
		return s.tooManyLive(w, r)
	}
	defer s.livePerSource.Leave(source)
	if !s.live.Enter("") {
		return s.tooManyLive(w, r)
	}
	defer s.live.Leave("")
	s.liveNow.Inc()
	defer s.liveNow.Dec()

	followed := s.cfg.Follow.Follow(consent.Hash(linkOf(r)), session.Version)
	defer followed.Close()
	ctx, cancel := context.WithTimeout(r.Context(), liveTime)
	defer cancel()
	out := live{w: w, to: http.NewResponseController(w)}
	if err := out.open(); err != nil {
		return nil // the browser went away, of which there is nothing to say
	}
	tick := time.NewTicker(beat)
	defer tick.Stop()
	var told event
	for {
		is := event{Page: pageNames[consent.PageOf(time.Now(), session)], Version: session.Version}
		if is == told {
			err = out.send(": \n\n")
		} else {
			told, err = is, out.tell(is)
		}
		if err != nil {
			return nil // as above
		}
		if final(time.Now(), session) {
			return nil
		}
		s.stand(ctx, session)
		if err := s.cfg.Roles.Look(ctx, session); err != nil && ctx.Err() == nil {
			s.cfg.Log.WarnContext(ctx, "roles cannot be recorded", slog.String(obs.KeyResource, session.Name.String()), slog.Any(obs.KeyError, err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.stopping:
			return nil
		case session = <-followed.News():
		case <-tick.C:
		}
	}
}

// final reports whether nothing more becomes of a session.
func final(now time.Time, session consent.Session) bool {
	return !session.State.Open() && !session.Awaits(now) && !consent.LooksForRoles(now, session)
}

func (s *Site) tooManyLive(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Retry-After", retryAfter)
	s.plain(w, r, http.StatusServiceUnavailable, "This does not work right now", "Too many people are here at the same time. The page works without this.")
	return nil
}

// live is an answer that is sent bit by bit.
type live struct {
	w  http.ResponseWriter
	to *http.ResponseController
}

func (l live) open() error {
	h := l.w.Header()
	h.Set("Content-Type", "text/event-stream")
	// Some proxies keep an answer until it is whole, unless they are told.
	h.Set("X-Accel-Buffering", "no")
	// The server's bound on reading a request would end one that goes on.
	if err := l.to.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return l.send(fmt.Sprintf("retry: %d\n\n", comeBack))
}

func (l live) tell(e event) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return l.send("event: page\ndata: " + string(text) + "\n\n")
}

func (l live) send(text string) error {
	if err := l.to.SetWriteDeadline(time.Now().Add(liveWrite)); err != nil {
		return err
	}
	if _, err := io.WriteString(l.w, text); err != nil {
		return err
	}
	if err := l.to.Flush(); err != nil {
		return err
	}
	// HTTP/2 ends the answer when the time has come, even where nothing is left to send.
	return l.to.SetWriteDeadline(time.Time{})
}
