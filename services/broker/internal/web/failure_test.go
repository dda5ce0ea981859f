package web_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/store"
	"phasekey.dev/services/broker/internal/web"
)

// brokenStore fails or panics.
type brokenStore struct {
	*store.Store
	mu     sync.Mutex
	broken func() error
}

func (s *brokenStore) set(broken func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

func (s *brokenStore) failure() error {
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken == nil {
		return nil
	}
	return broken()
}

func (s *brokenStore) ByLink(ctx context.Context, hash []byte) (consent.Session, error) {
	if err := s.failure(); err != nil {
		return consent.Session{}, err
	}
	return s.Store.ByLink(ctx, hash)
}

func (s *brokenStore) Begin(ctx context.Context, integrationUID string, a consent.Attempt, kept consent.Kept) error {
	if err := s.failure(); err != nil {
		return err
	}
	return s.Store.Begin(ctx, integrationUID, a, kept)
}

func (s *brokenStore) Return(ctx context.Context, now time.Time, hash []byte, judge func(*consent.Attempt, consent.Session) consent.Verdict) (consent.Verdict, error) {
	if err := s.failure(); err != nil {
		return consent.Verdict{}, err
	}
	return s.Store.Return(ctx, now, hash, judge)
}

func TestSite_WhileTheDatabaseIsAway(t *testing.T) {
	broken := &brokenStore{}
	w := newWorld(t, func(c *web.Config) { broken.Store, _ = c.Store.(*store.Store); c.Store = broken })
	session, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	back := b.through(b.press(link))
	broken.set(func() error { return fmt.Errorf("driver says: %w", consent.ErrUnavailable) })
	for _, tc := range []struct{ method, where string }{{"GET", link}, {"POST", link}, {"GET", back}} {
		p := b.do(tc.method, tc.where, nil)
		shows(t, p, http.StatusServiceUnavailable, "This does not work right now")
		if p.header.Get("Retry-After") == "" || len(p.cookies) != 0 || strings.Contains(p.text, "driver says") {
			t.Errorf("%s: %v\n%s", tc.method, p.header, p.text)
		}
	}
	if strings.Contains(w.log.String(), strings.TrimPrefix(link, w.config.Links.PublicURL)) {
		t.Error("the log has the link")
	}
	// Nothing was half done: the browser's way goes on.
	broken.set(nil)
	if p := b.get(back); p.status != http.StatusSeeOther || w.get(session.Name).LastCallback != "APPROVED" {
		t.Errorf("afterwards: %d", p.status)
	}
}

func TestSite_APanicIsAPageAndALogRecord(t *testing.T) {
	broken := &brokenStore{}
	w := newWorld(t, func(c *web.Config) { broken.Store, _ = c.Store.(*store.Store); c.Store = broken })
	_, link := w.open(nil)
	b := w.browser()
	broken.set(func() error { panic("canary") }) //nolint:forbidigo // what is tested is that it ends nothing
	p := b.get(link)
	shows(t, p, http.StatusInternalServerError, "This does not work right now")
	if strings.Contains(p.text, "canary") || !strings.Contains(w.log.String(), "canary") {
		t.Errorf("page:\n%s\nlog:\n%s", p.text, w.log)
	}
	if n := w.counted("phasekey_broker_page_panics_total"); n != 1 {
		t.Errorf("%v panics were counted", n)
	}
	broken.set(func() error { return errors.New("driver says no") })
	shows(t, b.get(link), http.StatusServiceUnavailable)
	broken.set(nil)
	shows(t, b.get(link), http.StatusOK)
}

func TestSite_AnUnknownCloudIsOurMistake(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(func(s *consent.Session) { s.Cloud = "elsewhere" })
	b := w.browser()
	shows(t, b.do(http.MethodPost, link, nil), http.StatusInternalServerError)
	if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != 0 {
		t.Errorf("%d attempts were begun", n)
	}
}
