package grant

import (
	"time"

	"phasekey.dev/services/vault/internal/page"
)

// The keys by which grants can be ordered. UIDs are unique, and grow with time.
const (
	ByUID        = "uid"
	ByCreateTime = "create_time"
	ByExpireTime = "expire_time"
)

// Place is where the grant stands in an order.
func (g Grant) Place(order []page.Order) page.Place {
	return page.At(order, func(key string) string {
		switch key {
		case ByCreateTime:
			return page.Micros(g.CreateTime)
		case ByExpireTime:
			return page.Micros(g.ExpireTime)
		default:
			return g.UID
		}
	})
}

// List says which of an account's grants are wanted.
type List struct {
	Account string
	page.Page
	// Passes judges each; nil takes all. What follows is required beside it, so that it need not judge so many: empty requires
	// nothing.
	Passes                    func(Grant) bool
	Run, Project, Integration string
	// ActiveAt requires that the grant was neither revoked nor over at that time.
	ActiveAt time.Time
}

// Scope is what grants of an account have in common that are revoked together: exactly one of the two is set.
type Scope struct {
	Run string
	// Integration is its resource name when they were made.
	Integration string
}
