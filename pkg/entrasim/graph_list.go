package entrasim

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"phasekey.dev/pkg/entrasim/internal/odata"
)

const (
	defaultPage = 100
	maxPage     = 999
)

// listed is an item of a list and its place, which outlives its neighbours.
type listed struct {
	order uint64
	item  interface {
		// property is the value of one that can be filtered by, and whether it is one.
		property(name string) (value any, known bool)
		view() map[string]any
	}
}

// collection answers a list: items, filtered by $filter, in pages of $top with
// @odata.nextLink, each reduced by $select. Of a hundred thousand items only those
// of the page are shown in full: everybody waits meanwhile.
func (s *Simulator) collection(c *call, name string, items []listed) reply {
	query := c.URL.Query()
	filter := odata.Filter(func(func(string) ([]string, bool)) (bool, error) { return true, nil })
	if text := query.Get("$filter"); text != "" {
		f, err := odata.ParseFilter(text)
		if err != nil {
			return c.fail(http.StatusBadRequest, codeBadRequest, clip(err.Error(), 256))
		}
		filter = f
	}
	size := defaultPage
	if text := query.Get("$top"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			return c.fail(http.StatusBadRequest, codeBadRequest, "Invalid page size specified: '"+clip(text, 32)+"'. Must be between 1 and 999 inclusive.")
		}
		size = n
	}
	after := uint64(0)
	if text := query.Get("$skiptoken"); text != "" {
		n, err := strconv.ParseUint(text, 36, 64)
		if err != nil {
			return c.fail(http.StatusBadRequest, "Directory_ExpiredPageToken", "The specified page token value has expired and can no longer be included in your request.")
		}
		after = n
	}
	page, last, more, count := []map[string]any{}, uint64(0), false, 0
	for _, l := range items {
		keep, err := filter(func(property string) ([]string, bool) {
			value, known := l.item.property(property)
			return texts(value), known
		})
		if err != nil {
			return c.fail(http.StatusBadRequest, "Request_UnsupportedQuery", clip(err.Error(), 256))
		}
		if !keep {
			continue
		}
		count++
		switch {
		case l.order <= after:
		case len(page) < size:
			page, last = append(page, l.item.view()), l.order
		default:
			more = true
		}
	}
	out := map[string]any{"@odata.context": s.origin(c) + "/v1.0/$metadata#" + name}
	if query.Get("$count") == "true" {
		out["@odata.count"] = count
	}
	if more {
		query.Set("$skiptoken", strconv.FormatUint(last, 36))
		link := url.URL{Path: c.URL.Path, RawQuery: query.Encode()}
		out["@odata.nextLink"] = s.origin(c) + link.String()
	}
	for _, item := range page {
		if bad := selectProperties(c, name, item); bad != nil {
			return *bad
		}
	}
	out["value"] = page
	r := jsonReply(http.StatusOK, out)
	r.header.Set("Content-Type", graphContent)
	graphHeaders(c, r.header)
	return r
}

// texts is a property's value as a filter compares it.
func texts(value any) []string {
	switch v := value.(type) {
	case nil:
		return []string{"null"}
	case string:
		return []string{v}
	case []string:
		return v
	default:
		return []string{fmt.Sprint(v)}
	}
}
