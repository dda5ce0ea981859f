package web

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"phasekey.dev/pkg/obs"
)

const (
	// maxBody bounds what comes with a request, in bytes: the button sends nothing.
	maxBody = 4 << 10
	// maxGoing is how many requests are served at once.
	maxGoing = 256
	// requestTimeout bounds one request's work, below the server's write timeout.
	requestTimeout = 10 * time.Second
	// retryAfter is when whoever is told to come back may do so, in seconds.
	retryAfter = "5"
)

// policy is the Content-Security-Policy. Forms lead to us, and to those origins.
func policy(formOrigins ...string) string {
	forms := "'self'"
	for _, origin := range formOrigins {
		forms += " " + origin
	}
	return "default-src 'none'; style-src 'self'; form-action " + forms + "; frame-ancestors 'none'; base-uri 'none'"
}

// answer remembers what was answered.
type answer struct {
	http.ResponseWriter
	status int // 0: nothing yet
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// chain puts before the pages what holds for all of them.
func (s *Site) chain(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		// An ID that a browser brings is nobody's word.
		id := rand.Text()
		ctx, cancel := context.WithTimeout(obs.WithRequestID(r.Context(), id), requestTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		a := &answer{ResponseWriter: w}
		protect(a.Header(), id)
		defer func() { s.record(r, a, began) }()
		defer s.rescue(a, r)
		s.admit(a, r, pages)
	})
}

// protect sets the headers of every answer; a page may replace some.
func protect(h http.Header, id string) {
	h.Set("Content-Security-Policy", policy())
	// With no-referrer Chromium says Origin: null when the button is pressed, which looks like another site.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Robots-Tag", "noindex")
	h.Set("X-Request-Id", id)
}

// record counts and logs a request. Its path is a secret, and so is what a callback has in its query.
func (s *Site) record(r *http.Request, a *answer, began time.Time) {
	status := a.status
	if status == 0 {
		status = http.StatusOK
	}
	s.pages.WithLabelValues(pageName(r.Pattern), strconv.Itoa(status)).Inc()
	s.cfg.Log.InfoContext(r.Context(), "page served",
		slog.String(keyPage, r.Pattern), slog.String(obs.KeyMethod, known(r.Method)), slog.Int(keyStatus, status),
		slog.Duration(obs.KeyDuration, time.Since(began)), slog.String(obs.KeyAddress, r.RemoteAddr))
}

// known is a method, unless somebody made it up.
func known(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	default:
		return "other"
	}
}

// rescue turns a panic into a page.
func (s *Site) rescue(a *answer, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	s.panics.Inc()
	s.cfg.Log.ErrorContext(r.Context(), "panic while a page was made",
		slog.String(obs.KeyError, fmt.Sprint(v)), slog.String(obs.KeyStack, string(debug.Stack())))
	if a.status == 0 {
		s.plain(a, r, http.StatusInternalServerError, "This does not work right now", "Try again in a minute, with the link that you were sent.")
	}
}

// admit serves a request that is within bounds.
func (s *Site) admit(a *answer, r *http.Request, pages http.Handler) {
	if !s.sources.allow(time.Now(), sourceOf(r.RemoteAddr)) {
		a.Header().Set("Retry-After", retryAfter)
		s.plain(a, r, http.StatusTooManyRequests, "Too many requests", "Wait some seconds, and open the link again.")
		return
	}
	select {
	case s.going <- struct{}{}:
		defer func() { <-s.going }()
	default:
		a.Header().Set("Retry-After", retryAfter)
		s.plain(a, r, http.StatusServiceUnavailable, "This does not work right now", "Too many people are here at the same time. Try again in a minute.")
		return
	}
	// Nobody needs what comes with a request, so it is read here, where it can be refused.
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(a, r.Body, maxBody)); err != nil {
		s.plain(a, r, http.StatusRequestEntityTooLarge, "That is too much", "Open the link that you were sent.")
		return
	}
	pages.ServeHTTP(a, r)
}
