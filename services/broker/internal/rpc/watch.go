package rpc

import (
	"time"

	"google.golang.org/grpc"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
)

// WatchConsentSession implements ConsentService. It reads the session again and again, since any replica may change it;
// the server ends the stream when it drains.
func (s *Service) WatchConsentSession(req *brokerv1.WatchConsentSessionRequest, stream grpc.ServerStreamingServer[brokerv1.WatchConsentSessionResponse]) error {
	ctx := stream.Context()
	poll := time.NewTicker(s.cfg.Poll)
	defer poll.Stop()
	var sent int64
	for {
		session, err := s.read(ctx, req.GetName())
		if err != nil {
			return problem(err, req.GetName())
		}
		if session.Version != sent {
			if err := stream.Send(&brokerv1.WatchConsentSessionResponse{ConsentSession: s.reply(session)}); err != nil {
				return err
			}
			sent = session.Version
		}
		if !session.State.Open() {
			return nil
		}
		select {
		case <-ctx.Done():
			return problem(ctx.Err(), req.GetName())
		case <-poll.C:
		}
	}
}
