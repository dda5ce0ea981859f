package web_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/store"
	"phasekey.dev/services/broker/internal/web"
)

const (
	few, many = 10, 1000
	// maxRatio is by how much the median of a request may be longer with many sessions than with few.
	maxRatio = 3
	// judged is how often a request is made before it is judged.
	judged = 200
)

// crowd is a site at which so many administrators look at a session each, live.
type crowd struct {
	w     *world
	b     *browser
	links []string
	round int
}

func newCrowd(b *testing.B, db *sqldb.DB, n int) *crowd {
	b.Helper()
	w := newWorldOn(b, db, time.Second, func(c *web.Config) {
		c.Proxies = web.Proxies{netip.MustParsePrefix("127.0.0.0/8")}
		c.Log = slog.New(slog.DiscardHandler)
		c.Metrics = nil
	})
	w.entraSays(approved)
	c := &crowd{w: w, b: w.browser()}
	for i := range n {
		_, link := w.open(func(s *consent.Session) {
			s.IntegrationUID, s.Name.Account = fmt.Sprint("uid-", i), fmt.Sprint("account-", i)
		})
		c.links = append(c.links, link)
		w.browser().followFrom(link, c.address()).expect(`{"page":"landing","version":1}`)
	}
	return c
}

// address is another browser's each time.
func (c *crowd) address() string {
	c.round++
	return fmt.Sprintf("10.%d.%d.%d", c.round>>16&255, c.round>>8&255, c.round&255)
}

// do makes a request about the next session, from the next address, and fails unless it has a status.
func (c *crowd) do(b *testing.B, method string, status int, where func(link string) string) page {
	b.Helper()
	address := c.address()
	p := c.b.do(method, where(c.links[c.round%len(c.links)]), func(r *http.Request) { r.Header.Set("X-Forwarded-For", address) })
	if p.status != status {
		b.Fatalf("status %d: %s", p.status, p.text)
	}
	return p
}

// BenchmarkCrowd compares, request by request and in turns, a site with ten sessions that are looked at with one of a thousand. It fails when
// the median of a request is more than three times as long.
func BenchmarkCrowd(b *testing.B) {
	itself := func(link string) string { return link }
	for _, engine := range []struct {
		name string
		open func() *sqldb.DB
	}{
		{"sqlite", func() *sqldb.DB { return sqldbtest.SQLite(b, store.Migrations()) }},
		{"postgres", func() *sqldb.DB { return sqldbtest.Postgres(b, store.Migrations()) }},
	} {
		small, large := newCrowd(b, engine.open(), few), newCrowd(b, engine.open(), many)
		for _, request := range []struct {
			name string
			// prepare is not measured; what it returns is where the request goes.
			prepare func(*crowd) string
			make    func(c *crowd, where string)
		}{
			{"page", nil, func(c *crowd, _ string) { c.do(b, http.MethodGet, http.StatusOK, itself) }},
			{"button", nil, func(c *crowd, _ string) { c.do(b, http.MethodPost, http.StatusOK, itself) }},
			{"callback", func(c *crowd) string {
				return c.b.through(c.do(b, http.MethodPost, http.StatusOK, itself).to())
			}, func(c *crowd, where string) {
				c.do(b, http.MethodGet, http.StatusSeeOther, func(string) string { return where })
			}},
		} {
			// As often as it takes, and not as b.N says: the button may not be pressed as often as anybody likes.
			var took [2][]time.Duration
			for range judged {
				for i, c := range []*crowd{small, large} {
					where := ""
					if request.prepare != nil {
						where = request.prepare(c)
					}
					begun := time.Now()
					request.make(c, where)
					took[i] = append(took[i], time.Since(begun))
				}
			}
			slices.Sort(took[0])
			slices.Sort(took[1])
			ofFew, ofMany := took[0][judged/2], took[1][judged/2]
			ratio := float64(ofMany) / float64(ofFew)
			b.Run(engine.name+"/"+request.name, func(b *testing.B) {
				b.ReportMetric(0, "ns/op") // nothing is done here
				b.ReportMetric(float64(ofFew.Nanoseconds())/1000, "p50-µs-of-10")
				b.ReportMetric(float64(ofMany.Nanoseconds())/1000, "p50-µs-of-1000")
				b.ReportMetric(float64(took[1][judged*99/100].Nanoseconds())/1000, "p99-µs-of-1000")
				b.ReportMetric(ratio, "p50-ratio")
				if ratio > maxRatio {
					b.Errorf("with a thousand sessions the median is %.2f times that with ten, more than %d", ratio, maxRatio)
				}
			})
		}
	}
}
