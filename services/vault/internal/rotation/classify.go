package rotation

import (
	"errors"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
)

// meaning is what one class of refusal means, by who refused: the customer's tenant or the home tenant, asked for a token,
// or Graph.
type meaning struct {
	tenant credential.Finding
	home   credential.Finding
	graph  credential.FailureKind
}

// meanings is the whole classification. What a refused secret or an unknown application means further depends on how old
// the credential is, which its state says and package credential judges: before ACTIVE it is still on its way, after that it
// counts towards broken or lost, and on an ACTIVE one that is still settling it is not held against it.
var meanings = map[directory.Class]meaning{ //nolint:gochecknoglobals // a constant table
	directory.ApplicationUnknown: {credential.ConsentMissing, credential.ConsentMissing, credential.Again},
	directory.TenantUnknown:      {credential.ConsentMissing, credential.Unsure, credential.Refused},
	directory.PrincipalMissing:   {credential.PrincipalMissing, credential.PrincipalMissing, credential.Again},
	directory.PrincipalDisabled:  {credential.PrincipalMissing, credential.PrincipalMissing, credential.Again},
	directory.ResourceUnknown:    {credential.PrincipalMissing, credential.Unsure, credential.Refused},
	directory.BlockedByPolicy:    {credential.PrincipalMissing, credential.Unsure, credential.Refused},
	directory.SecretRefused:      {credential.SecretRefused, credential.SecretRefused, credential.Again},
	directory.TrustRefused:       {credential.SecretRefused, credential.SecretRefused, credential.Again},
	directory.SecretExpired:      {credential.SecretExpired, credential.SecretExpired, credential.Again},
	directory.SecretUnreadable:   {credential.Unreadable, credential.Unreadable, credential.Refused},
	directory.NotFound:           {credential.Unsure, credential.Unsure, credential.Missing},
	directory.LifetimeRefused:    {credential.Unsure, credential.Unsure, credential.TooLong},
	directory.QuotaExceeded:      {credential.Unsure, credential.Unsure, credential.Refused},
	directory.Conflict:           {credential.Unsure, credential.Unsure, credential.Again},
	directory.Throttled:          {credential.Unsure, credential.Unsure, credential.Again},
	directory.Transient:          {credential.Unsure, credential.Unsure, credential.Again},
	directory.IssuerUnread:       {credential.Unsure, credential.Unsure, credential.Again},
	directory.Denied:             {credential.Unsure, credential.Unsure, credential.Refused},
	directory.Malformed:          {credential.Unsure, credential.Unsure, credential.Refused},
	directory.OutcomeUnknown:     {credential.Unsure, credential.Unsure, credential.Lost},
	directory.Unclassified:       {credential.Unsure, credential.Unsure, credential.Lost},
}

// findingOf is what a token request to the customer's tenant told, and the refusal's code.
func findingOf(err error) (credential.Finding, string) {
	if err == nil {
		return credential.Works, ""
	}
	return meanings[directory.ClassOf(err)].tenant, refusal(err).Code
}

// away reports whether a refusal says that the service as a whole does not answer, or not now: nothing is known then of what was asked.
func away(err error) bool {
	switch directory.ClassOf(err) {
	case directory.Throttled, directory.Transient:
		return true
	default:
		return false
	}
}

// homeFindingOf is what a token request to the home tenant told.
func homeFindingOf(err error) credential.Finding {
	if err == nil {
		return credential.Works
	}
	return meanings[directory.ClassOf(err)].home
}

// failureOf is what a refusal by Graph means.
func failureOf(err error) credential.Failure {
	e := refusal(err)
	return credential.Failure{Kind: meanings[directory.ClassOf(err)].graph, Code: e.Code, RetryAfter: e.RetryAfter}
}

// className is the class in metrics.
func className(err error) string {
	if err == nil {
		return "ok"
	}
	return directory.ClassOf(err).String()
}

// refusal returns the directory's error in err's chain, an empty one when there is none.
func refusal(err error) *directory.Error {
	if e, ok := errors.AsType[*directory.Error](err); ok {
		return e
	}
	return &directory.Error{}
}
