package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

func TestStore_DeliverRecordsOnlyWhatIsEntitled(t *testing.T) {
	type setup func(c *counter)
	sql := func(query string, args ...any) setup { return func(c *counter) { c.exec(query, args...) } }
	for _, tt := range []struct {
		name    string
		setup   setup
		version string
		now     time.Time
		// audience is one that the integration must allow.
		audience string
		want     error
	}{
		{name: "entitled", version: "v2"},
		{name: "allowed audience", version: "v2", audience: "https://vault.azure.net"},
		{name: "allowed among others", version: "v2", audience: "https://vault.azure.net",
			setup: sql(`UPDATE integrations SET allowed_audiences = '["https://storage.azure.com","https://vault.azure.net"]'`)},
		{name: "audience allowed no longer", version: "v2", audience: "https://vault.azure.net",
			setup: sql(`UPDATE integrations SET allowed_audiences = '[]'`), want: lease.ErrVersionGone},
		{name: "audience that is part of one", version: "v2", audience: "https://vault.azure", want: lease.ErrVersionGone},
		{name: "by the retiring version", version: "v1"},
		{name: "revoked", version: "v2", setup: func(c *counter) {
			if _, err := c.store.RevokeGrant(c.t.Context(), start, "acme", "g1", platform); err != nil {
				c.t.Fatal(err)
			}
		}, want: grant.ErrRevoked},
		{name: "at its end", version: "v2", now: start.Add(time.Hour), want: grant.ErrExpired},
		{name: "version still being proven", version: "v3", want: lease.ErrVersionGone},
		{name: "version taken back", version: "v1", setup: sql(`UPDATE credential_versions SET state = 'REVOKING' WHERE id = 'v1'`), want: lease.ErrVersionGone},
		{name: "no such version", version: "v9", want: lease.ErrVersionGone},
		{name: "another integration's version", version: "v2", setup: sql(`UPDATE credential_versions SET integration_uid = 'other' WHERE id = 'v2'`), want: lease.ErrVersionGone},
		{name: "detached", version: "v2", setup: sql(`DELETE FROM attachments`), want: grant.ErrDetached},
		{name: "attached for writing only", version: "v2", setup: sql(`UPDATE attachments SET reads = 0, writes = 1`), want: grant.ErrDetached},
		{name: "another project is attached", version: "v2", setup: sql(`UPDATE attachments SET project_uid = 'other'`), want: grant.ErrDetached},
		{name: "another integration is attached", version: "v2", setup: sql(`UPDATE attachments SET integration_uid = 'other'`), want: grant.ErrDetached},
		{name: "integration being deleted", version: "v2", setup: sql(`UPDATE integrations SET deleting = 1`), want: grant.ErrIntegrationDeleted},
		{name: "integration gone", version: "v2", setup: sql(`DELETE FROM integrations`), want: grant.ErrIntegrationDeleted},
		{name: "project gone", version: "v2", setup: sql(`DELETE FROM projects`), want: grant.ErrIntegrationDeleted},
		{name: "one project of two", version: "v2", setup: sql(`INSERT INTO projects (uid, name, revision) VALUES ('other', 'accounts/acme/projects/other', 5)`)},
		{name: "copy behind", version: "v2", setup: sql(`UPDATE projection SET revision = 4`), want: grant.ErrBehind},
		{name: "copy behind and detached", version: "v2", setup: func(c *counter) {
			c.exec(`UPDATE projection SET revision = 4`)
			c.exec(`DELETE FROM attachments`)
		}, want: grant.ErrBehind},
		{name: "no copy yet", version: "v2", setup: sql(`DELETE FROM projection`), want: grant.ErrBehind},
		{name: "copy of another incarnation", version: "v2", setup: sql(`UPDATE projection SET revision = 1, incarnation = 'restored'`)},
		{name: "copy too old", version: "v2", setup: sql(`UPDATE projection SET bookmark_time = $1`, sqldb.Micros(start.Add(-15*time.Minute))), want: grant.ErrStale},
		{name: "copy just young enough", version: "v2", setup: sql(`UPDATE projection SET bookmark_time = $1`, sqldb.Micros(start.Add(-15*time.Minute+time.Second)))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.now.IsZero() {
				tt.now = start
			}
			d := order("g1", "instance", tt.version)
			if tt.audience != "" {
				d.Audience, d.PolicyAudience = tt.audience, true
			}
			overTheCounter(t, func(c *counter) {
				c.grant("g1")
				many := order("g1", "another", tt.version)
				many.Audience, many.PolicyAudience = d.Audience, d.PolicyAudience
				if _, err := c.store.Deliver(c.t.Context(), start, order("g1", "another", "v1")); err != nil {
					c.t.Fatal(err)
				}
				if tt.setup != nil {
					tt.setup(c)
				}
				before := c.audit()
				l, err := c.store.Deliver(c.t.Context(), tt.now, d)
				if !errors.Is(err, tt.want) {
					c.t.Fatalf("error %v, want %v", err, tt.want)
				}
				// As one of many it is entitled to the same.
				reached := c.fanOut(c.store, tt.now, wide(many, "g1"))
				if err := c.store.ExpandFanOuts(c.t.Context()); err != nil {
					c.t.Fatal(err)
				}
				added := c.audit()[len(before):]
				if tt.want != nil {
					if len(added) != 0 || c.leases() != 1 || reached[0] != (store.Reached{}) {
						c.t.Errorf("refused, and yet recorded %q with %d leases, and reached %+v", added, c.leases(), reached)
					}
					return
				}
				want := []string{"LeaseOpened instance 0 ", "CredentialDelivered instance 1 " + tt.version, "CredentialDelivered another 2 " + tt.version}
				if !slices.Equal(added, want) || l.Generation != 1 || reached[0].Lease.Generation != 2 {
					c.t.Errorf("recorded %q at generation %d, and reached %+v, want %q", added, l.Generation, reached, want)
				}
			})
		})
	}
}

func TestStore_DeliverRecordsEverythingButTheSecret(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		g, _ := c.grant("g1")
		l, err := c.store.Deliver(c.t.Context(), start.Add(time.Second), order("g1", "instance", "v2"))
		if err != nil {
			c.t.Fatal(err)
		}
		var got store.AuditEvent
		var at, expire int64
		err = c.db.ReadTx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			return tx.QueryRow(ctx, `SELECT time, kind, actor, request_id, account, grant_uid, lease_uid, instance_id, generation, integration_uid,
				project_uid, version_id, material, reason, audience, client_request_id, expire_time FROM audit_events WHERE kind = 'CredentialDelivered'`).
				Scan(&at, &got.Kind, &got.Caller.Identity, &got.Caller.RequestID, &got.Account, &got.GrantUID, &got.LeaseUID, &got.InstanceID,
					&got.Generation, &got.IntegrationUID, &got.ProjectUID, &got.VersionID, &got.Material, &got.Reason, &got.Audience, &got.ClientRequestID, &expire)
		})
		if err != nil {
			c.t.Fatal(err)
		}
		got.Time, got.ExpireTime = sqldb.Time(at), sqldb.Time(expire)
		want := store.AuditEvent{
			Time: start.Add(time.Second), Kind: store.CredentialDelivered, Caller: grant.Caller{RequestID: "call-2"}, Account: "acme", GrantUID: g.UID,
			LeaseUID: l.UID, InstanceID: "instance", Generation: 1, IntegrationUID: "uid", ProjectUID: "network", VersionID: "v2", Material: lease.AccessToken, Reason: "INITIAL",
			Audience: "https://management.azure.com", ClientRequestID: "asked-v2", ExpireTime: start.Add(time.Hour),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			c.t.Errorf("record differs: %s", diff)
		}
	})
}

func TestStore_NothingIsRecordedAfterARevocationReturned(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		c.grant("g1")
		revoked := make(chan struct{})
		var group sync.WaitGroup
		for i := range lease.MaxPerGrant {
			group.Go(func() {
				for {
					after := false
					select {
					case <-revoked:
						after = true
					default:
					}
					_, err := c.store.Deliver(ctx, start, order("g1", fmt.Sprint("instance-", i), "v2"))
					if err == nil && after {
						c.t.Error("delivered after the revocation had returned")
					}
					if errors.Is(err, grant.ErrRevoked) {
						return
					}
					if err != nil {
						c.t.Errorf("deliver: %v", err)
						return
					}
				}
			})
		}
		if _, err := c.store.RevokeGrant(ctx, start, "acme", "g1", platform); err != nil {
			c.t.Error(err)
		}
		close(revoked)
		group.Wait()
		if got := c.audit(); got[len(got)-1] != "GrantRevoked  0 " {
			c.t.Errorf("last record %q", got[len(got)-1])
		}
	})
}

// SQLite's transactions take turns anyway. On PostgreSQL a delivery is held up here between its look at the entitlement and
// its commit, by a record of the same number that is not committed; a revocation must then wait for it.
func TestStore_RevocationWaitsForADeliveryThatWasEntitled(t *testing.T) {
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{t: t, db: sqldbtest.Postgres(t, migrations)}
	c.store = store.New(c.db, audittest.Keys(1))
	divide(t, c.db, 1)
	c.furnish()
	c.grant("g1")
	if _, err := c.store.Deliver(t.Context(), start, order("g1", "instance", "v2")); err != nil {
		t.Fatal(err)
	}
	other := store.New(c.db, audittest.Keys(1)) // another replica, with records of its own

	var delivered, revoked error
	var group sync.WaitGroup
	deliveryDone, revocationDone := make(chan struct{}), make(chan struct{})
	rollBack := errors.New("roll back")
	err = c.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO audit_events SELECT writer, seq + 1, time, kind, actor, request_id, account, grant_uid, lease_uid, instance_id,
			generation, integration_uid, project_uid, version_id, reason, audience, client_request_id, expire_time, material
			FROM audit_events WHERE kind = 'CredentialDelivered'`); err != nil {
			return err
		}
		group.Go(func() {
			defer close(deliveryDone)
			_, delivered = c.store.Deliver(t.Context(), start, order("g1", "instance", "v2"))
		})
		c.waiting(ctx, 1, deliveryDone)
		group.Go(func() {
			defer close(revocationDone)
			_, revoked = other.RevokeGrant(t.Context(), start, "acme", "g1", platform)
		})
		c.waiting(ctx, 2, revocationDone)
		select {
		case <-revocationDone:
			t.Error("revocation returned while a delivery was under way")
		default:
		}
		return rollBack
	})
	if !errors.Is(err, rollBack) {
		t.Fatal(err)
	}
	group.Wait()
	if delivered != nil || revoked != nil {
		t.Errorf("delivery: %v, revocation: %v", delivered, revoked)
	}
}

func TestStore_TokenIsReplacedOrUsedNeverBoth(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		for round := range 10 {
			request := grant.RequestKey{ID: fmt.Sprint("request-", round)}
			g, _, hash := c.fresh(fmt.Sprint("g", round))
			if _, err := c.store.CreateGrant(ctx, start, g, hash, request, platform); err != nil {
				c.t.Fatal(err)
			}
			_, fresh := grant.Mint()
			var used, repeated error
			var group sync.WaitGroup
			group.Go(func() {
				if round%2 == 0 {
					used = c.store.UseGrant(ctx, start, hash)
					return
				}
				shown := order(g.UID, "a", "v2")
				shown.Token = hash
				_, used = c.store.Deliver(ctx, start, shown)
			})
			group.Go(func() { _, _, repeated = c.store.RepeatGrant(ctx, start, "acme", fresh, request, platform) })
			group.Wait()
			usedFirst := used == nil && errors.Is(repeated, grant.ErrInUse)
			replacedFirst := errors.Is(used, grant.ErrUnknown) && repeated == nil
			if !usedFirst && !replacedFirst {
				c.t.Errorf("use: %v, replacement: %v", used, repeated)
			}
		}
	})
}

func TestStore_EntitlementHoldsWhatADeliveryIsMadeFrom(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		g, _ := c.grant("g1")
		e, err := c.store.Entitlement(c.t.Context(), "g1", "instance")
		if err != nil {
			c.t.Fatal(err)
		}
		if err := e.Check(start); err != nil {
			c.t.Errorf("check: %v", err)
		}
		var versions []string
		for _, v := range e.Versions {
			versions = append(versions, fmt.Sprint(v.ID, " ", v.ClientID, " ", string(v.Sealed)))
		}
		if want := []string{"v2 client sealed v2", "v1 client sealed v1"}; !slices.Equal(versions, want) {
			c.t.Errorf("versions %q, want %q", versions, want)
		}
		if !cmp.Equal(e.Grant, g) || e.Integration.TenantID != "tenant" || !slices.Equal(e.Integration.AllowedAudiences, []string{"https://vault.azure.net"}) {
			c.t.Errorf("entitlement %+v", e)
		}
		if _, err := c.store.Entitlement(c.t.Context(), "g9", "instance"); !errors.Is(err, grant.ErrNotFound) {
			c.t.Errorf("no such grant: %v", err)
		}
	})
}

func TestStore_ChangesAreNumberedInTheOrderOfCommits(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		_, before, err := c.store.Changes(ctx, 0, 0)
		if err != nil {
			c.t.Fatal(err)
		}
		const writers = 6
		for i := range writers {
			c.grant(fmt.Sprint("g", i))
		}
		done := make(chan struct{})
		var group sync.WaitGroup
		for i := range writers {
			group.Go(func() {
				if _, err := c.store.RevokeGrant(ctx, start, "acme", fmt.Sprint("g", i), platform); err != nil {
					c.t.Error(err)
				}
			})
		}
		go func() { group.Wait(); close(done) }()
		// A follower that reads meanwhile must miss nothing and see no gap.
		position, last := before, false
		for !last {
			select {
			case <-done:
				last = true
			default:
			}
			changes, _, err := c.store.Changes(ctx, position, 2)
			if err != nil {
				c.t.Fatal(err)
			}
			for len(changes) > 0 {
				if changes[0].Seq != position+1 {
					c.t.Fatalf("change %d after %d", changes[0].Seq, position)
				}
				position = changes[0].Seq
				changes = changes[1:]
				last = false
			}
		}
		if position != before+writers {
			c.t.Errorf("followed to %d, want %d", position, before+writers)
		}
	})
}
