package credential

import "time"

// RotationRequest asks for the rotation of one integration.
type RotationRequest struct {
	// Integration is its resource name.
	Integration string
	Reason      RotationReason
	Immediately bool
	// RequestID makes repeats safe for a day; empty for none.
	RequestID string
}

// RotationStatus is a rotation with what there is to be said about it.
type RotationStatus struct {
	Rotation
	// Creator is the identity of whoever asked.
	Creator string
	// BatchScope is that of the batch it is part of.
	BatchScope string
	// Proofs counts token requests in a row that were granted while the new version was PROPAGATING.
	Proofs int
	// OldEndTime is when the last of the old versions expires by itself; zero when none is left.
	OldEndTime time.Time
	// SigningKey is the newest signing key that a federated one of the old versions is under; empty without such.
	SigningKey string
}

// BatchRequest asks for the rotation of many integrations.
type BatchRequest struct {
	// Scope is an account's resource name, or Everything.
	Scope  string
	Reason RotationReason
	// TenantID and Cloud leave out the integrations of others; empty for any.
	TenantID, Cloud string
	// RequestID makes repeats safe for a day; empty for none.
	RequestID string
}

// Batch is how far the rotation of many integrations is. Its integrations are those that had something to replace when it was asked for.
type Batch struct {
	ID              string
	Scope           string
	Reason          RotationReason
	TenantID, Cloud string
	Creator         string
	CreateTime      time.Time
	// EndTime is when a master found that nothing was left to do, or nothing that does not wait for consent.
	EndTime time.Time
	// Total is how many integrations there were. Of those, Waiting have no rotation yet, as far as was looked; Running, Completed and
	// Abandoned have one, in such a state. What is missing has been rotated or deleted meanwhile without the batch.
	Total, Waiting, Running, Completed, Abandoned int
	// AwaitingConsent are those of the Running that wait for the customer's consent.
	AwaitingConsent int
}
