package redistest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"phasekey.dev/pkg/redistest"
)

func TestEach_IsARedisWithFaults(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		ctx := t.Context()
		near, far := r.Link(t), r.Link(t)
		set := func(link *redistest.Link, value string) error { return link.Set(ctx, "key", value, 0).Err() }
		stored := func() string {
			t.Helper()
			value, err := far.Get(ctx, "key").Result()
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
		if err := set(near, "first"); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			name  string
			fault func()
			want  string
		}{
			{"cut", near.Cut, "first"},
			{"stalled", near.Stall, "first"},
			{"replies lost", near.LoseReplies, "replies lost"},
		} {
			step.fault()
			if err := set(near, step.name); err == nil {
				t.Errorf("%s: no error", step.name)
			}
			if got := stored(); got != step.want {
				t.Errorf("%s: stored %q, want %q", step.name, got, step.want)
			}
			near.Heal()
			if err := near.Ping(ctx).Err(); err != nil {
				t.Errorf("after %s: %v", step.name, err)
			}
		}
		if err := near.Set(ctx, "brief", "x", 50*time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-time.After(60 * time.Millisecond):
		case <-ctx.Done():
		}
		if err := far.Get(ctx, "brief").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("an expired key: %v", err)
		}
	})
}
