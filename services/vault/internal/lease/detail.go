package lease

import (
	"errors"
	"time"

	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/page"
)

// ErrNotFound means that there is no lease of that name.
var ErrNotFound = errors.New("lease not found")

// State is where a lease is in its life.
type State string

// The states there are.
const (
	Open   State = "OPEN"
	Closed State = "CLOSED"
	// Ended: its grant is over, and it was not closed before.
	Ended State = "ENDED"
)

// Detail is all that is known of a lease.
type Detail struct {
	Lease
	Grant grant.Grant
	// Material, Audience, Version and ExpireTime are of what was delivered last: its form, what it is for, the number of the credential
	// version that it was made from, and when it stops working. They are zero once that is forgotten.
	Material   Material
	Audience   string
	Version    int64
	ExpireTime time.Time
	// Holds are the numbers of the versions whose secrets it holds, in their order.
	Holds []int64
}

// Name is the resource name.
func (d Detail) Name() string { return d.Grant.Name() + "/leases/" + d.UID }

// State is where the lease is in its life.
func (d Detail) State(now time.Time) State {
	switch {
	case !d.CloseTime.IsZero():
		return Closed
	case d.Grant.Check(now) != nil:
		return Ended
	default:
		return Open
	}
}

// The keys by which leases can be ordered; grant and lease are their UIDs, which together are unique.
const (
	ByGrant       = "grant"
	ByUID         = "uid"
	ByOpenTime    = "open_time"
	ByDeliverTime = "deliver_time"
)

// Place is where the lease stands in an order.
func (d Detail) Place(order []page.Order) page.Place {
	return page.At(order, func(key string) string {
		switch key {
		case ByGrant:
			return d.GrantUID
		case ByOpenTime:
			return page.Micros(d.OpenTime)
		case ByDeliverTime:
			return page.Micros(d.DeliverTime)
		default:
			return d.UID
		}
	})
}

// List says which of an account's leases are wanted.
type List struct {
	Account string
	// GrantUID is empty for those of all grants.
	GrantUID string
	page.Page
	// Passes judges each by what is known but for its last delivery and what it holds; nil takes all. What follows is required beside it, so
	// that it need not judge so many: empty requires nothing.
	Passes                    func(Detail) bool
	Run, Project, Integration string
	// OpenAt requires that the lease is not closed, and that its grant was neither revoked nor over at that time.
	OpenAt time.Time
}
