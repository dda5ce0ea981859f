package store_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/store"
)

// BenchmarkFanOut is one credential for as many leases as one record has, of a database that has twice as many.
func BenchmarkFanOut(b *testing.B) {
	onBothEngines(b, func(b *testing.B, db *sqldb.DB) {
		c := anew(b, db)
		var all []string
		var group sync.WaitGroup
		for i := range 2 * store.MaxFanOut {
			all = append(all, fmt.Sprintf("g%05d", i))
		}
		for some := range slices.Chunk(all, 100) {
			group.Go(func() {
				for _, uid := range some {
					c.grant(uid)
					if _, err := c.store.Deliver(b.Context(), start, order(uid, "a", "v2")); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		some := wide(order("", "a", "v2"), all...)
		own, others := processorTime(b), c.databaseTime()
		b.ResetTimer()
		for i := range b.N {
			f := some
			f.To = some.To[i%2*store.MaxFanOut:][:store.MaxFanOut]
			got, err := c.store.FanOut(b.Context(), start, f)
			if err != nil || got[0] == (store.Reached{}) {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		b.ReportMetric(float64(b.N*store.MaxFanOut)/b.Elapsed().Seconds(), "deliveries/s")
		b.ReportMetric(float64((processorTime(b)-own).Microseconds())/float64(b.N*store.MaxFanOut), "cpu-us/delivery")
		b.ReportMetric(float64((c.databaseTime()-others).Microseconds())/float64(b.N*store.MaxFanOut), "db-cpu-us/delivery")
		began := time.Now()
		if err := c.store.ExpandFanOuts(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(b.N*store.MaxFanOut)/time.Since(began).Seconds(), "expanded/s")
	})
}

// databaseTime is what PostgreSQL's processes have had of the processors; SQLite has none.
func (c *counter) databaseTime() (sum time.Duration) {
	c.t.Helper()
	if c.db.Driver() != sqldb.DriverPostgres {
		return 0
	}
	for _, pid := range c.rows(1, `SELECT pid FROM pg_stat_activity`) {
		text, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue // it is over
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				c.t.Fatal(err)
			}
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}
