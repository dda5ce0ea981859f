package runner

import (
	"errors"
	"maps"

	"google.golang.org/grpc/codes"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	"phasekey.dev/pkg/rpcerr"
)

// ErrStopped is returned for credentials after Run has ended without a final error.
var ErrStopped = errors.New("runner has stopped")

// FinalError says that the vault will never again deliver under this grant, and that what was held is not to be used any
// more.
type FinalError struct {
	// Reason is the reason on the wire, for example GRANT_REVOKED.
	Reason string
	err    error
}

// Error implements error.
func (e *FinalError) Error() string { return "delivery has ended: " + rpcerr.Explain(e.err) }

// Unwrap returns the vault's error.
func (e *FinalError) Unwrap() error { return e.err }

// leavesLease tells whether a lease may be left, which the vault then closes: where the grant itself is in order, or may be again.
func (e *FinalError) leavesLease() bool {
	switch e.Reason {
	case rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_DETACHED), rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_ACCOUNT_FROZEN):
		return true
	default:
		return false
	}
}

// finalReasons are the reasons after which a grant delivers nothing any more, each with the one code that it counts with.
var finalReasons = map[string]codes.Code{
	rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED):       codes.PermissionDenied,
	rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_GRANT_EXPIRED):       codes.PermissionDenied,
	rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_DETACHED):            codes.PermissionDenied,
	rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_INTEGRATION_DELETED): codes.PermissionDenied,
	rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_ACCOUNT_FROZEN):      codes.PermissionDenied,
	rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_LEASE_CLOSED):        codes.PermissionDenied,
	rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_GRANT_UNKNOWN):       codes.Unauthenticated,
}

// FinalReasons returns the reasons after which a grant delivers nothing any more, each with the one code that it counts with.
func FinalReasons() map[string]codes.Code { return maps.Clone(finalReasons) }

// asFinal returns the FinalError for an error of the vault's, nil for every other error. A refusal without a reason of
// our domain comes from something in between, a proxy say, and decides nothing.
func asFinal(err error) *FinalError {
	st, ok := rpcerr.FromError(err)
	if !ok {
		return nil
	}
	r := rpcerr.Reason(err)
	if code, ok := finalReasons[r]; !ok || code != st.Code() {
		return nil
	}
	return &FinalError{Reason: r, err: st.Err()}
}
