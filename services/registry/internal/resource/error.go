package resource

import (
	"errors"
	"strings"
)

// The reasons for which an operation is refused. Integrations, projects and attachments add their own.
var (
	// ErrInvalid means that fields have values they cannot have; an InvalidError names them.
	ErrInvalid = errors.New("invalid fields")
	// ErrNotFound means that there is no resource of this name or UID.
	ErrNotFound = errors.New("resource not found")
	// ErrExists means that there is a resource of this name already.
	ErrExists = errors.New("resource exists already")
	// ErrRequestIDReused means that a request ID came again with other contents.
	ErrRequestIDReused = errors.New("request ID was used with other contents")
	// ErrETagMismatch means that the resource is no longer as the caller saw it.
	ErrETagMismatch = errors.New("the resource has changed since this etag")
	// ErrConflict means that others were faster every time. Nothing was changed.
	ErrConflict = errors.New("concurrent changes got in the way")
	// ErrCursor means a cursor from which the changes cannot be followed: no cursor, another database's, the future's, or one
	// whose changes have been compacted away.
	ErrCursor = errors.New("cursor is out of range; list again")
	// ErrFenced means a report of a mastership that is no longer the newest.
	ErrFenced = errors.New("report of an outdated mastership")
	// ErrUnavailable means that the database does not answer. Unless it was a write, nothing has happened; a write may
	// have happened.
	ErrUnavailable = errors.New("the database does not answer")
)

// Error is a refusal with what a caller is told about it besides its reason.
type Error struct {
	// Reason is one of the sentinels.
	Reason error
	// Message is a sentence for the caller.
	Message string
	// Advice says what to do first, and Subject about what, where the state of things forbids the operation.
	Subject, Advice string
	// Metadata is for programs: "name", "attachment" and the like.
	Metadata map[string]string
}

// Error is the message, and the advice where there is some.
func (e *Error) Error() string {
	if e.Advice == "" {
		return e.Message
	}
	return e.Message + "; " + e.Advice
}

// Unwrap makes errors.Is find the reason.
func (e *Error) Unwrap() error { return e.Reason }

// NotFound is the refusal of a name, or UID, that no resource has.
func NotFound(name string) error {
	return &Error{Reason: ErrNotFound, Message: name + " does not exist", Metadata: map[string]string{"name": name}}
}

// Exists is the refusal of a name that a resource has already.
func Exists(name string) error {
	return &Error{Reason: ErrExists, Message: name + " exists already", Metadata: map[string]string{"name": name}}
}

// CheckETag compares a caller's etag, which may be empty, or without the quotes that a shell takes away and the mark before them, with the resource's.
func CheckETag(name, given, current string) error {
	if given == "" || given == current || weak(given) == current {
		return nil
	}
	return &Error{
		Reason: ErrETagMismatch, Message: name + " has changed since this etag; read it again", Metadata: map[string]string{"name": name},
	}
}

// Violation says what is wrong with a field.
type Violation struct {
	// Field is its path: within the resource when a domain package says it, within the request on the wire.
	Field string
	// Description is a phrase, without the value.
	Description string
}

// InvalidError is an ErrInvalid that names every bad field.
type InvalidError struct {
	Violations []Violation
}

func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		parts[i] = v.Field + " " + v.Description
	}
	return "invalid fields: " + strings.Join(parts, "; ")
}

// Is makes every InvalidError an ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// Invalid is an InvalidError about the fields below prefix ("integration.", or empty), nil when there is no violation.
func Invalid(prefix string, violations ...Violation) error {
	if len(violations) == 0 {
		return nil
	}
	prefixed := make([]Violation, len(violations))
	for i, v := range violations {
		prefixed[i] = Violation{Field: prefix + v.Field, Description: v.Description}
	}
	return &InvalidError{Violations: prefixed}
}
