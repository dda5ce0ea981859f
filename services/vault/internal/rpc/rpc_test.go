package rpc_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/rpc"
	"phasekey.dev/services/vault/internal/signing"
	"phasekey.dev/services/vault/internal/store"
	"phasekey.dev/services/vault/internal/tail"
)

const (
	platformID = "spiffe://phasekey.dev/platform"
	operatorID = "spiffe://phasekey.dev/operator"
	brokerID   = "spiffe://phasekey.dev/broker"
	runnerID   = "spiffe://customer.example/runner"

	project = "accounts/acme/projects/network"
	arm     = "https://management.azure.com"
)

// fakeMinter grants tokens until it is told otherwise.
type fakeMinter struct {
	mu  sync.Mutex
	n   int
	err error
}

func (f *fakeMinter) Token(context.Context, string, directory.TokenRequest) (directory.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return directory.Token{}, f.err
	}
	f.n++
	return directory.Token{Text: secret.New(fmt.Sprint("CANARY-token-", f.n)), IssueTime: time.Now(), ExpireTime: time.Now().Add(time.Hour)}, nil
}

type fakeKeyring struct{}

func (fakeKeyring) Open(context.Context, string, []byte) (secret.Text, error) {
	return secret.New("CANARY-secret"), nil
}

// fakeResolver is the registry.
type fakeResolver struct {
	mu     sync.Mutex
	asked  []*registryv1.ResolveAccessRequest
	answer *registryv1.ResolveAccessResponse
	err    error
}

func (f *fakeResolver) ResolveAccess(_ context.Context, in *registryv1.ResolveAccessRequest, _ ...grpc.CallOption) (*registryv1.ResolveAccessResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, in)
	if f.err != nil {
		return nil, f.err
	}
	answer := proto.CloneOf(f.answer)
	if answer.GetAccess() == typev1.Access_ACCESS_UNSPECIFIED {
		answer.Access = typev1.Access_ACCESS_WRITE
		if in.GetPhase() <= typev1.Phase_PHASE_PLANNING {
			answer.Access = typev1.Access_ACCESS_READ
		}
	}
	return answer, nil
}

// fakeProber answers what it is told to.
type fakeProber struct {
	answer credential.Probe
	err    error
}

func (f *fakeProber) Probe(context.Context, string) (credential.Probe, error) { return f.answer, f.err }

// vault is the two listeners over a real store, hub and issuer.
type vault struct {
	t        *testing.T
	db       *sqldb.DB
	store    *store.Store
	minter   *fakeMinter
	resolver *fakeResolver
	prober   *fakeProber
	checker  *fakeChecker
	hub      *delivery.Hub
	services *grpctest.Server
	runners  *grpctest.Server
	log      *syncBuffer
	stop     func()

	platform, operator vaultv1.GrantServiceClient
	broker             vaultv1.AccessServiceClient
	rotation           vaultv1.RotationServiceClient // as the platform
	runner, other      vaultv1.CredentialServiceClient
}

// syncBuffer is a log that many write and the test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// inBubble runs a case in a bubble on a vault whose integration "uid" has version v1, which ends after a day, is attached for READ
// and WRITE, and gives tokens alone.
func inBubble(t *testing.T, test func(v *vault)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		migrations, err := store.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		v := &vault{
			t: t, db: sqldbtest.SQLite(t, migrations), minter: &fakeMinter{}, prober: &fakeProber{}, checker: &fakeChecker{}, log: &syncBuffer{},
			resolver: &fakeResolver{answer: &registryv1.ResolveAccessResponse{
				Integration: "accounts/acme/integrations/read", IntegrationUid: "uid", ProjectUid: "network-uid", SubscriptionId: "sub",
				Incarnation: "registry", Revision: 5,
			}},
		}
		if err := v.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, 1) }); err != nil {
			t.Fatal(err)
		}
		v.store = store.New(v.db, audittest.Keys(1))
		v.fill()
		log := obs.NewLogger(v.log, slog.LevelDebug, obs.FormatText)
		meter := delivery.NewMeter(v.store, log)
		v.hub = delivery.New(delivery.Config{
			Meter: meter,
			Store: v.store, Log: log, Keyring: fakeKeyring{}, HoldMargin: 5 * time.Minute, LongestHold: 24 * time.Hour, Clouds: map[string]delivery.Cloud{"public": {ResourceManager: arm, Environment: "public"}},
			Issuer: issuer.New(issuer.Config{Minter: v.minter, Keyring: fakeKeyring{}, Prober: v.store, Log: log}),
		})
		pageKey, err := v.store.PageKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tails := tail.New(tail.Config{Source: v.store, Log: log})
		cfg := rpc.Config{PageKey: pageKey, Tails: tails, Grants: v.store, Leases: v.store, Accounts: v.store, Versions: v.store, Rotations: v.store, Pauses: v.store, SigningKeys: v.store, SigningTiming: signing.Production(), Hub: v.hub, Resolver: v.resolver, Prober: v.prober, Checker: v.checker, Changed: v.hub.Nudge, Trail: v.store, Keys: audittest.Keys(1)}
		v.serve(cfg, log)

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			others := make(chan error, 2)
			go func() { others <- meter.Run(ctx) }()
			go func() { others <- tails.Run(ctx) }()
			done <- errors.Join(v.hub.Run(ctx), <-others, <-others)
		}()
		v.stop = sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run hub: %v", err)
			}
		})
		test(v)
		v.stop()
		if strings.Contains(v.log.String(), "CANARY") || strings.Contains(v.log.String(), grant.Prefix) {
			t.Errorf("a secret was logged: %s", v.log)
		}
	})
}

func (v *vault) serve(cfg rpc.Config, log *slog.Logger) {
	policy := grpcserver.OptionPolicy(optionsv1.E_Callers)
	identities := []grpcserver.Identity{
		{ID: platformID, Role: "platform", Accounts: []string{"acme"}},
		{ID: operatorID, Role: "operator", Accounts: []string{"*"}},
		{ID: brokerID, Role: "broker", Accounts: []string{"*"}},
	}
	drain := grpctest.Config{Policy: policy, Identities: identities, Log: log}
	services, runners := drain, drain
	services.Register = rpc.Register(cfg)
	runners.Register, runners.AnonymousOK = rpc.RegisterRunners(cfg), true
	if v.hub != nil {
		services.OnDrain, runners.OnDrain = v.hub.Drain, v.hub.Drain
	}
	v.services, v.runners = grpctest.Start(v.t, services), grpctest.Start(v.t, runners)
	v.platform = vaultv1.NewGrantServiceClient(v.services.Dial(v.t, platformID))
	v.operator = vaultv1.NewGrantServiceClient(v.services.Dial(v.t, operatorID))
	v.rotation = vaultv1.NewRotationServiceClient(v.services.Dial(v.t, platformID))
	v.broker = vaultv1.NewAccessServiceClient(v.services.Dial(v.t, brokerID))
	v.runner = vaultv1.NewCredentialServiceClient(v.runners.Dial(v.t, ""))
	v.other = vaultv1.NewCredentialServiceClient(v.runners.Dial(v.t, runnerID))
}

func (v *vault) fill() {
	now := time.Now()
	err := v.store.ReplaceProjection(v.t.Context(), now, store.Projection{Incarnation: "registry", Revision: 5, BookmarkTime: now}, store.Wanted{
		Integrations: []store.Integration{{UID: "uid", Name: "accounts/acme/integrations/read", TenantID: "tenant", Cloud: "public"}},
		Projects:     []store.Project{{UID: "network-uid", Name: project}},
		Attachments:  []store.Attachment{{UID: "att", IntegrationUID: "uid", ProjectUID: "network-uid", Reads: true, Writes: true}},
	})
	if err != nil {
		v.t.Fatal(err)
	}
	v.exec(`INSERT INTO applications (integration_uid, shard, next_time, client_id) VALUES ('uid', 0, 0, 'client')`)
	v.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time,
		end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since,
		attempts, next_time, reason) VALUES ('v1', 'uid', 1, 'ACTIVE', 'v1', '', 'sealed', 0, 0, 0, 0, $1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '')`,
		sqldb.Micros(now.Add(24*time.Hour)))
}

func (v *vault) exec(query string, args ...any) {
	v.t.Helper()
	err := v.db.Tx(v.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		v.t.Fatal(err)
	}
}

// audit checks what was recorded in all: kind, actor and instance each.
func (v *vault) audit(want ...string) {
	v.t.Helper()
	var have []string
	err := v.db.ReadTx(v.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		have, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (string, error) {
			var kind, actor, instance, request string
			err := row.Scan(&kind, &actor, &instance, &request)
			if request == "" {
				v.t.Errorf("%s names no request", kind)
			}
			return strings.TrimSpace(kind + " " + strings.TrimPrefix(actor, "spiffe://phasekey.dev/") + " " + instance), err
		}, `SELECT kind, actor, instance_id, request_id FROM audit_events ORDER BY writer, seq`)
		return err
	})
	if err != nil {
		v.t.Fatal(err)
	}
	if !slices.Equal(have, want) {
		v.t.Errorf("audit %q, want %q", have, want)
	}
}

func request(change ...func(*vaultv1.CreateGrantRequest)) *vaultv1.CreateGrantRequest {
	r := &vaultv1.CreateGrantRequest{
		Parent: "accounts/acme", Grant: &vaultv1.Grant{Project: project, Phase: typev1.Phase_PHASE_PLANNING, Run: "run-1"},
	}
	for _, f := range change {
		f(r)
	}
	return r
}

// grant makes one, and returns it and a context that shows its token.
func (v *vault) grant(change ...func(*vaultv1.CreateGrantRequest)) (*vaultv1.Grant, context.Context) {
	v.t.Helper()
	g, err := v.platform.CreateGrant(v.t.Context(), request(change...))
	if err != nil {
		v.t.Fatal(err)
	}
	return g, show(v.t.Context(), g.GetToken())
}

func show(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func fetch(instance string) *vaultv1.FetchCredentialRequest {
	return &vaultv1.FetchCredentialRequest{InstanceId: instance}
}

// refused checks code and reason.
func refused(t *testing.T, what string, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || rpcerr.Reason(err) != reason {
		t.Errorf("%s: %v, %q (%v); want %v, %q", what, status.Code(err), rpcerr.Reason(err), err, code, reason)
	}
	grpctest.CheckRefusal(t, err)
}

// fields are the fields that an INVALID_ARGUMENT names.
func fields(err error) (out []string) {
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				out = append(out, v.GetField())
			}
		}
	}
	return out
}

func TestGrants_Create(t *testing.T) {
	inBubble(t, func(v *vault) {
		now := time.Now()
		g, _ := v.grant()
		if !strings.HasPrefix(g.GetToken(), grant.Prefix) || !strings.HasPrefix(g.GetName(), "accounts/acme/grants/") {
			v.t.Errorf("name %q, token of %d characters", g.GetName(), len(g.GetToken()))
		}
		want := &vaultv1.Grant{
			Name: g.GetName(), Token: g.GetToken(), Project: project, Phase: typev1.Phase_PHASE_PLANNING, Run: "run-1",
			ExpireTime: timestamppb.New(now.Add(time.Hour)), Access: typev1.Access_ACCESS_READ, Integration: "accounts/acme/integrations/read",
			SubscriptionId: "sub", State: vaultv1.Grant_STATE_ACTIVE, CreateTime: timestamppb.New(now),
		}
		if diff := cmp.Diff(want, g, protocmp.Transform()); diff != "" {
			v.t.Errorf("grant differs: %s", diff)
		}
		want.Token = ""
		for name, client := range map[string]vaultv1.GrantServiceClient{"platform": v.platform, "operator": v.operator} {
			read, err := client.GetGrant(v.t.Context(), &vaultv1.GetGrantRequest{Name: g.GetName()})
			if diff := cmp.Diff(want, read, protocmp.Transform()); err != nil || diff != "" {
				v.t.Errorf("read by %s: %v, %s", name, err, diff)
			}
		}
		v.audit("GrantCreated platform")
	})
}

func TestGrants_CreateRefuses(t *testing.T) {
	deny := func(code codes.Code, reason string) error {
		return rpcerr.New(code, reason, "refused by the registry", rpcerr.Metadata("access", "READ"))
	}
	for _, tt := range []struct {
		name     string
		request  *vaultv1.CreateGrantRequest
		operator bool
		registry error
		answer   typev1.Access
		code     codes.Code
		reason   string
		field    string
	}{
		{name: "nothing said", request: &vaultv1.CreateGrantRequest{}, code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "no grant", request: &vaultv1.CreateGrantRequest{Parent: "accounts/acme"}, code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant"},
		{name: "no phase", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.Phase = 0 }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.phase"},
		{name: "another account's project", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.Project = "accounts/other/projects/network" }), code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "past", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.ExpireTime = timestamppb.New(time.Unix(1, 0)) }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.expire_time"},
		{name: "too far", request: request(func(r *vaultv1.CreateGrantRequest) {
			r.Grant.ExpireTime = &timestamppb.Timestamp{Seconds: 9_000_000_000}
		}), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.expire_time"},
		{name: "the first moment there is", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.ExpireTime = timestamppb.New(time.Time{}) }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.expire_time"},
		{name: "no time at all", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.ExpireTime = &timestamppb.Timestamp{Nanos: -1} }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.expire_time"},
		{name: "by an operator", request: request(), operator: true, code: codes.PermissionDenied, reason: "CALLER_NOT_ALLOWED"},
		{name: "no such project", request: request(), registry: deny(codes.NotFound, "RESOURCE_NOT_FOUND"), code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "nothing attached", request: request(), registry: deny(codes.FailedPrecondition, "NOTHING_ATTACHED"), code: codes.FailedPrecondition, reason: "NOTHING_ATTACHED"},
		{name: "no subscription", request: request(), registry: deny(codes.FailedPrecondition, "NO_SUBSCRIPTION"), code: codes.FailedPrecondition, reason: "NO_SUBSCRIPTION"},
		{name: "deleting", request: request(), registry: deny(codes.FailedPrecondition, "INTEGRATION_DELETING"), code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING"},
		{name: "registry away", request: request(), registry: status.Error(codes.Unavailable, "connection refused at 10.0.0.1"), code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
		{name: "registry refuses the vault", request: request(), registry: deny(codes.PermissionDenied, "CALLER_NOT_ALLOWED"), code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
		{name: "registry would have planning write", request: request(), answer: typev1.Access_ACCESS_WRITE, code: codes.Internal, reason: "INTERNAL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				v.resolver.err, v.resolver.answer.Access = tt.registry, tt.answer
				client := v.platform
				if tt.operator {
					client = v.operator
				}
				_, err := client.CreateGrant(v.t.Context(), tt.request)
				refused(v.t, "create", err, tt.code, tt.reason)
				if tt.field != "" && !slices.Equal(fields(err), []string{tt.field}) {
					v.t.Errorf("names %v, want %s", fields(err), tt.field)
				}
				if strings.Contains(err.Error(), "10.0.0.1") {
					v.t.Errorf("tells the caller of the inside: %v", err)
				}
				v.audit()
			})
		})
	}
	// An identity without a limit of accounts gets as far as the handler's own check.
	inBubble(t, func(v *vault) {
		unlimited := grpctest.Start(v.t, grpctest.Config{
			Register: rpc.Register(rpc.Config{Grants: v.store, Hub: v.hub, Resolver: v.resolver, Prober: v.prober, Checker: v.checker, Changed: v.hub.Nudge}),
			Policy:   grpcserver.OptionPolicy(optionsv1.E_Callers), Identities: []grpcserver.Identity{{ID: platformID, Role: "platform", Accounts: []string{"*"}}},
		})
		_, err := vaultv1.NewGrantServiceClient(unlimited.Dial(v.t, platformID)).CreateGrant(v.t.Context(), request(func(r *vaultv1.CreateGrantRequest) {
			r.Grant.Project = "accounts/acme2/projects/network"
		}))
		refused(v.t, "project of another account", err, codes.InvalidArgument, "INVALID_FIELDS")
		if !slices.Equal(fields(err), []string{"grant.project"}) || len(v.resolver.asked) != 0 {
			v.t.Errorf("names %v, asked the registry %d times", fields(err), len(v.resolver.asked))
		}
	})
}

func TestGrants_ValidateOnlyMakesNothing(t *testing.T) {
	inBubble(t, func(v *vault) {
		check := func(r *vaultv1.CreateGrantRequest) {
			r.ValidateOnly, r.RequestId = true, "0d4b6a7e-6c3b-4d0c-8a53-5d1f6c2f9a11"
		}
		g, err := v.platform.CreateGrant(v.t.Context(), request(check))
		if err != nil || g.GetName() != "" || g.GetToken() != "" || g.GetAccess() != typev1.Access_ACCESS_READ {
			v.t.Errorf("answer %v, %v", g, err)
		}
		v.resolver.err = rpcerr.New(codes.FailedPrecondition, "NOTHING_ATTACHED", "attach one")
		_, err = v.platform.CreateGrant(v.t.Context(), request(check))
		refused(v.t, "nothing attached", err, codes.FailedPrecondition, "NOTHING_ATTACHED")
		v.audit()
	})
}

func TestGrants_Repeats(t *testing.T) {
	inBubble(t, func(v *vault) {
		id := func(r *vaultv1.CreateGrantRequest) { r.RequestId = "0d4b6a7e-6c3b-4d0c-8a53-5d1f6c2f9a11" }
		first, old := v.grant(id)
		checked, err := v.platform.CreateGrant(v.t.Context(), request(id, func(r *vaultv1.CreateGrantRequest) { r.ValidateOnly = true }))
		if err != nil || checked.GetName() != "" || checked.GetToken() != "" {
			v.t.Errorf("checked only: %v, %v", checked, err)
		}
		v.audit("GrantCreated platform")
		v.resolver.err = errors.New("registry is away")
		again, shown := v.grant(id)
		if again.GetName() != first.GetName() || again.GetToken() == first.GetToken() {
			v.t.Errorf("repeat made %q", again.GetName())
		}
		_, err = v.runner.FetchCredential(old, fetch("instance-1"))
		refused(v.t, "old token", err, codes.Unauthenticated, "GRANT_UNKNOWN")
		_, err = v.platform.CreateGrant(v.t.Context(), request(id, func(r *vaultv1.CreateGrantRequest) { r.Grant.Run = "run-2" }))
		refused(v.t, "other contents", err, codes.AlreadyExists, "REQUEST_ID_REUSED")
		if _, err := v.runner.FetchCredential(shown, fetch("instance-1")); err != nil {
			v.t.Error(err)
		}
		_, err = v.platform.CreateGrant(v.t.Context(), request(id))
		refused(v.t, "after use", err, codes.AlreadyExists, "GRANT_IN_USE")
		v.audit("GrantCreated platform", "GrantTokenReplaced platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1")
	})
}

func TestGrants_List(t *testing.T) {
	inBubble(t, func(v *vault) {
		var want []string
		for range 5 {
			g, _ := v.grant()
			want = append(want, g.GetName())
			time.Sleep(time.Millisecond)
		}
		var have []string
		req := &vaultv1.ListGrantsRequest{Parent: "accounts/acme", PageSize: 2}
		for pages := 1; ; pages++ {
			resp, err := v.operator.ListGrants(v.t.Context(), req)
			if err != nil {
				v.t.Fatal(err)
			}
			for _, g := range resp.GetGrants() {
				if g.GetToken() != "" {
					v.t.Error("a list shows a token")
				}
				have = append(have, g.GetName())
			}
			if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
				if pages != 3 {
					v.t.Errorf("%d pages", pages)
				}
				break
			}
			_, err = v.operator.ListGrants(v.t.Context(), &vaultv1.ListGrantsRequest{Parent: "accounts/other", PageToken: req.GetPageToken()})
			refused(v.t, "another list's token", err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
		}
		if !slices.Equal(have, want) {
			v.t.Errorf("listed %v, want %v", have, want)
		}
		for _, token := range []string{"x", "????", "AAAAAAAAAAAAAAAA"} {
			_, err := v.platform.ListGrants(v.t.Context(), &vaultv1.ListGrantsRequest{Parent: "accounts/acme", PageToken: token})
			refused(v.t, token, err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
		}
		_, err := v.platform.ListGrants(v.t.Context(), &vaultv1.ListGrantsRequest{Parent: "accounts/other"})
		refused(v.t, "another account", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
	})
}

func TestGrants_ExtendAndRevoke(t *testing.T) {
	inBubble(t, func(v *vault) {
		ctx := v.t.Context()
		g, _ := v.grant()
		extend := func(name string, by time.Duration) (*vaultv1.ExtendGrantResponse, error) {
			return v.platform.ExtendGrant(ctx, &vaultv1.ExtendGrantRequest{Name: name, ExpireTime: timestamppb.New(time.Now().Add(by))})
		}
		resp, err := extend(g.GetName(), 3*time.Hour)
		if err != nil || !resp.GetGrant().GetExpireTime().AsTime().Equal(time.Now().Add(3*time.Hour)) || resp.GetGrant().GetToken() != "" {
			v.t.Errorf("extended to %v, %v", resp, err)
		}
		_, err = extend(g.GetName(), 30*time.Hour)
		refused(v.t, "too far", err, codes.InvalidArgument, "INVALID_FIELDS")
		_, err = v.platform.ExtendGrant(ctx, &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: timestamppb.New(time.Time{})})
		refused(v.t, "the first moment there is", err, codes.InvalidArgument, "INVALID_FIELDS")
		_, err = extend("accounts/acme/grants/none", time.Hour)
		refused(v.t, "no such grant", err, codes.NotFound, "RESOURCE_NOT_FOUND")
		_, err = v.operator.ExtendGrant(ctx, &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: g.GetExpireTime()})
		refused(v.t, "by an operator", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")

		for range 2 {
			resp, err := v.operator.RevokeGrant(ctx, &vaultv1.RevokeGrantRequest{Name: g.GetName()})
			if err != nil || resp.GetGrant().GetState() != vaultv1.Grant_STATE_REVOKED {
				v.t.Errorf("revoked: %v, %v", resp, err)
			}
		}
		_, err = v.platform.RevokeGrant(ctx, &vaultv1.RevokeGrantRequest{Name: "accounts/acme/grants/none"})
		refused(v.t, "no such grant", err, codes.NotFound, "RESOURCE_NOT_FOUND")
		_, err = extend(g.GetName(), 4*time.Hour)
		refused(v.t, "revoked", err, codes.PermissionDenied, "GRANT_REVOKED")
		over, _ := v.grant()
		time.Sleep(time.Hour)
		_, err = extend(over.GetName(), time.Hour)
		refused(v.t, "over", err, codes.PermissionDenied, "GRANT_EXPIRED")
		v.audit("GrantCreated platform", "GrantExtended platform", "GrantRevoked operator", "GrantCreated platform")
	})
}

func TestCredentials_Fetch(t *testing.T) {
	delivered := []string{"LeaseOpened  instance-1", "CredentialDelivered  instance-1"}
	sum := sha256.Sum256([]byte(runnerID))
	bound := func(r *vaultv1.CreateGrantRequest) { r.Grant.CertificateSha256 = hex.EncodeToString(sum[:]) }
	for _, tt := range []struct {
		name    string
		create  func(*vaultv1.CreateGrantRequest)
		prepare func(v *vault, g *vaultv1.Grant)
		context func(v *vault, token string) context.Context
		client  func(v *vault) vaultv1.CredentialServiceClient
		request *vaultv1.FetchCredentialRequest
		code    codes.Code
		reason  string
		audit   []string
	}{
		{name: "granted", audit: delivered},
		{name: "granted on the services' listener", client: func(v *vault) vaultv1.CredentialServiceClient {
			return vaultv1.NewCredentialServiceClient(v.services.Dial(v.t, platformID))
		}, audit: []string{"LeaseOpened platform instance-1", "CredentialDelivered platform instance-1"}},
		{name: "scheme in other letters", context: func(v *vault, token string) context.Context {
			return metadata.AppendToOutgoingContext(v.t.Context(), "authorization", "bEARER "+token)
		}, audit: delivered},
		{name: "no token", context: func(v *vault, _ string) context.Context { return v.t.Context() }, code: codes.Unauthenticated, reason: "GRANT_UNKNOWN"},
		{name: "no scheme", context: func(v *vault, token string) context.Context {
			return metadata.AppendToOutgoingContext(v.t.Context(), "authorization", token)
		}, code: codes.Unauthenticated, reason: "GRANT_UNKNOWN"},
		{name: "two tokens", context: func(v *vault, token string) context.Context { return show(show(v.t.Context(), token), token) }, code: codes.Unauthenticated, reason: "GRANT_UNKNOWN"},
		{name: "malformed token", context: func(v *vault, token string) context.Context { return show(v.t.Context(), token+"x") }, code: codes.Unauthenticated, reason: "GRANT_UNKNOWN"},
		{name: "foreign token", context: func(v *vault, _ string) context.Context {
			token, _ := grant.Mint()
			return show(v.t.Context(), token.Expose())
		}, code: codes.Unauthenticated, reason: "GRANT_UNKNOWN"},
		{name: "no instance", request: &vaultv1.FetchCredentialRequest{}, code: codes.InvalidArgument, reason: "INVALID_FIELDS"},
		{name: "bound, no certificate", create: bound, code: codes.Unauthenticated, reason: "GRANT_UNKNOWN"},
		{
			name: "bound, its certificate", create: bound, client: func(v *vault) vaultv1.CredentialServiceClient { return v.other },
			audit: []string{"LeaseOpened " + runnerID + " instance-1", "CredentialDelivered " + runnerID + " instance-1"},
		},
		{name: "bound to another certificate", create: func(r *vaultv1.CreateGrantRequest) { r.Grant.CertificateSha256 = strings.Repeat("0", 64) },
			client: func(v *vault) vaultv1.CredentialServiceClient { return v.other }, code: codes.Unauthenticated, reason: "GRANT_UNKNOWN"},
		{name: "revoked", prepare: func(v *vault, g *vaultv1.Grant) {
			if _, err := v.platform.RevokeGrant(v.t.Context(), &vaultv1.RevokeGrantRequest{Name: g.GetName()}); err != nil {
				v.t.Error(err)
			}
		}, code: codes.PermissionDenied, reason: "GRANT_REVOKED", audit: []string{"GrantRevoked platform"}},
		{name: "expired", prepare: func(*vault, *vaultv1.Grant) { time.Sleep(time.Hour) }, code: codes.PermissionDenied, reason: "GRANT_EXPIRED"},
		{name: "detached", prepare: func(v *vault, _ *vaultv1.Grant) { v.exec(`DELETE FROM attachments`) }, code: codes.PermissionDenied, reason: "DETACHED"},
		{name: "deleted", prepare: func(v *vault, _ *vaultv1.Grant) { v.exec(`UPDATE integrations SET deleting = 1`) }, code: codes.PermissionDenied, reason: "INTEGRATION_DELETED"},
		{name: "projection behind", prepare: func(v *vault, _ *vaultv1.Grant) { v.exec(`UPDATE projection SET revision = 4`) }, code: codes.Unavailable, reason: "ENTITLEMENT_STALE"},
		{name: "projection old", prepare: func(v *vault, _ *vaultv1.Grant) { time.Sleep(15 * time.Minute) }, code: codes.Unavailable, reason: "ENTITLEMENT_STALE"},
		{name: "no version", prepare: func(v *vault, _ *vaultv1.Grant) { v.exec(`UPDATE credential_versions SET state = 'PROPAGATING'`) }, code: codes.Unavailable, reason: "CREDENTIAL_NOT_READY"},
		{name: "consent missing", prepare: func(v *vault, _ *vaultv1.Grant) {
			v.minter.err = &directory.Error{Op: "request token", Class: directory.ApplicationUnknown, Code: "AADSTS700016", Err: errors.New("no")}
		}, code: codes.Unavailable, reason: "CONSENT_MISSING"},
		{name: "entra away", prepare: func(v *vault, _ *vaultv1.Grant) {
			v.minter.err = &directory.Error{Op: "request token", Class: directory.Transient, Err: errors.New("no")}
		}, code: codes.Unavailable, reason: "ENTRA_UNAVAILABLE"},
		{name: "audience", request: &vaultv1.FetchCredentialRequest{InstanceId: "instance-1", Audience: "https://graph.microsoft.com"}, code: codes.PermissionDenied, reason: "AUDIENCE_NOT_ALLOWED"},
		{name: "fifth instance", prepare: func(v *vault, g *vaultv1.Grant) {
			for i := range lease.MaxPerGrant {
				if _, err := v.runner.FetchCredential(show(v.t.Context(), g.GetToken()), fetch(fmt.Sprint("another-", i))); err != nil {
					v.t.Error(err)
				}
			}
		}, code: codes.ResourceExhausted, reason: "TOO_MANY_LEASES", audit: []string{
			"LeaseOpened  another-0", "CredentialDelivered  another-0", "LeaseOpened  another-1", "CredentialDelivered  another-1",
			"LeaseOpened  another-2", "CredentialDelivered  another-2", "LeaseOpened  another-3", "CredentialDelivered  another-3",
		}},
		{name: "closed", prepare: func(v *vault, g *vaultv1.Grant) {
			ctx := show(v.t.Context(), g.GetToken())
			if _, err := v.runner.FetchCredential(ctx, fetch("instance-1")); err != nil {
				v.t.Error(err)
			}
			for range 2 {
				if _, err := v.runner.CloseLease(ctx, &vaultv1.CloseLeaseRequest{InstanceId: "instance-1"}); err != nil {
					v.t.Error(err)
				}
			}
		}, code: codes.PermissionDenied, reason: "LEASE_CLOSED", audit: append(slices.Clone(delivered), "LeaseClosed  instance-1")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				g, ctx := v.grant(append([]func(*vaultv1.CreateGrantRequest){}, orNothing(tt.create))...)
				if tt.prepare != nil {
					tt.prepare(v, g)
				}
				if tt.context != nil {
					ctx = tt.context(v, g.GetToken())
				}
				client := v.runner
				if tt.client != nil {
					client = tt.client(v)
				}
				req := tt.request
				if req == nil {
					req = fetch("instance-1")
				}
				resp, err := client.FetchCredential(ctx, req)
				if tt.code == codes.OK {
					c := resp.GetCredential()
					if err != nil || !strings.HasPrefix(c.GetAccessToken().GetToken(), "CANARY-token-") || c.GetReason() != vaultv1.Credential_REASON_INITIAL || c.GetAccess() != typev1.Access_ACCESS_READ {
						v.t.Errorf("fetched %v, %v", c.GetReason(), err)
					}
				} else {
					refused(v.t, "fetch", err, tt.code, tt.reason)
					if resp != nil {
						v.t.Error("refused with an answer")
					}
				}
				v.audit(append([]string{"GrantCreated platform"}, tt.audit...)...)
			})
		})
	}
}

func orNothing(f func(*vaultv1.CreateGrantRequest)) func(*vaultv1.CreateGrantRequest) {
	if f == nil {
		return func(*vaultv1.CreateGrantRequest) {}
	}
	return f
}

func TestCredentials_CloseLeaseOfAnEndedGrant(t *testing.T) {
	inBubble(t, func(v *vault) {
		_, ctx := v.grant()
		if _, err := v.runner.FetchCredential(ctx, fetch("instance-1")); err != nil {
			v.t.Error(err)
		}
		time.Sleep(2 * time.Hour)
		for _, instance := range []string{"instance-1", "never-was"} {
			if _, err := v.runner.CloseLease(ctx, &vaultv1.CloseLeaseRequest{InstanceId: instance}); err != nil {
				v.t.Errorf("%s: %v", instance, err)
			}
		}
		_, err := v.runner.CloseLease(v.t.Context(), &vaultv1.CloseLeaseRequest{InstanceId: "instance-1"})
		refused(v.t, "no token", err, codes.Unauthenticated, "GRANT_UNKNOWN")
		v.audit("GrantCreated platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1", "LeaseClosed  instance-1")
	})
}

// reader takes what a stream sends.
type reader struct {
	mu    sync.Mutex
	taken []*vaultv1.Credential
	asked []time.Duration // within what it was to leave
	err   error
}

func (v *vault) read(ctx context.Context, instance string) *reader {
	v.t.Helper()
	return v.stream(ctx, &vaultv1.StreamCredentialsRequest{InstanceId: instance})
}

func (v *vault) stream(ctx context.Context, req *vaultv1.StreamCredentialsRequest) *reader {
	v.t.Helper()
	stream, err := v.runner.StreamCredentials(ctx, req)
	if err != nil {
		v.t.Fatal(err)
	}
	r := &reader{}
	go func() {
		for {
			resp, err := stream.Recv()
			r.mu.Lock()
			if err != nil {
				r.err = err
				r.mu.Unlock()
				return
			}
			if within := resp.GetLeaveWindow(); within != nil {
				r.asked = append(r.asked, within.AsDuration())
			} else {
				r.taken = append(r.taken, resp.GetCredential())
			}
			r.mu.Unlock()
		}
	}()
	synctest.Wait()
	return r
}

func (r *reader) state() (reasons []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.taken {
		reasons = append(reasons, strings.TrimPrefix(c.GetReason().String(), "REASON_"))
	}
	for _, within := range r.asked {
		reasons = append(reasons, fmt.Sprint("leave within ", within))
	}
	return reasons, r.err
}

func TestCredentials_Stream(t *testing.T) {
	created, opened, sent := "GrantCreated platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1"
	for _, tt := range []struct {
		name   string
		step   func(v *vault, g *vaultv1.Grant)
		wait   time.Duration
		taken  []string
		code   codes.Code
		reason string
		audit  []string
	}{
		{name: "first", taken: []string{"INITIAL"}, audit: []string{created, opened, sent}},
		{name: "revoked, at once", step: func(v *vault, g *vaultv1.Grant) {
			if _, err := v.platform.RevokeGrant(v.t.Context(), &vaultv1.RevokeGrantRequest{Name: g.GetName()}); err != nil {
				v.t.Error(err)
			}
		}, taken: []string{"INITIAL"}, code: codes.PermissionDenied, reason: "GRANT_REVOKED", audit: []string{created, opened, sent, "GrantRevoked platform"}},
		{name: "closed, at once", step: func(v *vault, g *vaultv1.Grant) {
			if _, err := v.runner.CloseLease(show(v.t.Context(), g.GetToken()), &vaultv1.CloseLeaseRequest{InstanceId: "instance-1"}); err != nil {
				v.t.Error(err)
			}
		}, taken: []string{"INITIAL"}, code: codes.PermissionDenied, reason: "LEASE_CLOSED", audit: []string{created, opened, sent, "LeaseClosed  instance-1"}},
		{name: "rotated, within a second", step: func(v *vault, _ *vaultv1.Grant) {
			// What a master's transaction does.
			v.exec(`UPDATE credential_versions SET state = 'RETIRING' WHERE id = 'v1'`)
			v.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time,
				end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since,
				attempts, next_time, holders, reason) SELECT 'v2', integration_uid, 2, 'ACTIVE', 'v2', key_id, sealed, intend_time, send_time, add_time, start_time,
				end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since,
				attempts, next_time, holders, reason FROM credential_versions WHERE id = 'v1'`)
			v.exec(`UPDATE change_counter SET seq = seq + 1`)
			v.exec(`INSERT INTO changes (seq, integration_uid, grant_uid, time) SELECT seq, 'uid', '', 0 FROM change_counter`)
		}, wait: time.Second, taken: []string{"INITIAL", "ROTATED"}, audit: []string{created, opened, sent, sent}},
		{name: "expired, at the moment", step: func(v *vault, _ *vaultv1.Grant) {
			v.exec(`UPDATE projection SET bookmark_time = $1`, sqldb.Micros(time.Now().Add(time.Hour)))
		}, wait: time.Hour, taken: []string{"INITIAL", "REFRESH", "REFRESH"}, code: codes.PermissionDenied, reason: "GRANT_EXPIRED", audit: []string{created, opened, sent, sent, sent}},
		{name: "drained", step: func(v *vault, _ *vaultv1.Grant) {
			if err := v.runners.Stop(); err != nil {
				v.t.Error(err)
			}
		}, taken: []string{"INITIAL", "leave within 20ms"}, code: codes.Unavailable, reason: "DRAINING", audit: []string{created, opened, sent}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				g, shown := v.grant()
				ctx, cancel := context.WithCancel(shown)
				r := v.read(ctx, "instance-1")
				if tt.step != nil {
					tt.step(v, g)
				}
				time.Sleep(tt.wait)
				synctest.Wait()
				taken, err := r.state()
				if !slices.Equal(taken, tt.taken) {
					v.t.Errorf("took %v, want %v", taken, tt.taken)
				}
				if tt.code != codes.OK || err != nil {
					refused(v.t, "end", err, tt.code, tt.reason)
				}
				v.audit(tt.audit...)
				cancel()
				synctest.Wait()
			})
		})
	}
}

func TestAccess_ProbeConsent(t *testing.T) {
	ask := &vaultv1.ProbeConsentRequest{Integration: "accounts/acme/integrations/read"}
	for _, tt := range []struct {
		name   string
		answer credential.Probe
		age    time.Duration // of the answer; less than nothing: it was got during the call
		err    error
		want   *vaultv1.ProbeConsentResponse
		code   codes.Code
		reason string
	}{
		{
			name: "consented", answer: credential.Probe{Finding: credential.Works, PrincipalObjectID: "oid"}, age: -time.Second,
			want: &vaultv1.ProbeConsentResponse{Consented: true, ServicePrincipalObjectId: "oid", Age: durationpb.New(0)},
		},
		{
			name: "consented some time ago", answer: credential.Probe{Finding: credential.Works, PrincipalObjectID: "oid"}, age: 7 * time.Second,
			want: &vaultv1.ProbeConsentResponse{Consented: true, ServicePrincipalObjectId: "oid", Age: durationpb.New(7 * time.Second)},
		},
		{
			name: "not consented", answer: credential.Probe{Finding: credential.ConsentMissing, Code: "AADSTS700016"},
			want: &vaultv1.ProbeConsentResponse{AadstsCode: 700016, Age: durationpb.New(0)},
		},
		{name: "no such integration", err: sqldb.ErrNoRows, code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "deleting", err: rotation.ErrDeleting, code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING"},
		{name: "not ready", err: rotation.ErrNotReady, code: codes.Unavailable, reason: "CREDENTIAL_NOT_READY"},
		{name: "entra away", err: rotation.ErrEntra, code: codes.Unavailable, reason: "ENTRA_UNAVAILABLE"},
		{name: "database away", err: sqldb.ErrUnavailable, code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				v.prober.answer, v.prober.err = tt.answer, nil
				v.prober.answer.Time = time.Now().Add(-tt.age)
				if tt.err != nil {
					v.prober.err = fmt.Errorf("probe: %w: detail of the inside", tt.err)
				}
				got, err := v.broker.ProbeConsent(v.t.Context(), ask)
				if tt.want == nil {
					refused(v.t, "probe", err, tt.code, tt.reason)
					if strings.Contains(err.Error(), "inside") {
						v.t.Errorf("tells too much: %v", err)
					}
					return
				}
				tt.want.ProbeTime = timestamppb.New(v.prober.answer.Time)
				if diff := cmp.Diff(tt.want, got, protocmp.Transform()); err != nil || diff != "" {
					v.t.Errorf("%v, %s", err, diff)
				}
			})
		})
	}
	inBubble(t, func(v *vault) {
		_, err := vaultv1.NewAccessServiceClient(v.services.Dial(v.t, platformID)).ProbeConsent(v.t.Context(), ask)
		refused(v.t, "by the platform", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	})
}

// brokenHub ends every call with an error.
type brokenHub struct{ err error }

func (h brokenHub) Stream(context.Context, delivery.Request, func(delivery.Delivery) error, func(time.Duration) error) error {
	return h.err
}

func (h brokenHub) Fetch(context.Context, delivery.Request) (delivery.Delivery, error) {
	return delivery.Delivery{}, h.err
}
func (h brokenHub) CloseLease(context.Context, delivery.Request) error { return h.err }

func (h brokenHub) Acknowledge(context.Context, delivery.Request, int64) ([]int64, error) {
	return nil, h.err
}

func (brokenHub) Streams(string) int { return 0 }

func TestCredentials_WhatCannotBeServedSaysSo(t *testing.T) {
	const soon = 2 * time.Second
	for _, tt := range []struct {
		err    error
		code   codes.Code
		reason string
		wait   time.Duration
	}{
		{fmt.Errorf("%w: dial tcp 10.0.0.1", sqldb.ErrUnavailable), codes.Unavailable, "DEPENDENCY_UNAVAILABLE", soon},
		{fmt.Errorf("%w: %w: dial tcp 10.0.0.1", sqldb.ErrUnavailable, sqldb.ErrUnknownOutcome), codes.Unavailable, "DEPENDENCY_UNAVAILABLE", soon},
		{delivery.ErrDraining, codes.Unavailable, "DRAINING", 0},
		{fmt.Errorf("%w: 10.0.0.1", delivery.ErrCloudUnknown), codes.Unavailable, "CREDENTIAL_NOT_READY", soon},
		{lease.ErrVersionGone, codes.Unavailable, "CREDENTIAL_NOT_READY", soon},
		{issuer.ErrConsentMissing, codes.Unavailable, "CONSENT_MISSING", 0}, // people end it, in their own time
		{errors.Join(grant.ErrRevoked, lease.ErrTooMany), codes.PermissionDenied, "GRANT_REVOKED", 0},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "", 0},
		{errors.New("a bug at 10.0.0.1"), codes.Internal, "INTERNAL", 0},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := &vault{t: t}
				v.serve(rpc.Config{Hub: brokenHub{tt.err}, Changed: func() {}}, slog.New(slog.DiscardHandler))
				_, fetched := v.runner.FetchCredential(t.Context(), fetch("instance-1"))
				_, acknowledged := v.runner.AcknowledgeCredential(t.Context(), &vaultv1.AcknowledgeCredentialRequest{InstanceId: "instance-1", Generation: 1})
				_, closed := v.runner.CloseLease(t.Context(), &vaultv1.CloseLeaseRequest{InstanceId: "instance-1"})
				stream, err := v.runner.StreamCredentials(t.Context(), &vaultv1.StreamCredentialsRequest{InstanceId: "instance-1"})
				if err == nil {
					_, err = stream.Recv()
				}
				for what, err := range map[string]error{"fetch": fetched, "acknowledge": acknowledged, "close": closed, "stream": err} {
					refused(t, what, err, tt.code, tt.reason)
					if wait := rpcerr.RetryDelay(err); wait != tt.wait {
						t.Errorf("%s asks to wait for %s, want %s", what, wait, tt.wait)
					}
					if strings.Contains(err.Error(), "10.0.0.1") {
						t.Errorf("%s tells the caller of the inside: %v", what, err)
					}
				}
			})
		})
	}
}
