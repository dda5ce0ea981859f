package rpc

import (
	"errors"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	"phasekey.dev/pkg/displayname"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/broker/internal/consent"
)

// retryUnavailable is when a dependency may be back.
const retryUnavailable = 2 * time.Second

const keyIntegration = "integration"

// table says what the domain's errors are on the wire, about the resource of that name.
func table(name string) rpcerr.Table {
	about := func(error) []proto.Message { return []proto.Message{rpcerr.Metadata("name", name)} }
	later := func(target error, reason errorv1.ErrorReason) rpcerr.Row {
		return rpcerr.Row{Target: target, Code: codes.Unavailable, Reason: rpcerr.Word(reason), Details: func(error) []proto.Message {
			return []proto.Message{rpcerr.Retry(retryUnavailable)}
		}}
	}
	deleting := rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_INTEGRATION_DELETING)
	misleading := rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_MISLEADING_NAME)
	return rpcerr.Table{
		{Target: consent.ErrNotFound, Code: codes.NotFound, Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_RESOURCE_NOT_FOUND), Details: about},
		{Target: consent.ErrIntegrationNotFound, Code: codes.NotFound, Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_RESOURCE_NOT_FOUND), Details: about},
		{Target: consent.ErrIntegrationDeleting, Code: codes.FailedPrecondition, Reason: deleting, Details: func(error) []proto.Message {
			return []proto.Message{rpcerr.Precondition(deleting, name, "create another integration")}
		}},
		{Target: displayname.ErrMisleading, Code: codes.FailedPrecondition, Reason: misleading, Details: func(err error) []proto.Message {
			why := problemOf(err)
			return []proto.Message{&errdetails.ErrorInfo{Metadata: map[string]string{"name": name, "problem": why}}, rpcerr.Precondition(misleading, name, "rename the integration: its name "+why)}
		}},
		{Target: consent.ErrRequestIDReused, Code: codes.AlreadyExists, Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_REQUEST_ID_REUSED)},
		{Target: consent.ErrTooManyOpen, Code: codes.ResourceExhausted, Reason: rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_TOO_MANY_CONSENT_SESSIONS), Details: about},
		later(consent.ErrNotReady, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY),
		later(consent.ErrEntra, errorv1.ErrorReason_ERROR_REASON_ENTRA_UNAVAILABLE),
		later(consent.ErrUnavailable, errorv1.ErrorReason_ERROR_REASON_DEPENDENCY_UNAVAILABLE),
	}
}

// nameError marks what is wrong with a name, which its caller is told.
type nameError struct{ error }

func (e *nameError) Unwrap() error { return e.error }

// problemOf is what is wrong with a name, in words for its caller.
func problemOf(err error) string {
	named, ok := errors.AsType[*nameError](err)
	if !ok {
		return ""
	}
	return strings.TrimPrefix(named.Error(), displayname.ErrMisleading.Error()+": ")
}

// problem turns an error about a resource into a status.
func problem(err error, name string) error { return table(name).Status(err) }

func isNotFound(err error) bool { return errors.Is(err, consent.ErrNotFound) }
