// Package rpcerr makes and reads the errors that cross the wire.
//
// Every error it makes is a gRPC status with one google.rpc.ErrorInfo: a reason (a stable word that programs switch on),
// the domain, and metadata, in which everything stands that a message says of this one call (AIP-193); and, where they say more,
// BadRequest, PreconditionFailure, QuotaFailure and RetryInfo. It guarantees that
// nothing but what the caller of New or the author of a Table wrote reaches the wire: the text of a wrapped error, which
// may be a driver's, never does. It does not log, and it does not hide errors that no table knows: those stay as they
// are, and the server's chain masks them.
//
// The tricky idea: a Table is a slice searched with errors.Is, not a map or a switch on text. Wrapped errors are found
// however deep they are, and the first matching row wins, so a specific row stands before a general one.
package rpcerr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the domain of every ErrorInfo.
const Domain = "phasekey"

// The reasons that the chassis itself gives. Services have their own.
const (
	// ReasonInvalidFields: fields of the request break their constraints; BadRequest names each.
	ReasonInvalidFields = "INVALID_FIELDS"
	// ReasonIdentityUnknown: no client certificate, or one whose SPIFFE ID the server's configuration does not know.
	ReasonIdentityUnknown = "IDENTITY_UNKNOWN"
	// ReasonCallerNotAllowed: the identity's role may not call the method.
	ReasonCallerNotAllowed = "CALLER_NOT_ALLOWED"
	// ReasonAccountNotAllowed: the identity may not name this account, or must name one of its own and named none.
	ReasonAccountNotAllowed = "ACCOUNT_NOT_ALLOWED"
	// ReasonRateLimited: too many calls; RetryInfo says when to come back.
	ReasonRateLimited = "RATE_LIMITED"
	// ReasonDraining: this server is going away; another one, or the same a little later, answers.
	ReasonDraining = "DRAINING"
	// ReasonStreamIdle: nothing was said on a stream for too long; open it again.
	ReasonStreamIdle = "STREAM_IDLE"
	// ReasonInternal: the server's fault; metadata's requestId finds it in the server's log.
	ReasonInternal = "INTERNAL"
)

// MetadataRequestID is the metadata key of the request's ID in an ErrorInfo.
const MetadataRequestID = "requestId"

// New returns a status error with an ErrorInfo and the given details, which Field, Precondition, Quota, Retry and Metadata
// make. Several BadRequests, PreconditionFailures or QuotaFailures become one; Metadata goes into the ErrorInfo.
func New(code codes.Code, reason, message string, details ...proto.Message) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: Domain}
	var bad *errdetails.BadRequest
	var pre *errdetails.PreconditionFailure
	var quota *errdetails.QuotaFailure
	all := []protoadapt.MessageV1{info}
	for _, d := range details {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if info.Metadata == nil {
				info.Metadata = map[string]string{}
			}
			for k, v := range d.GetMetadata() {
				info.Metadata[k] = v
			}
		case *errdetails.BadRequest:
			if bad == nil {
				bad = &errdetails.BadRequest{}
				all = append(all, bad)
			}
			bad.FieldViolations = append(bad.FieldViolations, d.GetFieldViolations()...)
		case *errdetails.PreconditionFailure:
			if pre == nil {
				pre = &errdetails.PreconditionFailure{}
				all = append(all, pre)
			}
			pre.Violations = append(pre.Violations, d.GetViolations()...)
		case *errdetails.QuotaFailure:
			if quota == nil {
				quota = &errdetails.QuotaFailure{}
				all = append(all, quota)
			}
			quota.Violations = append(quota.Violations, d.GetViolations()...)
		default:
			all = append(all, protoadapt.MessageV1Of(d))
		}
	}
	st := status.New(code, message)
	if full, err := st.WithDetails(all...); err == nil {
		st = full
	}
	return st.Err()
}

// shownViolations is how many violations a message tells of. BadRequest has them all.
const shownViolations = 5

// InvalidFields is the error for bad fields: INVALID_ARGUMENT, ReasonInvalidFields. Its message says of the first few what is wrong with them,
// and metadata's fields says the same.
func InvalidFields(bad *errdetails.BadRequest) error {
	var said []string
	for i, v := range bad.GetFieldViolations() {
		if i == shownViolations {
			said = append(said, fmt.Sprintf("and %d more", len(bad.GetFieldViolations())-i))
			break
		}
		// A constraint of the message as a whole has no path.
		said = append(said, cmp.Or(v.GetField(), "request")+": "+v.GetDescription())
	}
	fields := strings.Join(said, "; ")
	return New(codes.InvalidArgument, ReasonInvalidFields, "invalid "+fields, bad, Metadata("fields", fields))
}

// Field is a BadRequest detail with one violation. The path is the field's in the request (proto names, dots, brackets:
// "integration.labels[0]"); the description is a phrase without the value, for the value may be secret.
func Field(path, description string) *errdetails.BadRequest {
	return &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
		{Field: path, Description: description},
	}}
}

// Invalid is InvalidFields for one bad field.
func Invalid(path, description string) error { return InvalidFields(Field(path, description)) }

// Precondition is a PreconditionFailure detail with one violation: its kind (an UPPER_CASE word), the resource it is
// about, and what to do.
func Precondition(kind, subject, description string) *errdetails.PreconditionFailure {
	return &errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{
		{Type: kind, Subject: subject, Description: description},
	}}
}

// Quota is a QuotaFailure detail with one violation: the resource whose quota it is, and what to do.
func Quota(subject, description string) *errdetails.QuotaFailure {
	return &errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: subject, Description: description}}}
}

// Retry is a RetryInfo detail: come back no sooner than after d (not negative).
func Retry(d time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(max(d, 0))}
}

// Metadata is an ErrorInfo detail that New merges into the error's own. The key is in lower camel case.
func Metadata(key, value string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Metadata: map[string]string{key: value}}
}

// Row says what one error of a domain package becomes on the wire.
type Row struct {
	// Target is searched with errors.Is.
	Target error
	Code   codes.Code
	Reason string
	// Message is for the caller; empty means Target's own text, never the text of the error that wraps it.
	Message string
	// Details, which may be nil, makes details from the error as it came.
	Details func(err error) []proto.Message
}

// Table is a service's errors, the specific before the general.
type Table []Row

// Status turns an error of a domain package into a status error: by the first row that matches; else the status it
// already carries, without the text that wraps it; else CANCELLED or DEADLINE_EXCEEDED for a context's error; else err
// unchanged, which the server's chain masks as INTERNAL. Nil stays nil.
func (t Table) Status(err error) error {
	if err == nil {
		return nil
	}
	for _, r := range t {
		if !errors.Is(err, r.Target) {
			continue
		}
		message := r.Message
		if message == "" {
			message = r.Target.Error()
		}
		var details []proto.Message
		if r.Details != nil {
			details = r.Details(err)
		}
		return New(r.Code, r.Reason, message, details...)
	}
	if st, ok := FromError(err); ok {
		return st.Err()
	}
	return err
}

// FromError returns the status that err is or wraps, without the text around it, or that of a context's error. It
// reports false for any other error and for nil.
func FromError(err error) (*status.Status, bool) {
	var carrier interface{ GRPCStatus() *status.Status }
	switch {
	case err == nil:
		return nil, false
	case errors.As(err, &carrier) && carrier.GRPCStatus() != nil:
		return carrier.GRPCStatus(), true
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, "deadline exceeded"), true
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, "cancelled"), true
	default:
		return nil, false
	}
}

// Reason returns the reason of an error of our domain, "" for any other error.
func Reason(err error) string { return info(err).GetReason() }

// info returns the ErrorInfo of an error of our domain, nil for any other error.
func info(err error) *errdetails.ErrorInfo {
	st, ok := FromError(err)
	if !ok {
		return nil
	}
	for _, d := range st.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok && i.GetDomain() == Domain {
			return i
		}
	}
	return nil
}

// RequestID returns the request ID that the server put into the error, "" if there is none.
func RequestID(err error) string { return info(err).GetMetadata()[MetadataRequestID] }

// RetryDelay returns how long the server asks to wait before the call is tried again, zero if it does not say.
func RetryDelay(err error) time.Duration {
	st, ok := FromError(err)
	if !ok {
		return 0
	}
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// Explain tells a person, in one sentence, what went wrong: the message, what is wrong with which field or what has to be
// done first, when to come back, and the code, reason and request ID to quote. For nil it returns "".
func Explain(err error) string {
	if err == nil {
		return ""
	}
	st, ok := FromError(err)
	if !ok {
		return err.Error()
	}
	var b strings.Builder
	b.WriteString(st.Message())
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				// The message of InvalidFields says the first few already.
				if what := v.GetField() + ": " + v.GetDescription(); !strings.Contains(st.Message(), what) {
					b.WriteString("; " + what)
				}
			}
		case *errdetails.PreconditionFailure:
			for _, v := range d.GetViolations() {
				// The message may end with it.
				if !strings.Contains(st.Message(), v.GetDescription()) {
					fmt.Fprintf(&b, "; %s: %s", v.GetSubject(), v.GetDescription())
				}
			}
		case *errdetails.QuotaFailure:
			for _, v := range d.GetViolations() {
				if v.GetDescription() != st.Message() {
					fmt.Fprintf(&b, "; %s: %s", v.GetSubject(), v.GetDescription())
				}
			}
		case *errdetails.RetryInfo:
			fmt.Fprintf(&b, "; try again in %s", d.GetRetryDelay().AsDuration())
		}
	}
	fmt.Fprintf(&b, " (%s", st.Code())
	if r := Reason(err); r != "" {
		b.WriteString(", " + r)
	}
	if id := RequestID(err); id != "" {
		b.WriteString(", request " + id)
	}
	b.WriteString(")")
	return b.String()
}

// Word is a reason that an API lists in an enum, as it stands on the wire: the value's name without what the enum's zero value
// shows to be the prefix. With ERROR_REASON_UNSPECIFIED, ERROR_REASON_DETACHED is "DETACHED".
func Word(reason protoreflect.Enum) string {
	values := reason.Descriptor().Values()
	value := values.ByNumber(reason.Number())
	if value == nil {
		return ""
	}
	return strings.TrimPrefix(string(value.Name()), strings.TrimSuffix(string(values.ByNumber(0).Name()), "UNSPECIFIED"))
}
