package rpc

import (
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/broker/internal/consent"
)

// Reasons, as phasekey.error.v1.ErrorReason lists them.
const (
	reasonNotFound      = "RESOURCE_NOT_FOUND"
	reasonRequestReused = "REQUEST_ID_REUSED"
	reasonDeleting      = "INTEGRATION_DELETING"
	reasonRateLimited   = "RATE_LIMITED"
	reasonUnavailable   = "DEPENDENCY_UNAVAILABLE"
)

const (
	// retryOpen is when a caller with too many open sessions may try again: they end by consent or by their deadlines.
	retryOpen = time.Minute
	// retryUnavailable is when a dependency may be back.
	retryUnavailable = 2 * time.Second
)

const keyIntegration = "integration"

// table says what the domain's errors are on the wire, about the resource of that name.
func table(name string) rpcerr.Table {
	about := func(error) []proto.Message { return []proto.Message{rpcerr.Metadata("name", name)} }
	return rpcerr.Table{
		{Target: consent.ErrNotFound, Code: codes.NotFound, Reason: reasonNotFound, Details: about},
		{Target: consent.ErrIntegrationNotFound, Code: codes.NotFound, Reason: reasonNotFound, Details: about},
		{Target: consent.ErrIntegrationDeleting, Code: codes.FailedPrecondition, Reason: reasonDeleting, Details: func(error) []proto.Message {
			return []proto.Message{rpcerr.Precondition(reasonDeleting, name, "create another integration")}
		}},
		{Target: consent.ErrRequestIDReused, Code: codes.AlreadyExists, Reason: reasonRequestReused},
		{Target: consent.ErrTooManyOpen, Code: codes.ResourceExhausted, Reason: reasonRateLimited, Details: func(error) []proto.Message {
			return []proto.Message{rpcerr.Metadata("name", name), rpcerr.Retry(retryOpen)}
		}},
		{Target: consent.ErrUnavailable, Code: codes.Unavailable, Reason: reasonUnavailable, Details: func(error) []proto.Message {
			return []proto.Message{rpcerr.Retry(retryUnavailable)}
		}},
	}
}

// problem turns an error about a resource into a status.
func problem(err error, name string) error { return table(name).Status(err) }

func isNotFound(err error) bool { return errors.Is(err, consent.ErrNotFound) }
