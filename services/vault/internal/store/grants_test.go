package store_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/page"
)

func TestStore_GrantsAreKeptWhole(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		want, hash := c.grant("g1", func(g *grant.Grant) { g.CertificateSHA256 = "ab" })
		ctx := c.t.Context()
		for name, read := range map[string]func() (grant.Grant, error){
			"by name":  func() (grant.Grant, error) { return c.store.Grant(ctx, "acme", "g1") },
			"by token": func() (grant.Grant, error) { return c.store.GrantByToken(ctx, hash) },
		} {
			if got, err := read(); err != nil || !cmp.Equal(got, want) {
				c.t.Errorf("%s: %v, %s", name, err, cmp.Diff(want, got))
			}
		}
		if _, err := c.store.Grant(ctx, "other", "g1"); !errors.Is(err, grant.ErrNotFound) {
			c.t.Errorf("another account's grant: %v", err)
		}
		if _, err := c.store.GrantByToken(ctx, grant.Hash{1}); !errors.Is(err, grant.ErrUnknown) {
			c.t.Errorf("another token: %v", err)
		}
	})
}

func TestStore_RequestID(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		request := grant.RequestKey{ID: "request", Fingerprint: [32]byte{1}}
		create := func(now time.Time, uid string, request grant.RequestKey) (grant.Grant, grant.Hash, error) {
			g, _, hash := c.fresh(uid)
			g, err := c.store.CreateGrant(ctx, now, g, hash, request, platform)
			return g, hash, err
		}
		if _, found, err := c.store.RepeatGrant(ctx, start, "acme", grant.Hash{1}, request, platform); found || err != nil {
			c.t.Fatalf("before the first: %v, %v", found, err)
		}
		_, old, err := create(start, "g1", request)
		if err != nil {
			c.t.Fatal(err)
		}
		repeated, fresh, err := create(start, "g2", request)
		if err != nil || repeated.UID != "g1" {
			c.t.Fatalf("repeat made %q, %v", repeated.UID, err)
		}
		if _, err := c.store.GrantByToken(ctx, old); !errors.Is(err, grant.ErrUnknown) {
			c.t.Errorf("replaced token: %v", err)
		}
		if err := c.store.UseGrant(ctx, start, old); !errors.Is(err, grant.ErrUnknown) {
			c.t.Errorf("use of replaced token: %v", err)
		}
		if _, _, err := create(start, "g3", grant.RequestKey{ID: "request", Fingerprint: [32]byte{2}}); !errors.Is(err, grant.ErrRequestIDReused) {
			c.t.Errorf("other contents: %v", err)
		}
		if err := c.store.UseGrant(ctx, start.Add(time.Second), fresh); err != nil {
			c.t.Fatal(err)
		}
		if _, _, err := c.store.RepeatGrant(ctx, start, "acme", grant.Hash{1}, request, platform); !errors.Is(err, grant.ErrInUse) {
			c.t.Errorf("repeat after use: %v", err)
		}
		if g, err := c.store.GrantByToken(ctx, fresh); err != nil || !g.UseTime.Equal(start.Add(time.Second)) {
			c.t.Errorf("used at %v, %v", g.UseTime, err)
		}
		if g, _, err := create(start.Add(24*time.Hour), "g4", grant.RequestKey{ID: "request", Fingerprint: [32]byte{2}}); err != nil || g.UID != "g4" {
			c.t.Errorf("a day later: made %q, %v", g.UID, err)
		}
		want := []string{"GrantCreated  0 ", "GrantTokenReplaced  0 ", "GrantCreated  0 "}
		if got := c.audit(); !slices.Equal(got, want) {
			c.t.Errorf("audit %q, want %q", got, want)
		}
	})
}

func TestStore_SameRequestAtOnceMakesOneGrant(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		const callers = 8
		var group sync.WaitGroup
		uids := make([]string, callers)
		hashes := make([]grant.Hash, callers)
		for i := range callers {
			g, _, hash := c.fresh(fmt.Sprint("g", i))
			hashes[i] = hash
			group.Go(func() {
				got, err := c.store.CreateGrant(c.t.Context(), start, g, hash, grant.RequestKey{ID: "request"}, platform)
				if err != nil {
					c.t.Error(err)
				}
				uids[i] = got.UID
			})
		}
		group.Wait()
		if slices.Sort(uids); len(slices.Compact(uids)) != 1 {
			c.t.Errorf("grants %v, want one", uids)
		}
		living := 0
		for _, hash := range hashes {
			if _, err := c.store.GrantByToken(c.t.Context(), hash); err == nil {
				living++
			}
		}
		if living != 1 {
			c.t.Errorf("%d tokens open the grant, want one", living)
		}
	})
}

func TestStore_GrantsByPage(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		for _, uid := range []string{"g3", "g1", "g2"} {
			c.grant(uid)
		}
		c.grant("g0", func(g *grant.Grant) { g.Account = "other" })
		read := func(after string, limit int) (uids []string) {
			p := page.Page{Order: []page.Order{{By: grant.ByUID}}, Size: limit - 1}
			if after != "" {
				p.After = page.Place{after}
			}
			found, _, err := c.store.Grants(c.t.Context(), grant.List{Account: "acme", Page: p})
			if err != nil {
				c.t.Fatal(err)
			}
			for _, g := range found {
				uids = append(uids, g.UID)
			}
			return uids
		}
		if got := read("", 2); !slices.Equal(got, []string{"g1", "g2"}) {
			c.t.Errorf("first page %v", got)
		}
		if got := read("g2", 2); !slices.Equal(got, []string{"g3"}) {
			c.t.Errorf("second page %v", got)
		}
	})
}

func TestStore_ExtendAndRevoke(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		g, _ := c.grant("g1")
		_, before, err := c.store.Changes(ctx, 0, 0)
		if err != nil {
			c.t.Fatal(err)
		}
		steps := []struct {
			name string
			do   func() (grant.Grant, error)
			end  time.Time
			err  error
		}{
			{"extend", func() (grant.Grant, error) {
				return c.store.ExtendGrant(ctx, start, "acme", "g1", start.Add(2*time.Hour), platform)
			}, start.Add(2 * time.Hour), nil},
			{"extend to less", func() (grant.Grant, error) {
				return c.store.ExtendGrant(ctx, start, "acme", "g1", g.ExpireTime, platform)
			}, start.Add(2 * time.Hour), nil},
			{"extend another account's", func() (grant.Grant, error) {
				return c.store.ExtendGrant(ctx, start, "other", "g1", start.Add(3*time.Hour), platform)
			}, time.Time{}, grant.ErrNotFound},
			{"revoke another account's", func() (grant.Grant, error) { return c.store.RevokeGrant(ctx, start, "other", "g1", platform) }, time.Time{}, grant.ErrNotFound},
			{"revoke", func() (grant.Grant, error) { return c.store.RevokeGrant(ctx, start, "acme", "g1", platform) }, start.Add(2 * time.Hour), nil},
			{"revoke again", func() (grant.Grant, error) {
				return c.store.RevokeGrant(ctx, start.Add(time.Minute), "acme", "g1", platform)
			}, start.Add(2 * time.Hour), nil},
			{"extend what is revoked", func() (grant.Grant, error) {
				return c.store.ExtendGrant(ctx, start, "acme", "g1", start.Add(3*time.Hour), platform)
			}, time.Time{}, grant.ErrRevoked},
		}
		for _, step := range steps {
			got, err := step.do()
			if !errors.Is(err, step.err) || !got.ExpireTime.Equal(step.end) {
				c.t.Errorf("%s: end %v, error %v; want %v, %v", step.name, got.ExpireTime, err, step.end, step.err)
			}
		}
		if got, err := c.store.Grant(ctx, "acme", "g1"); err != nil || !got.RevokeTime.Equal(start) {
			c.t.Errorf("revoked at %v, %v; want the first time", got.RevokeTime, err)
		}
		if got, want := c.audit(), []string{"GrantCreated  0 ", "GrantExtended  0 ", "GrantRevoked  0 "}; !slices.Equal(got, want) {
			c.t.Errorf("audit %q, want %q", got, want)
		}
		changes, _, err := c.store.Changes(ctx, before, 10)
		if err != nil {
			c.t.Fatal(err)
		}
		if len(changes) != 2 || changes[0].GrantUID != "g1" || changes[0].Seq != before+1 || changes[1].Seq != before+2 {
			c.t.Errorf("changes %+v, want one for each thing that changed", changes)
		}
	})
}
