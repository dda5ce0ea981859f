package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/page"
)

// listed are the UIDs of a list, read page by page.
func (c *counter) listed(l grant.List) (uids []string) {
	c.t.Helper()
	for {
		found, rest, err := c.store.Grants(c.t.Context(), l)
		if err != nil {
			c.t.Fatal(err)
		}
		if len(found) > l.Size {
			found = found[:l.Size]
			rest = found[l.Size-1].Place(l.Order)
		}
		for _, g := range found {
			uids = append(uids, g.UID)
		}
		if rest == nil {
			return uids
		}
		l.After = rest
	}
}

func TestGrants_InEveryOrderAndOfEveryKind(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		for i, run := range []string{"a", "b", "a", "b", "a"} {
			c.grant(fmt.Sprint("g", i), func(g *grant.Grant) {
				g.Run, g.CreateTime, g.ExpireTime = run, start.Add(time.Duration(i/2)*time.Second), start.Add(time.Duration(9-i)*time.Minute)
				if i == 3 {
					g.Project, g.Integration = "accounts/acme/projects/other", "accounts/acme/integrations/other"
				}
			})
		}
		c.grant("g9", func(g *grant.Grant) { g.Account = "other" })
		if _, err := c.store.RevokeGrant(c.t.Context(), start, "acme", "g4", platform); err != nil {
			c.t.Fatal(err)
		}
		by := func(order ...page.Order) []page.Order { return order }
		uid := page.Order{By: grant.ByUID}
		odd := func(g grant.Grant) bool { return g.UID == "g1" || g.UID == "g3" }
		for _, tt := range []struct {
			name string
			list grant.List
			want string
		}{
			{"all", grant.List{Page: page.Page{Order: by(uid)}}, "g0 g1 g2 g3 g4"},
			{"backwards", grant.List{Page: page.Page{Order: by(page.Order{By: grant.ByUID, Desc: true})}}, "g4 g3 g2 g1 g0"},
			{"by end", grant.List{Page: page.Page{Order: by(page.Order{By: grant.ByExpireTime}, uid)}}, "g4 g3 g2 g1 g0"},
			{"the newest first", grant.List{Page: page.Page{Order: by(page.Order{By: grant.ByCreateTime, Desc: true}, uid)}}, "g4 g2 g3 g0 g1"},
			{"by creation", grant.List{Page: page.Page{Order: by(page.Order{By: grant.ByCreateTime}, page.Order{By: grant.ByUID, Desc: true})}}, "g1 g0 g3 g2 g4"},
			{"of a run", grant.List{Page: page.Page{Order: by(uid)}, Run: "a"}, "g0 g2 g4"},
			{"of a project", grant.List{Page: page.Page{Order: by(uid)}, Project: "accounts/acme/projects/other"}, "g3"},
			{"of an integration", grant.List{Page: page.Page{Order: by(uid)}, Integration: "accounts/acme/integrations/read"}, "g0 g1 g2 g4"},
			{"live", grant.List{Page: page.Page{Order: by(uid)}, ActiveAt: start.Add(7 * time.Minute)}, "g0 g1"},
			{"what passes", grant.List{Page: page.Page{Order: by(uid)}, Passes: odd}, "g1 g3"},
			{"what passes of a run", grant.List{Page: page.Page{Order: by(page.Order{By: grant.ByExpireTime}, uid)}, Passes: odd, Run: "b"}, "g3 g1"},
		} {
			for size := 1; size <= 6; size++ {
				tt.list.Account, tt.list.Size = "acme", size
				if got := strings.Join(c.listed(tt.list), " "); got != tt.want {
					c.t.Errorf("%s, %d a page: %s, want %s", tt.name, size, got, tt.want)
				}
			}
		}
	})
}

func TestGrants_APageReadsOnlySoMuch(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("model")
		c.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
			INSERT INTO grants (uid, account, project, project_uid, phase, access, run, integration, integration_uid, subscription_id, incarnation,
				revision, certificate_sha256, token_hash, create_time, expire_time, revoke_time, use_time, turn)
			SELECT 'n' || (10000 + i), account, project, project_uid, phase, access, 'run-' || i, integration, integration_uid, subscription_id, incarnation,
				revision, certificate_sha256, CAST('hash-' || i AS ` + c.bytes() + `), create_time, expire_time, revoke_time, use_time, 0 FROM grants, n WHERE uid = 'model'`)
		judged := 0
		l := grant.List{Account: "acme", Page: page.Page{Order: []page.Order{{By: grant.ByUID}}, Size: 10}, Passes: func(g grant.Grant) bool {
			judged++
			return g.Run == "run-6000"
		}}
		found, rest, err := c.store.Grants(c.t.Context(), l)
		if err != nil || len(found) != 0 || !slices.Equal(rest, page.Place{"n14999"}) || judged != 5000 {
			c.t.Errorf("first page: %d found, goes on behind %v, %d judged, %v", len(found), rest, judged, err)
		}
		l.After = rest
		found, rest, err = c.store.Grants(c.t.Context(), l)
		if err != nil || len(found) != 1 || rest != nil || judged != 6001 {
			c.t.Errorf("second page: %d found, goes on behind %v, %d judged, %v", len(found), rest, judged, err)
		}
	})
}

// bytes is the type of a hash.
func (c *counter) bytes() string {
	if c.db.Driver() == "postgres" {
		return "BYTEA"
	}
	return "BLOB"
}

// revokeGrants revokes all that the scope means, so many at once.
func (c *counter) revokeGrants(scope grant.Scope, limit int) (revoked int) {
	c.t.Helper()
	for more := true; more; {
		var n int
		var err error
		if n, more, err = c.store.RevokeGrants(c.t.Context(), start, "acme", scope, limit, platform); err != nil {
			c.t.Fatal(err)
		}
		revoked += n
	}
	return revoked
}

func TestRevokeGrants_OfARunAndOfAnIntegration(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		for i, run := range []string{"a", "a", "b", "a", "b", "a", "a", "a"} {
			c.grant(fmt.Sprint("g", i), func(g *grant.Grant) {
				g.Run = run
				switch i {
				case 3:
					g.Account = "other"
				case 5:
					g.Integration = "accounts/acme/integrations/other"
				case 6:
					g.ExpireTime = start
				}
			})
		}
		if _, err := c.store.RevokeGrant(c.t.Context(), start, "acme", "g7", platform); err != nil {
			c.t.Fatal(err)
		}
		for _, uid := range []string{"g0", "g1", "g2"} {
			if _, err := c.store.Deliver(c.t.Context(), start, whole(uid, "instance-1", "v2")); err != nil {
				c.t.Fatal(err)
			}
		}
		c.holders("delivered", "v2 3")
		before := c.newest()
		if n := c.revokeGrants(grant.Scope{Run: "a"}, 2); n != 3 {
			c.t.Errorf("revoked %d of the run, want 3", n)
		}
		c.holders("run revoked", "v2 1")
		changes, _, err := c.store.Changes(c.t.Context(), before, 100)
		if err != nil {
			c.t.Fatal(err)
		}
		var told []string
		for i, change := range changes {
			told = append(told, change.GrantUID)
			if change.Seq != before+int64(i)+1 {
				c.t.Errorf("change %d after %d", change.Seq, before)
			}
		}
		slices.Sort(told)
		if !slices.Equal(told, []string{"g0", "g1", "g5"}) {
			c.t.Errorf("told of %v", told)
		}
		if n := c.revokeGrants(grant.Scope{Run: "a"}, 2); n != 0 {
			c.t.Errorf("revoked %d again", n)
		}
		if n := c.revokeGrants(grant.Scope{Integration: "accounts/acme/integrations/read"}, 50); n != 2 {
			c.t.Errorf("revoked %d of the integration, want 2", n)
		}
		c.holders("integration revoked")
		if got := c.rows(1, `SELECT uid FROM grants WHERE revoke_time = 0 ORDER BY uid`); !slices.Equal(got, []string{"g3", "g6"}) {
			c.t.Errorf("left alone: %v", got)
		}
		if got := c.rows(1, `SELECT COUNT(*) FROM audit_events WHERE kind = 'GrantRevoked' AND request_id = 'call-1'`); got[0] != "6" {
			c.t.Errorf("%s revocations on record, want 6", got)
		}
		_, err = c.store.Deliver(c.t.Context(), start, order("g2", "instance-1", "v2"))
		refusedWith(c.t, "delivery by a revoked grant", err, grant.ErrRevoked)
	})
}

func TestRevokeGrants_ManyAtOnceLeaveNone(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		for i := range 120 {
			c.grant(fmt.Sprintf("g%03d", i))
		}
		for i := range 20 {
			if _, err := c.store.Deliver(c.t.Context(), start, whole(fmt.Sprintf("g%03d", 6*i), "instance-1", "v2")); err != nil {
				c.t.Fatal(err)
			}
		}
		var together sync.WaitGroup
		counts := make([]int, 4)
		for i := range counts {
			together.Go(func() {
				scope := grant.Scope{Run: "run-1"}
				if i%2 == 1 {
					scope = grant.Scope{Integration: "accounts/acme/integrations/read"}
				}
				counts[i] = c.revokeGrants(scope, 7+i)
				// Whoever is answered finds none alive, whoever revoked them.
				if live := c.rows(1, `SELECT COUNT(*) FROM grants WHERE revoke_time = 0`); live[0] != "0" {
					c.t.Errorf("caller %d was answered, and %s are live", i, live[0])
				}
			})
		}
		together.Wait()
		if total := counts[0] + counts[1] + counts[2] + counts[3]; total != 120 {
			c.t.Errorf("revoked %v, want 120 in all", counts)
		}
		c.holders("all revoked")
	})
}

func refusedWith(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
