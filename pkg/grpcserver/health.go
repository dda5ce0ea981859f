package grpcserver

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"phasekey.dev/pkg/obs"
)

// healthState is the readiness of each service, of which the overall one is computed. That is why it is kept here and not
// only in gRPC's health server: there the last writer of "" would win.
type healthState struct {
	server *health.Server

	mu      sync.Mutex
	serving map[string]bool
}

// newHealth makes a state in which nothing serves.
func newHealth(services []string) *healthState {
	h := &healthState{server: health.NewServer(), serving: map[string]bool{}}
	for _, s := range services {
		h.serving[s] = false
	}
	h.publish()
	return h
}

// set changes one service, or all for "", and reports whether anything changed and the service is known.
func (h *healthState) set(service string, ok bool) (changed, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s, was := range h.serving {
		if service == "" || s == service {
			known = true
			changed = changed || was != ok
			h.serving[s] = ok
		}
	}
	if changed {
		h.publish()
	}
	return changed, known
}

// publish tells gRPC's health server, and with it whoever watches. The lock is held, or nobody else knows h yet.
func (h *healthState) publish() {
	all := true
	for s, ok := range h.serving {
		h.server.SetServingStatus(s, servingStatus(ok))
		all = all && ok
	}
	h.server.SetServingStatus("", servingStatus(all))
}

// shutdown makes everything NOT_SERVING for good.
func (h *healthState) shutdown() { h.server.Shutdown() }

// servingStatus is how readiness is said on the wire.
func servingStatus(ok bool) grpc_health_v1.HealthCheckResponse_ServingStatus {
	if ok {
		return grpc_health_v1.HealthCheckResponse_SERVING
	}
	return grpc_health_v1.HealthCheckResponse_NOT_SERVING
}

// SetServing says whether a service is ready: its full proto name, or "" for all of this server. It goes both ways. Every
// service is NOT_SERVING until told otherwise, and once draining begins all stay NOT_SERVING. The overall health is SERVING
// when all services are.
func (s *Server) SetServing(service string, ok bool) {
	changed, known := s.health.set(service, ok)
	switch {
	case !known:
		s.cfg.Log.Error("health of a service that is not on this listener", slog.String(obs.KeyService, service))
	case changed:
		s.cfg.Log.Info("health changed", slog.String(obs.KeyService, service), slog.Bool("serving", ok))
	}
}

// FollowHealth calls check at once and then every interval until ctx ends, and sets the health of the services (none named
// means all) by whether it returned nil. A check gets a context that ends with the interval, so a store that hangs is a
// store that is down. It returns nil; run it as a task.
func (s *Server) FollowHealth(
	ctx context.Context, every time.Duration, check func(context.Context) error, services ...string,
) error {
	if len(services) == 0 {
		services = []string{""}
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last error
	for {
		checkCtx, cancel := context.WithTimeout(ctx, every)
		err := check(checkCtx)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && last == nil {
			s.cfg.Log.WarnContext(ctx, "not ready", slog.Any(obs.KeyError, err))
		}
		last = err
		for _, service := range services {
			s.SetServing(service, err == nil)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
