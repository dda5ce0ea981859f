package feed_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/feed"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

var errStore = errors.New("the database does not answer")

// copies is the vault's database, which after each write that a feed makes must be true at the revision it names.
type copies struct {
	*store.Store

	t        *testing.T
	db       *sqldb.DB
	registry *fakeRegistry

	mu sync.Mutex
	// refuse is how many writes fail, and lose how many succeed and seem to fail.
	refuse, lose int
	writes       int
}

func (c *copies) AdvanceProjection(ctx context.Context, now time.Time, at store.Projection, changed store.Wanted) error {
	return c.write(func() error { return c.Store.AdvanceProjection(ctx, now, at, changed) })
}

func (c *copies) ReplaceProjection(ctx context.Context, now time.Time, at store.Projection, all store.Wanted) error {
	return c.write(func() error { return c.Store.ReplaceProjection(ctx, now, at, all) })
}

func (c *copies) write(do func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	if c.refuse > 0 {
		c.refuse--
		return errStore
	}
	if err := do(); err != nil {
		return err
	}
	c.judge()
	if c.lose > 0 {
		c.lose--
		return errStore
	}
	return nil
}

func (c *copies) set(change func(c *copies)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

// judge checks that the copy is what the registry had at the revision that the copy names, and returns its position.
func (c *copies) judge() (at string) {
	c.t.Helper()
	var rows []string
	err := c.db.ReadTx(context.WithoutCancel(c.t.Context()), func(ctx context.Context, tx sqldb.Tx) (err error) {
		var incarnation string
		var revision int64
		switch err := tx.QueryRow(ctx, `SELECT incarnation, revision FROM projection`).Scan(&incarnation, &revision); {
		case errors.Is(err, sqldb.ErrNoRows):
			return nil
		case err != nil:
			return err
		}
		at = position(incarnation, revision)
		rows, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (string, error) {
			var line string
			err := row.Scan(&line)
			return line, err
		}, `SELECT uid || ' ' || name || ' ' || display_name || ' ' || cloud || ' ' || allowed_audiences || ' ' || rotation_period || ' ' || deleting || ' ' || (labels_revision = revision) FROM integrations
			UNION ALL SELECT uid || ' ' || name || ' ' || (labels_revision = revision) FROM projects
			UNION ALL SELECT integration_uid || ' goes by ' || label FROM auto_labels
			UNION ALL SELECT project_uid || ' has ' || label FROM project_labels
			UNION ALL SELECT uid || ' ' || integration_uid || ' ' || project_uid || ' ' || reads || ' ' || writes || ' ' || subscription_id FROM attachments`)
		return err
	})
	if err != nil {
		c.t.Error(err)
	}
	slices.Sort(rows)
	if at != "" && !c.registry.had(at, rows) && !c.t.Failed() {
		c.t.Errorf("the copy says it is the registry at %s (-want +got):\n%s", at, cmp.Diff(c.registry.at(at), rows))
	}
	return at
}

// labels are all labels that the copy has.
func (c *copies) labels() (rows []string) {
	c.t.Helper()
	err := c.db.ReadTx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		rows, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (line string, err error) { return line, row.Scan(&line) },
			`SELECT integration_uid || ' goes by ' || label FROM auto_labels UNION ALL SELECT project_uid || ' has ' || label FROM project_labels ORDER BY 1`)
		return err
	})
	if err != nil {
		c.t.Error(err)
	}
	return rows
}

// bringWithout brings a project as a replica does that knows no labels.
func (c *copies) bringWithout(uid string, revision int64) {
	c.t.Helper()
	err := c.db.Tx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE projection SET revision = $1, cursor = $2`, revision, position("r", revision)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE projects SET revision = $2 WHERE uid = $1`, uid, revision)
		return err
	})
	if err != nil {
		c.t.Error(err)
	}
}

// world is a registry and a vault's database, in a bubble.
type world struct {
	t        *testing.T
	registry *fakeRegistry
	store    *copies
	changed  atomic.Int64
	stop     func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	db := sqldbtest.SQLite(t, migrations)
	if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, 1) }); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, registry: newRegistry(), stop: func() {}}
	w.store = &copies{Store: store.New(db, audittest.Keys(1)), t: t, db: db, registry: w.registry}
	return w
}

// follow runs so many replicas' feeds; the test's end, or stop, ends them.
func (w *world) follow(replicas int) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	for range replicas {
		f := feed.New(feed.Config{
			Registry: feed.Registry{Integrations: w.registry, Projects: w.registry, Attachments: w.registry, Watch: w.registry},
			Store:    w.store, Changed: func() { w.changed.Add(1) }, Log: slog.New(slog.DiscardHandler),
		})
		running.Go(func() {
			if err := f.Run(ctx); err != nil {
				w.t.Errorf("a feed ended with %v", err)
			}
		})
	}
	w.stop = func() {
		cancel()
		running.Wait()
	}
	w.t.Cleanup(w.stop)
}

// current waits so long, and checks that the copy is the registry as it is then.
func (w *world) current(step string, within time.Duration) {
	w.t.Helper()
	pass(within)
	if at, want := w.store.judge(), w.registry.position(); at != want {
		w.t.Errorf("%s: the copy is at %q, the registry at %q", step, at, want)
	}
}

// pass lets time pass, and whoever is about to do something do it.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func inBubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newWorld(t)) })
}

func TestFeed_CopiesOnceThenFollows(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.registry.put(integration("i-1", "read"), project("p-1", "net"), attachment("a-1", "i-1", "p-1"))
		w.follow(1)
		w.current("listed", 0)
		w.registry.put(integration("i-2", "write"))
		w.current("followed", 0)
		if got := w.registry.counted(); got != "3 lists, 1 watches" {
			t.Error(got)
		}
		if n := w.changed.Load(); n != 2 {
			t.Errorf("others were told %d times of 2 changes", n)
		}
		told := time.Now()
		pass(time.Minute)
		at, err := w.store.Projection(t.Context())
		if err != nil || time.Since(at.BookmarkTime) > bookmarkEvery || !at.BookmarkTime.After(told) {
			t.Errorf("an idle registry was last heard of at %s, error %v", at.BookmarkTime, err)
		}
		if n := w.changed.Load(); n != 2 {
			t.Errorf("bookmarks were told as %d changes", n-2)
		}
		w.stop()
		w.follow(1)
		w.current("restarted", 0)
		if got := w.registry.counted(); got != "3 lists, 2 watches" {
			t.Errorf("a restart goes on from the cursor: %s", got)
		}
	})
}

func TestFeed_CopiesLabels(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		auto := func(uid, id string, on bool, labels ...string) *registryv1.Event {
			return integration(uid, id, func(i *registryv1.Integration) { i.AutoAttach, i.Labels = on, labels })
		}
		w.registry.put(auto("i-1", "on", true, "autoattach:prod", "prod", "autoattach:", "autoattach:a b", "Autoattach:x"), auto("i-2", "off", false, "autoattach:prod"),
			project("p-1", "net", "prod", "autoattach:eu"))
		w.follow(1)
		w.current("listed", 0)
		want := []string{"i-1 goes by a b", "i-1 goes by prod", "p-1 has autoattach:eu", "p-1 has prod"}
		if got := w.store.labels(); !slices.Equal(got, want) {
			t.Errorf("listed %q, want %q", got, want)
		}
		w.registry.put(auto("i-1", "on", false, "autoattach:prod"), auto("i-2", "off", true, "autoattach:prod"), project("p-1", "net"))
		w.current("followed", 0)
		if got, want := w.store.labels(), []string{"i-2 goes by prod"}; !slices.Equal(got, want) {
			t.Errorf("followed %q, want %q", got, want)
		}
	})
}

// While releases are exchanged, replicas bring changes that know no labels.
func TestFeed_AddsLabelsThatAreMissing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.registry.put(project("p-1", "net", "prod"))
		w.follow(1)
		w.current("listed", 0)
		w.registry.set(func(r *fakeRegistry) { r.mute = true })
		w.registry.put(project("p-1", "net", "dev"))
		w.store.bringWithout("p-1", 2)
		w.registry.set(func(r *fakeRegistry) { r.mute = false })
		w.current("told second", 0)
		if got := w.registry.counted(); got != "3 lists, 1 watches" {
			t.Error(got)
		}
		w.stop()
		w.registry.put(project("p-1", "net", "eu"))
		w.store.bringWithout("p-1", 3)
		w.follow(1)
		w.current("not told", 0)
		if got := w.registry.counted(); got != "6 lists, 2 watches" {
			t.Errorf("what lacks labels is listed anew: %s", got)
		}
	})
}

func TestFeed_CopiesWhatAnIntegrationIs(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		plain := integration("i-plain", "plain")
		rich := integration("i-rich", "rich")
		i := rich.GetIntegration()
		i.DisplayName, i.TenantId, i.Cloud, i.DefaultSubscriptionId = "Rich", "tenant", "china", "sub"
		i.AllowedAudiences, i.RotationPeriod, i.State = []string{"https://vault.azure.cn"}, durationpb.New(time.Hour), registryv1.Integration_STATE_DELETING
		// A newer registry may know a form that this vault does not.
		i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET, 99, typev1.Material_MATERIAL_ACCESS_TOKEN}
		w.registry.put(plain)
		w.follow(1)
		w.current("listed", 0)
		w.registry.put(rich)
		w.current("followed", 0)
		for _, want := range []store.Integration{
			{UID: "i-plain", Name: "accounts/a/integrations/plain", Cloud: "public", AllowedAudiences: []string{}, DeliveryMaterials: []lease.Material{}, RotationPeriod: 24 * time.Hour, Revision: 1},
			{UID: "i-rich", Name: "accounts/a/integrations/rich", DisplayName: "Rich", TenantID: "tenant", Cloud: "china", DefaultSubscriptionID: "sub",
				AllowedAudiences: []string{"https://vault.azure.cn"}, DeliveryMaterials: []lease.Material{lease.ClientSecret, "99", lease.AccessToken},
				RotationPeriod: time.Hour, Deleting: true, Revision: 2},
		} {
			got, err := w.store.Integration(t.Context(), want.UID)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	})
}

// The pages are of different moments; the copy is of one.
func TestFeed_PutsPagesAndChangesTogether(t *testing.T) {
	for _, tc := range []struct {
		name string
		// between happens after a page was read, the first being 1. There are pages i-1 i-2 | i-3 i-4 | i-5, p-1, and a-1.
		between map[int]func(r *fakeRegistry)
	}{
		{"nothing", nil},
		{"what was listed is changed", map[int]func(r *fakeRegistry){1: func(r *fakeRegistry) { r.put(integration("i-1", "1", deleting)) }}},
		{"what was listed is gone", map[int]func(r *fakeRegistry){2: func(r *fakeRegistry) { r.remove("a-1", "i-1") }}},
		{"what is to be listed is gone", map[int]func(r *fakeRegistry){1: func(r *fakeRegistry) { r.remove("a-1", "i-4", "p-1") }}},
		{"new before what was listed", map[int]func(r *fakeRegistry){2: func(r *fakeRegistry) { r.put(integration("i-0", "0")) }}},
		{"new, listed, and changed after all pages", map[int]func(r *fakeRegistry){
			1: func(r *fakeRegistry) { r.put(integration("i-9", "9")) },
			5: func(r *fakeRegistry) { r.put(integration("i-9", "9", deleting)) }}},
		{"new, listed and gone", map[int]func(r *fakeRegistry){
			1: func(r *fakeRegistry) { r.put(integration("i-9", "9"), attachment("a-9", "i-9", "p-1")) },
			5: func(r *fakeRegistry) { r.remove("a-9", "i-9") }}},
		{"a name used again", map[int]func(r *fakeRegistry){1: func(r *fakeRegistry) {
			r.remove("a-1", "i-1")
			r.put(integration("i-new", "1"), attachment("a-new", "i-new", "p-1"))
		}}},
	} {
		for _, batch := range []int{1, 2, 100} {
			t.Run(fmt.Sprintf("%s in messages of %d", tc.name, batch), func(t *testing.T) {
				inBubble(t, func(t *testing.T, w *world) {
					for _, n := range []string{"1", "2", "3", "4", "5"} {
						w.registry.put(integration("i-"+n, n))
					}
					w.registry.put(project("p-1", "net"), attachment("a-1", "i-1", "p-1"))
					w.registry.set(func(r *fakeRegistry) { r.batch, r.between = batch, tc.between })
					w.follow(1)
					w.current("listed", 0)
					if got := w.registry.counted(); !strings.HasSuffix(got, " lists, 1 watches") {
						t.Error(got)
					}
				})
			})
		}
	}
}

func TestFeed_AppliesAMessageAsAWhole(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(r *fakeRegistry)
	}{
		{"a deletion", func(r *fakeRegistry) { r.remove("a-1", "i-1", "p-1") }},
		{"several changes of one", func(r *fakeRegistry) {
			r.put(integration("i-1", "read", deleting), attachment("a-1", "i-1", "p-1", typev1.Access_ACCESS_READ))
			r.put(attachment("a-1", "i-1", "p-1", typev1.Access_ACCESS_WRITE))
		}},
		{"made and gone", func(r *fakeRegistry) {
			r.put(integration("i-2", "write"), attachment("a-2", "i-2", "p-1"))
			r.remove("a-2", "i-2")
		}},
		{"gone, and the name used again", func(r *fakeRegistry) {
			r.remove("a-1", "i-1")
			r.put(integration("i-2", "read"), attachment("a-2", "i-2", "p-1"))
		}},
		{"gone, the name used again, and gone", func(r *fakeRegistry) {
			r.remove("a-1", "i-1")
			r.put(integration("i-2", "read"))
			r.remove("i-2")
			r.put(integration("i-3", "read"))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.registry.put(integration("i-1", "read"), project("p-1", "net"), attachment("a-1", "i-1", "p-1"))
				w.follow(1)
				w.current("listed", 0)
				before := w.store.writes
				// While it is mute the changes gather; then they are one message.
				w.registry.set(func(r *fakeRegistry) { r.mute = true })
				tc.change(w.registry)
				w.registry.set(func(r *fakeRegistry) { r.mute = false })
				w.current("followed", 0)
				if n := w.store.writes - before; n != 1 {
					t.Errorf("%d messages, want 1", n)
				}
			})
		})
	}
}

func TestFeed_ComesBack(t *testing.T) {
	for _, tc := range []struct {
		name string
		// fault happens at revision 3, and is over when mend returns; the copy is current soon after, and want is what was asked
		// in all.
		fault, mend func(w *world)
		soon        time.Duration
		want        string
	}{
		{"the stream breaks", func(w *world) { w.registry.cut(status.Error(codes.Unavailable, "draining")) }, nil, time.Second, "3 lists, 2 watches"},
		{"the stream ends", func(w *world) { w.registry.cut(io.EOF) }, nil, time.Second, "3 lists, 2 watches"},
		{"the cursor is forgotten", func(w *world) { w.registry.compact() }, nil, 2 * time.Second, "6 lists, 3 watches"},
		{"another database", func(w *world) { w.registry.become() }, nil, 2 * time.Second, "6 lists, 3 watches"},
		{"a restored database", func(w *world) { w.registry.restore(1) }, nil, 2 * time.Second, "6 lists, 3 watches"},
		{"the store fails once", func(w *world) { w.store.set(func(c *copies) { c.refuse = 1 }) }, nil, time.Second, "3 lists, 2 watches"},
		{"the store fails, it seems", func(w *world) { w.store.set(func(c *copies) { c.lose = 1 }) }, nil, time.Second, "3 lists, 2 watches"},
		{"the store fails after the cursor was forgotten", func(w *world) {
			w.registry.compact()
			w.store.set(func(c *copies) { c.refuse = 1 })
		}, nil, 3 * time.Second, "9 lists, 4 watches"},
		{"the stream says nothing", func(w *world) { w.registry.set(func(r *fakeRegistry) { r.mute = true }) }, func(w *world) {
			pass(29 * time.Second)
			w.registry.set(func(r *fakeRegistry) { r.mute, r.stuck = false, true })
		}, 2 * time.Second, "3 lists, 2 watches"},
		{"a stream says nothing from the start", func(w *world) {
			w.registry.cut(io.EOF)
			w.registry.set(func(r *fakeRegistry) { r.mute = true })
		}, func(w *world) {
			pass(29 * time.Second)
			w.registry.set(func(r *fakeRegistry) { r.mute, r.stuck = false, true })
		}, 2 * time.Second, "3 lists, 3 watches"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.registry.put(integration("i-1", "read"), project("p-1", "net"), attachment("a-1", "i-1", "p-1"))
				w.follow(1)
				w.current("listed", 0)
				tc.fault(w)
				if !strings.Contains(tc.name, "restored") {
					w.registry.put(integration("i-2", "write"))
				}
				if tc.mend != nil {
					tc.mend(w)
				}
				w.current("come back", tc.soon)
				if got := w.registry.counted(); got != tc.want {
					t.Errorf("%s, want %s", got, tc.want)
				}
				w.registry.put(integration("i-3", "later"))
				w.current("followed on", 0)
			})
		})
	}
}

// While the registry is away it is asked seldom; when it is back the feed goes on where it was.
func TestFeed_WaitsForTheRegistry(t *testing.T) {
	for _, listed := range []bool{false, true} {
		t.Run(fmt.Sprintf("listed before: %t", listed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.registry.put(integration("i-1", "read"))
				if listed {
					w.follow(1)
					w.current("listed", 0)
				}
				const away = 20 * time.Minute
				w.registry.set(func(r *fakeRegistry) { r.down = true })
				w.registry.cut(status.Error(codes.Unavailable, "down"))
				if !listed {
					w.follow(1)
				}
				before := w.registry.total()
				pass(away)
				// At first often, then every 7.5 to 15 s.
				if asked := w.registry.total() - before; asked < int(away/(15*time.Second)) || asked > int(away/(7*time.Second))+10 {
					t.Errorf("asked %d times in %s", asked, away)
				}
				w.registry.put(integration("i-2", "write"))
				w.registry.set(func(r *fakeRegistry) { r.down = false })
				before = w.registry.total()
				w.current("back", 15*time.Second)
				want := 4 // three lists and a watch
				if listed {
					want = 1
				}
				if asked := w.registry.total() - before; asked != want {
					t.Errorf("asked %d times when it was back, want %d", asked, want)
				}
				w.registry.cut(io.EOF)
				w.registry.put(integration("i-3", "later"))
				w.current("it was patient, and is quick again", time.Second)
			})
		})
	}
}

func TestFeed_EndsWhateverItIsDoing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		state func(w *world)
	}{
		{"following", func(*world) {}},
		{"waiting to ask again", func(w *world) { w.registry.set(func(r *fakeRegistry) { r.down = true }) }},
		{"waiting for an answer to a list", func(w *world) { w.registry.set(func(r *fakeRegistry) { r.hang = true }) }},
		{"waiting for a silent stream", func(w *world) { w.registry.set(func(r *fakeRegistry) { r.mute = true }) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				tc.state(w)
				w.follow(2)
				pass(10 * time.Second)
				ended := time.Now()
				w.stop()
				if d := time.Since(ended); d != 0 {
					t.Errorf("took %s", d)
				}
			})
		})
	}
}

// Whatever happens to the registry, the streams and the store, and however many replicas follow, after the first list the
// copy is the registry's state at the revision that it names; and in the end it is the registry's state.
func TestFeed_IsTrueAtEveryMoment(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.registry.seed(seed)
				for range 20 {
					w.registry.mutate()
				}
				w.follow(2)
				for range 200 {
					switch n := w.registry.draw(40); {
					case n < 24:
						w.registry.mutate()
					case n < 34:
						pass(time.Duration(w.registry.draw(400)) * time.Millisecond)
					case n == 34:
						w.registry.cut(status.Error(codes.Unavailable, "draining"))
					case n == 35:
						w.registry.compact()
					case n == 36:
						w.registry.become()
					case n == 37:
						w.store.set(func(c *copies) { c.refuse++ })
					case n == 38:
						w.store.set(func(c *copies) { c.lose++ })
					case n == 39:
						down := w.registry.draw(2) == 0
						w.registry.set(func(r *fakeRegistry) { r.down, r.mute = down, !down })
						if down {
							w.registry.cut(status.Error(codes.Unavailable, "down"))
						}
						pass(time.Duration(w.registry.draw(100)) * time.Second)
						w.registry.set(func(r *fakeRegistry) { r.down, r.mute = false, false })
					}
					w.store.judge()
				}
				w.registry.set(func(r *fakeRegistry) { r.disturb = false })
				w.current("in the end", 2*time.Minute)
			})
		})
	}
}
