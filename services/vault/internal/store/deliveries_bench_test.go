package store_test

import (
	"fmt"
	"sync"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

// onBothEngines runs a benchmark over a database of each, which waits for its disk.
func onBothEngines(b *testing.B, bench func(b *testing.B, db *sqldb.DB)) {
	b.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		b.Fatal(err)
	}
	lite := sqldbtest.SQLiteConfig(b)
	lite.Volatile = false
	for name, config := range map[string]sqldb.Config{"sqlite": lite, "postgres": sqldbtest.MigratedPostgresConfig(b, migrations)} {
		b.Run(name, func(b *testing.B) {
			db, err := sqldb.Open(b.Context(), config, migrations)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			bench(b, db)
		})
	}
}

// anew is a counter over a database from which everything has been taken that another round of a benchmark had left.
func anew(b *testing.B, db *sqldb.DB) *counter {
	b.Helper()
	c := &counter{t: b, db: db, store: store.New(db, audittest.Keys(1))}
	for _, table := range []string{"leases", "grants", "credential_versions", "applications", "audit_events", "audit_fanouts"} {
		c.exec(`DELETE FROM ` + table)
	}
	divide(b, db, 1)
	c.furnish()
	return c
}

// BenchmarkDeliver is the store's part of a FetchCredential by as many callers as a loaded replica has, each with a grant of its own.
// It tells this process's processor time and memory of one; PostgreSQL's are not in it.
func BenchmarkDeliver(b *testing.B) {
	onBothEngines(b, func(b *testing.B, db *sqldb.DB) {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprint(callers), func(b *testing.B) {
				c := anew(b, db)
				tokens := make([]grant.Hash, callers)
				for i := range tokens {
					_, tokens[i] = c.grant(fmt.Sprint("g", i))
				}
				var group sync.WaitGroup
				b.ReportAllocs()
				b.ResetTimer()
				before := processorTime(b)
				for i := range callers {
					group.Go(func() {
						for range b.N / callers {
							if _, err := c.store.DeliverByToken(b.Context(), start, tokens[i], "a", version("v2")); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				group.Wait()
				b.StopTimer()
				n := float64(max(b.N/callers, 1) * callers)
				b.ReportMetric(float64((processorTime(b)-before).Microseconds())/n, "cpu-us/op")
				b.ReportMetric(n/b.Elapsed().Seconds(), "deliveries/s")
			})
		}
	})
}
