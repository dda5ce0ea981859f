package rpc

import (
	"google.golang.org/grpc"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	"phasekey.dev/services/broker/internal/consent"
)

// WatchConsentSession implements ConsentService. It reads the session once, and is then told of changes, by whichever replica; the
// server ends the stream when it drains.
func (s *Service) WatchConsentSession(req *brokerv1.WatchConsentSessionRequest, stream grpc.ServerStreamingServer[brokerv1.WatchConsentSessionResponse]) error {
	ctx := stream.Context()
	session, err := s.read(ctx, req.GetName())
	if err != nil {
		return problem(err, req.GetName())
	}
	followed := s.cfg.Follow.Follow(consent.Hash(s.cfg.Links.Key.LinkOf(session)), session.Version)
	defer followed.Close()
	for {
		if err := stream.Send(&brokerv1.WatchConsentSessionResponse{ConsentSession: s.reply(session)}); err != nil {
			return err
		}
		if !session.State.Open() {
			return nil
		}
		select {
		case <-ctx.Done():
			return problem(ctx.Err(), req.GetName())
		case session = <-followed.News():
		}
	}
}
