package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/internal/consent"
)

//go:embed pages/*.html
var files embed.FS

//go:embed pages/style.css
var style []byte

// stylesheetPath changes with the stylesheet, so that browsers may keep it.
var stylesheetPath = func() string {
	sum := sha256.Sum256(style)
	return "/assets/" + hex.EncodeToString(sum[:6]) + ".css"
}()

// templates are by the name of their file.
type templates map[string]*template.Template

func parse() (templates, error) {
	all := templates{}
	for _, name := range []string{"waiting", "landing", "leaving", "pending", "result", "expired", "plain"} {
		parsed, err := template.ParseFS(files, "pages/layout.html", "pages/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("parse page %s: %w", name, err)
		}
		all[name] = parsed
	}
	return all, nil
}

// view is what templates show.
type view struct {
	Title, Platform, Stylesheet string
	// Refresh is after how many seconds the browser looks again; zero for never.
	Refresh int
	// To is where the browser is sent on to at once; empty for nowhere.
	To      string
	Session consent.Session
	// ReturnURI is empty when there is none, or it may not be shown.
	ReturnURI string
	// Subscription is the integration's, or what stands for it.
	Subscription string
	Notice       *notice
	// Deleted means that the session ended because its integration did.
	Deleted bool
	// Text and RequestID are a plain page's.
	Text, RequestID string
}

// render writes a page, whole or not at all.
func (s *Site) render(w http.ResponseWriter, status int, name string, v view) error {
	v.Platform, v.Stylesheet = s.cfg.Platform, stylesheetPath
	var page bytes.Buffer
	if err := s.templates[name].ExecuteTemplate(&page, "layout", v); err != nil {
		return fmt.Errorf("render page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(page.Bytes()) // an answer is kept in memory first
	return nil
}

// plain writes a page that is about no session.
func (s *Site) plain(w http.ResponseWriter, r *http.Request, status int, title, text string) {
	if err := s.render(w, status, "plain", view{Title: title, Text: text, RequestID: obs.RequestID(r.Context())}); err != nil {
		http.Error(w, title, status)
	}
}

// stylesheet is GET of the stylesheet.
func stylesheet(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	_, _ = w.Write(style) // an answer is kept in memory first
	return nil
}
