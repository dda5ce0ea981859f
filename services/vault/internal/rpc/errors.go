package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/rolecheck"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/signingkey"
	"phasekey.dev/services/vault/internal/tail"
)

var errRegistry = errors.New("registry does not answer")

// retryAfter is when what was not available may be.
const retryAfter = 2 * time.Second

// table says what each error is on the wire. The final reasons stand first: they say more than what comes with them.
func table() rpcerr.Table {
	row := func(target error, code codes.Code, reason errorv1.ErrorReason, details ...proto.Message) rpcerr.Row {
		return rpcerr.Row{Target: target, Code: code, Reason: rpcerr.Word(reason), Details: func(error) []proto.Message { return details }}
	}
	denied := func(target error, reason errorv1.ErrorReason) rpcerr.Row {
		return row(target, codes.PermissionDenied, reason)
	}
	later := func(target error, reason errorv1.ErrorReason) rpcerr.Row {
		return row(target, codes.Unavailable, reason, rpcerr.Retry(retryAfter))
	}
	return rpcerr.Table{
		denied(grant.ErrRevoked, errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED),
		denied(grant.ErrExpired, errorv1.ErrorReason_ERROR_REASON_GRANT_EXPIRED),
		denied(grant.ErrAccountFrozen, errorv1.ErrorReason_ERROR_REASON_ACCOUNT_FROZEN),
		denied(grant.ErrDetached, errorv1.ErrorReason_ERROR_REASON_DETACHED),
		denied(grant.ErrIntegrationDeleted, errorv1.ErrorReason_ERROR_REASON_INTEGRATION_DELETED),
		denied(lease.ErrClosed, errorv1.ErrorReason_ERROR_REASON_LEASE_CLOSED),
		row(grant.ErrUnknown, codes.Unauthenticated, errorv1.ErrorReason_ERROR_REASON_GRANT_UNKNOWN),
		{
			Target: delivery.ErrTooManyCalls, Code: codes.ResourceExhausted,
			Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_RATE_LIMITED), Details: waitOf,
		},
		row(delivery.ErrTooManyStreams, codes.ResourceExhausted, errorv1.ErrorReason_ERROR_REASON_RATE_LIMITED, rpcerr.Retry(retryAfter)),
		row(lease.ErrTooMany, codes.ResourceExhausted, errorv1.ErrorReason_ERROR_REASON_TOO_MANY_LEASES),
		{
			Target: delivery.ErrAudienceNotAllowed, Code: codes.PermissionDenied,
			Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_AUDIENCE_NOT_ALLOWED), Details: audienceOf,
		},
		{
			Target: delivery.ErrMaterialNotAllowed, Code: codes.PermissionDenied,
			Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_MATERIAL_NOT_ALLOWED), Details: materialDetails,
		},
		{
			Target: lease.ErrHoldTooLong, Code: codes.FailedPrecondition,
			Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_HOLD_TOO_LONG), Details: latestOf,
		},
		row(grant.ErrNotFound, codes.NotFound, errorv1.ErrorReason_ERROR_REASON_RESOURCE_NOT_FOUND),
		row(grant.ErrInUse, codes.AlreadyExists, errorv1.ErrorReason_ERROR_REASON_GRANT_IN_USE),
		row(grant.ErrRequestIDReused, codes.AlreadyExists, errorv1.ErrorReason_ERROR_REASON_REQUEST_ID_REUSED),
		row(tail.ErrPosition, codes.OutOfRange, errorv1.ErrorReason_ERROR_REASON_CURSOR_OUT_OF_RANGE),
		row(tail.ErrTooMany, codes.ResourceExhausted, errorv1.ErrorReason_ERROR_REASON_RATE_LIMITED, rpcerr.Retry(retryAfter)),
		row(pagetoken.ErrInvalid, codes.InvalidArgument, errorv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN),
		row(rotation.ErrDeleting, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_INTEGRATION_DELETING),
		row(credential.ErrDeleting, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_INTEGRATION_DELETING),
		{
			Target: credential.ErrPaused, Code: codes.FailedPrecondition,
			Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_ROTATION_PAUSED), Details: pauseDetails,
		},
		later(credential.ErrNotAdopted, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY),
		row(rolecheck.ErrNoSubscription, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_NO_SUBSCRIPTION),
		// Without a wait: the replica tells its streams one after another, and others are up.
		row(delivery.ErrDraining, codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_DRAINING),
		// Without a wait: the customer's administrators end it, in their own time.
		row(issuer.ErrConsentMissing, codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_CONSENT_MISSING),
		later(issuer.ErrNotReady, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY),
		later(lease.ErrVersionGone, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY),
		later(delivery.ErrCloudUnknown, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY),
		later(rotation.ErrNotReady, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY),
		later(rotation.ErrNoCloud, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY),
		later(rotation.ErrEntra, errorv1.ErrorReason_ERROR_REASON_ENTRA_UNAVAILABLE),
		later(issuer.ErrEntra, errorv1.ErrorReason_ERROR_REASON_ENTRA_UNAVAILABLE),
		later(grant.ErrBehind, errorv1.ErrorReason_ERROR_REASON_ENTITLEMENT_STALE),
		later(grant.ErrStale, errorv1.ErrorReason_ERROR_REASON_ENTITLEMENT_STALE),
		later(errRegistry, errorv1.ErrorReason_ERROR_REASON_DEPENDENCY_UNAVAILABLE),
		later(tail.ErrUnavailable, errorv1.ErrorReason_ERROR_REASON_DEPENDENCY_UNAVAILABLE),
		later(sqldb.ErrUnavailable, errorv1.ErrorReason_ERROR_REASON_DEPENDENCY_UNAVAILABLE),
	}
}

// statusOf is the status of an error, with the error itself wrapped beside it for the log.
func statusOf(err error) error {
	st := table().Status(err)
	if st == nil || errors.Is(st, err) {
		return st
	}
	return fmt.Errorf("%w: %w", st, err)
}

// statusAbout is statusOf for an error about the resource of that name.
func statusAbout(err error, name string) error {
	if errors.Is(err, grant.ErrNotFound) || errors.Is(err, signingkey.ErrNotFound) || errors.Is(err, sqldb.ErrNoRows) {
		return rpcerr.New(codes.NotFound, rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_RESOURCE_NOT_FOUND), "no such resource", rpcerr.Metadata("name", name))
	}
	return statusOf(err)
}

func audienceOf(err error) []proto.Message {
	if refusal := (*delivery.AudienceError)(nil); errors.As(err, &refusal) {
		return []proto.Message{rpcerr.Metadata("audience", refusal.Audience)}
	}
	return nil
}

func materialDetails(err error) []proto.Message {
	if refusal := (*delivery.MaterialError)(nil); errors.As(err, &refusal) {
		return []proto.Message{rpcerr.Metadata("material", string(refusal.Material))}
	}
	return nil
}

func waitOf(err error) []proto.Message {
	if refusal := (*delivery.RateError)(nil); errors.As(err, &refusal) {
		return []proto.Message{rpcerr.Retry(refusal.Wait)}
	}
	return nil
}

func latestOf(err error) []proto.Message {
	if refusal := (*lease.HoldError)(nil); errors.As(err, &refusal) {
		return []proto.Message{rpcerr.Metadata("latestExpireTime", refusal.Latest.UTC().Format(time.RFC3339))}
	}
	return nil
}

// fromRegistry lets the registry's refusals through that tell the platform what to do. Whatever else it answers is not the
// platform's fault, and no more than "not available now".
func fromRegistry(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch rpcerr.Reason(err) {
	case rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_RESOURCE_NOT_FOUND),
		rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_NOTHING_ATTACHED),
		rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_NO_SUBSCRIPTION),
		rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_INTEGRATION_DELETING):
		return err
	default:
		return fmt.Errorf("%w: %w", errRegistry, err)
	}
}
