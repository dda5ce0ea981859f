package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

func TestStore_LeasesResumeCloseAndStayClosed(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		c.grant("g1")
		var uid string
		for generation := int64(1); generation <= 3; generation++ {
			l, err := c.store.Deliver(ctx, start, order("g1", "a", "v2"))
			if err != nil || l.Generation != generation || (uid != "" && l.UID != uid) {
				c.t.Fatalf("delivery %d: lease %+v, %v", generation, l, err)
			}
			uid = l.UID
		}
		if err := c.store.CloseLease(ctx, start, "g1", "never", platform); err != nil {
			c.t.Errorf("close of a lease that never was: %v", err)
		}
		for range 2 {
			if err := c.store.CloseLease(ctx, start, "g1", "a", platform); err != nil {
				c.t.Errorf("close: %v", err)
			}
		}
		if _, err := c.store.Deliver(ctx, start, order("g1", "a", "v2")); !errors.Is(err, lease.ErrClosed) {
			c.t.Errorf("delivery to a closed lease: %v", err)
		}
		e, err := c.store.Entitlement(ctx, "g1", "a")
		if err != nil || !errors.Is(e.Check(start), lease.ErrClosed) {
			c.t.Errorf("entitlement of a closed lease: %v, %v", e.Check(start), err)
		}
		if _, err := c.store.RevokeGrant(ctx, start, "acme", "g1", platform); err != nil {
			c.t.Fatal(err)
		}
		if _, err := c.store.Deliver(ctx, start, order("g1", "a", "v2")); !errors.Is(err, grant.ErrRevoked) {
			c.t.Errorf("delivery to a closed lease of a revoked grant: %v", err)
		}
		want := []string{
			"GrantCreated  0 ", "LeaseOpened a 0 ", "CredentialDelivered a 1 v2", "CredentialDelivered a 2 v2", "CredentialDelivered a 3 v2",
			"LeaseClosed a 3 ", "GrantRevoked  0 ",
		}
		if got := c.audit(); !slices.Equal(got, want) {
			c.t.Errorf("audit %q, want %q", got, want)
		}
	})
}

func TestStore_FourLeasesWhoeverComesAtOnce(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("g1")
		c.grant("g2")
		const runners = 12
		var group sync.WaitGroup
		errs := make([]error, runners)
		for i := range runners {
			group.Go(func() {
				_, errs[i] = c.store.Deliver(c.t.Context(), start, order("g1", fmt.Sprint("instance-", i), "v2"))
			})
		}
		group.Wait()
		admitted := 0
		for _, err := range errs {
			switch {
			case err == nil:
				admitted++
			case !errors.Is(err, lease.ErrTooMany):
				c.t.Errorf("refused with %v", err)
			}
		}
		if admitted != lease.MaxPerGrant || c.leases() != lease.MaxPerGrant {
			c.t.Errorf("%d admitted, %d leases; want %d", admitted, c.leases(), lease.MaxPerGrant)
		}
		c.audit()
		if _, err := c.store.Deliver(c.t.Context(), start, order("g2", "instance-0", "v2")); err != nil {
			c.t.Errorf("another grant's first: %v", err)
		}
	})
}

// TestStore_ClosedLeasesCostNothing is against a runner that opens and closes leases for as long as its grant lives, and thereby
// would slow the one connection of SQLite for everybody.
func TestStore_ClosedLeasesCostNothing(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("g1")
		deliver := func() float64 {
			return testing.AllocsPerRun(5, func() {
				if _, err := c.store.Deliver(c.t.Context(), start, order("g1", "a", "v2")); err != nil {
					c.t.Error(err)
				}
			})
		}
		before := deliver()
		err := c.db.Tx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			for i := range 2000 {
				if _, err := tx.Exec(ctx, `INSERT INTO leases (uid, grant_uid, instance_id, generation, open_time, deliver_time, close_time)
					VALUES ($1, 'g1', $1, 1, 1, 1, 1)`, fmt.Sprint("over-", i)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			c.t.Fatal(err)
		}
		if after := deliver(); after > 2*before {
			c.t.Errorf("a delivery allocates %v times beside closed leases, %v without", after, before)
		}
	})
}
