package rpc_test

import (
	"context"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/page"
	"phasekey.dev/services/vault/internal/rpc"
)

// gotHub takes what comes through to it, and refuses.
type gotHub struct {
	brokenHub
	got        *delivery.Request
	generation int64
}

func (h *gotHub) Fetch(_ context.Context, r delivery.Request) (delivery.Delivery, error) {
	h.got = &r
	return delivery.Delivery{}, grant.ErrUnknown
}

func (h *gotHub) Stream(_ context.Context, r delivery.Request, _ func(delivery.Delivery) error, _ func(time.Duration) error) error {
	h.got = &r
	return grant.ErrUnknown
}

func (h *gotHub) Acknowledge(_ context.Context, r delivery.Request, generation int64) ([]int64, error) {
	h.got, h.generation = &r, generation
	return nil, grant.ErrUnknown
}

func (h *gotHub) CloseLease(_ context.Context, r delivery.Request) error {
	h.got = &r
	return grant.ErrUnknown
}

// gotGrants takes what lists are asked of it, and has two grants on each page.
type gotGrants struct {
	grants
	got *grant.List
}

// grants is what the service needs of a store.
type grants interface {
	CreateGrant(ctx context.Context, now time.Time, g grant.Grant, token grant.Hash, request grant.RequestKey, caller grant.Caller) (grant.Grant, error)
	RepeatGrant(ctx context.Context, now time.Time, account string, token grant.Hash, request grant.RequestKey, caller grant.Caller) (g grant.Grant, found bool, err error)
	Account(ctx context.Context, account string) (grant.Account, error)
	Grant(ctx context.Context, account, uid string) (grant.Grant, error)
	Grants(ctx context.Context, l grant.List) (found []grant.Grant, rest page.Place, err error)
	ExtendGrant(ctx context.Context, now time.Time, account, uid string, end time.Time, caller grant.Caller) (grant.Grant, error)
	RevokeGrant(ctx context.Context, now time.Time, account, uid string, caller grant.Caller) (grant.Grant, error)
	RevokeGrants(ctx context.Context, now time.Time, account string, scope grant.Scope, limit int, caller grant.Caller) (revoked int, more bool, err error)
}

func (g *gotGrants) Grants(_ context.Context, l grant.List) ([]grant.Grant, page.Place, error) {
	g.got = &l
	one := grant.Grant{UID: "g1", Request: grant.Request{Account: "acme", Run: "run-1", Phase: grant.Planning}, CreateTime: time.Unix(1, 0), Resolution: grant.Resolution{Integration: "i"}}
	if l.Passes != nil && !l.Passes(one) {
		return nil, nil, nil
	}
	return []grant.Grant{one}, one.Place(l.Order), nil
}

func fuzzServer(f *testing.F, hub *gotHub, store *gotGrants) *grpctest.Server {
	f.Helper()
	return grpctest.Start(f, grpctest.Config{
		Register: rpc.Register(rpc.Config{Hub: hub, Grants: store, Changed: func() {}}), Policy: grpcserver.OptionPolicy(optionsv1.E_Callers),
		Identities: []grpcserver.Identity{{ID: platformID, Role: "platform", Accounts: []string{"acme"}}},
		Limits:     grpcserver.Limits{Read: grpcserver.Limit{PerSecond: -1}, Write: grpcserver.Limit{PerSecond: -1}}, Log: slog.New(slog.DiscardHandler),
	})
}

// What a runner may write into its requests and its header: all of it is refused as such, or is what the hub may take it for.
func FuzzRunner(f *testing.F) {
	token, _ := grant.Mint()
	for call := range uint8(4) {
		f.Add(call, "Bearer "+token.Expose(), "instance-1", int32(0), "", int64(1))
		f.Add(call, "bearer x", "instance-1", int32(1), "https://vault.azure.net/", int64(0))
		f.Add(call, "Basic x", "short", int32(2), "api://x", int64(-1))
		f.Add(call, "Bearer x", "instance-1", int32(2), "api://x", int64(1))
		f.Add(call, "", "instance_1\x00", int32(-1), "http://x", int64(1)<<62)
	}
	hub := &gotHub{}
	client := vaultv1.NewCredentialServiceClient(fuzzServer(f, hub, &gotGrants{}).Dial(f, platformID))
	instances := regexp.MustCompile(`^[A-Za-z0-9_-]{8,64}$`)
	f.Fuzz(func(t *testing.T, call uint8, header, instance string, material int32, audience string, generation int64) {
		hub.got, hub.generation = nil, 1
		ctx := t.Context()
		if header != "" && !strings.ContainsFunc(header, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", header)
		}
		var err error
		switch call % 4 {
		case 0:
			_, err = client.FetchCredential(ctx, &vaultv1.FetchCredentialRequest{InstanceId: instance, Material: typev1.Material(material), Audience: audience})
		case 1:
			var stream grpc.ServerStreamingClient[vaultv1.StreamCredentialsResponse]
			stream, err = client.StreamCredentials(ctx, &vaultv1.StreamCredentialsRequest{InstanceId: instance, Material: typev1.Material(material), Audience: audience})
			if err == nil {
				_, err = stream.Recv()
			}
		case 2:
			_, err = client.AcknowledgeCredential(ctx, &vaultv1.AcknowledgeCredentialRequest{InstanceId: instance, Generation: generation})
		default:
			_, err = client.CloseLease(ctx, &vaultv1.CloseLeaseRequest{InstanceId: instance})
		}
		switch status.Code(err) {
		case codes.InvalidArgument, codes.Internal: // INTERNAL of the client itself: a text that is no UTF-8
			if hub.got != nil {
				t.Errorf("refused, and came through: %v", err)
			}
		case codes.Unauthenticated:
			r := hub.got
			wants := call%4 < 2
			if r == nil || !instances.MatchString(r.InstanceID) || hub.generation < 1 || wants && !slices.Contains([]lease.Material{lease.AccessToken, lease.ClientSecret, "FEDERATED_TOKEN"}, r.Material) ||
				len(r.Audience) > 200 || r.Audience != "" && r.Material != lease.AccessToken {
				t.Errorf("came through: %+v", r)
			}
		default:
			t.Errorf("%v", err)
		}
	})
}

// Filters, orders and page tokens of whatever kind: refused with the field's name, or a page whose order is total and whose place fits.
func FuzzListGrants(f *testing.F) {
	store := &gotGrants{}
	client := vaultv1.NewGrantServiceClient(fuzzServer(f, &gotHub{}, store).Dial(f, platformID))
	list := func(ctx context.Context, filter, order, token string) (*vaultv1.ListGrantsResponse, error) {
		return client.ListGrants(ctx, &vaultv1.ListGrantsRequest{Parent: "accounts/acme", Filter: filter, OrderBy: order, PageToken: token, PageSize: 1})
	}
	for _, seed := range [][2]string{{"", ""}, {`run = "run-1"`, "expire_time desc"}, {`state = ACTIVE OR phase = PLANNING`, "create_time, name desc"}, {`name:*`, "name,"}} {
		f.Add(seed[0], seed[1], "")
		resp, err := list(f.Context(), seed[0], seed[1], "")
		if err == nil {
			f.Add(seed[0], seed[1], resp.GetNextPageToken())
		}
	}
	f.Fuzz(func(t *testing.T, filter, order, token string) {
		store.got = nil
		resp, err := list(t.Context(), filter, order, token)
		switch code := status.Code(err); {
		case code == codes.OK:
			l := store.got
			last := len(l.Order) - 1
			if last < 0 || l.Order[last].By != grant.ByUID || l.After != nil && len(l.After) != len(l.Order) || (token == "") != (l.After == nil) {
				t.Fatalf("%q, %q, %q: asked for %+v", filter, order, token, l)
			}
			// What a page gives, the next takes.
			if next := resp.GetNextPageToken(); next != "" {
				if _, err := list(t.Context(), filter, order, next); err != nil {
					t.Errorf("%q, %q: its own token is refused: %v", filter, order, err)
				}
			}
		case code == codes.InvalidArgument && store.got == nil:
		case code == codes.Internal && store.got == nil: // of the client itself: a text that is no UTF-8
		default:
			t.Errorf("%q, %q, %q: %v", filter, order, token, err)
		}
	})
}
