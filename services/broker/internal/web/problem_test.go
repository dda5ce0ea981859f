package web_test

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"phasekey.dev/services/broker/internal/consent"
)

// problems are what Entra ID may say instead of consent, by the titles of the pages that help.
var problems = map[string][]string{
	"You declined":                              {"AADSTS65004", "access_denied", "permission_denied"},
	"Nobody has consented yet":                  {"AADSTS65001"},
	"That account is of another tenant":         {"AADSTS50020", "AADSTS50034", "AADSTS51004", "AADSTS90072"},
	"Your account may not consent":              {"AADSTS90094", "AADSTS90095"},
	"A policy of your tenant is in the way":     {"AADSTS53000", "AADSTS53001", "AADSTS53002", "AADSTS53003", "AADSTS53004", "AADSTS530003", "AADSTS530032"},
	"Your network does not let you":             {"AADSTS500021", "AADSTS500022"},
	"Your tenant takes no more objects":         {"AADSTS90093"},
	"Consent was given twice at once":           {"AADSTS650051"},
	"The application names another address":     {"AADSTS50011", "AADSTS500113"},
	"The application is not set up rightly":     {"AADSTS50194", "AADSTS65005", "AADSTS70011", "AADSTS90008", "AADSTS650056", "AADSTS650057", "AADSTS700022", "AADSTS900971", "invalid_request", "invalid_scope"},
	"Your tenant lacks something":               {"AADSTS500011", "AADSTS650052", "AADSTS650054"},
	"Microsoft does not know it everywhere yet": {"AADSTS700016"},
	"There is no such tenant":                   {"AADSTS50128", "AADSTS90002"},
	"The application is disabled":               {"AADSTS70001", "AADSTS7000112"},
	"Microsoft had a problem":                   {"AADSTS50196", "AADSTS90006", "AADSTS90012", "AADSTS90024", "AADSTS90033", "AADSTS90055", "AADSTS90090", "AADSTS1000031", "server_error", "temporarily_unavailable"},
}

var (
	listed   = regexp.MustCompile(`/errors/(\w+)"><code>`)
	heading  = regexp.MustCompile(`<h1>([^<]+)</h1>`)
	happened = regexp.MustCompile(`role="alert">\s*<p><strong>[^<]+\.</strong>`)
	mends    = regexp.MustCompile(`<p><strong>[^<]+\.</strong> [^<]+\.</p>`)
)

func TestSite_EveryErrorHasItsPage(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	b := w.browser()
	var shown []string
	is := func(t *testing.T, p page, title, code string) {
		t.Helper()
		shows(t, p, http.StatusOK, "Who can mend it, and how", "Try again at Microsoft", "Microsoft’s code: <code>"+code+"</code>")
		if got := heading.FindStringSubmatch(p.text); got == nil || got[1] != title || !happened.MatchString(p.text) || !mends.MatchString(p.text) {
			t.Errorf("%s is called %q, or the page does not say what happened, and who mends it how:\n%s", code, got, p.text)
		}
	}
	for title, codes := range problems {
		for _, code := range codes {
			t.Run(code, func(t *testing.T) {
				_, link := w.open(func(s *consent.Session) { s.LastCallback, s.CallbackTime = code, s.CreateTime })
				is(t, b.get(link), title, code)
				is(t, b.get(link+"/errors/"+code), title, code)
			})
			if strings.HasPrefix(code, "AADSTS") {
				shown = append(shown, code)
			}
		}
	}
	slices.Sort(shown)
	for name, where := range map[string]string{"landing": link, "problem": link + "/errors/AADSTS50011"} {
		var got []string
		for _, one := range listed.FindAllStringSubmatch(b.get(where).text, -1) {
			got = append(got, one[1])
		}
		slices.Sort(got)
		if !slices.Equal(got, shown) {
			t.Errorf("the %s page lists %v, want %v", name, got, shown)
		}
	}
}
