package store_test

import (
	"context"
	"errors"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// signed is an order of an assertion under the version.
func signed(grantUID, instance, version string) store.Delivery {
	d := order(grantUID, instance, version)
	d.Material, d.Audience, d.ClientRequestID = lease.FederatedToken, "api://AzureADTokenExchange", "jti"
	return d
}

// v2 is ACTIVE, and v1 is RETIRING.
func TestStore_DeliversByTheKindOfIntegrationAndVersion(t *testing.T) {
	for _, tt := range []struct {
		name             string
		federated        bool
		policy           []lease.Material
		trusts           []string // versions that are federated
		token, secret    bool
		active, retiring bool // an assertion under v2, and v1
	}{
		{name: "federated", federated: true, trusts: []string{"v1", "v2"}, token: true, active: true, retiring: true},
		{name: "federated, tokens alone", federated: true, policy: []lease.Material{lease.AccessToken}, trusts: []string{"v1", "v2"}, token: true},
		{name: "federated, assertions alone", federated: true, policy: []lease.Material{lease.FederatedToken}, trusts: []string{"v1", "v2"}, active: true, retiring: true},
		{name: "federated, with what was allowed of a secret", federated: true, policy: []lease.Material{lease.ClientSecret}, trusts: []string{"v1", "v2"}},
		{name: "federated, and it was a secret", federated: true, trusts: []string{"v2"}, token: true, active: true},
		{name: "federated, and it is a secret still", federated: true, policy: []lease.Material{lease.AccessToken, lease.ClientSecret, lease.FederatedToken}, token: true},
		{name: "a secret, and it was federated", policy: []lease.Material{lease.AccessToken, lease.ClientSecret, lease.FederatedToken}, trusts: []string{"v1"}, token: true, secret: true},
		{name: "a secret, and it is federated still", policy: []lease.Material{lease.AccessToken, lease.ClientSecret, lease.FederatedToken}, trusts: []string{"v1", "v2"}, token: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			overTheCounter(t, func(c *counter) {
				c.grant("g1")
				i, err := c.store.Integration(c.t.Context(), "uid")
				if err != nil {
					c.t.Fatal(err)
				}
				i.DeliveryMaterials, i.Federated = tt.policy, tt.federated
				at := store.Projection{Incarnation: "registry", Revision: 6, BookmarkTime: start}
				if err := c.store.AdvanceProjection(c.t.Context(), start, at, store.Wanted{Integrations: []store.Integration{i}}); err != nil {
					c.t.Fatal(err)
				}
				for _, id := range tt.trusts {
					if err := c.db.Tx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
						_, err := tx.Exec(ctx, `UPDATE credential_versions SET signing_key = 'k1' WHERE id = $1`, id)
						return err
					}); err != nil {
						c.t.Fatal(err)
					}
				}
				for _, d := range []struct {
					store.Delivery
					allowed bool
				}{
					{order("g1", "t", "v2"), tt.token}, {whole("g1", "s", "v2"), tt.secret}, {signed("g1", "a", "v2"), tt.active}, {signed("g1", "r", "v1"), tt.retiring},
				} {
					_, err := c.store.Deliver(c.t.Context(), start, d.Delivery)
					if d.allowed != (err == nil) || !d.allowed && !errors.Is(err, lease.ErrVersionGone) {
						c.t.Errorf("%s of %s: %v", d.Material, d.VersionID, err)
					}
				}
				want := []string{}
				if tt.secret {
					want = append(want, "v2 1")
				}
				c.holders("delivered", want...)
			})
		})
	}
}

func TestStore_ADeliveryThatNamesItsLeaseIsOfThatLease(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("g1")
		d := order("g1", "a", "v2")
		d.LeaseUID = "chosen"
		for generation := range int64(2) {
			l, err := c.store.Deliver(c.t.Context(), start, d)
			if err != nil || l.UID != "chosen" || l.Generation != generation+1 {
				c.t.Fatalf("%+v, %v", l, err)
			}
		}
		d.LeaseUID = "another"
		if _, err := c.store.Deliver(c.t.Context(), start, d); !errors.Is(err, lease.ErrVersionGone) {
			c.t.Errorf("under another lease's name: %v", err)
		}
		d.LeaseUID = ""
		if l, err := c.store.Deliver(c.t.Context(), start, d); err != nil || l.UID != "chosen" || l.Generation != 3 {
			c.t.Errorf("under no name: %+v, %v", l, err)
		}
	})
}
