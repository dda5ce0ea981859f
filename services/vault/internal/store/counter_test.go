package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
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

// whole is an order of the version's secret, which can be held for ten hours.
func whole(grantUID, instance, version string) store.Delivery {
	d := order(grantUID, instance, version)
	d.Material, d.Audience, d.ClientRequestID, d.HoldLimit = lease.ClientSecret, "", "", start.Add(10*time.Hour)
	return d
}

// rows reads rows of texts and numbers, the columns separated by spaces.
func (c *counter) rows(columns int, query string, args ...any) (out []string) {
	c.t.Helper()
	err := c.db.ReadTx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (string, error) {
			values, pointers := make([]any, columns), make([]any, columns)
			for i := range values {
				pointers[i] = &values[i]
			}
			err := row.Scan(pointers...)
			return strings.TrimSpace(fmt.Sprintln(values...)), err
		}, query, args...)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// holders checks each version's holders, in the order of the versions' numbers, and that they are as many as the holdings there are.
func (c *counter) holders(step string, want ...string) {
	c.t.Helper()
	have := c.rows(2, `SELECT id, holders FROM credential_versions WHERE holders > 0 ORDER BY number`)
	if !slices.Equal(have, want) {
		c.t.Errorf("%s: holders %q, want %q", step, have, want)
	}
	if listed := c.rows(2, `SELECT version_id, COUNT(*) FROM holdings h JOIN credential_versions v ON v.id = h.version_id
		GROUP BY version_id, v.number ORDER BY v.number`); !slices.Equal(have, listed) {
		c.t.Errorf("%s: holders %q, holdings %q", step, have, listed)
	}
}

// touches is how often the integration was made due.
func (c *counter) touches() string {
	c.t.Helper()
	return c.rows(1, `SELECT touches FROM applications WHERE integration_uid = 'uid'`)[0]
}

// master takes the counter's shard.
func (c *counter) master() (m election.Mastership) {
	c.t.Helper()
	err := c.db.Tx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		m, err = fence.Take(ctx, tx, 0, start)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// commit has the master write a change; it is read and written as a worker would.
func (c *counter) commit(m election.Mastership, decide func(f store.Facts) credential.Change) error {
	c.t.Helper()
	f, err := c.store.Facts(c.t.Context(), "uid")
	if err != nil {
		c.t.Fatal(err)
	}
	return c.store.Commit(c.t.Context(), m, store.Step{
		IntegrationUID: "uid", Now: start, Change: decide(f), NextTime: start.Add(time.Hour), Touches: f.Touches,
	})
}

// to moves a version to a state.
func to(f store.Facts, id string, state credential.State) credential.Move {
	for _, v := range f.Versions {
		if v.ID == id {
			from := v.State
			v.State = state
			return credential.Move{From: from, Version: v}
		}
	}
	return credential.Move{Version: credential.Version{ID: id, State: state}}
}

// promote makes next ACTIVE instead of old.
func promote(old, next string) func(f store.Facts) credential.Change {
	return func(f store.Facts) credential.Change {
		return credential.Change{Moves: []credential.Move{to(f, old, credential.Retiring), to(f, next, credential.Active)}}
	}
}

// revoke has a version go that was replaced.
func revoke(id string) func(f store.Facts) credential.Change {
	return func(f store.Facts) credential.Change {
		return credential.Change{Moves: []credential.Move{to(f, id, credential.Revoking)}}
	}
}

func (c *counter) newest() int64 {
	c.t.Helper()
	_, newest, err := c.store.Changes(c.t.Context(), 0, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	return newest
}

// onPostgres is a counter whose transactions do not take turns by themselves; settings are for the database's sessions.
func onPostgres(t *testing.T, settings ...string) *counter {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	config := sqldbtest.MigratedPostgresConfig(t, migrations)
	config.DSN += " " + strings.Join(settings, " ")
	db, err := sqldb.Open(t.Context(), config, migrations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	divide(t, db, 1)
	c := &counter{t: t, db: db, store: store.New(db, audittest.Keys(1))}
	c.furnish()
	return c
}
