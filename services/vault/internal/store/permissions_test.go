package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/permission"
	"phasekey.dev/services/vault/internal/store"
)

func (b *bench) duePermissions(now time.Time) []string {
	b.t.Helper()
	due, err := b.store.DuePermissions(b.t.Context(), now, 10)
	if err != nil {
		b.t.Fatal(err)
	}
	return due
}

func (b *bench) subscribe(revision int64, subscription string) {
	b.t.Helper()
	b.want(revision, store.Integration{UID: "uid", Name: "accounts/a/integrations/i", TenantID: "tenant", Cloud: "public", RotationPeriod: time.Hour, Revision: revision,
		DefaultSubscriptionID: subscription})
}

func TestPermissions_AreDueWhereTheyCanBeLookedAt(t *testing.T) {
	onBoth(t, func(b *bench) {
		expect := func(when string, now time.Time, want ...string) {
			b.t.Helper()
			if due := b.duePermissions(now); !slices.Equal(due, want) {
				b.t.Errorf("%s: due are %v, not %v", when, due, want)
			}
		}
		consented := b.facts().Application
		consented.Consented, consented.PrincipalObjectID = true, "oid"
		b.subscribe(2, "sub-1")
		expect("without consent", start)
		b.mustCommit(credential.Change{Application: &consented})
		expect("without a version", start)
		b.insert("v1", 1, credential.Active)
		expect("with all", start, "uid")
		b.subscribe(3, "")
		expect("without a subscription", start)
		b.subscribe(4, "sub-1")

		if claimed, err := b.store.ClaimPermissions(b.t.Context(), "uid", start, start.Add(time.Minute)); err != nil || !claimed {
			b.t.Fatalf("claimed %v, error %v", claimed, err)
		}
		if claimed, err := b.store.ClaimPermissions(b.t.Context(), "uid", start, start.Add(time.Minute)); err != nil || claimed {
			b.t.Errorf("claimed twice: %v, error %v", claimed, err)
		}
		expect("claimed", start.Add(time.Minute-1))
		expect("after the claim", start.Add(time.Minute), "uid")
		b.record(permission.Check{Time: start, SubscriptionID: "sub-1", PrincipalObjectID: "oid", Read: permission.Full, Write: permission.None})
		expect("looked at", start.Add(time.Hour-1))
		expect("an hour later", start.Add(time.Hour), "uid")
		b.subscribe(5, "sub-2")
		expect("another subscription", start, "uid")
	})
}

// record stores what was found, to be looked at again an hour after start.
func (b *bench) record(found permission.Check) {
	b.t.Helper()
	if err := b.store.RecordPermissions(b.t.Context(), "uid", found.Time, found, start.Add(time.Hour)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) touches() (n int64) {
	b.t.Helper()
	b.tx(func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT touches FROM applications WHERE integration_uid = 'uid'`).Scan(&n)
	})
	return n
}

func TestPermissions_AreKeptAndMakeDueWhatChanged(t *testing.T) {
	onBoth(t, func(b *bench) {
		if got := b.facts().Permissions; got != (permission.Check{}) {
			b.t.Errorf("before: %+v", got)
		}
		found := permission.Check{Time: start, SubscriptionID: "sub-1", PrincipalObjectID: "oid", Read: permission.Full, Write: permission.None}
		before := b.touches()
		b.record(found)
		if diff := cmp.Diff(found, b.facts().Permissions); diff != "" || b.touches() != before+1 {
			b.t.Errorf("touched %d times (-want +got):\n%s", b.touches()-before, diff)
		}
		same := found
		same.Time = start.Add(time.Minute)
		b.record(same)
		if diff := cmp.Diff(same, b.facts().Permissions); diff != "" || b.touches() != before+1 {
			b.t.Errorf("the same again: touched %d times (-want +got):\n%s", b.touches()-before, diff)
		}
		b.record(permission.Check{Time: start, SubscriptionID: "sub-1", PrincipalObjectID: "oid", Read: permission.None, Write: permission.None})
		if diff := cmp.Diff(same, b.facts().Permissions); diff != "" || b.touches() != before+1 {
			b.t.Errorf("an older one: touched %d times (-want +got):\n%s", b.touches()-before, diff)
		}
		same.Time, same.Write = start.Add(2*time.Minute), permission.Partial
		b.record(same)
		if diff := cmp.Diff(same, b.facts().Permissions); diff != "" || b.touches() != before+2 {
			b.t.Errorf("another: touched %d times (-want +got):\n%s", b.touches()-before, diff)
		}
		same.Time, same.Denied = start.Add(3*time.Minute), true
		b.record(same)
		if diff := cmp.Diff(same, b.facts().Permissions); diff != "" || b.touches() != before+3 {
			b.t.Errorf("denied: touched %d times (-want +got):\n%s", b.touches()-before, diff)
		}
	})
}
