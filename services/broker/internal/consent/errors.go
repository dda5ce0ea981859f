package consent

import "errors"

// The errors that callers tell apart. What wraps them says more, for logs.
var (
	// ErrNotFound means that there is no session of that name.
	ErrNotFound = errors.New("no such consent session")
	// ErrRequestIDReused means that a request ID was used before with other contents.
	ErrRequestIDReused = errors.New("request_id was used before with other contents")
	// ErrTooManyOpen means that an integration has as many open sessions as it may.
	ErrTooManyOpen = errors.New("the integration has too many open consent sessions")
	// ErrIntegrationNotFound means that the registry has no integration of that name.
	ErrIntegrationNotFound = errors.New("no such integration")
	// ErrIntegrationDeleting means that the integration is on its way out.
	ErrIntegrationDeleting = errors.New("the integration is being deleted")
	// ErrUnavailable means that the database, the registry or the vault does not answer. What was asked of it may
	// have happened nevertheless.
	ErrUnavailable = errors.New("a dependency does not answer")
	// ErrNotReady means that the vault cannot ask yet, because the application has not replicated.
	ErrNotReady = errors.New("the application is not ready")
	// ErrEntra means that Entra ID did not answer the vault, or not what would tell.
	ErrEntra = errors.New("entra ID does not answer")
	// ErrClaimLost means that another replica works on the integration now. Nothing was changed.
	ErrClaimLost = errors.New("another replica has claimed the integration")
	// ErrUnknownCloud means that no login host is configured for an integration's cloud.
	ErrUnknownCloud = errors.New("cloud is not configured")
	// ErrCallback means that a browser came back with something that Entra ID does not send.
	ErrCallback = errors.New("malformed callback")
	// ErrReturn means that a return link is not one that may be shown.
	ErrReturn = errors.New("must be an https URL at a configured return origin, without user information or fragment")
	// ErrKey means that a key is not of the right length.
	ErrKey = errors.New("key must be 32 bytes")
)
