package web

import "phasekey.dev/services/broker/internal/consent"

// notice is what a landing page says about the last time somebody went to Microsoft and came back without consent.
type notice struct {
	// Happened is one sentence, Installed says what became of it, and Advice what to do.
	Happened, Installed, Advice string
}

// This time: somebody else with the link, or another tab, may have consented all the same.
const nothingInstalled = "Nothing was installed in your tenant this time."

// codePresent is the one error that says something was installed.
const codePresent = "AADSTS650051"

// advice says what can be done about the errors of Entra ID that an administrator may meet while consenting.
var advice = map[string]string{
	"AADSTS50020":  "You were signed in with an account that is not of this tenant. Sign out at Microsoft, or use a private window, and sign in with an account of the tenant above.",
	"AADSTS90072":  "You were signed in with an account that is not of this tenant. Sign out at Microsoft, or use a private window, and sign in with an account of the tenant above.",
	"AADSTS90094":  "Your account may not consent for the whole tenant. Have somebody do it who may, such as a Cloud Application Administrator; you can pass this link on.",
	"AADSTS90095":  "Your account may not consent for the whole tenant. Have somebody do it who may, such as a Cloud Application Administrator; you can pass this link on.",
	"AADSTS90093":  "Your tenant takes no more objects, or does not let your account consent. Look at the directory quota of your tenant, or have another administrator try.",
	codePresent:    "The application is there or being installed already: somebody consented at the same moment, or the button was pressed twice. Wait a minute and open this page again.",
	"AADSTS650052": "Your tenant lacks a service that the application names, or is not licensed for it. Ask whoever sent you the link.",
	"AADSTS650054": "The application asks for a permission that does not exist in your tenant. Ask whoever sent you the link.",
	"AADSTS650056": "The application is not set up rightly. Whoever sent you the link has to mend that.",
	"AADSTS50011":  "The application is not set up rightly. Whoever sent you the link has to mend that.",
	"AADSTS50194":  "The application is not set up rightly. Whoever sent you the link has to mend that.",
	"AADSTS90008":  "The application is not set up rightly. Whoever sent you the link has to mend that.",
	"AADSTS500021": "Your network lets nobody sign in to this tenant (tenant restrictions). Try from another network, or ask those who run yours.",
	"AADSTS500022": "Your network lets nobody sign in to this tenant (tenant restrictions). Try from another network, or ask those who run yours.",
	"AADSTS700016": "Microsoft’s directory does not know the application everywhere yet. Wait some minutes and try again.",
}

// noticeOf is what to say about a session's last callback; nil for nothing.
func noticeOf(lastCallback string) *notice {
	switch {
	case lastCallback == "":
		return nil
	case lastCallback == consent.CallbackApproved:
		return &notice{
			Happened: "Microsoft said that you had consented, but your tenant has not shown it for a long time.",
			Advice:   "Look for the application among your enterprise applications, and try again. If that does not help, tell whoever sent you the link.",
		}
	case consent.Declined(lastCallback):
		return &notice{
			Happened: "You did not consent.", Installed: nothingInstalled,
			Advice: "You may leave it at that; whoever sent you the link sees it too. Or you can try again below.",
		}
	}
	n := &notice{Happened: "Microsoft did not let you consent: " + lastCallback + ".", Installed: nothingInstalled}
	var known bool
	n.Advice, known = advice[lastCallback]
	switch {
	case !known:
		n.Installed = "Most likely nothing was installed in your tenant."
		n.Advice = "Try again. If it happens again, tell whoever sent you the link this code."
	case lastCallback == codePresent:
		n.Installed = ""
	}
	return n
}
