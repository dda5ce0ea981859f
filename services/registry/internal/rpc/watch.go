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
	watcher watcher
}

// Watch ends, when the server drains, by its context, of which the chain makes UNAVAILABLE, DRAINING.
func (s watchService) Watch(req *registryv1.WatchRequest, stream grpc.ServerStreamingServer[registryv1.WatchResponse]) error {
	from, err := resource.ParseCursor(req.GetCursor())
	if err != nil {
		return statusOf(err)
	}
	return statusOf(s.watcher.Watch(stream.Context(), from, func(changes []change.Change, at resource.Position) error {
		resp := &registryv1.WatchResponse{Cursor: at.Cursor(), Incarnation: at.Incarnation, Revision: at.Revision}
		for _, c := range changes {
			resp.Events = append(resp.Events, messageOfChange(c))
		}
		return stream.Send(resp)
	}))
}
