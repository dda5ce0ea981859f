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

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/page"
	"phasekey.dev/services/vault/internal/store"
)

var platform = grant.Caller{Identity: "spiffe://phasekey.dev/platform", RequestID: "call-1"}

// counter is a vault's database in which the integration "uid" with ACTIVE version v2 and RETIRING version v1 is attached
// to the project "network" for READ, as of revision 5 of the registry "registry". It gives tokens and secrets.
type counter struct {
	t     testing.TB
	db    *sqldb.DB
	store *store.Store
}

func overTheCounter(t *testing.T, test func(c *counter)) {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	sqldbtest.Run(t, migrations, func(t *testing.T, db *sqldb.DB) {
		divide(t, db, 1)
		c := &counter{t: t, db: db, store: store.New(db, audittest.Keys(1))}
		c.furnish()
		test(c)
	})
}

func (c *counter) furnish() {
	c.t.Helper()
	c.project(5, start, store.Wanted{
		Integrations: []store.Integration{{UID: "uid", Name: "accounts/acme/integrations/read", TenantID: "tenant", Cloud: "public",
			AllowedAudiences: []string{"https://vault.azure.net"}, DeliveryMaterials: []lease.Material{lease.AccessToken, lease.ClientSecret}}},
		Projects:    []store.Project{{UID: "network", Name: "accounts/acme/projects/network"}},
		Attachments: []store.Attachment{{UID: "att", IntegrationUID: "uid", ProjectUID: "network", Reads: true}},
	})
	c.exec(`INSERT INTO applications (integration_uid, shard, next_time, client_id) VALUES ('uid', 0, 0, 'client')`)
	c.version("v1", 1, "RETIRING")
	c.version("v2", 2, "ACTIVE")
	c.version("v3", 3, "PROPAGATING")
}

func (c *counter) exec(query string, args ...any) {
	c.t.Helper()
	err := c.db.Tx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *counter) version(id string, number int, state string) {
	c.t.Helper()
	c.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time,
		end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since,
		attempts, next_time, reason) VALUES ($1, 'uid', $2, $3, $1, '', $4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '')`,
		id, number, state, []byte("sealed "+id))
}

func (c *counter) project(revision int64, bookmark time.Time, all store.Wanted) {
	c.t.Helper()
	at := store.Projection{Incarnation: "registry", Revision: revision, BookmarkTime: bookmark}
	if err := c.store.ReplaceProjection(c.t.Context(), bookmark, at, all); err != nil {
		c.t.Fatal(err)
	}
}

// fresh makes a grant that is not stored.
func (c *counter) fresh(uid string) (grant.Grant, secret.Text, grant.Hash) {
	c.t.Helper()
	g, err := grant.New(start, uid,
		grant.Request{Account: "acme", Project: "accounts/acme/projects/network", Phase: grant.Planning, Run: "run-1"},
		grant.Resolution{Integration: "accounts/acme/integrations/read", IntegrationUID: "uid", ProjectUID: "network", SubscriptionID: "sub", Incarnation: "registry", Revision: 5})
	if err != nil {
		c.t.Fatal(err)
	}
	token, hash := grant.Mint()
	return g, token, hash
}

// grant stores one.
func (c *counter) grant(uid string, change ...func(*grant.Grant)) (grant.Grant, grant.Hash) {
	c.t.Helper()
	g, _, hash := c.fresh(uid)
	for _, f := range change {
		f(&g)
	}
	g, err := c.store.CreateGrant(c.t.Context(), start, g, hash, grant.RequestKey{}, platform)
	if err != nil {
		c.t.Fatal(err)
	}
	return g, hash
}

func order(grantUID, instance, version string) store.Delivery {
	return store.Delivery{
		GrantUID: grantUID, InstanceID: instance, VersionID: version, Material: lease.AccessToken, Reason: "INITIAL", Audience: "https://management.azure.com",
		ClientRequestID: "asked-" + version, ExpireTime: start.Add(time.Hour), Caller: grant.Caller{RequestID: "call-2"},
	}
}

// audit is kind, instance, generation and version of all records, by writer and number; it checks that no number is missing.
func (c *counter) audit() []string {
	c.t.Helper()
	var out []string
	err := c.db.ReadTx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		next := map[string]int64{}
		out, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (string, error) {
			var writer, kind, instance, version string
			var seq, place, generation int64
			err := row.Scan(&writer, &seq, &place, &kind, &instance, &generation, &version)
			if place == 0 {
				next[writer]++
			}
			if seq != next[writer] {
				c.t.Errorf("writer %s: record %d where %d was due", writer, seq, next[writer])
			}
			return fmt.Sprintf("%s %s %d %s", kind, instance, generation, version), err
		}, `SELECT writer, seq, place, kind, instance_id, generation, version_id FROM audit_events ORDER BY writer, seq, place`)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *counter) leases() (n int) {
	c.t.Helper()
	err := c.db.ReadTx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM leases`).Scan(&n)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

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

// waiting returns when so many of PostgreSQL's connections wait for a lock, or done is closed.
func (c *counter) waiting(ctx context.Context, want int, done <-chan struct{}) {
	c.t.Helper()
	for have := 0; have < want; {
		select {
		case <-done:
			return
		case <-ctx.Done():
			c.t.Fatal(ctx.Err())
		default:
		}
		err := c.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM pg_locks WHERE NOT granted`).Scan(&have)
		})
		if err != nil {
			c.t.Fatal(err)
		}
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
