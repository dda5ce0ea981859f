// Package lease knows what a lease is: one runner instance's delivery under a grant, in which form, and how long it may hold a client
// secret.
//
// It guarantees that a grant has at most MaxPerGrant open ones, that an instance resumes its own however often its stream
// breaks, and that a closed one stays closed. Whoever stores leases decides by Admit while nobody else can open one of the
// same grant.
package lease

import (
	"errors"
	"slices"
	"time"
)

// MaxPerGrant is how many runner instances may hold leases of one grant.
const MaxPerGrant = 4

var (
	// ErrClosed means that the instance closed its lease. Final.
	ErrClosed = errors.New("lease was closed")
	// ErrNotDelivered means that the instance has not been delivered what it says that it uses.
	ErrNotDelivered = errors.New("generation was never delivered to the instance")
	// ErrTooMany means that so many other instances hold leases of the grant.
	ErrTooMany = errors.New("four runner instances hold leases of the grant")
	// ErrVersionGone means that what was to be delivered may not be any more: the credential version is neither active nor retiring (of
	// a client secret: not active), or the integration no longer gives the material. What is true now says what may.
	ErrVersionGone = errors.New("credential version is no longer usable")
)

// Lease is one runner instance's delivery under a grant.
type Lease struct {
	UID      string
	GrantUID string
	// InstanceID is what the runner chose.
	InstanceID string
	// Generation counts what was delivered.
	Generation  int64
	OpenTime    time.Time
	DeliverTime time.Time
	// CloseTime is zero while it is open.
	CloseTime time.Time
}

// Admit decides on a delivery to an instance: it returns the instance's lease as it is after the delivery, and whether that
// opened it, as uid. held are the grant's open leases, and the instance's own, open or closed.
func Admit(now time.Time, held []Lease, uid, grantUID, instanceID string) (admitted Lease, opened bool, err error) {
	mine := slices.IndexFunc(held, func(l Lease) bool { return l.InstanceID == instanceID })
	if mine >= 0 {
		l := held[mine]
		if !l.CloseTime.IsZero() {
			return Lease{}, false, ErrClosed
		}
		l.Generation++
		l.DeliverTime = now
		return l, false, nil
	}
	open := 0
	for _, l := range held {
		if l.CloseTime.IsZero() {
			open++
		}
	}
	if open >= MaxPerGrant {
		return Lease{}, false, ErrTooMany
	}
	return Lease{UID: uid, GrantUID: grantUID, InstanceID: instanceID, Generation: 1, OpenTime: now, DeliverTime: now}, true, nil
}
