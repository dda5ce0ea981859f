package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/follow"
	"phasekey.dev/services/broker/internal/rpc"
	"phasekey.dev/services/broker/internal/store"
)

const (
	platform  = "spiffe://phasekey.dev/platform"
	operator  = "spiffe://phasekey.dev/operator"
	vault     = "spiffe://phasekey.dev/vault"
	requestID = "5a5c1a3a-35f4-4b2d-8a0a-51a1a3f5a0c1"
	poll      = time.Second
	maxOpen   = 3
)

// fakeRegistry knows integrations by name.
type fakeRegistry struct {
	mu    sync.Mutex
	known map[string]consent.Integration
	err   error
}

func (r *fakeRegistry) Integration(_ context.Context, name string) (consent.Integration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return consent.Integration{}, r.err
	}
	i, ok := r.known[name]
	if !ok {
		return consent.Integration{}, consent.ErrIntegrationNotFound
	}
	return i, nil
}

// fakeVault says what a test has it say, and counts how often it was asked.
type fakeVault struct {
	mu    sync.Mutex
	proof consent.Proof
	err   error
	asked []string
}

func (v *fakeVault) says(proof consent.Proof, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.proof, v.err = proof, err
}

func (v *fakeVault) ProbeConsent(_ context.Context, integration string) (consent.Proof, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, integration)
	return v.proof, v.err
}

// failingStore answers every call with one error, if there is one.
type failingStore struct {
	*store.Store
	mu  sync.Mutex
	err error
	// gets and looks are how often sessions were read one by one, and many at once.
	gets, looks int
}

func (s *failingStore) reads() (gets, looks int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gets, s.looks
}

func (s *failingStore) ByLinks(ctx context.Context, hashes [][]byte) (map[string]consent.Session, error) {
	s.mu.Lock()
	s.looks++
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.Store.ByLinks(ctx, hashes)
}

func (s *failingStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *failingStore) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *failingStore) Get(ctx context.Context, name consent.Name) (consent.Session, error) {
	if err := s.failure(); err != nil {
		return consent.Session{}, err
	}
	s.mu.Lock()
	s.gets++
	s.mu.Unlock()
	return s.Store.Get(ctx, name)
}

func (s *failingStore) Create(ctx context.Context, now time.Time, c consent.Session, hash []byte, r consent.Request, limit int) (consent.Session, error) {
	if err := s.failure(); err != nil {
		return consent.Session{}, err
	}
	return s.Store.Create(ctx, now, c, hash, r, limit)
}

// world is a served broker without its prover.
type world struct {
	store    *store.Store
	failing  *failingStore
	registry *fakeRegistry
	vault    *fakeVault
	links    consent.Links
	server   *grpctest.Server
}

func (w *world) client(t *testing.T, id string) brokerv1.ConsentServiceClient {
	t.Helper()
	return brokerv1.NewConsentServiceClient(w.server.Dial(t, id))
}

// inBubble runs a test in a bubble with a served broker.
func inBubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		key, err := consent.NewKey([]byte(strings.Repeat("k", consent.KeySize)))
		if err != nil {
			t.Fatal(err)
		}
		w := &world{
			store: store.New(sqldbtest.SQLite(t, store.Migrations())),
			registry: &fakeRegistry{known: map[string]consent.Integration{
				"accounts/acme/integrations/ready": {Name: "accounts/acme/integrations/ready", UID: "uid-ready",
					TenantID: "3fe2a1c4-0000-4000-8000-000000000001", Cloud: "public", ClientID: "client", Ready: true},
				"accounts/acme/integrations/new": {Name: "accounts/acme/integrations/new", UID: "uid-new",
					TenantID: "3fe2a1c4-0000-4000-8000-000000000001", Cloud: "public"},
				"accounts/acme/integrations/deleting":   {Name: "accounts/acme/integrations/deleting", UID: "uid-deleting", Cloud: "public", Deleting: true},
				"accounts/acme/integrations/misleading": {Name: "accounts/acme/integrations/misleading", UID: "uid-misleading", Cloud: "public", DisplayName: "Micr\u043esoft"},
				"accounts/acme/integrations/elsewhere":  {Name: "accounts/acme/integrations/elsewhere", UID: "uid-elsewhere", Cloud: "elsewhere"},
				"accounts/umbrella/integrations/ready":  {Name: "accounts/umbrella/integrations/ready", UID: "uid-umbrella", Cloud: "public"},
			}},
			links: consent.Links{
				Key:       key,
				Clouds:    map[string]consent.Cloud{"public": {LoginURL: "https://login.example.com", GraphURL: "https://graph.example.com"}},
				PublicURL: "https://broker.example.com",
			},
		}
		w.vault = &fakeVault{}
		w.failing = &failingStore{Store: w.store}
		cfg := grpctest.Config{
			Policy:     grpcserver.OptionPolicy(optionsv1.E_Callers),
			StreamIdle: -1, // as app has it
			Identities: []grpcserver.Identity{
				{ID: platform, Role: "platform", Accounts: []string{"acme"}},
				{ID: operator, Role: "operator", Accounts: []string{"*"}},
				{ID: vault, Role: "vault", Accounts: []string{"*"}},
			},
		}
		hub := follow.New(follow.Config{Store: w.failing, Interval: poll, Log: discard()})
		following, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = hub.Run(following) }()
		cfg.Register = func(r grpc.ServiceRegistrar) {
			brokerv1.RegisterConsentServiceServer(r, rpc.New(rpc.Config{
				Store: w.failing, Registry: w.registry, Vault: w.vault, Links: w.links, Origins: consent.Origins{"https://app.example.com"}, Log: discard(), MaxOpen: maxOpen, Follow: hub,
			}))
		}
		w.server = grpctest.Start(t, cfg)
		test(t, w)
	})
}

func create(integration string) *brokerv1.CreateConsentSessionRequest {
	return &brokerv1.CreateConsentSessionRequest{
		Parent:         "accounts/acme",
		ConsentSession: &brokerv1.ConsentSession{Integration: "accounts/acme/integrations/" + integration},
	}
}

// settle does to an integration's sessions what a prover does, at any replica.
func (w *world) settle(t *testing.T, uid string, seen consent.Observation) {
	t.Helper()
	now := time.Now()
	seen.AskTime = now
	claim, err := w.store.Claim(t.Context(), now, now.Add(time.Minute), uid)
	if err != nil {
		t.Fatal(err)
	}
	err = w.store.Settle(t.Context(), claim, func(target consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
		var changed []consent.Session
		for _, s := range open {
			if next, differs := consent.Decide(now, s, seen); differs {
				changed = append(changed, next)
			}
		}
		return target, changed
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCreateConsentSession_OfAReadyIntegration(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, platform)
		now := time.Now()
		req := create("ready")
		req.ConsentSession.Name = "accounts/acme/consentSessions/mine" // ignored, as are the outputs
		req.ConsentSession.State = brokerv1.ConsentSession_STATE_COMPLETED
		req.ConsentSession.ServicePrincipalObjectId, req.ConsentSession.LastCallback = "forged", "APPROVED"
		req.ConsentSession.ReturnUri = "https://app.example.com/integrations?from=consent"
		got, err := c.CreateConsentSession(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		want := &brokerv1.ConsentSession{
			Name: got.GetName(), Integration: "accounts/acme/integrations/ready", State: brokerv1.ConsentSession_STATE_AWAITING_CONSENT,
			ReturnUri: "https://app.example.com/integrations?from=consent", ConsentUri: got.GetConsentUri(), CreateTime: timestamppb.New(now), ExpireTime: timestamppb.New(now.Add(24 * time.Hour)),
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("session (-want +got):\n%s", diff)
		}
		if !strings.HasPrefix(got.GetName(), "accounts/acme/consentSessions/") || strings.HasSuffix(got.GetName(), "mine") {
			t.Errorf("name %q", got.GetName())
		}
		link, ok := strings.CutPrefix(got.GetConsentUri(), "https://broker.example.com/consent/")
		if !ok {
			t.Errorf("link %q", got.GetConsentUri())
		}
		if found, err := w.store.ByLink(t.Context(), consent.Hash(secret.New(link))); err != nil || found.Name.String() != got.GetName() {
			t.Errorf("the link leads to %v, error %v", found.Name, err)
		}
		again, err := c.GetConsentSession(t.Context(), &brokerv1.GetConsentSessionRequest{Name: got.GetName()})
		if diff := cmp.Diff(got, again, protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("read again: error %v (-created +read):\n%s", err, diff)
		}
	})
}

func TestCreateConsentSession_BeforeTheApplicationIsReady(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		req := create("new")
		req.ConsentSession.ExpireTime = timestamppb.New(time.Now().Add(7 * 24 * time.Hour))
		got, err := w.client(t, operator).CreateConsentSession(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if got.GetState() != brokerv1.ConsentSession_STATE_WAITING_FOR_APPLICATION || got.GetConsentUri() == "" {
			t.Errorf("state %s, link %q", got.GetState(), got.GetConsentUri())
		}
		if !got.GetExpireTime().AsTime().Equal(req.GetConsentSession().GetExpireTime().AsTime()) {
			t.Errorf("expires at %v", got.GetExpireTime().AsTime())
		}
	})
}

func TestCreateConsentSession_RepeatsAreSafeForADay(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, platform)
		req := create("new")
		req.RequestId = requestID
		first, err := c.CreateConsentSession(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour)
		// What was created stays what it was, though the integration is gone and the session has moved on.
		w.settle(t, "uid-new", consent.Observation{Finding: consent.Deleting})
		delete(w.registry.known, "accounts/acme/integrations/new")
		again, err := c.CreateConsentSession(t.Context(), req)
		if err != nil || again.GetName() != first.GetName() || again.GetState() != brokerv1.ConsentSession_STATE_EXPIRED {
			t.Errorf("a repeat: error %v, session %v", err, again)
		}
		elsewhere := create("new")
		elsewhere.RequestId, elsewhere.ConsentSession.ReturnUri = requestID, "https://app.example.com/"
		_, err = c.CreateConsentSession(t.Context(), elsewhere)
		check(t, err, codes.AlreadyExists, "REQUEST_ID_REUSED")
		other := create("ready")
		other.RequestId = requestID
		_, err = c.CreateConsentSession(t.Context(), other)
		check(t, err, codes.AlreadyExists, "REQUEST_ID_REUSED")
		<-time.After(24 * time.Hour)
		if late, err := c.CreateConsentSession(t.Context(), other); err != nil || late.GetName() == first.GetName() {
			t.Errorf("a day later: error %v, session %s", err, late.GetName())
		}
	})
}

func TestCreateConsentSession_Refusals(t *testing.T) {
	for _, tc := range []struct {
		name   string
		caller string
		change func(*brokerv1.CreateConsentSessionRequest)
		world  func(*world)
		code   codes.Code
		reason string
		fields []string
	}{
		{name: "nothing in it", change: func(r *brokerv1.CreateConsentSessionRequest) { r.Parent, r.ConsentSession = "", nil },
			caller: operator, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"parent", "consent_session"}},
		{name: "no integration", change: func(r *brokerv1.CreateConsentSessionRequest) { r.ConsentSession.Integration = "" },
			code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"consent_session.integration"}},
		{name: "request ID is no UUID", change: func(r *brokerv1.CreateConsentSessionRequest) { r.RequestId = "again" },
			code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"request_id"}},
		{name: "another account's integration, already over", caller: operator, change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.Integration = "accounts/umbrella/integrations/ready"
			r.ConsentSession.ExpireTime = timestamppb.Now()
		}, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"consent_session.integration", "consent_session.expire_time"}},
		{name: "more than seven days", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.ExpireTime = timestamppb.New(time.Now().Add(7*24*time.Hour + 2*time.Minute))
		}, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"consent_session.expire_time"}},
		{name: "not a timestamp", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.ExpireTime = &timestamppb.Timestamp{Seconds: 1 << 60}
		}, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"consent_session.expire_time"}},
		{name: "return link elsewhere", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.ReturnUri = "https://evil.example.com/"
		}, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"consent_session.return_uri"}},
		{name: "return link too long", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.ReturnUri = "https://app.example.com/" + strings.Repeat("x", 2000)
		}, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"consent_session.return_uri"}},
		{name: "unknown integration", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.Integration = "accounts/acme/integrations/none"
		}, code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "integration being deleted", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.Integration = "accounts/acme/integrations/deleting"
		}, code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING"},
		{name: "integration whose name misleads", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.Integration = "accounts/acme/integrations/misleading"
		}, code: codes.FailedPrecondition, reason: "MISLEADING_NAME"},
		{name: "integration in a cloud that is not configured", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.ConsentSession.Integration = "accounts/acme/integrations/elsewhere"
		}, code: codes.Internal, reason: "INTERNAL"},
		{name: "the registry does not answer", world: func(w *world) { w.registry.err = fmt.Errorf("dial 10.0.0.1: %w", consent.ErrUnavailable) },
			code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
		{name: "the database does not answer", world: func(w *world) { w.failing.fail(fmt.Errorf("driver says: %w", consent.ErrUnavailable)) },
			code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
		{name: "the database errs", world: func(w *world) { w.failing.fail(errors.New("driver says: syntax error")) },
			code: codes.Internal, reason: "INTERNAL"},
		{name: "account of somebody else", change: func(r *brokerv1.CreateConsentSessionRequest) {
			r.Parent, r.ConsentSession.Integration = "accounts/umbrella", "accounts/umbrella/integrations/ready"
		}, code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "role that may not", caller: vault, code: codes.PermissionDenied, reason: "CALLER_NOT_ALLOWED"},
		{name: "nobody", caller: "spiffe://phasekey.dev/stranger", code: codes.Unauthenticated, reason: "IDENTITY_UNKNOWN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				caller := tc.caller
				if caller == "" {
					caller = platform
				}
				req := create("ready")
				if tc.change != nil {
					tc.change(req)
				}
				if tc.world != nil {
					tc.world(w)
				}
				_, err := w.client(t, caller).CreateConsentSession(t.Context(), req)
				check(t, err, tc.code, tc.reason, tc.fields...)
				if due, err := w.store.Due(t.Context(), time.Now(), 10); err != nil || len(due) != 0 {
					t.Errorf("something was stored: %v, error %v", due, err)
				}
			})
		})
	}
}

func TestCreateConsentSession_SaysWhatIsWrongWithAName(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, err := w.client(t, platform).CreateConsentSession(t.Context(), create("misleading"))
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				want := map[string]string{"name": "accounts/acme/integrations/misleading", "problem": "mixes alphabets in one word"}
				if diff := cmp.Diff(want, info.GetMetadata()); diff != "" {
					t.Errorf("metadata (-want +got):\n%s", diff)
				}
				return
			}
		}
		t.Errorf("no word on it: %v", err)
	})
}

func TestCreateConsentSession_LimitsOpenOnes(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, platform)
		for range maxOpen {
			if _, err := c.CreateConsentSession(t.Context(), create("ready")); err != nil {
				t.Fatal(err)
			}
		}
		_, err := c.CreateConsentSession(t.Context(), create("ready"))
		check(t, err, codes.ResourceExhausted, "TOO_MANY_CONSENT_SESSIONS")
		// People end the others, in their own time.
		if wait := rpcerr.RetryDelay(err); wait != 0 {
			t.Errorf("is asked to come back in %s", wait)
		}
		if _, err := c.CreateConsentSession(t.Context(), create("new")); err != nil {
			t.Errorf("another integration: %v", err)
		}
	})
}

func TestGetConsentSession_Refusals(t *testing.T) {
	for _, tc := range []struct {
		name, caller, session string
		world                 func(*world)
		code                  codes.Code
		reason                string
		fields                []string
	}{
		{name: "no name", caller: operator, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"name"}},
		{name: "not a session's name", caller: platform, session: "accounts/acme/integrations/ready",
			code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"name"}},
		{name: "unknown", caller: platform, session: "accounts/acme/consentSessions/none", code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "another account's", caller: platform, session: "accounts/umbrella/consentSessions/none",
			code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "role that may not", caller: vault, session: "accounts/acme/consentSessions/none", code: codes.PermissionDenied, reason: "CALLER_NOT_ALLOWED"},
		{name: "the database does not answer", caller: platform, session: "accounts/acme/consentSessions/none",
			world: func(w *world) { w.failing.fail(consent.ErrUnavailable) }, code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				if tc.world != nil {
					tc.world(w)
				}
				c := w.client(t, tc.caller)
				_, err := c.GetConsentSession(t.Context(), &brokerv1.GetConsentSessionRequest{Name: tc.session})
				check(t, err, tc.code, tc.reason, tc.fields...)
				stream, err := c.WatchConsentSession(t.Context(), &brokerv1.WatchConsentSessionRequest{Name: tc.session})
				if err != nil {
					t.Fatal(err)
				}
				_, err = stream.Recv()
				check(t, err, tc.code, tc.reason, tc.fields...)
			})
		})
	}
}

func TestGetConsentSession_AfterItsEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, platform)
		created, err := c.CreateConsentSession(t.Context(), create("ready"))
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		w.settle(t, "uid-ready", consent.Observation{Finding: consent.Ready, Proof: &consent.Proof{Consented: true, PrincipalObjectID: "oid"}})
		got, err := c.GetConsentSession(t.Context(), &brokerv1.GetConsentSessionRequest{Name: created.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		created.State, created.ConsentUri = brokerv1.ConsentSession_STATE_COMPLETED, ""
		created.ServicePrincipalObjectId, created.CompleteTime = "oid", timestamppb.Now()
		if diff := cmp.Diff(created, got, protocmp.Transform()); diff != "" {
			t.Errorf("session (-want +got):\n%s", diff)
		}
	})
}

// check fails unless an error has a code and a reason, and names exactly these fields.
func check(t *testing.T, err error, code codes.Code, reason string, fields ...string) {
	t.Helper()
	if status.Code(err) != code || rpcerr.Reason(err) != reason {
		t.Errorf("got %s %s (%v), want %s %s", status.Code(err), rpcerr.Reason(err), err, code, reason)
	}
	grpctest.CheckRefusal(t, err)
	if strings.Contains(fmt.Sprint(err), "driver says") || strings.Contains(fmt.Sprint(err), "10.0.0.1") {
		t.Errorf("the caller is told what is not for callers: %v", err)
	}
	var named []string
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				named = append(named, v.GetField())
			}
		}
	}
	if diff := cmp.Diff(fields, named); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}
