package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/store"
)

func TestTouchClouds_MakesThoseDueThatAConfigurationConcerns(t *testing.T) {
	onBoth(t, func(b *bench) {
		later, never := start.Add(time.Hour), time.Time{}
		var all []store.Integration
		var want []string
		next := map[string]time.Time{}
		for _, of := range []struct {
			cloud string
			next  time.Time
			due   bool
		}{{"public", never, true}, {"public", later, false}, {"china", never, true}, {"gone", never, false}, {"gone", later, true}} {
			uid := uidInShard(0, len(all))
			all = append(all, store.Integration{UID: uid, Name: "accounts/a/integrations/" + uid, Cloud: of.cloud, Revision: 2})
			next[uid] = of.next
			if of.due {
				want = append(want, uid)
			}
		}
		elsewhere := uidInShard(1, 0)
		all = append(all, store.Integration{UID: elsewhere, Name: "accounts/a/integrations/elsewhere", Cloud: "gone", Revision: 2})
		b.want(2, all...)
		b.adopt(-1)
		for uid, at := range next {
			f, err := b.store.Facts(b.t.Context(), uid)
			if err != nil {
				b.t.Fatal(err)
			}
			if err := b.store.Commit(b.t.Context(), b.master, store.Step{IntegrationUID: uid, Now: start, NextTime: at, Touches: f.Touches}); err != nil {
				b.t.Fatal(err)
			}
		}
		now := start.Add(time.Minute)
		if err := b.store.TouchClouds(b.t.Context(), b.master, now, []string{"china", "public"}); err != nil {
			b.t.Fatal(err)
		}
		due, _, err := b.store.Due(b.t.Context(), 0, now, 10)
		slices.Sort(due)
		slices.Sort(want)
		if err != nil || cmp.Diff(want, slices.DeleteFunc(due, func(uid string) bool { return uid == "uid" })) != "" {
			b.t.Errorf("due are %v, want %v; %v", due, want, err)
		}
		counts, err := b.store.Clouds(b.t.Context())
		if err != nil || cmp.Diff(map[string]int{"public": 2, "china": 1, "gone": 3}, counts) != "" {
			b.t.Errorf("by clouds there are %v, %v", counts, err)
		}
	})
}

// uidInShard is the nth UID of the shard, of three.
func uidInShard(shard, n int) string {
	for i := 0; ; i++ {
		if uid := fmt.Sprint("i", i); election.ShardOf(uid, 3) == shard {
			if n--; n < 0 {
				return uid
			}
		}
	}
}
