// Package page says which part of a list is wanted: how many, in which order, behind which place. A list that goes on behind a place
// neither repeats nor leaves out what stays where it is, whatever changes around it.
package page

import (
	"strconv"
	"time"
)

// Order is one key of an order, and its direction. Texts are compared by their bytes.
type Order struct {
	By   string
	Desc bool
}

// Place is where something stands in an order: the values of the order's keys, times in microseconds since 1970.
type Place []string

// Page is a part of a list: at most Size, in the order, behind After, which is nil at the beginning. The order is total: no two
// things have the same values of all its keys.
type Page struct {
	Order []Order
	After Place
	Size  int
}

// At is where something stands in an order whose keys have these values of its own; a time's is by Micros.
func At(order []Order, value func(key string) string) Place {
	place := make(Place, len(order))
	for i, o := range order {
		place[i] = value(o.By)
	}
	return place
}

// Micros is a time's value, in microseconds since 1970.
func Micros(t time.Time) string { return strconv.FormatInt(t.UnixMicro(), 10) }
