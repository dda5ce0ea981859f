package rpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"go.einride.tech/aip/ordering"

	"phasekey.dev/pkg/aipfilter"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/page"
)

// listRequest is what the requests of all lists with filters have.
type listRequest interface {
	GetParent() string
	GetPageSize() int32
	GetPageToken() string
	GetFilter() string
	GetOrderBy() string
}

// keys are those that orders of a list may name, and what each stands for; times are those whose values are times. What "name" stands
// for is unique.
type keys struct {
	of    map[string][]string
	times []string
}

// order reads the keys that a list is to be ordered by, and makes the order total.
func (k keys) order(orderBy string) ([]page.Order, error) {
	var parsed ordering.OrderBy
	if err := parsed.UnmarshalString(orderBy); err != nil {
		return nil, rpcerr.Invalid("order_by", "must be fields separated by commas, each optionally followed by desc")
	}
	var order []page.Order
	seen := map[string]bool{}
	for i, f := range append(parsed.Fields, ordering.Field{Path: "name"}) {
		stands, ok := k.of[f.Path]
		switch {
		case !ok:
			return nil, rpcerr.Invalid("order_by", fmt.Sprintf("names at place %d a field that it cannot order by", i+1))
		case seen[f.Path] && i < len(parsed.Fields):
			return nil, rpcerr.Invalid("order_by", fmt.Sprintf("names at place %d a field again", i+1))
		case seen["name"]:
			continue // nothing is left to be ordered
		}
		seen[f.Path] = true
		for _, by := range stands {
			order = append(order, page.Order{By: by, Desc: f.Desc})
		}
	}
	return order, nil
}

// fits tells whether a place can be one of the order.
func (k keys) fits(place page.Place, order []page.Order) bool {
	if len(place) != len(order) {
		return false
	}
	for i, o := range order {
		if _, err := strconv.ParseInt(place[i], 10, 64); err != nil && slices.Contains(k.times, o.By) {
			return false
		}
	}
	return true
}

// pageFor is the page of a list that a request asks for.
func pageFor(of list, k keys, req listRequest) (page.Page, error) {
	order, err := k.order(req.GetOrderBy())
	if err != nil {
		return page.Page{}, err
	}
	p := page.Page{Order: order, Size: pageSize(req.GetPageSize())}
	after, err := parsePageToken(of, scopeOf(req), req.GetPageToken())
	if err != nil || after == "" {
		return p, err
	}
	if json.Unmarshal([]byte(after), &p.After) != nil || !k.fits(p.After, order) {
		return page.Page{}, errPageToken
	}
	return p, nil
}

// nextPage is the token for what comes behind a place.
func nextPage(of list, req listRequest, place page.Place) string {
	after, _ := json.Marshal(place) // texts are always encoded
	return pageToken(of, scopeOf(req), string(after))
}

// scopeOf is what must stay the same from page to page.
func scopeOf(req listRequest) string {
	return fmt.Sprintf("%q %q %q", req.GetParent(), req.GetFilter(), req.GetOrderBy())
}

// wrongFilter says what is wrong with a filter.
func wrongFilter(err error) error {
	if problem := (*aipfilter.Error)(nil); errors.As(err, &problem) {
		return rpcerr.Invalid("filter", problem.Error())
	}
	return err
}
