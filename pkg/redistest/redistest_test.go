package redistest_test

import (
	"errors"
	"fmt"
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

func TestServers_LoseWhatTheyKeep(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		start func(t *testing.T) (r *redistest.Redis, lose func())
	}{
		{"a server that restarts", func(t *testing.T) (*redistest.Redis, func()) {
			r := redistest.Server(t)
			return r, func() { r.Restart(t) }
		}},
		{"a cluster whose nodes restart", func(t *testing.T) (*redistest.Redis, func()) {
			r := redistest.Cluster(t)
			return r, func() { r.Restart(t) }
		}},
		{"a replica that has heard nothing and is told to take over", func(t *testing.T) (*redistest.Redis, func()) {
			f := redistest.Sentinel(t)
			f.Deafen(t)
			return f.Redis, func() { f.FailOver(t) }
		}},
		{"a replica that has heard nothing when the master dies", func(t *testing.T) (*redistest.Redis, func()) {
			f := redistest.Sentinel(t)
			f.Deafen(t)
			return f.Redis, func() { f.KillMaster(t) }
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r, lose := test.start(t)
			link := r.Link(t)
			if err := link.Set(t.Context(), "key", "value", 0).Err(); err != nil {
				t.Fatal(err)
			}
			lose()
			// It takes a while, and nothing is lost for ever: the same client works again. A Sentinel that stood still does nothing for half a minute.
			for late := time.Now().Add(time.Minute); ; {
				err := link.Get(t.Context(), "key").Err()
				if errors.Is(err, redis.Nil) {
					err = link.Set(t.Context(), "key", "value", 0).Err()
					if err == nil {
						return
					}
				}
				if time.Now().After(late) {
					t.Fatalf("still: %v", err)
				}
				<-time.After(10 * time.Millisecond)
			}
		})
	}
}

func TestLink_ForgetsEverywhere(t *testing.T) {
	t.Parallel()
	link := redistest.Cluster(t).Link(t)
	for i := range 20 {
		if err := link.Set(t.Context(), fmt.Sprint("key", i), "value", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := link.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := link.Get(t.Context(), fmt.Sprint("key", i)).Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("key %d: %v", i, err)
		}
	}
}
