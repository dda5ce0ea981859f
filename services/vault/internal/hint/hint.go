// Package hint tells the other replicas that there may be something new in the database, by Redis' publish and subscribe.
//
// It guarantees nothing: hints get lost, come twice, come late. Whoever hears one looks into the database, and looks from
// time to time without having heard any. What it gives is speed: replicas learn in milliseconds what polling would
// tell them in seconds.
package hint

import (
	"context"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"phasekey.dev/pkg/obs"
)

// publishTimeout bounds one publication; what takes longer has lost its worth.
const publishTimeout = time.Second

// Hints sends and receives them. Make it with New, and Run it.
type Hints struct {
	client  redis.UniversalClient
	channel string
	log     *slog.Logger
	pending chan struct{} // holds one: any number of changes is one hint
	heard   chan string   // holds one
}

// New makes Hints whose channel is the deployment's.
func New(client redis.UniversalClient, deployment string, log *slog.Logger) *Hints {
	return &Hints{
		client: client, channel: "phasekey:" + deployment + ":changes", log: log,
		pending: make(chan struct{}, 1), heard: make(chan string, 1),
	}
}

// Notify has a hint sent. It does not block.
func (h *Hints) Notify() {
	select {
	case h.pending <- struct{}{}:
	default:
	}
}

// Heard has a value when a hint came since the last one was taken.
func (h *Hints) Heard() <-chan string { return h.heard }

// Run sends and receives until ctx ends; it returns nil then. Redis' being away is logged, and nothing else.
func (h *Hints) Run(ctx context.Context) error {
	subscription := h.client.Subscribe(ctx, h.channel)
	messages := subscription.Channel()
	away := false
	for {
		select {
		case <-ctx.Done():
			_ = subscription.Close() // it fails for a connection that was broken already
			return nil
		case <-messages:
			select {
			case h.heard <- h.channel:
			default:
			}
		case <-h.pending:
			err := h.publish(ctx)
			if err != nil && !away && ctx.Err() == nil {
				h.log.WarnContext(ctx, "hints cannot be sent; other replicas learn of changes by polling", slog.Any(obs.KeyError, err))
			}
			away = err != nil
		}
	}
}

func (h *Hints) publish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	return h.client.Publish(ctx, h.channel, "").Err()
}
