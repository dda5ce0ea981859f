package rpc

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/lease"
)

// credentialService implements vaultv1.CredentialServiceServer, on both listeners.
type credentialService struct {
	vaultv1.UnsafeCredentialServiceServer
	hub     hub
	changed func()
}

func (s credentialService) StreamCredentials(req *vaultv1.StreamCredentialsRequest, stream grpc.ServerStreamingServer[vaultv1.StreamCredentialsResponse]) error {
	r, err := wanted(stream.Context(), req)
	if err != nil {
		return err
	}
	return statusOf(s.hub.Stream(stream.Context(), r, func(d delivery.Delivery) error {
		if d.Alike == nil {
			return stream.Send(&vaultv1.StreamCredentialsResponse{Credential: messageOfDelivery(d)})
		}
		encoded, err := encodedDelivery(d)
		if err != nil {
			return err
		}
		return stream.SendMsg(encoded)
	}, func(within time.Duration) error {
		return stream.Send(&vaultv1.StreamCredentialsResponse{LeaveWindow: durationpb.New(within)})
	}))
}

func (s credentialService) FetchCredential(ctx context.Context, req *vaultv1.FetchCredentialRequest) (*vaultv1.FetchCredentialResponse, error) {
	r, err := wanted(ctx, req)
	if err != nil {
		return nil, err
	}
	d, err := s.hub.Fetch(ctx, r)
	if err != nil {
		return nil, statusOf(err)
	}
	return &vaultv1.FetchCredentialResponse{Credential: messageOfDelivery(d)}, nil
}

func (s credentialService) AcknowledgeCredential(ctx context.Context, req *vaultv1.AcknowledgeCredentialRequest) (*vaultv1.AcknowledgeCredentialResponse, error) {
	released, err := s.hub.Acknowledge(ctx, shown(ctx, req.GetInstanceId()), req.GetGeneration())
	if errors.Is(err, lease.ErrNotDelivered) {
		return nil, rpcerr.Invalid("generation", "was never delivered to this instance")
	}
	if err != nil {
		return nil, statusOf(err)
	}
	return &vaultv1.AcknowledgeCredentialResponse{ReleasedVersions: released}, nil
}

func (s credentialService) CloseLease(ctx context.Context, req *vaultv1.CloseLeaseRequest) (*vaultv1.CloseLeaseResponse, error) {
	if err := s.hub.CloseLease(ctx, shown(ctx, req.GetInstanceId())); err != nil {
		return nil, statusOf(err)
	}
	s.changed()
	return &vaultv1.CloseLeaseResponse{}, nil
}

// wanted is what a runner shows and wants.
func wanted(ctx context.Context, req interface {
	GetInstanceId() string
	GetMaterial() typev1.Material
	GetAudience() string
},
) (delivery.Request, error) {
	r := shown(ctx, req.GetInstanceId())
	r.Material, r.Audience = materialOf(req.GetMaterial()), req.GetAudience()
	if r.Material != lease.AccessToken && r.Audience != "" {
		return delivery.Request{}, rpcerr.Invalid("audience", "must be empty: only an access token has one")
	}
	return r, nil
}

// shown is what a runner shows: its grant, its certificate, its instance.
func shown(ctx context.Context, instanceID string) delivery.Request {
	return delivery.Request{
		Token: bearer(ctx), Source: sourceOf(ctx), CertificateSHA256: certificateOf(ctx), InstanceID: instanceID, Caller: callerOf(ctx),
	}
}

// bearer is the token of the authorization header; empty, which is no token, when there is not exactly one.
func bearer(ctx context.Context) secret.Text {
	const scheme = "bearer "
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 || len(values[0]) < len(scheme) || !strings.EqualFold(values[0][:len(scheme)], scheme) {
		return secret.Text{}
	}
	return secret.New(values[0][len(scheme):])
}
