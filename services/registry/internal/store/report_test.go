package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

func TestStore_Report(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		created := makeIntegration(t, s, "net")
		ready := integration.Report{
			Conditions:             []integration.Condition{{Type: integration.ApplicationReady, Status: integration.True, Reason: "Proven"}},
			ApplicationDisplayName: "phasekey net", ClientID: "7B2F7A3E-52A5-4C1B-9D3D-0A8C1F4F0009",
		}
		if err := s.Report(ctx, later, master, created.UID, ready); err != nil {
			t.Fatal(err)
		}
		found, err := s.Integration(ctx, created.Name)
		if err != nil {
			t.Fatal(err)
		}
		if found.State() != integration.AwaitingConsent || found.ClientID != strings.ToLower(ready.ClientID) || !found.Conditions[0].LastTransition.Equal(later) {
			t.Fatalf("reported %+v", found)
		}
		if found.ETag() != created.ETag() || !found.UpdateTime.Equal(created.UpdateTime) {
			t.Fatal("a report changed the wanted state")
		}
		if diff := cmp.Diff([]change.Change{{Revision: 2, Integration: &found}}, changesAfter(t, s, 1)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
		if err := s.Report(ctx, later.Add(time.Hour), master, created.UID, ready); err != nil {
			t.Fatal(err)
		}
		if head(t, s) != 2 {
			t.Fatal("the same report made a revision")
		}
		// What is said in other words is kept, and told with the next change.
		for _, message := range []string{"one", "two", "one"} {
			ready.Conditions[0].Message = message
			if err := s.Report(ctx, later, master, created.UID, ready); err != nil {
				t.Fatal(err)
			}
			if found, err = s.Integration(ctx, created.Name); err != nil || found.Conditions[0].Message != message || head(t, s) != 2 {
				t.Fatalf("reported %+v, %v; head %d", found, err, head(t, s))
			}
		}
		ready.Conditions[0].Reason = "Seen"
		if err := s.Report(ctx, later, master, created.UID, ready); err != nil {
			t.Fatal(err)
		}
		if told := changesAfter(t, s, 2); len(told) != 1 || told[0].Integration.Conditions[0].Message != "one" || told[0].Integration.Conditions[0].Reason != "Seen" {
			t.Fatalf("told %+v", told)
		}
		wantError(t, s.Report(ctx, later, master, "7b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0010", ready), resource.ErrNotFound, "")
		mine := errors.New("not deleting")
		wantError(t, s.RemoveIntegration(ctx, later, master, created.UID, func(integration.Integration) error { return mine }), mine, "")
		if err := s.RemoveIntegration(ctx, later, master, "7b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0010", removable); !errors.Is(err, resource.ErrNotFound) {
			t.Fatalf("removed what never was: %v", err)
		}
	})
}

func TestStore_ReportIsFenced(t *testing.T) {
	other := "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a002"
	for _, tt := range []struct {
		name    string
		by      integration.Mastership
		refused bool
	}{
		{"the same again", master, false},
		{"an older epoch", integration.Mastership{Epoch: 9, Holder: master.Holder}, true},
		{"an older epoch of another holder", integration.Mastership{Epoch: 9, Holder: other}, true},
		{"the same epoch of another holder", integration.Mastership{Epoch: 10, Holder: other}, true},
		{"a newer epoch", integration.Mastership{Epoch: 11, Holder: other}, false},
		// The number of shards has changed, and with it the shard that the integration belongs to.
		{"an older epoch of another shard", integration.Mastership{Shard: 3, Epoch: 9, Holder: other}, true},
		{"the same epoch of another shard", integration.Mastership{Shard: 3, Epoch: 10, Holder: other}, true},
		{"a newer epoch of another shard", integration.Mastership{Shard: 3, Epoch: 11, Holder: other}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			suite(t, func(t *testing.T, s *store.Store) {
				ctx := t.Context()
				i := makeIntegration(t, s, "net")
				if err := s.Report(ctx, later, master, i.UID, integration.Report{ApplicationDisplayName: "first"}); err != nil {
					t.Fatal(err)
				}
				err := s.Report(ctx, later, tt.by, i.UID, integration.Report{ApplicationDisplayName: "second"})
				if !tt.refused {
					if err != nil || head(t, s) != 3 {
						t.Fatalf("got %v, head %d", err, head(t, s))
					}
					return
				}
				wantError(t, err, resource.ErrFenced, "")
				wantError(t, s.RemoveIntegration(ctx, later, tt.by, i.UID, removable), resource.ErrFenced, "")
				if head(t, s) != 2 {
					t.Fatal("a fenced report was stored")
				}
				if err := s.Report(ctx, later, master, i.UID, integration.Report{ApplicationDisplayName: "third"}); err != nil {
					t.Fatalf("a refusal moved the fence: %v", err)
				}
			})
		})
	}
}

// A report of an impossible epoch, which would shut the shard's vaults out, leaves the fence where it was.
func TestStore_ReportOfAnImpossibleEpoch(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		i := makeIntegration(t, s, "net")
		for _, tt := range []struct {
			name  string
			epoch int64
			ok    bool
		}{
			{"for ever", 1<<63 - 1, false},
			{"in two days", later.Add(48 * time.Hour).UnixMicro(), false},
			{"just too far", later.Add(24*time.Hour).UnixMicro() + 1, false},
			{"now", later.UnixMicro(), true},
			{"as far as clocks may differ", later.Add(24 * time.Hour).UnixMicro(), true},
		} {
			by := integration.Mastership{Epoch: tt.epoch, Holder: master.Holder}
			err := s.Report(ctx, later, by, i.UID, integration.Report{ApplicationDisplayName: tt.name})
			if tt.ok && err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			if !tt.ok {
				wantError(t, err, resource.ErrInvalid, "")
				wantError(t, s.RemoveIntegration(ctx, later, by, i.UID, removable), resource.ErrInvalid, "")
			}
		}
	})
}

// TestStore_OlderReportNeverLandsLast has two masterships report at once, many times: once the newer one has been taken in, nothing of the older may change
// the integration.
func TestStore_OlderReportNeverLandsLast(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		i := makeIntegration(t, s, "net")
		newer := integration.Mastership{Epoch: master.Epoch + 1, Holder: "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a002"}
		results := together(2, func(who int) error {
			by, name := master, "old"
			if who == 1 {
				by, name = newer, "new"
			}
			for n := range 25 {
				err := s.Report(t.Context(), later, by, i.UID, integration.Report{ApplicationDisplayName: fmt.Sprint(name, n)})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if results[1] != nil {
			t.Fatal(results[1])
		}
		if results[0] != nil && !errors.Is(results[0], resource.ErrFenced) {
			t.Fatal(results[0])
		}
		seenNew := false
		for _, c := range changesAfter(t, s, 1) {
			isNew := strings.HasPrefix(c.Integration.ApplicationDisplayName, "new")
			if seenNew && !isNew {
				t.Fatalf("revision %d is of the older mastership", c.Revision)
			}
			seenNew = seenNew || isNew
		}
	})
}

// Each shard has masterships of its own, whose epochs say nothing about another's integrations.
func TestStore_ShardsDoNotFenceEachOther(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		one, two := makeIntegration(t, s, "one"), makeIntegration(t, s, "two")
		older := integration.Mastership{Shard: 1, Epoch: master.Epoch - 1, Holder: "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a002"}
		for _, report := range []struct {
			by integration.Mastership
			on integration.Integration
		}{{master, one}, {older, two}, {master, one}, {older, two}} {
			if err := s.Report(t.Context(), later, report.by, report.on.UID, integration.Report{ApplicationDisplayName: "x"}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A mastership that has reported on one integration fences older ones of its shard from all others, of which no report has been taken in yet.
func TestStore_AMastershipFencesItsWholeShard(t *testing.T) {
	const other = "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a002"
	suite(t, func(t *testing.T, s *store.Store) {
		one, two := makeIntegration(t, s, "one"), makeIntegration(t, s, "two")
		report := func(by integration.Mastership, on integration.Integration) error {
			return s.Report(t.Context(), later, by, on.UID, integration.Report{ApplicationDisplayName: "x"})
		}
		if err := report(master, one); err != nil {
			t.Fatal(err)
		}
		wantError(t, report(integration.Mastership{Epoch: master.Epoch - 1, Holder: master.Holder}, two), resource.ErrFenced, "subject=shard 0")
		wantError(t, report(integration.Mastership{Epoch: master.Epoch, Holder: other}, two), resource.ErrFenced, "subject=shard 0")
		if err := report(master, two); err != nil {
			t.Error(err)
		}
	})
}
