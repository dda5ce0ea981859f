package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/logtest"
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
	"phasekey.dev/services/vault/internal/rpc"
	"phasekey.dev/services/vault/internal/signingkey"
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
	log      *logtest.Transcript
	stop     func()

	platform, operator vaultv1.GrantServiceClient
	broker             vaultv1.AccessServiceClient
	rotation           vaultv1.RotationServiceClient // as the platform
	runner, other      vaultv1.CredentialServiceClient
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
			t: t, db: sqldbtest.SQLite(t, migrations), minter: &fakeMinter{}, prober: &fakeProber{}, checker: &fakeChecker{}, log: &logtest.Transcript{},
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
		cfg := rpc.Config{PageKey: pageKey, Tails: tails, Grants: v.store, Leases: v.store, Accounts: v.store, Versions: v.store, Rotations: v.store, Pauses: v.store, SigningKeys: v.store, SigningTiming: signingkey.Production(), Hub: v.hub, Resolver: v.resolver, Prober: v.prober, Checker: v.checker, Changed: v.hub.Nudge, Trail: v.store, Keys: audittest.Keys(1)}
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
