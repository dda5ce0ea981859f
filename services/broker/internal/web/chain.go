package web

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
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

// policy is the Content-Security-Policy.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// answer is what is answered, kept until it is whole: a browser that takes it slowly then holds up nobody but itself, and what
// a panic left half-done is not seen.
type answer struct {
	header http.Header
	status int // 0: nothing yet
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}

// chain puts before the pages what holds for all of them.
func (s *Site) chain(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		// An ID that a browser brings is nobody's word.
		r = r.WithContext(withClient(obs.WithRequestID(r.Context(), rand.Text()), s.cfg.Proxies.client(r)))
		if s.follows(r) {
			s.stream(w, r, began)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		a := &answer{header: w.Header()}
		protect(a.header, r)
		s.answer(a, w, r, pages)
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body.Bytes()) // fails only for a browser that went away
		s.record(r, a.status, began)
	})
}

// asksTooOften says so, and reports whether it has.
func (s *Site) asksTooOften(w http.ResponseWriter, r *http.Request) bool {
	_, ok := s.sources.Take(time.Now(), sourceOf(r), perSecond, burst)
	if !ok {
		w.Header().Set("Retry-After", retryAfter)
		s.plain(w, r, http.StatusTooManyRequests, "Too many requests", "Wait some seconds, and open the link again.")
	}
	return !ok
}

// streamed is an answer that is not kept until it is whole, for pages that are told what happens. It remembers its status.
type streamed struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (a *streamed) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *streamed) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (a *streamed) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// stream serves what is sent bit by bit. It takes none of the places of requests, for it goes on; events has its own.
func (s *Site) stream(w http.ResponseWriter, r *http.Request, began time.Time) {
	protect(w.Header(), r)
	a := &streamed{ResponseWriter: w}
	defer func() { s.record(r, a.status, began) }()
	defer func() {
		if v := recover(); v != nil {
			s.panicked(r, v)
			if a.status == 0 {
				s.plain(a, r, http.StatusInternalServerError, "This does not work right now", "Try again in a minute, with the link that you were sent.")
			}
		}
	}()
	if s.asksTooOften(a, r) {
		return
	}
	s.streams.ServeHTTP(a, r)
}

// protect sets the headers of every answer; a page may replace some.
func protect(h http.Header, r *http.Request) {
	h.Set("Content-Security-Policy", policy)
	// With no-referrer Chromium says Origin: null when the button is pressed, which looks like another site.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Robots-Tag", "noindex")
	h.Set("X-Request-Id", obs.RequestID(r.Context()))
}

// record counts and logs a request. Its path is a secret, and so is what a callback has in its query.
func (s *Site) record(r *http.Request, status int, began time.Time) {
	s.pages.WithLabelValues(pageName(r.Pattern), strconv.Itoa(status)).Inc()
	s.cfg.Log.InfoContext(r.Context(), "page served",
		slog.String(keyPage, r.Pattern), slog.String(obs.KeyMethod, known(r.Method)), slog.Int(keyStatus, status),
		slog.Duration(obs.KeyDuration, time.Since(began)), slog.String(obs.KeyAddress, clientOf(r)))
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
	s.panicked(r, v)
	clear(a.header)
	protect(a.header, r)
	a.status = 0
	a.body.Reset()
	s.plain(a, r, http.StatusInternalServerError, "This does not work right now", "Try again in a minute, with the link that you were sent.")
}

// answer makes the answer to a request, one of ours if it is not within bounds.
func (s *Site) answer(a *answer, w http.ResponseWriter, r *http.Request, pages http.Handler) {
	defer s.rescue(a, r)
	if s.asksTooOften(a, r) {
		return
	}
	// Nobody needs what comes with a request, so it is read here, where it can be refused: before the request takes one of the
	// places, which would be lost to others for as long as somebody cares to send.
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			s.plain(a, r, http.StatusRequestEntityTooLarge, "That is too much", "Open the link that you were sent.")
			return
		}
		s.plain(a, r, http.StatusBadRequest, "That did not arrive", "Open the link that you were sent.")
		return
	}
	select {
	case s.going <- struct{}{}:
		defer func() { <-s.going }()
	default:
		a.header.Set("Retry-After", retryAfter)
		s.plain(a, r, http.StatusServiceUnavailable, "This does not work right now", "Too many people are here at the same time. Try again in a minute.")
		return
	}
	pages.ServeHTTP(a, r)
	// As net/http has it for a handler that said nothing.
	a.WriteHeader(http.StatusOK)
}

func (s *Site) panicked(r *http.Request, v any) {
	s.panics.Inc()
	s.cfg.Log.ErrorContext(r.Context(), "panic while a page was made",
		slog.String(obs.KeyError, fmt.Sprint(v)), slog.String(obs.KeyStack, string(debug.Stack())))
}
