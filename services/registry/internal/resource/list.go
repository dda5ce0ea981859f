package resource

import (
	"slices"
	"strconv"
	"time"
)

// Key is a field by which a list can be ordered. Texts are compared by their bytes.
type Key string

// The keys there are. A name is unique, so that an order that has it is total.
const (
	ByName        Key = "name"
	ByDisplayName Key = "display_name"
	ByCreateTime  Key = "create_time"
	ByUpdateTime  Key = "update_time"
)

// IsTime tells whether the key's values are times.
func (k Key) IsTime() bool { return k == ByCreateTime || k == ByUpdateTime }

// Order is one key of an order, and its direction.
type Order struct {
	By   Key
	Desc bool
}

// Total makes a total order of one that may be empty: by name in the end, and by nothing after that.
func Total(order []Order) []Order {
	isName := func(o Order) bool { return o.By == ByName }
	if i := slices.IndexFunc(order, isName); i >= 0 {
		return order[: i+1 : i+1]
	}
	return append(slices.Clip(order), Order{By: ByName})
}

// Keys are what a resource has of each Key; DisplayName is empty where it has none.
type Keys struct {
	Name, DisplayName      string
	CreateTime, UpdateTime time.Time
}

// Place is where a resource stands in an order: the values of the order's keys, times in microseconds since 1970.
func (k Keys) Place(order []Order) Place {
	place := make(Place, len(order))
	for i, o := range order {
		switch o.By {
		case ByName:
			place[i] = k.Name
		case ByDisplayName:
			place[i] = k.DisplayName
		case ByCreateTime:
			place[i] = strconv.FormatInt(k.CreateTime.UnixMicro(), 10)
		case ByUpdateTime:
			place[i] = strconv.FormatInt(k.UpdateTime.UnixMicro(), 10)
		}
	}
	return place
}

// Place is a place in an order.
type Place []string

// Fits tells whether a place can be one of the order.
func (p Place) Fits(order []Order) bool {
	if len(p) != len(order) {
		return false
	}
	for i, o := range order {
		if _, err := strconv.ParseInt(p[i], 10, 64); o.By.IsTime() && err != nil {
			return false
		}
	}
	return true
}

const (
	defaultPageSize = 100
	maxPageSize     = 1000
)

// Page says which part of a list is wanted: at most Size resources below Parent, in the total order that Order means, that
// come behind the place After, which is nil at the beginning.
type Page struct {
	Parent string
	Order  []Order
	After  Place
	Size   int
}

// FirstPage is the beginning of a list in an order, which it makes total, of a size, which may be zero.
func FirstPage(parent string, order []Order, size int32) Page {
	page := Page{Parent: parent, Order: Total(order), Size: int(min(size, maxPageSize))}
	if size <= 0 {
		page.Size = defaultPageSize
	}
	return page
}
