package web

import (
	"net/http"
	"strings"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/broker/internal/consent"
)

// cookiePrefix is followed by an attempt's ID. Browsers take a cookie of a name that begins with __Host- from this host alone, over
// TLS, and for all of its paths.
const cookiePrefix = "__Host-phasekey-"

// give has the browser keep an attempt's secret.
func give(w http.ResponseWriter, id string, browser secret.Text, life time.Duration) {
	http.SetCookie(w, cookie(id, browser.Expose(), int(life/time.Second)))
}

// maxCookies is how many of our cookies a browser keeps: more would not fit into a request's headers some day, and then nothing would.
const maxCookies = 20

// makeRoom has the browser forget its oldest cookies of ours, so that one more fits. Browsers send those first that they have had for the longest.
func makeRoom(w http.ResponseWriter, r *http.Request) {
	var ours []string
	for _, c := range r.Cookies() {
		if id, is := strings.CutPrefix(c.Name, cookiePrefix); is {
			ours = append(ours, id)
		}
	}
	for len(ours) >= maxCookies {
		forget(w, ours[0])
		ours = ours[1:]
	}
}

// forget has the browser forget it.
func forget(w http.ResponseWriter, id string) { http.SetCookie(w, cookie(id, "", -1)) }

func cookie(id, value string, seconds int) *http.Cookie {
	return &http.Cookie{
		Name: cookiePrefix + id, Value: value, MaxAge: seconds,
		// Lax, not Strict: the browser comes back from another site.
		Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

// browserOf are the secrets that a browser has.
func browserOf(r *http.Request) consent.Browser {
	out := consent.Browser{}
	for _, c := range r.Cookies() {
		if id, ours := strings.CutPrefix(c.Name, cookiePrefix); ours {
			out[id] = append(out[id], secret.New(c.Value))
		}
	}
	return out
}
