package rpc

import (
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
)

// table says what each refusal is on the wire.
func table() rpcerr.Table {
	row := func(target error, code codes.Code, reason errorv1.ErrorReason) rpcerr.Row {
		word := rpcerr.Word(reason)
		return rpcerr.Row{Target: target, Code: code, Reason: word, Details: func(err error) []proto.Message {
			all := details(err)
			if refusal := (*resource.Error)(nil); code == codes.FailedPrecondition && errors.As(err, &refusal) {
				all = append(all, rpcerr.Precondition(word, refusal.Subject, refusal.Advice))
			}
			return all
		}}
	}
	return rpcerr.Table{
		row(pagetoken.ErrInvalid, codes.InvalidArgument, errorv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN),
		row(integration.ErrHomeTenant, codes.InvalidArgument, errorv1.ErrorReason_ERROR_REASON_HOME_TENANT),
		row(resource.ErrNotFound, codes.NotFound, errorv1.ErrorReason_ERROR_REASON_RESOURCE_NOT_FOUND),
		row(resource.ErrExists, codes.AlreadyExists, errorv1.ErrorReason_ERROR_REASON_RESOURCE_EXISTS),
		row(resource.ErrRequestIDReused, codes.AlreadyExists, errorv1.ErrorReason_ERROR_REASON_REQUEST_ID_REUSED),
		row(resource.ErrETagMismatch, codes.Aborted, errorv1.ErrorReason_ERROR_REASON_ETAG_MISMATCH),
		row(resource.ErrConflict, codes.Aborted, errorv1.ErrorReason_ERROR_REASON_CONFLICT),
		row(integration.ErrAttached, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_INTEGRATION_ATTACHED),
		row(integration.ErrDeleting, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_INTEGRATION_DELETING),
		row(project.ErrAttached, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_PROJECT_ATTACHED),
		row(attachment.ErrAccessTaken, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_ACCESS_TAKEN),
		row(attachment.ErrNothingAttached, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_NOTHING_ATTACHED),
		row(attachment.ErrNoSubscription, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_NO_SUBSCRIPTION),
		row(quota.ErrExceeded, codes.ResourceExhausted, errorv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED),
		row(resource.ErrCursor, codes.OutOfRange, errorv1.ErrorReason_ERROR_REASON_CURSOR_OUT_OF_RANGE),
		row(resource.ErrFenced, codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_REPORT_FENCED),
		row(resource.ErrUnavailable, codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_DEPENDENCY_UNAVAILABLE),
	}
}

// statusOf is the status of an error of the domain or the store, with the sentence that a refusal has for the caller.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if bad := (*resource.InvalidError)(nil); errors.As(err, &bad) {
		all := &errdetails.BadRequest{}
		for _, v := range bad.Violations {
			all.FieldViolations = append(all.FieldViolations, rpcerr.Field(v.Field, v.Description).GetFieldViolations()...)
		}
		return rpcerr.InvalidFields(all)
	}
	rows := table()
	if refusal := (*resource.Error)(nil); errors.As(err, &refusal) {
		for i := range rows {
			rows[i].Message = refusal.Error()
		}
	}
	return rows.Status(err)
}

// details are what an error says besides its reason.
func details(err error) []proto.Message {
	var all []proto.Message
	if refusal := (*resource.Error)(nil); errors.As(err, &refusal) {
		for key, value := range refusal.Metadata {
			all = append(all, rpcerr.Metadata(key, value))
		}
		if errors.Is(refusal, quota.ErrExceeded) {
			all = append(all, rpcerr.Quota(refusal.Metadata["name"], refusal.Message))
		}
	}
	if errors.Is(err, pagetoken.ErrInvalid) {
		all = append(all, rpcerr.Field("page_token", "must be the next_page_token of the same list"))
	}
	if errors.Is(err, integration.ErrHomeTenant) {
		all = append(all, rpcerr.Field("integration.tenant_id", "must not be a home tenant"))
	}
	return all
}

// invalid is the refusal of one field.
func invalid(field, description string) error {
	return resource.Invalid("", resource.Violation{Field: field, Description: description})
}
