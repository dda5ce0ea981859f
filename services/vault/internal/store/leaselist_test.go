package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/page"
)

// leasesOf are grant and instance of a list's leases, read page by page.
func (c *counter) leasesOf(l lease.List) string {
	c.t.Helper()
	var out []string
	for {
		found, rest, err := c.store.Leases(c.t.Context(), l)
		if err != nil {
			c.t.Fatal(err)
		}
		if len(found) > l.Size {
			found = found[:l.Size]
			rest = found[l.Size-1].Place(l.Order)
		}
		for _, d := range found {
			out = append(out, d.GrantUID+d.InstanceID)
		}
		if rest == nil {
			return strings.Join(out, " ")
		}
		l.After = rest
	}
}

func TestLeases_OfEveryKindAndInEveryOrder(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		for i, run := range []string{"a", "b", "a"} {
			c.grant(fmt.Sprint("g", i), func(g *grant.Grant) { g.Run = run })
		}
		c.grant("other", func(g *grant.Grant) { g.Account = "other" })
		for i, at := range []string{"g0-1", "g1-1", "g2-1", "g0-2", "other-1"} {
			uid, instance, _ := strings.Cut(at, "-")
			now := start.Add(time.Duration(i) * time.Second)
			if _, err := c.store.Deliver(ctx, now, order(uid, "-"+instance, "v2")); err != nil {
				c.t.Fatal(err)
			}
		}
		if _, err := c.store.Deliver(ctx, start.Add(time.Minute), order("g0", "-1", "v2")); err != nil {
			c.t.Fatal(err)
		}
		if err := c.store.CloseLease(ctx, start, "g0", "-2", platform); err != nil {
			c.t.Fatal(err)
		}
		if _, err := c.store.RevokeGrant(ctx, start, "acme", "g2", platform); err != nil {
			c.t.Fatal(err)
		}
		name := []page.Order{{By: lease.ByGrant}, {By: lease.ByUID}}
		by := func(key string, desc bool) []page.Order { return append([]page.Order{{By: key, Desc: desc}}, name...) }
		for _, tt := range []struct {
			name string
			list lease.List
			want string
		}{
			{"in the order of opening", lease.List{Page: page.Page{Order: by(lease.ByOpenTime, false)}}, "g0-1 g1-1 g2-1 g0-2"},
			{"the last delivered to first", lease.List{Page: page.Page{Order: by(lease.ByDeliverTime, true)}}, "g0-1 g0-2 g2-1 g1-1"},
			{"of a grant", lease.List{Page: page.Page{Order: by(lease.ByOpenTime, false)}, GrantUID: "g0"}, "g0-1 g0-2"},
			{"of another account's grant", lease.List{Page: page.Page{Order: name}, GrantUID: "other"}, ""},
			{"of a run", lease.List{Page: page.Page{Order: by(lease.ByOpenTime, true)}, Run: "a"}, "g0-2 g2-1 g0-1"},
			{"open", lease.List{Page: page.Page{Order: name}, OpenAt: start}, "g0-1 g1-1"},
			{"what passes", lease.List{Page: page.Page{Order: name}, Passes: func(d lease.Detail) bool { return d.State(start) == lease.Ended }}, "g2-1"},
			{"of an integration", lease.List{Page: page.Page{Order: name}, Integration: "none"}, ""},
			{"of a project", lease.List{Page: page.Page{Order: by(lease.ByOpenTime, false)}, Project: "accounts/acme/projects/network"}, "g0-1 g1-1 g2-1 g0-2"},
		} {
			for size := 1; size <= 5; size++ {
				tt.list.Account, tt.list.Size = "acme", size
				if got := c.leasesOf(tt.list); got != tt.want {
					c.t.Errorf("%s, %d a page: %s, want %s", tt.name, size, got, tt.want)
				}
			}
		}
	})
}

func TestLease_ShowsWhatWasDeliveredLastAndWhatIsHeld(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		m := c.master()
		c.grant("g1")
		opened, err := c.store.Deliver(ctx, start, whole("g1", "instance", "v2"))
		if err != nil {
			c.t.Fatal(err)
		}
		read := func() lease.Detail {
			c.t.Helper()
			d, err := c.store.Lease(ctx, "acme", "g1", opened.UID)
			if err != nil {
				c.t.Fatal(err)
			}
			d.Grant = grant.Grant{}
			return d
		}
		want := lease.Detail{
			Lease:    lease.Lease{UID: opened.UID, GrantUID: "g1", InstanceID: "instance", Generation: 1, OpenTime: start, DeliverTime: start},
			Material: lease.ClientSecret, Version: 2, ExpireTime: start.Add(time.Hour), Holds: []int64{2},
		}
		if diff := cmp.Diff(want, read()); diff != "" {
			c.t.Errorf("a secret: %s", diff)
		}
		if err := c.commit(m, promote("v2", "v3")); err != nil {
			c.t.Fatal(err)
		}
		later := start.Add(time.Minute)
		if _, err := c.store.Deliver(ctx, later, whole("g1", "instance", "v3")); err != nil {
			c.t.Fatal(err)
		}
		if _, err := c.store.Deliver(ctx, later, order("g1", "instance", "v3")); err != nil {
			c.t.Fatal(err)
		}
		want.Generation, want.DeliverTime, want.Material, want.Audience, want.Version, want.Holds =
			3, later, lease.AccessToken, "https://management.azure.com", 3, []int64{2, 3}
		if diff := cmp.Diff(want, read()); diff != "" {
			c.t.Errorf("another secret, and a token: %s", diff)
		}
		for _, name := range [][3]string{{"other", "g1", opened.UID}, {"acme", "g2", opened.UID}, {"acme", "g1", "none"}} {
			_, err := c.store.Lease(ctx, name[0], name[1], name[2])
			refusedWith(c.t, fmt.Sprint(name), err, lease.ErrNotFound)
			_, err = c.store.RevokeLease(ctx, later, name[0], name[1], name[2], platform)
			refusedWith(c.t, fmt.Sprint("revoke ", name), err, lease.ErrNotFound)
		}

		before := c.newest()
		for i := range 2 {
			d, err := c.store.RevokeLease(ctx, later.Add(time.Duration(i)*time.Minute), "acme", "g1", opened.UID, platform)
			if err != nil || !d.CloseTime.Equal(later) || d.Holds != nil || d.State(later) != lease.Closed || d.Generation != 3 {
				c.t.Errorf("revoked: %+v, %v", d, err)
			}
		}
		c.holders("revoked")
		if changes, _, err := c.store.Changes(ctx, before, 10); err != nil || len(changes) != 1 || changes[0].GrantUID != "g1" {
			c.t.Errorf("told of %+v, %v", changes, err)
		}
		if got := c.rows(4, `SELECT kind, reason, actor, instance_id FROM audit_events WHERE kind = 'LeaseRevoked'`); !slices.Equal(got, []string{
			"LeaseRevoked Requested spiffe://phasekey.dev/platform instance",
		}) {
			c.t.Errorf("recorded %q", got)
		}
		_, err = c.store.Deliver(ctx, later, order("g1", "instance", "v3"))
		refusedWith(c.t, "delivery to the instance", err, lease.ErrClosed)
		if _, err := c.store.Deliver(ctx, later, order("g1", "another", "v3")); err != nil {
			c.t.Errorf("delivery to another instance: %v", err)
		}
	})
}

// More leases than one statement has parameters for.
func TestLeases_AWholePageOfThem(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		c.grant("g1")
		l, err := c.store.Deliver(ctx, start, whole("g1", "instance", "v2"))
		if err != nil {
			c.t.Fatal(err)
		}
		c.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
			INSERT INTO leases (uid, grant_uid, instance_id, generation, open_time, deliver_time, close_time)
			SELECT 'l' || (10000 + i), grant_uid, 'i' || i, 1, open_time, deliver_time, 1 FROM leases, n WHERE uid = $1`, l.UID)
		found, rest, err := c.store.Leases(ctx, lease.List{Account: "acme", Page: page.Page{
			Order: []page.Order{{By: lease.ByUID}}, Size: 1000,
		}})
		if err != nil || len(found) != 1001 || rest != nil {
			c.t.Fatalf("%d found, %v, %v", len(found), rest, err)
		}
		if i := slices.IndexFunc(found, func(d lease.Detail) bool { return d.UID == l.UID }); i < 0 || found[i].Version != 2 || len(found[i].Holds) != 1 {
			c.t.Errorf("the lease that holds is not shown so: %d", i)
		}
	})
}
