package app_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/app"
)

// The sources of calls in a flood: two addresses of the loopback network.
const flooder, neighbour = "127.0.0.2", "127.0.0.3"

// unknownGrant has the form and the checksum of a grant's token, and is of none.
const unknownGrant = "pkg_00000000000000000000000000000000000000000013TVTGd"

func from(source string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
}

// runnerFrom connects to the runners' listener from an address.
func (p *place) runnerFrom(t *testing.T, vault *app.App, source string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.Dial(grpcclient.Config{
		Target: "passthrough:///" + vault.RunnersAddr().String(), TLS: p.source(t, "").ClientConfig("spiffe://phasekey.dev/vault"),
		Dialer: func(ctx context.Context, address string) (net.Conn, error) {
			return from(source).DialContext(ctx, "tcp", address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func shown(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// One source floods the runners' listener in every way at once: connections that say nothing, connections that have shaken hands and then say nothing, calls with tokens
// of no grant, and streams by a grant that is good. A runner at another address has its stream all the while, hears of what changes, and finds another connection served.
func TestApp_AFloodFromOneSourceLeavesOthersServed(t *testing.T) {
	p := newPlace(t)
	sim, customer := p.withEntra(t)
	registry := p.withRegistry(t, customer)
	p.config.Limits = grpcserver.Limits{AnonymousHandshakes: 20, AnonymousConnections: 60, AnonymousCalls: 80}
	vault, _ := p.start(t)
	p.consent(t, sim, customer, registry.reported(t, registryv1.Condition_TYPE_APPLICATION_READY).GetClientId())
	registry.reported(t, registryv1.Condition_TYPE_CREDENTIAL_READY)

	own, stolen := p.grant(t, vault, "run-1"), p.grant(t, vault, "run-2")
	ctx, cancel := context.WithCancel(t.Context())
	var flooding sync.WaitGroup
	defer flooding.Wait()
	defer cancel()
	stream, err := vaultv1.NewCredentialServiceClient(p.runnerFrom(t, vault, neighbour)).StreamCredentials(shown(ctx, own.GetToken()), &vaultv1.StreamCredentialsRequest{InstanceId: "neighbour"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}

	// Two connections that are there before the flood, as an attacker has who knows what he does.
	guessing, streaming := vaultv1.NewCredentialServiceClient(p.runnerFrom(t, vault, flooder)), p.runnerFrom(t, vault, flooder)
	refused := map[string]int{}
	refusal := func(err error) {
		refused[fmt.Sprint(status.Code(err), " ", rpcerr.Reason(err))]++
	}
	for i := range 50 {
		reads, err := vaultv1.NewCredentialServiceClient(streaming).StreamCredentials(shown(ctx, stolen.GetToken()), &vaultv1.StreamCredentialsRequest{InstanceId: fmt.Sprint("instance-", i)})
		if err == nil {
			_, err = reads.Recv()
		}
		refusal(err)
	}
	for range 1000 {
		_, err := guessing.FetchCredential(shown(ctx, unknownGrant), &vaultv1.FetchCredentialRequest{InstanceId: "instance-1"})
		refusal(err)
	}
	// A guess a tenth of a second is forgiven, which may be at the very moment at which it is asked.
	listened := 0
	for range 20 {
		_, err := guessing.FetchCredential(shown(ctx, stolen.GetToken()), &vaultv1.FetchCredentialRequest{InstanceId: "instance-0"})
		if rpcerr.Reason(err) != rpcerr.ReasonRateLimited {
			listened++
		}
		_, err = guessing.FetchCredential(shown(ctx, unknownGrant), &vaultv1.FetchCredentialRequest{InstanceId: "instance-1"})
		refusal(err)
	}
	if listened == 20 {
		t.Error("who guessed a thousand times is listened to")
	}
	for range 100 {
		watch, err := grpc_health_v1.NewHealthClient(streaming).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		refusal(err)
	}
	if refused["OK "] != 80 {
		t.Errorf("%d streams of the source are open", refused["OK "])
	}
	for i := range 300 {
		conn, err := from(flooder).DialContext(ctx, "tcp", vault.RunnersAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if i%2 == 0 {
			continue
		}
		secured := tls.Client(conn, p.source(t, "").ClientConfig("spiffe://phasekey.dev/vault"))
		flooding.Go(func() { _ = secured.HandshakeContext(ctx) })
	}
	for _, want := range []string{"Unauthenticated GRANT_UNKNOWN", "ResourceExhausted RATE_LIMITED", "ResourceExhausted TOO_MANY_LEASES"} {
		if refused[want] == 0 {
			t.Errorf("nothing ended with %q: %v", want, refused)
		}
	}

	// The neighbour's stream hears of a longer grant, and its second connection is served.
	_, err = vaultv1.NewGrantServiceClient(p.dial(t, vault.Addr(), "platform")).ExtendGrant(ctx, &vaultv1.ExtendGrantRequest{
		Name: own.GetName(), ExpireTime: timestamppb.New(own.GetExpireTime().AsTime().Add(time.Minute))})
	if err != nil {
		t.Fatal(err)
	}
	if newer, err := stream.Recv(); err != nil || !newer.GetCredential().GetGrantExpireTime().AsTime().After(own.GetExpireTime().AsTime()) {
		t.Errorf("the neighbour's stream: %v, %v", newer.GetCredential().GetReason(), err)
	}
	fetched, err := vaultv1.NewCredentialServiceClient(p.runnerFrom(t, vault, neighbour)).FetchCredential(shown(ctx, own.GetToken()), &vaultv1.FetchCredentialRequest{InstanceId: "neighbour"})
	if err != nil || fetched.GetCredential().GetAccessToken().GetToken() == "" {
		t.Errorf("the neighbour's second connection: %v", err)
	}
	// The source itself finds no way in any more.
	short, done := context.WithTimeout(ctx, 3*time.Second)
	defer done()
	if _, err := grpc_health_v1.NewHealthClient(p.runnerFrom(t, vault, flooder)).Check(short, &grpc_health_v1.HealthCheckRequest{}); status.Code(err) == codes.OK {
		t.Error("the flooding source has one more connection")
	}
}
