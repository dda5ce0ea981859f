package operator

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"

	"phasekey.dev/pkg/rpcerr"
)

// advice says what to do next about each of the platform's reasons, where the service's own sentence does not end with it.
var advice = map[string]string{
	"INVALID_FIELDS":            "correct it, and try again",
	"INVALID_PAGE_TOKEN":        "begin the list anew",
	"HOME_TENANT":               "give the customer's tenant, not the platform's own",
	"IDENTITY_UNKNOWN":          "the certificate of this context is not known there: see `phasekey context list`, and the service's identities",
	"GRANT_UNKNOWN":             "the grant is not known there",
	"CALLER_NOT_ALLOWED":        "another identity may do this: choose its context with --context",
	"ACCOUNT_NOT_ALLOWED":       "this context's identity may not name that account: check --account, or the service's identities",
	"RATE_LIMITED":              "wait, then try again",
	"RESOURCE_NOT_FOUND":        "check the name and the account; where there is a list, it shows what there is",
	"RESOURCE_EXISTS":           "choose another ID, or update the one there is",
	"REQUEST_ID_REUSED":         "give another request ID",
	"ETAG_MISMATCH":             "somebody changed it meanwhile: look at it again, then give its new etag",
	"CONFLICT":                  "others write at the same moment: try again",
	"INTEGRATION_ATTACHED":      "detach it first (`phasekey attachments list`), or delete it with --force",
	"INTEGRATION_DELETING":      "it is being deleted; wait until it is gone to use the name again",
	"PROJECT_ATTACHED":          "delete the project's attachments first",
	"ACCESS_TAKEN":              "another integration is attached for that access: detach it first",
	"NOTHING_ATTACHED":          "attach an integration for that access: `phasekey attachments create PROJECT INTEGRATION`",
	"NO_SUBSCRIPTION":           "give the attachment a subscription, or the integration a default one",
	"CURSOR_OUT_OF_RANGE":       "begin anew: list again, or follow the audit from a time (--start) without the cursor",
	"ROTATION_PAUSED":           "resume rotation first, or say --compromised if the credential is in other hands",
	"MISLEADING_NAME":           "choose another display name: administrators of customers see it when they consent",
	"REPORT_FENCED":             "a newer master reports; nothing is to be done",
	"GRANT_IN_USE":              "the grant was used already: make another one, with another request ID",
	"GRANT_REVOKED":             "make a new grant",
	"GRANT_EXPIRED":             "make a new grant",
	"DETACHED":                  "attach the integration again: the same grant is of use then, while it lasts",
	"INTEGRATION_DELETED":       "attach another integration, then make a new grant",
	"ACCOUNT_FROZEN":            "`phasekey accounts get` says why: ask whoever froze it, and unfreeze it when that is over",
	"LEASE_CLOSED":              "make a new grant",
	"TOO_MANY_LEASES":           "end one of the grant's leases, or make another grant",
	"AUDIENCE_NOT_ALLOWED":      "add the audience to the integration's allowed audiences",
	"MATERIAL_NOT_ALLOWED":      "add the material to the integration's delivery materials",
	"HOLD_TOO_LONG":             "ask for an earlier end",
	"CREDENTIAL_NOT_READY":      "wait until the integration's CredentialReady is true: `phasekey integrations wait INTEGRATION`",
	"CONSENT_MISSING":           "the customer's administrators must consent, or enable the application again: send them a link, whose page says which (`phasekey consent start INTEGRATION`)",
	"ENTRA_UNAVAILABLE":         "Entra ID does not answer: try again later",
	"ENTITLEMENT_STALE":         "the vault has not heard from the registry: try again, and look at both if it stays so",
	"DEPENDENCY_UNAVAILABLE":    "a database or another service does not answer: try again, and look at the service's health if it stays so",
	"DRAINING":                  "the replica is stopping: try again",
	"STREAM_IDLE":               "open it again",
	"TOO_MANY_CONSENT_SESSIONS": "cancel one that is not needed, or wait until one has ended",
	"QUOTA_EXCEEDED":            "delete what is not used any more, or have the account's quota raised",
	"INTERNAL":                  "the service's log has the request ID",
}

// explain makes of a call's error one sentence with what to do next.
func explain(err error) error {
	if err == nil {
		return nil
	}
	st, ok := rpcerr.FromError(err)
	if !ok {
		return err
	}
	text := rpcerr.Explain(err)
	next := advice[rpcerr.Reason(err)]
	switch {
	case next != "":
	case errors.Is(err, context.Canceled) || st.Code() == codes.Canceled:
		return errors.New("interrupted")
	case st.Code() == codes.Unavailable || st.Code() == codes.DeadlineExceeded:
		next = "check the context's address and certificates, and the network"
	case st.Code() == codes.Unimplemented:
		next = "the service is of an older release than this command"
	default:
		return errors.New(text)
	}
	return fmt.Errorf("%s; %s", text, next)
}
