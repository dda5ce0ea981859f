package rpc

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"go.einride.tech/aip/ordering"

	"phasekey.dev/pkg/aipfilter"
	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/secret"
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

const (
	defaultPage = 100
	maxPage     = 1000
)

func pageSize(asked int32) int {
	if asked == 0 {
		return defaultPage
	}
	return min(int(asked), maxPage)
}

// list is what a page is of.
type list string

const (
	grantsList      list = "grants"
	leasesList      list = "leases"
	versionsList    list = "credential versions"
	rotationsList   list = "rotations"
	batchesList     list = "rotation batches"
	pausesList      list = "rotation pauses"
	signingKeysList list = "signing keys"
	eventsList      list = "audit events"
	checkpointsList list = "audit checkpoints"
)

// pages says where lists go on.
type pages struct {
	// key is what the database's page tokens are sealed with.
	key secret.Text
}

func (p pages) scope(of list, req listRequest) pagetoken.Scope {
	return pagetoken.Scope{Key: p.key, List: string(of), Parent: req.GetParent(), Filter: req.GetFilter(), OrderBy: req.GetOrderBy()}
}

// page is the page of a list that a request asks for.
func (p pages) page(of list, k keys, req listRequest) (page.Page, error) {
	order, err := k.order(req.GetOrderBy())
	if err != nil {
		return page.Page{}, err
	}
	wanted := page.Page{Order: order, Size: pageSize(req.GetPageSize())}
	if req.GetPageToken() == "" {
		return wanted, nil
	}
	if wanted.After, err = p.scope(of, req).OpenTexts(req.GetPageToken()); err != nil {
		return page.Page{}, err
	}
	if !k.fits(wanted.After, order) {
		return page.Page{}, pagetoken.ErrInvalid
	}
	return wanted, nil
}

// next is the token for what comes behind a place.
func (p pages) next(of list, req listRequest, place page.Place) string {
	return p.scope(of, req).SealTexts(place...)
}

// after is what a list of the parent's goes on behind that is ordered by one text; empty for its beginning.
func (p pages) after(of list, parent, token string) (string, error) {
	if token == "" {
		return "", nil
	}
	place, err := pagetoken.Scope{Key: p.key, List: string(of), Parent: parent}.OpenTexts(token)
	if err == nil && len(place) != 1 {
		err = pagetoken.ErrInvalid
	}
	if err != nil {
		return "", err
	}
	return place[0], nil
}

// behind is the token for what comes behind a text.
func (p pages) behind(of list, parent, after string) string {
	return pagetoken.Scope{Key: p.key, List: string(of), Parent: parent}.SealTexts(after)
}

// number is after for a list that is ordered by numbers, which begin with 1; 0 for its beginning.
func (p pages) number(of list, parent, token string) (int64, error) {
	text, err := p.after(of, parent, token)
	if err != nil || text == "" {
		return 0, err
	}
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil || number <= 0 {
		return 0, pagetoken.ErrInvalid
	}
	return number, nil
}

// behindNumber is the token for what comes behind a number.
func (p pages) behindNumber(of list, parent string, number int64) string {
	return p.behind(of, parent, strconv.FormatInt(number, 10))
}

// wrongFilter says what is wrong with a filter.
func wrongFilter(err error) error {
	if problem := (*aipfilter.Error)(nil); errors.As(err, &problem) {
		return rpcerr.Invalid("filter", problem.Error())
	}
	return err
}
