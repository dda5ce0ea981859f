package web_test

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/web"
)

const drawing = `<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>`

func TestSite_HasThePlatformsOwn(t *testing.T) {
	logo := filepath.Join(t.TempDir(), "logo.svg")
	if err := os.WriteFile(logo, []byte(drawing), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *web.Config) {
		c.Brand = web.Brand{
			LogoFile: logo, Introduction: "Welcome to <b>us</b>", Support: "Ask us & ours", SupportURL: "https://help.example.com/?a=1&b=2",
			PrivacyURL: "https://example.com/privacy", TermsURL: "https://example.com/terms",
		}
	})
	_, link := w.open(nil)
	b := w.browser()
	p := b.get(link)
	foot := []string{"Ask us &amp; ours", `<a href="https://help.example.com/?a=1&amp;b=2">Support</a>`, `<a href="https://example.com/privacy">Privacy</a>`, `<a href="https://example.com/terms">Terms</a>`}
	shows(t, p, http.StatusOK, append(foot, "Welcome to &lt;b&gt;us&lt;/b&gt;")...)
	shows(t, b.get(w.config.Links.PublicURL+"/consent/"+strings.Repeat("A", consent.TokenSize)), http.StatusNotFound, foot...)
	at := regexp.MustCompile(`<img src="(/assets/[0-9a-f]+\.svg)" alt="">`).FindStringSubmatch(p.text)
	if at == nil {
		t.Fatalf("no logo:\n%s", p.text)
	}
	picture := b.get(w.config.Links.PublicURL + at[1])
	if picture.status != http.StatusOK || picture.text != drawing || picture.header.Get("Content-Type") != "image/svg+xml" ||
		!strings.Contains(picture.header.Get("Content-Security-Policy"), "default-src 'none'") || picture.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("the logo: %d %v", picture.status, picture.header)
	}
}

func TestBrand_Logos(t *testing.T) {
	for name, tc := range map[string]struct {
		data string
		good bool
	}{
		"svg": {drawing, true}, "svg with a prologue": {`<?xml version="1.0"?>` + drawing, true}, "png": {"\x89PNG\r\n\x1a\n", true}, "jpeg": {"\xff\xd8\xff", true},
		"webp": {"RIFF\x00\x00\x00\x00WEBPVP8 ", true}, "html": {"<html><svg>", false}, "text": {"hello", false}, "nothing": {"", false}, "gif": {"GIF89a", false},
		"too large": {drawing + strings.Repeat(" ", 256<<10), false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "logo")
			if err := os.WriteFile(path, []byte(tc.data), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := (web.Brand{LogoFile: path}).Problems()["logo_file"]; (err == nil) != tc.good {
				t.Errorf("error %v", err)
			}
		})
	}
}
