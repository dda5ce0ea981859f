package rigtest

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Way is a runner's connection. It sees when none of the runner's streams delivers.
type Way struct {
	*grpc.ClientConn

	mu         sync.Mutex
	delivering int
	newest     time.Time
	moves      int
	gaps       []error
}

// NewStream implements grpc.ClientConnInterface.
func (w *Way) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := w.ClientConn.NewStream(ctx, desc, method, opts...)
	return &wayStream{ClientStream: s, way: w}, err
}

// Seen is how often a second stream has delivered before the first had ended, what has ended the only one, and since when the newest has delivered; zero when there is
// none.
func (w *Way) Seen() (moves int, gaps []error, newest time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.delivering > 0 {
		newest = w.newest
	}
	return w.moves, w.gaps, newest
}

type wayStream struct {
	grpc.ClientStream
	way      *Way
	delivers bool
}

// RecvMsg implements grpc.ClientStream.
func (s *wayStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	w := s.way
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil && !s.delivers:
		s.delivers, w.newest = true, time.Now()
		if w.delivering++; w.delivering > 1 {
			w.moves++
		}
	case err != nil && s.delivers:
		s.delivers = false
		if w.delivering--; w.delivering == 0 {
			w.gaps = append(w.gaps, err)
		}
	}
	return err
}
