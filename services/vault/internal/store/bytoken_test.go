package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// version chooses a version, whoever asks; the grant and the instance are not its to name.
func version(id string) store.Choice {
	return func(*store.Entitlement) (store.Delivery, error) { return order("of another", "of another", id), nil }
}

func (c *counter) deliverByToken(token grant.Hash, instance string, choose store.Choice) <-chan result {
	out := make(chan result, 1)
	go func() {
		l, err := c.store.DeliverByToken(c.t.Context(), start, token, instance, choose)
		out <- result{l, err}
	}()
	return out
}

func TestDeliverByToken_ChoosesByWhatEntitles(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		_, token := c.grant("g1")
		for _, when := range []string{"before there is a lease", "with one"} {
			want, err := c.store.EntitlementByToken(ctx, token, "a")
			if err != nil {
				c.t.Fatal(err)
			}
			var seen *store.Entitlement
			got, err := c.store.DeliverByToken(ctx, start, token, "a", func(e *store.Entitlement) (store.Delivery, error) {
				seen = e
				return version("v1")(e)
			})
			if err != nil {
				c.t.Fatal(err)
			}
			if diff := cmp.Diff(want, seen); diff != "" {
				c.t.Errorf("%s it was chosen by what was not read otherwise:\n%s", when, diff)
			}
			if got.GrantUID != "g1" || got.InstanceID != "a" || got.Generation != want.Lease.Generation+1 {
				c.t.Errorf("%s: %+v", when, got)
			}
		}
		if g, err := c.store.GrantByToken(ctx, token); err != nil || !g.UseTime.Equal(start) {
			c.t.Errorf("the token was shown at %v, %v", g.UseTime, err)
		}
		want := []string{"GrantCreated  0 ", "LeaseOpened a 0 ", "CredentialDelivered a 1 v1", "CredentialDelivered a 2 v1"}
		if have := c.audit(); !slices.Equal(have, want) {
			c.t.Errorf("recorded %q", have)
		}
	})
}

func TestDeliverByToken_EachOfABatchStandsByItself(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		tokens := make([]grant.Hash, 8)
		for i := range tokens {
			_, tokens[i] = c.grant(fmt.Sprint("g", i))
		}
		c.exec(`UPDATE grants SET revoke_time = 1 WHERE uid = 'g5'`)
		for i := range 4 {
			if _, err := c.store.Deliver(c.t.Context(), start, order("g6", fmt.Sprint("other", i), "v2")); err != nil {
				c.t.Fatal(err)
			}
		}
		no := errors.New("no")
		_, guess := grant.Mint()
		release := c.busy()
		defer release()
		steps := []struct {
			name  string
			comes <-chan result
			want  error
		}{
			{"first of a lease", c.deliverByToken(tokens[1], "a", version("v2")), nil},
			{"another's", c.deliverByToken(tokens[2], "a", version("v2")), nil},
			{"what a grant is named for", c.deliver(c.t.Context(), order("g1", "a", "v2")), nil},
			{"second of a lease", c.deliverByToken(tokens[1], "a", version("v1")), nil},
			{"a token that opens nothing", c.deliverByToken(guess, "a", version("v2")), grant.ErrUnknown},
			{"who chooses nothing", c.deliverByToken(tokens[3], "a", func(*store.Entitlement) (store.Delivery, error) { return store.Delivery{}, no }), no},
			{"who chooses what nobody may have yet", c.deliverByToken(tokens[4], "a", version("v3")), lease.ErrVersionGone},
			{"who chooses a secret", c.deliverByToken(tokens[7], "a", func(*store.Entitlement) (store.Delivery, error) { return whole("", "", "v2"), nil }), errAny},
			{"whose choice breaks", c.deliverByToken(tokens[7], "b", func(*store.Entitlement) (store.Delivery, error) { panic("no") }), errAny}, //nolint:forbidigo // what is tested
			{"by a grant that is over", c.deliverByToken(tokens[5], "a", version("v2")), grant.ErrRevoked},
			{"of a fifth lease", c.deliverByToken(tokens[6], "a", version("v2")), lease.ErrTooMany},
		}
		c.queued(len(steps))
		release()
		var generations []int64
		for _, s := range steps {
			r := <-s.comes
			if !errors.Is(r.err, s.want) && (!errors.Is(s.want, errAny) || r.err == nil) {
				c.t.Errorf("%s: %v, want %v", s.name, r.err, s.want)
			}
			if r.lease.GrantUID == "g1" {
				generations = append(generations, r.lease.Generation)
			}
		}
		slices.Sort(generations)
		if !slices.Equal(generations, []int64{1, 2, 3}) {
			c.t.Errorf("of one lease: %v", generations)
		}
		for _, line := range c.audit() {
			if strings.Contains(line, " v3") {
				c.t.Errorf("recorded %q", line)
			}
		}
	})
}

// errAny is any error.
var errAny = errors.New("an error")

// Whoever does not wait any more is not told of what is done without them.
func TestDeliverByToken_IsLeftWhileItIsChosen(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		_, token := c.grant("g1")
		ctx, leave := context.WithCancel(c.t.Context())
		got, err := c.store.DeliverByToken(ctx, start, token, "a", func(e *store.Entitlement) (store.Delivery, error) {
			leave()
			<-time.After(50 * time.Millisecond) // by which it has returned, and nothing orders that before what follows
			return version("v2")(e)
		})
		if !errors.Is(err, context.Canceled) || got != (lease.Lease{}) {
			c.t.Errorf("%+v, %v", got, err)
		}
		for c.store.Busy() {
			<-time.After(time.Millisecond)
		}
	})
}

// Guesses leave nothing behind, also not in the trail, whose end everybody has to wait for.
func TestDeliverByToken_GuessesWriteNothing(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		_, guess := grant.Mint()
		if _, err := c.store.DeliverByToken(c.t.Context(), start, guess, "a", version("v2")); !errors.Is(err, grant.ErrUnknown) {
			c.t.Error(err)
		}
		if writers := c.rows(1, `SELECT writer FROM audit_writers`); len(writers) != 0 {
			c.t.Errorf("written by %q", writers)
		}
	})
}

// A token that is being replaced has opened its grant when that is looked for, and does not any more when the row is free.
func TestDeliverByToken_WaitsForAReplacement(t *testing.T) {
	t.Parallel()
	c := onPostgres(t)
	_, token := c.grant("g1")
	var late error
	var group sync.WaitGroup
	done := make(chan struct{})
	err := c.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE grants SET token_hash = $1`, make([]byte, 32)); err != nil {
			return err
		}
		group.Go(func() {
			defer close(done)
			_, late = c.store.DeliverByToken(t.Context(), start, token, "a", version("v2"))
		})
		c.waiting(ctx, 1, done)
		return nil
	})
	group.Wait()
	if err != nil || !errors.Is(late, grant.ErrUnknown) {
		t.Errorf("by the token that was replaced: %v, %v", late, err)
	}
}

// What ends entitlement while a delivery waits for its turn in the trail is seen by it: it is decided after the last wait.
func TestDeliver_IsDecidedAfterTheLastWait(t *testing.T) {
	t.Parallel()
	token, secret := "a token", "a secret"
	for name, change := range map[string]string{
		"account frozen": `INSERT INTO frozen_accounts (account, reason, freeze_time) VALUES ('acme', 'because', 1)`,
		"detached":       `DELETE FROM attachments`,
		"version gone":   `UPDATE credential_versions SET state = 'RETIRING' WHERE id = 'v2'`,
		"policy":         `UPDATE integrations SET delivery_materials = '["FEDERATED_TOKEN"]'`,
	} {
		for _, what := range []string{token, secret} {
			t.Run(name+", "+what, func(t *testing.T) {
				t.Parallel()
				c := onPostgres(t)
				_, shown := c.grant("g1")
				deliver := func() error {
					_, err := c.store.DeliverByToken(t.Context(), start, shown, "a", func(e *store.Entitlement) (store.Delivery, error) {
						if _, ok := e.Active(); !ok {
							return store.Delivery{}, lease.ErrVersionGone
						}
						return version("v2")(e)
					})
					return err
				}
				if what == secret { // which the lease holds already, so that its version's row is not looked at
					deliver = func() error {
						_, err := c.store.Deliver(t.Context(), start, whole("g1", "a", "v2"))
						return err
					}
				}
				if err := deliver(); err != nil {
					t.Fatal(err)
				}
				var late error
				var group sync.WaitGroup
				done := make(chan struct{})
				err := c.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
					if _, err := tx.Exec(ctx, `UPDATE audit_writers SET seq = seq`); err != nil {
						return err
					}
					group.Go(func() {
						defer close(done)
						late = deliver()
					})
					c.waiting(ctx, 1, done)
					_, err := tx.Exec(ctx, change)
					return err
				})
				group.Wait()
				if err != nil || late == nil {
					t.Errorf("delivered all the same: %v, %v", late, err)
				}
			})
		}
	}
}
