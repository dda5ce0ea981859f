package rotation_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"phasekey.dev/pkg/redistest"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

// bill counts what the rotator asks of others.
type bill struct {
	mu    sync.Mutex
	items map[string]int
}

func (b *bill) add(item string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.items[item]++
}

// since begins anew, and returns what there was.
func (b *bill) since() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.items
	b.items = map[string]int{}
	return was
}

// statement counts one by whether it belongs to an integration's turn or to the sweep that finds those that are due.
func (b *bill) statement(string) {
	var frames [32]uintptr
	walk := runtime.CallersFrames(frames[:runtime.Callers(1, frames[:])])
	for {
		frame, more := walk.Next()
		switch {
		case strings.HasSuffix(frame.Function, "rotation.(*Worker).turn"):
			b.add("turn: SQL")
			return
		case strings.HasSuffix(frame.Function, "rotation.(*shift).round"):
			b.add("sweep: SQL")
			return
		case !more:
			b.add("other: SQL")
			return
		}
	}
}

// DialHook changes nothing.
func (b *bill) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return next(ctx, network, address)
	}
}

// ProcessHook counts a command; a new connection's greeting is none.
func (b *bill) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if name := cmd.Name(); name != "hello" && name != "client" {
			b.add("Redis")
		}
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook counts nothing: the rotator has no pipelines.
func (b *bill) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// crowd is how many integrations are many.
const crowd = 5000

// crowd adds so many integrations like the one there is, of which nothing is due for years.
func (s *stage) crowd(n int) {
	s.t.Helper()
	s.tx(func(ctx context.Context, tx sqldb.Tx) error {
		for table, changed := range map[string]map[string]string{
			"integrations": {"uid": "'other-' || n", "name": "'accounts/acme/integrations/other-' || n"},
			"applications": {"integration_uid": "'other-' || n", "object_id": "'object-' || n", "client_id": "'client-' || n", "next_time": fmt.Sprint(sqldb.Micros(time.Now().AddDate(10, 0, 0)))},
			"credential_versions": {
				"id": "'version-' || n || '-' || number", "integration_uid": "'other-' || n", "key_id": "'key-' || n || '-' || number", "name": "'name-' || n || '-' || number",
			},
		} {
			columns, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (name string, err error) {
				err = row.Scan(&name)
				return name, err
			}, `SELECT name FROM pragma_table_info('`+table+`')`)
			if err != nil {
				return err
			}
			values := slices.Clone(columns)
			for i, c := range columns {
				if v, ok := changed[c]; ok {
					values[i] = v
				}
			}
			if _, err := tx.Exec(ctx, `WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < $1)
				INSERT INTO `+table+` (`+strings.Join(columns, ", ")+`) SELECT `+strings.Join(values, ", ")+` FROM `+table+`, c WHERE `+table+`.`+columnOfUID(table)+` = $2`,
				n, uid); err != nil {
				return fmt.Errorf("%s: %w", table, err)
			}
		}
		return nil
	})
}

func columnOfUID(table string) string {
	if table == "integrations" {
		return "uid"
	}
	return "integration_uid"
}

// Bounds of what is promised in docs/architecture.md.
var (
	hourBound     = map[string]int{"Entra: find": 1, "Entra: token": 1, "Redis": 2, "turn: SQL": 60, "sweep: SQL": 4 * 3600} //nolint:gochecknoglobals // constants
	rotationBound = map[string]int{"Entra: add": 1, "Entra: token": 8, "Entra: remove": 1, "Redis": 4, "turn: SQL": 240}     //nolint:gochecknoglobals // constants
)

// TestWorker_CostsTheSameAmongMany counts what an hour in which nothing happens and what a rotation take, alone and among many.
func TestWorker_CostsTheSameAmongMany(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		edit  func(c *rotation.Config)
		spend func(s *stage, b *bill) map[string]int
		bound map[string]int
	}{
		{"an idle hour", func(c *rotation.Config) {
			c.Poll = time.Second // as in production
		}, func(_ *stage, b *bill) map[string]int {
			time.Sleep(time.Hour)
			return b.since()
		}, hourBound},
		{"a rotation", func(c *rotation.Config) {
			// Without what an idle hour takes.
			c.Timing.ConsentInterval, c.Timing.ReconcileInterval, c.Timing.EnsureInterval = 1000*time.Hour, 1000*time.Hour, 1000*time.Hour
		}, func(s *stage, b *bill) map[string]int {
			old, _ := s.facts().ByState(credential.Active)
			s.until("removed", 30*time.Hour, func(f store.Facts) bool {
				return !slices.ContainsFunc(f.Versions, func(v credential.Version) bool { return v.ID == old.ID })
			})
			spent := b.since()
			delete(spent, "sweep: SQL") // in so many hours
			return spent
		}, rotationBound},
	} {
		t.Run(test.name, func(t *testing.T) {
			alone, crowded := costs(t, 0, test.edit, test.spend), costs(t, crowd, test.edit, test.spend)
			// When the version is due, which its ID decides, moves the rounds after it: one look more or less falls into the hour.
			if d := alone["sweep: SQL"] - crowded["sweep: SQL"]; -8 <= d && d <= 8 && d != 0 {
				crowded["sweep: SQL"] += d
			}
			if !maps.Equal(alone, crowded) {
				t.Errorf("alone it takes %v, among many %v", alone, crowded)
			}
			t.Logf("%v", alone)
			for item, n := range alone {
				if n > test.bound[item] {
					t.Errorf("it takes %d of %q, at most %d were promised", n, item, test.bound[item])
				}
			}
		})
	}
}

// costs is what the rotator spends on one integration beside so many others.
func costs(t *testing.T, others int, edit func(c *rotation.Config), spend func(s *stage, b *bill) map[string]int) (spent map[string]int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		b := &bill{items: map[string]int{}}
		link := redistest.Mini(t).Link(t)
		link.AddHook(b)
		var err error
		if s.config.Budget, err = budget.New(budget.Config{Limits: budget.DefaultLimits(), Client: link, Prefix: "test", Log: s.config.Log}); err != nil {
			t.Fatal(err)
		}
		edit(&s.config)
		s.entra.before = func(_ context.Context, op string) error {
			b.add("Entra: " + op)
			return nil
		}
		s.serve(func(ctx context.Context) context.Context { return sqldbtest.WithCount(ctx, b.statement) })
		s.live()
		s.crowd(others)
		s.look = time.Minute
		time.Sleep(time.Hour)
		b.since()
		spent = spend(s, b)
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
	return spent
}
