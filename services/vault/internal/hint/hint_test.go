package hint_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"phasekey.dev/pkg/redistest"
	"phasekey.dev/services/vault/internal/hint"
)

const (
	deployment = "test"
	channel    = "phasekey:test:changes"
	patience   = 30 * time.Second
)

// lines are what is logged, line by line.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// replica is one that sends and receives hints.
type replica struct {
	*hint.Hints

	link *redistest.Link
	log  lines
	run  func()
	stop func()
}

// join makes a replica, which has not begun.
func join(t *testing.T, r *redistest.Redis, deployment string) *replica {
	t.Helper()
	one := &replica{link: r.Link(t), log: make(lines, 100), stop: func() {}}
	one.Hints = hint.New(one.link, deployment, slog.New(slog.NewTextHandler(one.log, nil)))
	one.run = func() {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- one.Run(ctx) }()
		one.stop = func() {
			t.Helper()
			one.stop = func() {}
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(patience):
				t.Error("does not end")
			}
		}
	}
	t.Cleanup(func() { one.stop() })
	return one
}

// subscribed waits until so many listen to a channel.
func subscribed(t *testing.T, client redis.UniversalClient, channel string, want int64) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		counts, err := client.PubSubNumSub(t.Context(), channel).Result()
		switch {
		case err == nil && counts[channel] == want:
			return
		case time.Now().After(deadline):
			t.Fatalf("%d listen to %s, error %v, want %d", counts[channel], channel, err, want)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func next[T any](t *testing.T, what string, from <-chan T) (got T) {
	t.Helper()
	select {
	case got = <-from:
	case <-time.After(patience):
		t.Fatalf("no %s", what)
	}
	return got
}

// until does something again and again until there is something to be had.
func until(t *testing.T, what string, do func(), from <-chan string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		do()
		select {
		case <-from:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("never: %s", what)
}

func TestHints_ReachTheReplicasOfTheDeployment(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		near, far, foreign := join(t, r, deployment), join(t, r, deployment), join(t, r, "other")
		for _, one := range []*replica{near, far, foreign} {
			one.run()
		}
		subscribed(t, near.link, channel, 2) // so foreign does not
		subscribed(t, near.link, "phasekey:other:changes", 1)
		for range 3 {
			near.Notify()
			next(t, "hint", far.Heard())
		}
	})
}

func TestHints_ManyChangesAreOneHint(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		one := join(t, r, deployment)
		listener := r.Link(t).Subscribe(t.Context(), channel)
		defer func() { _ = listener.Close() }()
		heard := listener.Channel()
		subscribed(t, one.link, channel, 1)
		for range 100 {
			one.Notify()
		}
		one.run()
		next(t, "hint of many changes", heard)
		one.Notify()
		next(t, "hint of one more", heard)
		if err := one.link.Publish(t.Context(), channel, "the end").Err(); err != nil {
			t.Fatal(err)
		}
		if m := next(t, "end", heard); m.Payload != "the end" {
			t.Error("more hints than two")
		}
	})
}

func TestHints_AreOnlyMissedWhileRedisIsAway(t *testing.T) {
	for name, fault := range map[string]func(*redistest.Link){"down": (*redistest.Link).Cut, "partitioned": (*redistest.Link).Stall} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
				near, far := join(t, r, deployment), join(t, r, deployment)
				near.run()
				far.run()
				subscribed(t, far.link, channel, 2)
				for range 2 {
					fault(near.link)
					near.Notify()
					if line := next(t, "warning", near.log); !strings.Contains(line, "level=WARN") {
						t.Error(line)
					}
					near.Notify()
					<-time.After(time.Second) // longer than a publication takes to fail, or a hint to come
					for _, one := range []*replica{near, far} {
						select {
						case <-one.Heard():
						default:
						}
					}
					if len(near.log) > 0 {
						t.Errorf("warned again: %s", <-near.log)
					}
					near.link.Heal()
					// It reaches the other, and itself, as before. What was said while it listened to nobody is lost, so it is said again.
					until(t, "the other hears", near.Notify, far.Heard())
					until(t, "it hears itself", near.Notify, near.Heard())
				}
			})
		})
	}
}

func TestHints_EndWhateverRedisDoes(t *testing.T) {
	for name, fault := range map[string]func(*redistest.Link){
		"is there": func(*redistest.Link) {}, "is down": (*redistest.Link).Cut, "is partitioned": (*redistest.Link).Stall,
	} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
				one := join(t, r, deployment)
				one.run()
				subscribed(t, one.link, channel, 1)
				fault(one.link)
				one.Notify()
				one.stop()
			})
		})
	}
}
