package command

import (
	"google.golang.org/grpc/codes"

	"phasekey.dev/pkg/rpcerr"
)

// hints say what to do about the vault's reasons.
var hints = map[string]string{
	"GRANT_UNKNOWN":          "the vault does not know this grant: check that it is whole, of this deployment, and was not replaced by a repeated CreateGrant; one that is bound to a client certificate needs that one, with --cert and --key",
	"GRANT_REVOKED":          "the grant was revoked: have the platform make a new one, if this run may go on",
	"GRANT_EXPIRED":          "the grant has expired: have the platform make a new one, or extend it in time",
	"DETACHED":               "the integration does not give this project that access any more: attach it again, and the same grant is of use while it lasts",
	"INTEGRATION_DELETED":    "the integration or the project was deleted: attach another integration, then make a new grant",
	"ACCOUNT_FROZEN":         "the platform has frozen this account: ask it why; when that is over, the same grant is of use again while it lasts",
	"LEASE_CLOSED":           "the lease was closed or revoked: have the platform make a new grant",
	"TOO_MANY_LEASES":        "four runners hold this grant already: end one, or make another grant",
	"AUDIENCE_NOT_ALLOWED":   "the integration does not allow this audience: add it to its allowed token audiences",
	"MATERIAL_NOT_ALLOWED":   "the integration does not deliver in this form: choose another --material, or add this one to its delivery materials",
	"HOLD_TOO_LONG":          "the secret ends before the grant does: have the platform make a shorter grant, or use --material access-token",
	"CREDENTIAL_NOT_READY":   "the integration has no proven credential yet: wait until its condition CredentialReady is true",
	"CONSENT_MISSING":        "the customer's administrator has not consented, or has withdrawn it: send them a consent session's link",
	"ENTRA_UNAVAILABLE":      "Entra ID does not answer the vault: try again later",
	"ENTITLEMENT_STALE":      "the vault has not heard from the registry: try again, and look at both if it stays so",
	"DEPENDENCY_UNAVAILABLE": "the vault's database or another service does not answer: try again, and look at the vault if it stays so",
	"RATE_LIMITED":           "too many calls from this address: try again later",
}

// hint returns what to do about a reason, "" if there is nothing better than the message.
func hint(reason string) string { return hints[reason] }

// cause returns what kept a wait from ending, without the wait itself.
func cause(err error) string {
	st, ok := rpcerr.FromError(err)
	if !ok || st.Code() == codes.DeadlineExceeded && rpcerr.Reason(err) == "" {
		return "the vault has not answered; check --vault and the network"
	}
	return rpcerr.Explain(err)
}
