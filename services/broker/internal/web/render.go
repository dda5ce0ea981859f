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

//go:embed pages/script.js
var scriptText []byte

// The paths of what never changes change with what it is, so that browsers may keep it.
var (
	stylesheetPath = assetPath(style, "css")
	scriptPath     = assetPath(scriptText, "js")
)

func assetPath(data []byte, ext string) string {
	sum := sha256.Sum256(data)
	return "/assets/" + hex.EncodeToString(sum[:6]) + "." + ext
}

// templates are by the name of their file.
type templates map[string]*template.Template

func parse() (templates, error) {
	all := templates{}
	for _, name := range []string{"waiting", "misnamed", "landing", "lost", "problem", "leaving", "pending", "result", "expired", "astray", "plain"} {
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
	Title, Platform, Stylesheet, Script string
	Brand                               Brand
	// Logo is where the platform's picture is; empty for none.
	Logo string
	// Page is the page's name, for scripts; empty for one of no session.
	Page string
	// Link is the path of the session's page; empty on pages that must not tell it. Live is where a script is told what becomes of the
	// session; empty when nothing more does.
	Link, Live string
	// Steps are where on its way consent is.
	Steps []step
	// Refresh is after how many seconds a browser without scripts looks again; zero for never.
	Refresh int
	// Waited is for how many seconds the administrator has waited.
	Waited int
	// To is where the browser is sent on to at once; empty for nowhere.
	To      string
	Session consent.Session
	// ReturnURI is empty when there is none, or it may not be shown.
	ReturnURI string
	// Subscription is the integration's, or what stands for it.
	Subscription string
	// Problem is why consent did not come about, or was lost.
	Problem problem
	// Again means that consent can be given again by the same link, should it be lost.
	Again bool
	// Helped are the problems that Microsoft may show on a page of its own, from which no browser comes back.
	Helped []help
	// Deleted means that the session ended because its integration did, Cancelled that it was withdrawn.
	Deleted, Cancelled bool
	// Elsewhere means that Microsoft named another tenant than the session's.
	Elsewhere bool
	// Roles says which roles are seen, Looks whether they are still looked for.
	Roles string
	Looks bool
	// Text and RequestID are a plain page's.
	Text, RequestID string
}

// render writes a page, whole or not at all.
func (s *Site) render(w http.ResponseWriter, status int, name string, v view) error {
	v.Platform, v.Brand, v.Stylesheet, v.Script = s.cfg.Platform, s.cfg.Brand, stylesheetPath, scriptPath
	if s.logo != nil {
		v.Logo = s.logo.path
	}
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

// stylesheet is GET of the stylesheet, script of the script.
func stylesheet(w http.ResponseWriter, _ *http.Request) error {
	return asset(w, "text/css; charset=utf-8", style)
}
func script(w http.ResponseWriter, _ *http.Request) error {
	return asset(w, "text/javascript; charset=utf-8", scriptText)
}

func asset(w http.ResponseWriter, kind string, data []byte) error {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	_, _ = w.Write(data) // an answer is kept in memory first
	return nil
}
