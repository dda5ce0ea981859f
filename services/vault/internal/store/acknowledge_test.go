package store_test

import (
	"errors"
	"slices"
	"testing"

	"phasekey.dev/services/vault/internal/lease"
)

func TestAcknowledge_ReleasesWhatWasDeliveredOnlyBefore(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx, m := c.t.Context(), c.master()
		c.grant("g1")
		deliver := func(instance, version string, token bool) {
			c.t.Helper()
			d := whole("g1", instance, version)
			if token {
				d = order("g1", instance, version)
			}
			if _, err := c.store.Deliver(ctx, start, d); err != nil {
				c.t.Fatal(err)
			}
		}
		acknowledge := func(step, instance string, generation int64, want ...int64) {
			c.t.Helper()
			before := c.touches()
			released, err := c.store.Acknowledge(ctx, start, "g1", instance, generation, platform)
			if err != nil || !slices.Equal(released, want) {
				c.t.Errorf("%s: released %v, %v; want %v", step, released, err, want)
			}
			if touched := c.touches() != before; touched != (len(want) > 0) {
				c.t.Errorf("%s: master told: %t", step, touched)
			}
		}
		deliver("a", "v2", false) // generation 1
		deliver("a", "v2", false) // 2
		deliver("b", "v2", false)
		acknowledge("the first of two", "a", 1)
		acknowledge("the second of two, of one version", "a", 2)
		c.holders("nothing newer", "v2 2")
		if err := c.commit(m, promote("v2", "v3")); err != nil {
			c.t.Fatal(err)
		}
		deliver("a", "v3", false) // 3
		deliver("a", "v3", true)  // 4
		c.holders("rotated", "v2 2", "v3 1")
		acknowledge("what may be used along with the old", "a", 2)
		for _, generation := range []int64{5, 1 << 60} {
			if _, err := c.store.Acknowledge(ctx, start, "g1", "a", generation, platform); !errors.Is(err, lease.ErrNotDelivered) {
				c.t.Errorf("generation %d, which is to come: %v", generation, err)
			}
		}
		if _, err := c.store.Acknowledge(ctx, start, "g1", "nobody", 1, platform); !errors.Is(err, lease.ErrNotDelivered) {
			c.t.Errorf("an instance that has nothing: %v", err)
		}
		c.holders("not yet", "v2 2", "v3 1")
		acknowledge("the new one", "a", 3, 2)
		c.holders("acknowledged", "v2 1", "v3 1")
		acknowledge("the new one again", "a", 3)
		acknowledge("a token, which says that the secret is not used either", "a", 4, 3)
		c.holders("tokens only", "v2 1")
		if err := c.commit(m, revoke("v2")); err == nil {
			c.t.Error("what another instance holds was revoked")
		}

		// What nobody remembers delivering is not let go of.
		c.exec(`DELETE FROM audit_events WHERE instance_id = 'b'`)
		deliver("b", "v3", false)
		acknowledge("the new one, the old one's record is gone", "b", 2)
		c.holders("held", "v2 1", "v3 1")
		if err := c.store.CloseLease(ctx, start, "g1", "b", platform); err != nil {
			c.t.Fatal(err)
		}
		acknowledge("of a closed lease", "b", 2)
		if got := c.rows(3, `SELECT kind, instance_id, generation FROM audit_events WHERE kind = 'LeaseAcknowledged' ORDER BY writer, seq`); !slices.Equal(got, []string{
			"LeaseAcknowledged a 3", "LeaseAcknowledged a 4",
		}) {
			c.t.Errorf("recorded %q", got)
		}
	})
}
