package grant

import "crypto/sha256"

// Caller is whom an audit event names.
type Caller struct {
	// Identity is the SPIFFE ID; empty for a runner that has none, and for what the vault does by itself.
	Identity string
	// RequestID is the call's, as the log has it; empty without a call.
	RequestID string
}

// RequestKey makes repeats of CreateGrant safe. The zero value stands for a request without an ID.
type RequestKey struct {
	// ID is the caller's choice, unique in the account for RequestIDLife.
	ID string
	// Fingerprint is of the request's contents.
	Fingerprint [sha256.Size]byte
}
