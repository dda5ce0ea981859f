package web

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The bounds of what a platform may add to the pages.
const (
	maxLogo = 256 << 10
	maxText = 500
)

// Brand is what the pages have of the platform's own. The zero value adds nothing.
type Brand struct {
	// LogoFile is a picture of at most 256 KiB, SVG, PNG, JPEG or WebP, that stands before the platform's name. It is read at start.
	LogoFile string `yaml:"logo_file"`
	// Introduction is a paragraph that the first page begins with, in the platform's words: at most 500 characters of plain text.
	Introduction string `yaml:"introduction"`
	// Support says whom to ask, at the foot of every page: likewise.
	Support string `yaml:"support"`
	// SupportURL, PrivacyURL and TermsURL are https addresses that the foot of every page links to.
	SupportURL string `yaml:"support_url"`
	PrivacyURL string `yaml:"privacy_url"`
	TermsURL   string `yaml:"terms_url"`
}

var errBrandURL = errors.New("must be an https URL without user information")

// Problems are by key.
func (b Brand) Problems() map[string]error {
	out := map[string]error{}
	for key, text := range map[string]string{"introduction": b.Introduction, "support": b.Support} {
		if err := checkText(text); err != nil {
			out[key] = err
		}
	}
	for key, text := range map[string]string{"support_url": b.SupportURL, "privacy_url": b.PrivacyURL, "terms_url": b.TermsURL} {
		if u, err := url.Parse(text); text != "" && (err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil) {
			out[key] = errBrandURL
		}
	}
	if _, err := b.logo(); err != nil {
		out["logo_file"] = err
	}
	return out
}

func checkText(text string) error {
	switch n := utf8.RuneCountInString(text); {
	case n > maxText:
		return fmt.Errorf("has %d characters, at most %d", n, maxText)
	case strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' }):
		return errors.New("must be printable")
	}
	return nil
}

// logo is a picture, with its media type and the path under which it is served.
type logo struct {
	data       []byte
	kind, path string
}

// logo reads the picture; nil if there is none.
func (b Brand) logo() (*logo, error) {
	if b.LogoFile == "" {
		return nil, nil
	}
	info, err := os.Stat(b.LogoFile)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxLogo {
		return nil, fmt.Errorf("must be a file of at most %d bytes", maxLogo)
	}
	data, err := os.ReadFile(b.LogoFile)
	if err != nil {
		return nil, err
	}
	kind, ext := http.DetectContentType(data), ""
	switch kind {
	case "image/png", "image/jpeg", "image/webp":
		ext = strings.TrimPrefix(kind, "image/")
	case "text/xml; charset=utf-8", "text/plain; charset=utf-8":
		// As a picture it runs no scripts, and by itself it is held to the policy of every answer.
		if !bytes.Contains(data, []byte("<svg")) {
			return nil, errors.New("must be SVG, PNG, JPEG or WebP")
		}
		kind, ext = "image/svg+xml", "svg"
	default:
		return nil, errors.New("must be SVG, PNG, JPEG or WebP")
	}
	return &logo{data: data, kind: kind, path: assetPath(data, ext)}, nil
}
