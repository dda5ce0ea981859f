package rpc

import (
	"google.golang.org/grpc"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/resource"
)

// watchService implements registryv1.WatchServiceServer.
type watchService struct {
	registryv1.UnsafeWatchServiceServer
	store   store
	watcher watcher
}

// Watch ends, when the server drains, by its context, of which the chain makes UNAVAILABLE, DRAINING.
func (s watchService) Watch(req *registryv1.WatchRequest, stream grpc.ServerStreamingServer[registryv1.WatchResponse]) error {
	incarnation := s.store.Incarnation()
	from, err := resource.ParseCursor(incarnation, req.GetCursor())
	if err != nil {
		return statusOf(err)
	}
	return statusOf(s.watcher.Watch(stream.Context(), from.Revision, func(changes []change.Change, revision int64) error {
		to := resource.Position{Incarnation: incarnation, Revision: revision}
		resp := &registryv1.WatchResponse{Cursor: to.Cursor(), Incarnation: to.Incarnation, Revision: to.Revision}
		for _, c := range changes {
			resp.Events = append(resp.Events, messageOfChange(c))
		}
		return stream.Send(resp)
	}))
}
