package sqldb_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

type listed struct {
	id, region string
	time       int64
}

func TestPage_GoesOnBehindAPlace(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		var all []listed
		for n := range 60 {
			one := listed{id: fmt.Sprintf("%02d", n), region: fmt.Sprint("r", n%3), time: int64(n * 7 % 20)} // as texts 9 is behind 10
			all = append(all, one)
			if err := db.Tx(t.Context(), insert(one.id, one.region, one.id, one.time)); err != nil {
				t.Fatal(err)
			}
		}
		for by, order := range map[string]sqldb.Order{
			"id":                         {{Column: "id"}},
			"id DESC":                    {{Column: "id", Desc: true}},
			"region, balance DESC, id":   {{Column: "region"}, {Column: "balance", Desc: true, Micros: true}, {Column: "id"}},
			"balance, region DESC, id":   {{Column: "balance", Micros: true}, {Column: "region", Desc: true}, {Column: "id"}},
			"region DESC, id DESC":       {{Column: "region", Desc: true}, {Column: "id", Desc: true}},
			"balance DESC, region, name": {{Column: "balance", Desc: true, Micros: true}, {Column: "region"}, {Column: "name"}},
		} {
			if order.By() != by {
				t.Errorf("it is ordered by %q, want %q", order.By(), by)
			}
			place := func(l listed) (values []string) {
				for _, k := range order {
					values = append(values, map[string]string{"id": l.id, "name": l.id, "region": l.region, "balance": strconv.FormatInt(l.time, 10)}[k.Column])
				}
				return values
			}
			want := slices.Clone(all)
			slices.SortFunc(want, func(a, b listed) int {
				for _, k := range order {
					c := map[string]int{
						"id": cmp.Compare(a.id, b.id), "name": cmp.Compare(a.id, b.id), "region": cmp.Compare(a.region, b.region), "balance": cmp.Compare(a.time, b.time),
					}[k.Column]
					if k.Desc {
						c = -c
					}
					if c != 0 {
						return c
					}
				}
				return 0
			})
			read := func(after []string, limit int) (rows []listed, err error) {
				where, args := "TRUE", []any(nil)
				if after != nil {
					where, err = order.Behind(after, func(value any) string {
						args = append(args, value)
						return "$" + strconv.Itoa(len(args))
					})
					if err != nil {
						return nil, err
					}
				}
				err = db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
					rows, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (l listed, err error) {
						return l, row.Scan(&l.id, &l.region, &l.time)
					}, `SELECT id, region, balance FROM accounts WHERE `+where+` ORDER BY `+order.By()+` LIMIT `+strconv.Itoa(limit), args...)
					return err
				})
				return rows, err
			}
			for filter, passes := range map[string]func(l listed) bool{"all": nil, "a third": func(l listed) bool { return l.region == "r1" }} {
				wanted := want
				if passes != nil {
					wanted = slices.DeleteFunc(slices.Clone(want), func(l listed) bool { return !passes(l) })
				}
				var got []listed
				var after []string
				for range all {
					found, rest, err := sqldb.Page(after, 7, passes, read, place)
					if err != nil || rest != nil || len(found) > 7 {
						t.Fatalf("by %s: %d found, the rest is behind %q, %v", by, len(found), rest, err)
					}
					got = append(got, found...)
					if len(found) < 7 {
						break
					}
					after = place(found[len(found)-1])
				}
				if !slices.Equal(got, wanted) {
					t.Errorf("by %s, of %s it is %v, want %v", by, filter, got, wanted)
				}
			}
		}
	})
}

// What few pass makes short pages, not long reads.
func TestPage_ReadsOnlySoMuch(t *testing.T) {
	t.Parallel()
	const rows = 12_345
	for _, tt := range []struct {
		name         string
		passes       func(n int) bool
		after        []string
		found, reads int
		rest         []string
	}{
		{name: "few pass", passes: func(n int) bool { return n%2000 == 0 }, found: 3, reads: 5, rest: []string{"4999"}},
		{name: "none pass", passes: func(int) bool { return false }, reads: 5, rest: []string{"4999"}},
		{name: "and there are few left", passes: func(int) bool { return false }, after: []string{"9999"}, reads: 3},
		{name: "enough pass", passes: func(n int) bool { return n >= 1995 }, found: 10, reads: 3},
		{name: "there is no filter", found: 10, reads: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			reads := 0
			found, rest, err := sqldb.Page(tt.after, 10, tt.passes, func(after []string, limit int) (all []int, err error) {
				reads++
				from := 0
				if after != nil {
					if from, err = strconv.Atoi(after[0]); err != nil {
						return nil, err
					}
					from++
				}
				for n := from; n < min(from+limit, rows); n++ {
					all = append(all, n)
				}
				return all, nil
			}, func(n int) []string { return []string{strconv.Itoa(n)} })
			if err != nil || len(found) != tt.found || reads != tt.reads || !slices.Equal(rest, tt.rest) || (rest == nil) != (tt.rest == nil) {
				t.Errorf("found %v by %d reads, the rest is behind %q, %v", found, reads, rest, err)
			}
		})
	}
}

func TestPage_FailsAsItsReadingDoes(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	read := func([]string, int) ([]string, error) { return nil, broken }
	for _, passes := range []func(string) bool{nil, func(string) bool { return true }} {
		if _, _, err := sqldb.Page(nil, 1, passes, read, func(s string) []string { return []string{s} }); !errors.Is(err, broken) {
			t.Errorf("Page: %v", err)
		}
	}
	if text, err := (sqldb.Order{{Column: "time", Micros: true}}).Behind([]string{"yesterday"}, func(any) string { return "$1" }); err == nil {
		t.Errorf("behind a time that is none: %s", text)
	}
}
