package web

import (
	"cmp"
	"slices"
	"strings"

	"phasekey.dev/services/broker/internal/consent"
)

// problem is what a page says about consent that did not come about.
type problem struct {
	// Title is the page's; Happened is one sentence, and Installed says what became of it.
	Title, Happened, Installed string
	// Who can mend it, and How.
	Who, How string
	// Code is Microsoft's; empty for what Microsoft did not say.
	Code string
	// Again means that consent that was lost comes back by consenting again, Disabled that it does by enabling the principal.
	Again, Disabled bool
	// Wait means that it may mend itself, so that the page looks again by itself.
	Wait bool
}

// This time: somebody else with the link, or another tab, may have consented all the same.
const nothingInstalled = "Nothing was installed in your tenant this time."

// Who can mend what.
const (
	whoYou     = "You"
	whoOthers  = "Another administrator of your tenant"
	whoTenant  = "Those who administer your tenant"
	whoSender  = "Whoever sent you the link"
	whoWaiting = "Nobody has to: it takes time"
)

// The kinds of what Entra ID may say instead of consent.
var (
	declined = problem{
		Title: "You declined", Happened: "You did not consent.", Installed: nothingInstalled, Who: whoYou,
		How: "You may leave it at that; whoever sent you the link sees it too. If it was a mistake, or your questions are answered, try again below.",
	}
	notConsented = problem{
		Title: "Nobody has consented yet", Happened: "Microsoft says that nobody has consented to the application in this tenant.", Installed: nothingInstalled, Who: whoYou,
		How: "Try again, and accept on Microsoft’s page. If that page did not ask you, sign out at Microsoft first, or use a private window.",
	}
	wrongAccount = problem{
		Title: "That account is of another tenant", Happened: "You were signed in with an account that is not of this tenant.", Installed: nothingInstalled, Who: whoYou,
		How: "Sign out at Microsoft, or use a private window, and sign in with an account of the tenant above. Being a guest there may not be enough: it takes a role that may grant consent in that tenant.",
	}
	notAdministrator = problem{
		Title: "Your account may not consent", Happened: "Your account may not consent for the whole tenant.", Installed: nothingInstalled, Who: whoOthers,
		How: "It takes a role that may grant tenant-wide admin consent, such as Cloud Application Administrator. Have somebody do it who has one; you can pass this link on. If you asked for approval on Microsoft’s page, this page shows it when somebody has approved.",
	}
	blocked = problem{
		Title: "A policy of your tenant is in the way", Happened: "A Conditional Access policy of your tenant, or one like it, did not let you sign in.", Installed: nothingInstalled, Who: whoTenant,
		How: "Try from a device and a network that your policies allow. Or have those who run Conditional Access look at the sign-in logs in the Entra admin center, which name the policy.",
	}
	restricted = problem{
		Title: "Your network does not let you", Happened: "Your network lets nobody sign in to this tenant (tenant restrictions).", Installed: nothingInstalled, Who: whoTenant,
		How: "Try from another network, or ask those who run yours to allow this tenant.",
	}
	quota = problem{
		Title: "Your tenant takes no more objects", Happened: "Your tenant takes no more objects, or does not let your account make any.", Installed: nothingInstalled, Who: whoTenant,
		How: "Look at the directory quota of your tenant: deleted objects count for 30 days, unless they are removed for good. Or have another administrator try.",
	}
	present = problem{
		Title: "Consent was given twice at once", Happened: "The application is there or being installed already: somebody consented at the same moment, or the button was pressed twice.", Who: whoWaiting, Wait: true,
		How: "The page of your link looks again by itself, and goes on when your tenant shows the application. If nothing has changed after some minutes, try again.",
	}
	mismatch = problem{
		Title: "The application names another address", Happened: "Microsoft did not find this page’s address among those that the application names.", Installed: nothingInstalled, Who: whoWaiting,
		How: "The platform’s address was changed, and Microsoft’s directory does not know it everywhere yet. Wait some minutes and try again. If that does not help, tell whoever sent you the link.",
	}
	misconfigured = problem{
		Title: "The application is not set up rightly", Happened: "Microsoft refuses the application as it is set up.", Installed: nothingInstalled, Who: whoSender,
		How: "You can do nothing about it. Send them the code below; the same link will work when it is mended.",
	}
	missingService = problem{
		Title: "Your tenant lacks something", Happened: "Your tenant lacks a service or a permission that the application names, or is not licensed for it.", Installed: nothingInstalled, Who: whoSender,
		How: "Send them the code below. Microsoft Graph, which is all that this application names, is in every tenant unless somebody has disabled it there.",
	}
	unknownYet = problem{
		Title: "Microsoft does not know it everywhere yet", Happened: "Microsoft’s directory does not know the application everywhere yet.", Installed: nothingInstalled, Who: whoWaiting,
		How: "It takes from some seconds to some minutes. Go back to this page, wait a little and try again.",
	}
	noTenant = problem{
		Title: "There is no such tenant", Happened: "Microsoft does not know the tenant that this link is for, or not in this cloud.", Installed: nothingInstalled, Who: whoSender,
		How: "Compare the tenant above with yours (Entra admin center, Overview). If it is another one, have them make a new integration, with the right tenant and cloud.",
	}
	disabled = problem{
		Title: "The application is disabled", Happened: "The application, or its service principal in your tenant, is disabled.", Installed: nothingInstalled, Who: whoTenant,
		How: "Look for it among the enterprise applications of your tenant, and let it sign in again (Properties, Enabled for users to sign in). If it is not there, tell whoever sent you the link.",
	}
	passing = problem{
		Title: "Microsoft had a problem", Happened: "Microsoft could not do it just then.", Installed: "Most likely nothing was installed in your tenant.", Who: whoWaiting,
		How: "Wait a minute and try again. Microsoft’s service health page says whether more is wrong.",
	}
	unknown = problem{
		Title: "Microsoft did not let you consent", Happened: "Microsoft did not let you consent, for a reason that this page does not know.", Installed: "Most likely nothing was installed in your tenant.", Who: whoSender,
		How: "Try again. If it happens again, tell whoever sent you the link this code.",
	}
	unproven = problem{
		Title: "Your tenant has not shown it", Happened: "Microsoft said that you had consented, but your tenant has not shown it for a long time.", Who: whoYou, Wait: true,
		How: "Look for the application among your enterprise applications, and try again. If that does not help, tell whoever sent you the link.",
	}
)

// kinds are by Microsoft's codes.
var kinds = map[string]problem{
	"AADSTS65004": declined, "access_denied": declined, "permission_denied": declined,
	"AADSTS65001": notConsented,
	"AADSTS50020": wrongAccount, "AADSTS90072": wrongAccount, "AADSTS50034": wrongAccount, "AADSTS51004": wrongAccount,
	"AADSTS90094": notAdministrator, "AADSTS90095": notAdministrator,
	"AADSTS53000": blocked, "AADSTS53001": blocked, "AADSTS53002": blocked, "AADSTS53003": blocked, "AADSTS53004": blocked, "AADSTS530003": blocked, "AADSTS530032": blocked,
	"AADSTS500021": restricted, "AADSTS500022": restricted,
	"AADSTS90093":  quota,
	"AADSTS650051": present,
	"AADSTS50011":  mismatch, "AADSTS500113": mismatch,
	"AADSTS650056": misconfigured, "AADSTS650057": misconfigured, "AADSTS65005": misconfigured, "AADSTS50194": misconfigured, "AADSTS90008": misconfigured,
	"AADSTS900971": misconfigured, "AADSTS70011": misconfigured, "AADSTS700022": misconfigured, "invalid_request": misconfigured, "invalid_scope": misconfigured,
	"AADSTS650052": missingService, "AADSTS650054": missingService, "AADSTS500011": missingService,
	"AADSTS700016": unknownYet,
	"AADSTS90002":  noTenant, "AADSTS50128": noTenant,
	"AADSTS7000112": disabled, "AADSTS70001": disabled,
	"AADSTS90033": passing, "AADSTS90012": passing, "AADSTS90006": passing, "AADSTS90024": passing, "AADSTS90055": passing, "AADSTS90090": passing,
	"AADSTS50196": passing, "AADSTS1000031": passing, "server_error": passing, "temporarily_unavailable": passing,
}

// The kinds of what consent may be lost by.
var (
	withdrawn = problem{
		Title: "Consent was withdrawn", Happened: "The application is not in your tenant any more: its service principal was removed, or consent was withdrawn.", Who: whoYou, Again: true,
		How: "If the platform is to go on working there, consent again, below.",
	}
	switchedOff = problem{
		Title: "The application was disabled", Happened: "The application is disabled in your tenant.", Who: whoTenant, Disabled: true,
		How: "Look for it among the enterprise applications of your tenant, and let it sign in again (Properties, Enabled for users to sign in). It then goes on by itself, within minutes, with the roles that it had; consenting again does not enable it.",
	}
	keptOut = problem{
		Title: "A policy of your tenant keeps it out", Happened: "A Conditional Access policy of your tenant, or one like it, lets the application in no more.", Who: whoTenant,
		How: "The sign-in logs of service principals in the Entra admin center name the policy. Exempt the application from it, or let the platform’s addresses in; consenting again does not change a policy.",
	}
	refusing = problem{
		Title: "Your tenant refuses the application", Happened: "Your tenant does not take the application any more.", Who: whoTenant, Again: true,
		How: "Look for the application among the enterprise applications of your tenant. If it is not there, consent again, below; if it is, tell whoever sent you the link what this page says.",
	}
)

// losses are by Microsoft's codes.
var losses = map[string]problem{
	"AADSTS700016": withdrawn, "AADSTS7000229": withdrawn, "AADSTS65001": withdrawn, "AADSTS650056": withdrawn,
	"AADSTS7000112": switchedOff, "AADSTS70001": switchedOff,
	"AADSTS53003": keptOut, "AADSTS530032": keptOut,
}

// lossOf is what to say about why consent was lost.
func lossOf(code string) problem {
	p, known := losses[code]
	if !known {
		p = refusing
	}
	if strings.HasPrefix(code, "AADSTS") { // the vault has a word of its own for when Microsoft gave none
		p.Code = code
	}
	return p
}

// helpOf is what to say about a code that an administrator was shown at Microsoft; false if nobody knows it.
func helpOf(code string) (problem, bool) {
	p, known := kinds[code]
	p.Code = code
	return p, known
}

// problemOf is what to say about a session's last callback, which is not empty.
func problemOf(lastCallback string) problem {
	if lastCallback == consent.CallbackApproved {
		return unproven
	}
	p, known := helpOf(lastCallback)
	if !known {
		p = unknown
		p.Code = lastCallback
	}
	return p
}

// help is one problem, and the codes that Microsoft shows for it.
type help struct {
	Title string
	Codes []string
}

// helped are the problems that a page may be asked about, in the order in which people look for them: by number.
func helped() []help {
	var codes []string
	for code := range kinds {
		if strings.HasPrefix(code, "AADSTS") { // words come with callbacks, and are shown to nobody
			codes = append(codes, code)
		}
	}
	slices.SortFunc(codes, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	var out []help
	for _, code := range codes {
		title := kinds[code].Title
		at := slices.IndexFunc(out, func(h help) bool { return h.Title == title })
		if at < 0 {
			at, out = len(out), append(out, help{Title: title})
		}
		out[at].Codes = append(out[at].Codes, code)
	}
	return out
}
