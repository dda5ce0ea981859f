package web_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"phasekey.dev/services/broker/internal/consent"
)

// noticed is when consent was lost.
var noticed = time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)

func lostBy(code string) consent.Standing { return consent.Standing{Time: noticed, Loss: code} }

var (
	holds    = consent.Standing{Time: noticed.Add(-time.Hour), Holds: true, PrincipalObjectID: principal}
	refusing = consent.Proof{Refusal: "AADSTS700016"}
)

// proven opens a session that is completed, with all roles given.
func (w *world) proven(change func(*consent.Session)) (consent.Session, string) {
	w.t.Helper()
	w.stands.set(holds, refusing, nil)
	return w.open(func(s *consent.Session) {
		s.State, s.PrincipalObjectID, s.StandingTime, s.EndTime = consent.Completed, principal, holds.Time, s.CreateTime
		s.LastCallback, s.CallbackTime = consent.CallbackApproved, s.CreateTime
		s.Permissions = consent.Permissions{Read: consent.Full, Write: consent.Full}
		if change != nil {
			change(s)
		}
	})
}

func TestSite_ConsentThatWasLostIsGivenAgainByTheSameLink(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.proven(nil)
	b, other := w.browser(), w.browser()
	p := b.get(link)
	shows(t, p, http.StatusOK, "You have consented", "you can consent again here")
	if strings.Contains(p.text, button) || strings.Contains(p.text, "data-live") {
		t.Errorf("while consent holds:\n%s", p.text)
	}

	w.stands.set(lostBy("AADSTS700016"), refusing, nil)
	path := strings.TrimPrefix(link, w.config.Links.PublicURL)
	shows(t, b.get(link), http.StatusOK, `data-page="lost" data-version="2" data-live="`+path+`/events"`, "Consent was withdrawn", "is not in your tenant any more",
		`<time datetime="2026-03-01T12:30:00Z">1 March 2026, 12:30 UTC</time>`, "consent again, below", "Consent again", button)
	if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != 0 {
		t.Errorf("following the link has begun %d attempts", n)
	}
	events := b.follow(link)
	events.expect(`{"page":"lost","version":2}`)

	// As the first time: whoever did not press changes nothing, who declines is told so, and who approves waits for the proof.
	w.entraSays(approved)
	passedOn := b.through(b.press(link))
	shows(t, other.get(passedOn), http.StatusOK, "You began in another browser")
	w.entraSays(refused("consent_required", "AADSTS65004"))
	b.get(b.through(b.press(link)))
	shows(t, b.get(link), http.StatusOK, "You declined", button)
	events.expect(`{"page":"problem","version":3}`)
	w.entraSays(approved)
	b.get(b.through(b.press(link)))
	shows(t, b.get(link), http.StatusOK, "Waiting for your tenant", `http-equiv="refresh" content="5"`)
	events.expect(`{"page":"pending","version":4}`)
	if s := w.get(session.Name); s.State != consent.Completed || s.LastCallback != consent.CallbackApproved || s.PrincipalObjectID != principal {
		t.Errorf("a browser's word: %+v", s)
	}

	w.stands.set(lostBy("AADSTS700016"), consent.Proof{Consented: true, PrincipalObjectID: subscription}, nil)
	p = b.get(link)
	shows(t, p, http.StatusOK, "You have consented", "--assignee-object-id "+subscription, "No role has been looked for yet")
	if strings.Contains(p.text, "to Microsoft") || strings.Contains(p.text, principal) {
		t.Errorf("proven again:\n%s", p.text)
	}
	events.expect(`{"page":"result","version":5}`)
	if s := w.get(session.Name); !s.EndTime.After(session.EndTime) {
		t.Errorf("proven on %s", s.EndTime)
	}
	// What the registry says until the vault has reported is about the loss that was mended.
	w.stands.set(lostBy("AADSTS700016"), refusing, nil)
	shows(t, b.get(link), http.StatusOK, "You have consented")
	// A browser that comes back late finds that nothing is left to do.
	if p := b.get(passedOn); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("a late callback: %d to %s", p.status, p.to())
	}
	shows(t, b.get(link), http.StatusOK, "You have consented")
}

func TestSite_WhatLossesAreSaidToBe(t *testing.T) {
	for _, tc := range []struct {
		code, says, how, heading string
		command                  bool
	}{
		{"AADSTS7000229", "Consent was withdrawn", "consent again, below", "<h2>Consent again</h2>", false},
		{"AADSTS7000112", "The application was disabled", "consenting again does not enable it", "<h2>If consent was withdrawn as well</h2>", true},
		{"AADSTS53003", "A policy of your tenant keeps it out", "consenting again does not change a policy", "<h2>If consent was withdrawn as well</h2>", false},
		{"ConsentLost", "Your tenant refuses the application", "If it is not there, consent again", "<h2>Consent again</h2>", false},
	} {
		t.Run(tc.code, func(t *testing.T) {
			w := newWorld(t, nil)
			_, link := w.proven(nil)
			w.stands.set(lostBy(tc.code), refusing, nil)
			p := w.browser().get(link)
			shows(t, p, http.StatusOK, tc.says, tc.how, tc.heading, "there is nothing to do")
			if steps := strings.Contains(p.text, "You consent at Microsoft"); steps != (tc.heading == "<h2>Consent again</h2>") {
				t.Errorf("the steps are shown, or are not:\n%s", p.text)
			}
			if code := strings.Contains(p.text, "Microsoft’s code: <code>"+tc.code+"</code>"); code != strings.HasPrefix(tc.code, "AADSTS") {
				t.Errorf("the code is shown, or is not:\n%s", p.text)
			}
			if command := "az ad sp update <span>--id " + principal + "</span> <span>--set accountEnabled=true"; strings.Contains(p.text, command) != tc.command {
				t.Errorf("the command is shown, or is not:\n%s", p.text)
			}
		})
	}
}

func TestSite_ALossThatMendsItselfLeavesNothingToDo(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.proven(nil)
	b := w.browser()
	w.stands.set(lostBy("AADSTS7000112"), refusing, nil)
	shows(t, b.get(link), http.StatusOK, "The application was disabled")
	events := b.follow(link)
	events.expect(`{"page":"lost","version":2}`)
	w.stands.set(consent.Standing{Time: noticed.Add(time.Hour), Holds: true, PrincipalObjectID: principal}, refusing, nil)
	if p := b.do(http.MethodPost, link, nil); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the button of a page from before: %d to %s", p.status, p.to())
	}
	events.expect(`{"page":"result","version":3}`)
	shows(t, b.get(link), http.StatusOK, "You have consented", "1 March 2026, 13:30 UTC", "may read and change things")
	if s := w.get(session.Name); s.LastCallback != "" || s.State != consent.Completed {
		t.Errorf("%+v", s)
	}
}

func TestSite_LinksThatDoNotOpenAgain(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*consent.Session)
		says   []string
	}{
		{"too old", func(s *consent.Session) { s.ExpireTime = s.CreateTime }, []string{"This link has expired", "is not in your tenant any more", "1 March 2026, 12:30 UTC", "send you a new link"}},
		{"withdrawn", func(s *consent.Session) { s.State, s.LastRefusal = consent.Expired, consent.RefusalCancelled }, []string{"This link was withdrawn"}},
		{"withdrawn after consent was given", func(s *consent.Session) { *s, _ = consent.Cancel(s.CreateTime, *s) }, []string{"This link has expired", "is not in your tenant any more", "send you a new link"}},
		{"expired", func(s *consent.Session) { s.State = consent.Expired }, []string{"This link has expired", "Consent was not proven in time"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			_, link := w.proven(tc.change)
			w.stands.set(lostBy("AADSTS700016"), refusing, nil)
			b := w.browser()
			p := b.get(link)
			shows(t, p, http.StatusOK, tc.says...)
			if strings.Contains(p.text, button) || strings.Contains(p.text, "data-live") {
				t.Errorf("it can be used:\n%s", p.text)
			}
			if p := b.do(http.MethodPost, link, nil); p.status != http.StatusSeeOther || p.to() != link {
				t.Errorf("the button: %d to %s", p.status, p.to())
			}
			if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != 0 {
				t.Errorf("%d attempts", n)
			}
		})
	}
}

func TestSite_NobodyIsLedToConsentToWhatWasDeleted(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.proven(nil)
	w.stands.set(lostBy("AADSTS700016"), refusing, nil)
	b := w.browser()
	shows(t, b.get(link), http.StatusOK, "Consent was withdrawn", button)
	events := b.follow(link)
	events.expect(`{"page":"lost","version":2}`)
	w.stands.set(consent.Standing{}, refusing, consent.ErrIntegrationNotFound)
	if p := b.do(http.MethodPost, link, nil); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the button of a page from before: %d to %s", p.status, p.to())
	}
	events.expect(`{"page":"expired","version":3}`)
	p := b.get(link)
	shows(t, p, http.StatusOK, "The integration was deleted", "nothing left to consent to")
	if strings.Contains(p.text, button) {
		t.Errorf("it can be used:\n%s", p.text)
	}
}

func TestSite_SaysWhatIsDeletedThoughConsentHolds(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.proven(nil)
	b := w.browser()
	shows(t, b.get(link), http.StatusOK, "You have consented", "az role assignment create")
	w.stands.set(consent.Standing{}, refusing, consent.ErrIntegrationNotFound)
	p := b.get(link)
	shows(t, p, http.StatusOK, "The integration was deleted", "If you have consented, the application")
	if strings.Contains(p.text, "az role assignment create") {
		t.Errorf("it asks for a role:\n%s", p.text)
	}
}

func TestSite_SaysWhatIsKnownWhileNobodyAnswersWhetherConsentHolds(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.proven(nil)
	b := w.browser()
	w.stands.set(lostBy("AADSTS700016"), refusing, consent.ErrUnavailable)
	shows(t, b.get(link), http.StatusOK, "You have consented")
	w.stands.set(lostBy("AADSTS700016"), refusing, nil)
	shows(t, b.get(link), http.StatusOK, "Consent was withdrawn")
	w.stands.set(holds, refusing, consent.ErrUnavailable)
	shows(t, b.get(link), http.StatusOK, "Consent was withdrawn")
}

func TestEvents_TellAnOpenResultThatConsentIsLost(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.proven(func(s *consent.Session) { s.Permissions = consent.Permissions{} })
	w.roles.finds(consent.Permissions{Read: consent.None, Write: consent.None})
	events := w.browser().follow(link)
	events.expect(`{"page":"result","version":1}`)
	w.stands.set(lostBy("AADSTS700016"), refusing, nil)
	// A role was looked for too, which is told first unless both were found out before anybody is told.
	for told := ""; !strings.Contains(told, `"page":"lost"`); {
		var err error
		if told, err = events.next(); err != nil {
			t.Fatal(err)
		}
	}
}
