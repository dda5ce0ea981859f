package store_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/signingkey"
	"phasekey.dev/services/vault/internal/store"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// bench is a database with three shards, of which shard 0 has a master and an integration, "uid", that it has adopted.
type bench struct {
	t      *testing.T
	db     *sqldb.DB
	store  *store.Store
	master election.Mastership
}

// onBoth runs a case on a fresh bench on each engine.
func onBoth(t *testing.T, test func(b *bench)) {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	sqldbtest.Run(t, migrations, func(t *testing.T, db *sqldb.DB) {
		b := &bench{t: t, db: db, store: store.New(db, audittest.Keys(1))}
		divide(t, db, 3)
		b.master = b.take()
		b.want(1, store.Integration{UID: "uid", Name: "accounts/a/integrations/i", TenantID: "tenant", Cloud: "public", RotationPeriod: time.Hour, Revision: 1})
		b.adopt(-1)
		test(b)
	})
}

func (b *bench) tx(fn func(ctx context.Context, tx sqldb.Tx) error) {
	b.t.Helper()
	if err := b.db.Tx(b.t.Context(), fn); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) take() (m election.Mastership) {
	b.t.Helper()
	b.tx(func(ctx context.Context, tx sqldb.Tx) (err error) {
		m, err = fence.Take(ctx, tx, 0, start)
		return err
	})
	return m
}

// want replaces what the registry wants.
func (b *bench) want(revision int64, all ...store.Integration) {
	b.t.Helper()
	at := store.Projection{Incarnation: "registry", Revision: revision, Cursor: fmt.Sprint(revision), BookmarkTime: start}
	if err := b.store.ReplaceProjection(b.t.Context(), start, at, store.Wanted{Integrations: all}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) adopt(after int64) int64 {
	b.t.Helper()
	newest, err := b.store.Adopt(b.t.Context(), b.master, start, after)
	if err != nil {
		b.t.Fatal(err)
	}
	return newest
}

func (b *bench) facts() store.Facts {
	b.t.Helper()
	f, err := b.store.Facts(b.t.Context(), "uid")
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

// commit writes a change as a master that has read the latest facts would.
func (b *bench) commit(c credential.Change) error {
	b.t.Helper()
	return b.store.Commit(b.t.Context(), b.master, store.Step{
		IntegrationUID: "uid", Now: start, Change: c, NextTime: start.Add(time.Hour), Touches: b.facts().Touches,
	})
}

func (b *bench) mustCommit(c credential.Change) {
	b.t.Helper()
	if err := b.commit(c); err != nil {
		b.t.Fatal(err)
	}
}

// insert adds a version in any state, by the transitions that lead there.
func (b *bench) insert(id string, number int64, state credential.State) credential.Version {
	b.t.Helper()
	v := credential.Version{ID: id, IntegrationUID: "uid", Number: number, State: credential.Intended, Name: "name-" + id, IntendTime: start, SendTime: start}
	b.mustCommit(credential.Change{Intent: &v})
	for _, next := range []credential.State{credential.Propagating, credential.Active, credential.Retiring, credential.Revoking, credential.Revoked} {
		if v.State == state {
			break
		}
		from := v.State
		v.State, v.KeyID, v.Sealed, v.EndTime = next, "key-"+id, []byte{1, 2, 3}, start.Add(time.Hour)
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: from, Version: v}}})
	}
	return v
}

func (b *bench) hold(id string, n int) {
	b.t.Helper()
	b.tx(func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE credential_versions SET holders = $2 WHERE id = $1`, id, n)
		return err
	})
}

// entitlement is a new grant's of the integration.
func (b *bench) entitlement(integrationUID string) *store.Entitlement {
	b.t.Helper()
	g, err := grant.New(start, "grant-of-"+integrationUID, grant.Request{Account: "a", Phase: grant.Planning}, grant.Resolution{IntegrationUID: integrationUID})
	if err != nil {
		b.t.Fatal(err)
	}
	_, hash := grant.Mint()
	if _, err := b.store.CreateGrant(b.t.Context(), start, g, hash, grant.RequestKey{}, grant.Caller{}); err != nil {
		b.t.Fatal(err)
	}
	e, err := b.store.Entitlement(b.t.Context(), g.UID, "instance")
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

func (b *bench) newestChange() int64 {
	b.t.Helper()
	_, newest, err := b.store.Changes(b.t.Context(), 0, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return newest
}

// TestMaster_EveryMethodIsFenced finds the methods that take a mastership by reflection, so that a new one cannot be left out.
func TestMaster_EveryMethodIsFenced(t *testing.T) {
	calls := map[string]func(ctx context.Context, s *store.Store, m election.Mastership) error{
		"Adopt": func(ctx context.Context, s *store.Store, m election.Mastership) error {
			_, err := s.Adopt(ctx, m, start, -1)
			return err
		},
		"Commit": func(ctx context.Context, s *store.Store, m election.Mastership) error {
			return s.Commit(ctx, m, store.Step{IntegrationUID: "uid", Now: start, NextTime: start.Add(9 * time.Hour)})
		},
		"AdvanceBatches": func(ctx context.Context, s *store.Store, m election.Mastership) error {
			// One of which nothing is left is ended.
			if _, err := s.RequestBatch(ctx, start, credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, grant.Caller{}); err != nil {
				return err
			}
			_, err := s.AdvanceBatches(ctx, m, start)
			return err
		},
		"EndLeases": func(ctx context.Context, s *store.Store, m election.Mastership) error {
			_, err := s.EndLeases(ctx, m, store.Step{IntegrationUID: "uid", Now: start, NextTime: start.Add(9 * time.Hour)})
			return err
		},
	}
	calls["AddSigningKey"] = func(ctx context.Context, s *store.Store, m election.Mastership) error {
		return s.AddSigningKey(ctx, m, start, with(signingKey("another", 2), signingkey.Retired))
	}
	calls["MoveSigningKey"] = func(ctx context.Context, s *store.Store, m election.Mastership) error {
		return s.MoveSigningKey(ctx, m, signingkey.Move{From: signingkey.Published, Key: with(signingKey("a", 1), signingkey.Signing)})
	}
	calls["TouchClouds"] = func(ctx context.Context, s *store.Store, m election.Mastership) error {
		return s.TouchClouds(ctx, m, start, []string{"public"})
	}
	calls["TouchFederated"] = func(ctx context.Context, s *store.Store, m election.Mastership) error {
		return s.TouchFederated(ctx, m, start)
	}
	mastership := reflect.TypeFor[election.Mastership]()
	methods := reflect.TypeFor[*store.Store]()
	for i := range methods.NumMethod() {
		m := methods.Method(i)
		for in := range m.Type.Ins() {
			if in == mastership && calls[m.Name] == nil {
				t.Errorf("%s takes a mastership and is not tried here", m.Name)
			}
		}
	}
	onBoth(t, func(b *bench) {
		b.want(2, store.Integration{UID: "uid", Deleting: true, Revision: 1}) // or EndLeases would refuse
		b.addKey(signingKey("a", 1))
		dump := func() string { return fmt.Sprint(b.facts(), b.keys()) }
		before, changes := dump(), b.newestChange()
		former := b.master
		b.master = b.take()
		for name, call := range calls {
			if err := call(b.t.Context(), b.store, former); !errors.Is(err, election.ErrFenced) {
				b.t.Errorf("%s by a former master: %v, want ErrFenced", name, err)
			}
			stolen := b.master
			stolen.Holder = former.Holder // a fail-over that gave the epoch out twice
			if err := call(b.t.Context(), b.store, stolen); !errors.Is(err, election.ErrFenced) {
				b.t.Errorf("%s by another holder of the epoch: %v, want ErrFenced", name, err)
			}
		}
		if after := dump(); after != before || b.newestChange() != changes {
			b.t.Errorf("a former master changed\n%s to\n%s", before, after)
		}
		for name, call := range calls {
			if err := call(b.t.Context(), b.store, b.master); err != nil {
				b.t.Errorf("%s by the master: %v", name, err)
			}
		}
	})
}

// TestCommit_KeepsEveryField fills every field with something else, so that one left out of the SQL shows.
func TestCommit_KeepsEveryField(t *testing.T) {
	onBoth(t, func(b *bench) {
		var a credential.Application
		b.fill(reflect.ValueOf(&a).Elem())
		a.IntegrationUID, a.ForgetTime = "uid", time.Time{}
		v := credential.Version{ID: "v", IntegrationUID: "uid", Number: 7, State: credential.Intended, Name: "name", Recovery: 3, IntendTime: start}
		strays := []credential.Stray{{KeyID: "k", Name: "n", StartTime: start.Add(-time.Hour), FirstTime: start, LastTime: start.Add(time.Hour), Attempts: 2, NextTime: start.Add(2 * time.Hour)}}
		b.mustCommit(credential.Change{Application: &a, Intent: &v, Strays: strays, ReplaceStrays: true})
		if diff := cmp.Diff(a, b.facts().Application); diff != "" {
			b.t.Errorf("application (-written +read):\n%s", diff)
		}
		if diff := cmp.Diff([]credential.Version{v}, b.facts().Versions); diff != "" {
			b.t.Errorf("intent (-written +read):\n%s", diff)
		}
		if diff := cmp.Diff(strays, b.facts().Strays); diff != "" {
			b.t.Errorf("strays (-written +read):\n%s", diff)
		}
		moved := v
		b.fill(reflect.ValueOf(&moved).Elem())
		// What a move does not change.
		moved.ID, moved.IntegrationUID, moved.Number, moved.Name, moved.Recovery, moved.IntendTime, moved.Holders, moved.SigningKey = v.ID, v.IntegrationUID, v.Number, v.Name, v.Recovery, v.IntendTime, 0, ""
		moved.State = credential.Staged
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Intended, Version: moved}}})
		f := b.facts()
		if diff := cmp.Diff([]credential.Version{moved}, f.Versions); diff != "" {
			b.t.Errorf("version (-written +read):\n%s", diff)
		}
		if f.LastNumber != 7 || !f.Wanted.Present || f.Wanted.Period != time.Hour || f.Incarnation != "registry" {
			b.t.Errorf("facts are %+v", f)
		}
	})
}

// fill gives each field a value of its own.
func (b *bench) fill(v reflect.Value) {
	b.t.Helper()
	for i := range v.NumField() {
		switch field := v.Field(i); field.Interface().(type) {
		case string:
			field.SetString(fmt.Sprint("text ", i))
		case credential.State, credential.RotationState, credential.RotationReason:
		case bool:
			field.SetBool(true)
		case int, int64:
			field.SetInt(int64(100 + i))
		case time.Duration:
			field.SetInt(int64(time.Duration(i) * time.Minute))
		case time.Time:
			field.Set(reflect.ValueOf(start.Add(time.Duration(i) * time.Microsecond)))
		case []byte:
			field.SetBytes([]byte{0, 1, byte(i)})
		default:
			b.t.Fatalf("fill does not know %s", field.Type())
		}
	}
}

func TestCommit_RefusesWhatIsNoLongerTrue(t *testing.T) {
	onBoth(t, func(b *bench) {
		v := b.insert("a", 1, credential.Active)
		retiring := v
		retiring.State = credential.Retiring
		for _, tt := range []struct {
			name string
			from credential.State
			to   credential.State
			want error
		}{
			{"from a state it is not in", credential.Propagating, credential.Active, store.ErrChanged},
			{"by no transition there is", credential.Active, credential.Revoked, nil},
		} {
			next := v
			next.State = tt.to
			err := b.commit(credential.Change{Moves: []credential.Move{{From: tt.from, Version: next}}})
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				b.t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
		}
		if got := b.facts().Versions[0].State; got != credential.Active {
			b.t.Errorf("the version is %s", got)
		}
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Active, Version: retiring}}})
	})
}

func TestCommit_NeverMakesTwoActive(t *testing.T) {
	onBoth(t, func(b *bench) {
		first := b.insert("a", 1, credential.Active)
		second := b.insert("b", 2, credential.Propagating)
		second.State = credential.Active
		promotion := credential.Move{From: credential.Propagating, Version: second}
		err := b.commit(credential.Change{Moves: []credential.Move{promotion}})
		if !errors.Is(err, sqldb.ErrUnique) {
			b.t.Fatalf("a second ACTIVE version: %v, want ErrUnique", err)
		}
		first.State = credential.Retiring
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Active, Version: first}, promotion}})
		e := b.entitlement("uid")
		live := e.Versions
		if len(live) != 2 || live[0].ID != "b" || live[1].ID != "a" || live[0].TenantID != "tenant" || live[0].Cloud != "public" {
			b.t.Errorf("live versions are %+v", live)
		}
		if active, ok := e.Active(); !ok || active.ID != "b" {
			b.t.Errorf("the active version is %s, %t", active.ID, ok)
		}
		if active, ok := b.entitlement("nobody").Active(); ok {
			b.t.Errorf("the active version of nobody is %s", active.ID)
		}
	})
}

func TestCommit_DoesNotRevokeWhatIsHeld(t *testing.T) {
	onBoth(t, func(b *bench) {
		v := b.insert("a", 1, credential.Retiring)
		b.hold("a", 1)
		next := v
		next.State = credential.Revoking
		revocation := credential.Change{Moves: []credential.Move{{From: credential.Retiring, Version: next}}}
		if err := b.commit(revocation); !errors.Is(err, store.ErrHeld) {
			b.t.Fatalf("revoke a held version: %v, want ErrHeld", err)
		}
		// Any other write leaves the holders alone.
		v.Refusals = 2
		b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Retiring, Version: v}}})
		if got := b.facts().Versions[0]; got.Holders != 1 || got.State != credential.Retiring || got.Refusals != 2 {
			b.t.Errorf("the version is %+v", got)
		}
		b.hold("a", 0)
		b.mustCommit(revocation)
	})
}

func TestCommit_NotesWhatStreamsDependOn(t *testing.T) {
	onBoth(t, func(b *bench) {
		v := b.insert("a", 1, credential.Propagating)
		a := b.facts().Application
		consented := a
		consented.Consented = true
		active := v
		active.State = credential.Active
		for _, tt := range []struct {
			name   string
			change credential.Change
			want   int64
		}{
			{"a proof", credential.Change{Moves: []credential.Move{{From: credential.Propagating, Version: v}}}, 0},
			{"the application", credential.Change{Application: &a}, 0},
			{"consent", credential.Change{Application: &consented}, 1},
			{"a promotion", credential.Change{Moves: []credential.Move{{From: credential.Propagating, Version: active}}}, 1},
		} {
			before := b.newestChange()
			b.mustCommit(tt.change)
			if got := b.newestChange() - before; got != tt.want {
				b.t.Errorf("%s: %d changes noted, want %d", tt.name, got, tt.want)
			}
		}
	})
}

func TestDue_ListsTheLongestDueOfOneShard(t *testing.T) {
	onBoth(t, func(b *bench) {
		// All but "b" are in shard 0.
		var wanted []store.Integration
		for i, uid := range []string{"uid", "second", "third", "b"} {
			wanted = append(wanted, store.Integration{UID: uid, Name: uid, Revision: int64(i + 2)})
		}
		b.want(10, wanted...)
		b.adopt(1)
		for uid, next := range map[string]time.Duration{"uid": -time.Minute, "second": -time.Hour, "third": time.Hour} {
			f, err := b.store.Facts(b.t.Context(), uid)
			if err != nil {
				b.t.Fatal(err)
			}
			step := store.Step{IntegrationUID: uid, Now: start, NextTime: start.Add(next), Touches: f.Touches}
			if err := b.store.Commit(b.t.Context(), b.master, step); err != nil {
				b.t.Fatal(err)
			}
		}
		for _, tt := range []struct {
			limit int
			want  []string
		}{{10, []string{"second", "uid"}}, {1, []string{"second"}}} {
			got, next, err := b.store.Due(b.t.Context(), 0, start, tt.limit)
			if err != nil {
				b.t.Fatal(err)
			}
			if !slices.Equal(got, tt.want) || !next.Equal(start.Add(time.Hour)) {
				b.t.Errorf("due are %v, next at %s", got, next)
			}
		}
		// At that moment it is due, or whoever waits for it misses it.
		if got, next, err := b.store.Due(b.t.Context(), 0, start.Add(time.Hour), 10); err != nil || !slices.Equal(got, []string{"second", "uid", "third"}) || !next.IsZero() {
			b.t.Errorf("when the last is due, these are: %v, next at %s, %v", got, next, err)
		}
		if _, err := b.store.Facts(b.t.Context(), "b"); !errors.Is(err, sqldb.ErrNoRows) {
			b.t.Errorf("another shard's integration was adopted: %v", err)
		}
	})
}

func TestCommit_DoesNotPutOffWhatWasTouched(t *testing.T) {
	onBoth(t, func(b *bench) {
		decided := b.facts()
		if err := b.store.WantProbe(b.t.Context(), "uid", start.Add(time.Minute)); err != nil {
			b.t.Fatal(err)
		}
		step := store.Step{IntegrationUID: "uid", Now: start, NextTime: start.Add(time.Hour), Touches: decided.Touches}
		if err := b.store.Commit(b.t.Context(), b.master, step); err != nil {
			b.t.Fatal(err)
		}
		if due, _, err := b.store.Due(b.t.Context(), 0, start.Add(time.Minute), 9); err != nil || len(due) != 1 {
			b.t.Errorf("due are %v, %v: the touch was lost", due, err)
		}
		step.Touches = b.facts().Touches
		step.NextTime = time.Time{}
		if err := b.store.Commit(b.t.Context(), b.master, step); err != nil {
			b.t.Fatal(err)
		}
		if due, next, err := b.store.Due(b.t.Context(), 0, start.Add(1000*time.Hour), 9); err != nil || len(due) != 0 || !next.IsZero() {
			b.t.Errorf("due are %v, next at %s, %v, want nothing ever", due, next, err)
		}
	})
}

func TestAdopt_TakesInWhatIsNewAndForgetsWhatIsGone(t *testing.T) {
	onBoth(t, func(b *bench) {
		later := store.Integration{UID: "uid", Name: "n", Revision: 5, Deleting: true}
		b.want(5, later)
		if newest := b.adopt(1); newest != 5 {
			b.t.Errorf("the newest revision is %d, want 5", newest)
		}
		f := b.facts()
		if !f.Wanted.Deleting || f.Touches != 1 {
			b.t.Errorf("facts are %+v", f)
		}
		b.adopt(-1) // a new master looks at everything, and makes nothing due that is not new
		if got := b.facts().Touches; got != 1 {
			b.t.Errorf("adopted again it was touched %d times", got)
		}

		b.insert("v", 1, credential.Revoked)
		b.want(6)
		b.adopt(-1)
		if b.facts().Wanted.Present { // still there: nobody has said that it is gone for good
			b.t.Error("the integration is still wanted")
		}
		a := b.facts().Application
		a.ForgetTime = start
		b.mustCommit(credential.Change{Application: &a})
		b.want(7)
		b.adopt(-1)
		if _, err := b.store.Facts(b.t.Context(), "uid"); !errors.Is(err, sqldb.ErrNoRows) {
			b.t.Errorf("what is gone for good is still known: %v", err)
		}
	})
}

func TestCommit_DropsVersionsThatEndedLongAgo(t *testing.T) {
	onBoth(t, func(b *bench) {
		b.insert("old", 1, credential.Revoked)
		b.insert("old too", 3, credential.Revoked)
		for number, v := range map[int64]credential.Version{4: {}, 5: {KeyID: "removed", RemoveTime: start}, 6: {KeyID: "there"}} {
			given := b.insert(fmt.Sprint("given up ", number), number, credential.Intended)
			given.State, given.KeyID, given.RemoveTime = credential.Abandoned, v.KeyID, v.RemoveTime
			b.mustCommit(credential.Change{Moves: []credential.Move{{From: credential.Intended, Version: given}}})
		}
		b.insert("latest", 7, credential.Revoked)
		b.insert("live", 2, credential.Active)
		step := store.Step{IntegrationUID: "uid", Now: start.Add(31 * 24 * time.Hour), Change: credential.Change{ReplaceStrays: true}}
		if err := b.store.Commit(b.t.Context(), b.master, step); err != nil {
			b.t.Fatal(err)
		}
		var left []string
		b.tx(func(ctx context.Context, tx sqldb.Tx) (err error) {
			left, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (id string, err error) {
				err = row.Scan(&id)
				return id, err
			}, `SELECT id FROM credential_versions ORDER BY number`)
			return err
		})
		// What is at Entra is to be removed still; and numbers go on from the latest.
		if !slices.Equal(left, []string{"live", "given up 6", "latest"}) || b.facts().LastNumber != 7 {
			b.t.Errorf("left are %v", left)
		}
	})
}

func TestClaimProbe_GoesToOneAtATime(t *testing.T) {
	onBoth(t, func(b *bench) {
		claim := func(after time.Duration) bool {
			b.t.Helper()
			ok, err := b.store.ClaimProbe(b.t.Context(), "uid", start.Add(after), 10*time.Second, time.Minute)
			if err != nil {
				b.t.Fatal(err)
			}
			return ok
		}
		record := func(p credential.Probe) {
			b.t.Helper()
			if err := b.store.RecordProbe(b.t.Context(), "uid", start, p, 0); err != nil {
				b.t.Fatal(err)
			}
		}
		if !claim(0) {
			b.t.Error("the first claim is refused")
		}
		if claim(30 * time.Second) {
			b.t.Error("a claim is given while another one is out")
		}
		answer := credential.Probe{Time: start, VersionID: "v", Finding: credential.Works, PrincipalObjectID: "principal"}
		record(answer)
		if got, err := b.store.Probe(b.t.Context(), "uid"); err != nil || got != answer {
			b.t.Errorf("the answer is %+v, %v", got, err)
		}
		if claim(9 * time.Second) {
			b.t.Error("a claim is given within the spacing")
		}
		if !claim(10 * time.Second) {
			b.t.Error("a claim is refused after the spacing")
		}
		record(credential.Probe{Time: start.Add(10 * time.Second)}) // Unsure
		if got := b.facts().Probe; got != answer {
			b.t.Errorf("an answer that says nothing replaced the last one: %+v", got)
		}
		if !claim(20 * time.Second) {
			b.t.Error("a claim is refused after an answer that says nothing")
		}
		if !claim(20*time.Second + time.Minute) {
			b.t.Error("a claim whose owner died is kept for ever")
		}
		newer := credential.Probe{Time: start.Add(80 * time.Second), VersionID: "v", Finding: credential.ConsentMissing}
		record(newer)
		record(credential.Probe{Time: start.Add(20 * time.Second), VersionID: "v", Finding: credential.Works}) // the owner lives
		if got := b.facts().Probe; got != newer {
			b.t.Errorf("an answer that was asked for before replaced the last one: %+v", got)
		}
	})
}
