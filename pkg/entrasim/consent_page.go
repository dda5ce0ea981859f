package entrasim

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
)

//go:embed consent_page.html
var consentHTML string

// page is what the consent page's template shows: one of its three steps.
type page struct {
	Title   string
	Request *consentRequest
	// Problem and Details are an error that keeps the browser here.
	Problem, Details string
	Notice           string // of the sign-in step
	Permissions      []string
}

func signInPage(c *call, q *consentRequest, notice string) reply {
	out := showPage(c, http.StatusOK, page{Title: "Sign in to your account", Request: q, Notice: notice})
	if notice != "" {
		out.code = "AADSTS50034"
	}
	return out
}

func consentPage(c *call, q *consentRequest) reply {
	permissions := []string{"Sign in and read user profile"}
	permissions = append(permissions, grantedRoles(q.App)[graphAppID]...)
	return showPage(c, http.StatusOK, page{Title: "Permissions requested", Request: q, Permissions: permissions})
}

func consentProblem(c *call, p problem) reply {
	out := showPage(c, p.status, page{
		Title: "Sorry, but we’re having trouble signing you in.", Problem: "AADSTS" + p.code + ": " + p.text,
		Details: fmt.Sprintf("Request Id: %s Correlation Id: %s Timestamp: %s", c.requestID, c.clientRequestID, c.now.Format(stamp)),
	})
	out.code = "AADSTS" + p.code
	return out
}

func showPage(c *call, status int, p page) reply {
	var out bytes.Buffer
	t, err := template.New("page").Parse(consentHTML)
	if err == nil {
		err = t.Execute(&out, p)
	}
	if err != nil {
		return loginError(c, problem{http.StatusInternalServerError, "server_error", "90033", "A transient error has occurred. Please try again."})
	}
	return reply{status: status, body: out.Bytes(), header: http.Header{
		"Content-Type":            {"text/html; charset=utf-8"},
		"Cache-Control":           {"no-store"},
		"Content-Security-Policy": {"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"},
		"Referrer-Policy":         {"no-referrer"},
		"X-Ms-Request-Id":         {c.requestID},
	}}
}

// People are those whom the sign-in step offers.
func (t *tenantRecord) People() []Person {
	return t.people
}
