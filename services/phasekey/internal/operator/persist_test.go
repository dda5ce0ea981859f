package operator

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
)

var (
	errRefused = status.Error(codes.Unavailable, "connection refused")
	errNone    = rpcerr.New(codes.NotFound, "RESOURCE_NOT_FOUND", "it does not exist")
)

// turns are answers, in order: errors, and whatever else.
type turns []any

func next[M any](t *turns) (M, error) {
	var none M
	first := (*t)[0]
	*t = (*t)[1:]
	if err, ok := first.(error); ok {
		return none, err
	}
	return first.(M), nil
}

// consentClient watches streams, each of the states that it sends before it ends with an error, or errors.
type consentClient struct {
	brokerv1.ConsentServiceClient
	turns
}

type consentStream struct {
	grpc.ServerStreamingClient[brokerv1.WatchConsentSessionResponse]
	turns
}

func (c *consentClient) WatchConsentSession(context.Context, *brokerv1.WatchConsentSessionRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[brokerv1.WatchConsentSessionResponse], error) {
	return next[*consentStream](&c.turns)
}

func (s *consentStream) Recv() (*brokerv1.WatchConsentSessionResponse, error) {
	state, err := next[brokerv1.ConsentSession_State](&s.turns)
	return &brokerv1.WatchConsentSessionResponse{ConsentSession: &brokerv1.ConsentSession{State: state, ServicePrincipalObjectId: "oid"}}, err
}

func TestFollowConsent_GoesOnAfterARestart(t *testing.T) {
	waits, ends := brokerv1.ConsentSession_STATE_AWAITING_CONSENT, brokerv1.ConsentSession_STATE_COMPLETED
	for _, tt := range []struct {
		name  string
		known bool
		turns turns
		want  string // "" for the principal
		took  time.Duration
		notes int
	}{
		{"a restart", false, turns{&consentStream{turns: turns{waits, errUnavailable}}, errRefused, errRefused, &consentStream{turns: turns{waits, io.EOF}}, &consentStream{turns: turns{ends}}}, "", 8 * time.Second, 4},
		{"one before the first word of a session that was made", true, turns{errRefused, &consentStream{turns: turns{ends}}}, "", time.Second, 1},
		{"nobody is there", false, turns{errRefused}, "connection refused", 0, 0},
		{"it ended", false, turns{&consentStream{turns: turns{waits, brokerv1.ConsentSession_STATE_EXPIRED}}}, "without consent", 0, 0},
		{"it does not exist", true, turns{errRefused, &consentStream{turns: turns{errNone}}}, "RESOURCE_NOT_FOUND", time.Second, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out, notes bytes.Buffer
				s, begin := &session{printer: &printer{out: &out, notes: &notes}}, time.Now()
				err := s.followConsent(t.Context(), &consentClient{turns: tt.turns}, "accounts/a/consentSessions/c", tt.known)
				if tt.want == "" {
					if err != nil || out.String() != "Principal  oid\n" {
						t.Errorf("%q, error %v", out.String(), err)
					}
				} else if err == nil || !strings.Contains(explain(err).Error(), tt.want) {
					t.Errorf("error %v", err)
				}
				if took := time.Since(begin); took != tt.took || strings.Count(notes.String(), "broken off") != tt.notes {
					t.Errorf("after %s: %s", took, notes.String())
				}
			})
		})
	}
}

func TestAwaitIntegration_GoesOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var notes bytes.Buffer
		s := &session{printer: &printer{notes: &notes}}
		waiting := &registryv1.Integration{Name: "accounts/a/integrations/i", State: registryv1.Integration_STATE_PROVISIONING}
		client := &integrationClient{turns: turns{errUnavailable, errRefused, waiting, errNone}}
		if err := s.awaitGone(t.Context(), client, waiting); err != nil {
			t.Error(err)
		}
		if len(client.turns) > 0 || strings.Count(notes.String(), "broken off") != 2 || strings.Count(notes.String(), "PROVISIONING") != 1 {
			t.Errorf("%d turns are left: %s", len(client.turns), notes.String())
		}
		ctx, cancel := context.WithCancel(t.Context())
		client.turns = turns{errRefused}
		time.AfterFunc(1500*time.Millisecond, cancel)
		if _, err := s.awaitIntegration(ctx, client, waiting, func(*registryv1.Integration) bool { return false }); explain(err) == nil || ctx.Err() == nil {
			t.Errorf("interrupted: %v", err)
		}
	})
}

type integrationClient struct {
	registryv1.IntegrationServiceClient
	turns
}

func (c *integrationClient) GetIntegration(context.Context, *registryv1.GetIntegrationRequest, ...grpc.CallOption) (*registryv1.Integration, error) {
	return next[*registryv1.Integration](&c.turns)
}

func TestWatch_GoesOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, notes bytes.Buffer
		one := []*registryv1.Project{{Name: "accounts/a/projects/one", DisplayName: "One"}}
		looks := turns{one, errUnavailable, errRefused, one, errNone}
		err := watch(t.Context(), &printer{out: &out, notes: &notes, interval: time.Second}, projectView, func(context.Context) ([]*registryv1.Project, error) {
			return next[[]*registryv1.Project](&looks)
		})
		if rpcerr.Reason(err) != "RESOURCE_NOT_FOUND" || strings.Count(notes.String(), "broken off") != 2 || strings.Count(out.String(), "One") != 1 {
			t.Errorf("%v\n%s%s", err, out.String(), notes.String())
		}
		looks = turns{errRefused}
		if err := watch(t.Context(), &printer{out: &out, notes: &notes, interval: time.Second}, projectView, func(context.Context) ([]*registryv1.Project, error) {
			return next[[]*registryv1.Project](&looks)
		}); status.Code(err) != codes.Unavailable {
			t.Errorf("where nobody is: %v", err)
		}
	})
}

// pauseClient has pauses.
type pauseClient struct {
	vaultv1.RotationServiceClient
	scopes  []string
	resumed []string
}

func (c *pauseClient) ListRotationPauses(_ context.Context, req *vaultv1.ListRotationPausesRequest, _ ...grpc.CallOption) (*vaultv1.ListRotationPausesResponse, error) {
	var answer vaultv1.ListRotationPausesResponse
	for _, scope := range c.scopes {
		if req.GetParent() == everything || strings.HasPrefix(scope+"/", req.GetParent()+"/") {
			answer.RotationPauses = append(answer.RotationPauses, &vaultv1.RotationPause{Scope: scope})
		}
	}
	return &answer, nil
}

func (c *pauseClient) ResumeRotation(_ context.Context, req *vaultv1.ResumeRotationRequest, _ ...grpc.CallOption) (*vaultv1.ResumeRotationResponse, error) {
	c.resumed = append(c.resumed, req.GetScope())
	return &vaultv1.ResumeRotationResponse{}, nil
}

func TestResume_RefusesWhatIsNotPaused(t *testing.T) {
	for scope, paused := range map[string]bool{
		"accounts/a/integrations/i": true, "accounts/a/integrations/nosuch": false, "accounts/a": false, "accounts/b": true, everything: true,
	} {
		var notes bytes.Buffer
		client := &pauseClient{scopes: []string{everything, "accounts/a/integrations/i", "accounts/b"}}
		err := (&session{printer: &printer{notes: &notes}}).resume(t.Context(), client, scope)
		if (err == nil) != paused || (len(client.resumed) == 1) != paused || strings.Contains(notes.String(), "ended") != paused {
			t.Errorf("%s: error %v, resumed %q, %s", scope, err, client.resumed, notes.String())
		}
	}
}

type accountClient struct {
	vaultv1.AccountServiceClient
	turns
}

func (c *accountClient) GetAccount(context.Context, *vaultv1.GetAccountRequest, ...grpc.CallOption) (*vaultv1.Account, error) {
	return next[*vaultv1.Account](&c.turns)
}

func TestFreeze_SaysThatNothingIsKnownOfTheAccount(t *testing.T) {
	for want, answer := range map[string]any{
		"knows nothing of accounts/acmee": &vaultv1.Account{Usage: &vaultv1.Account_Usage{}},
		"cannot be said":                  errRefused,
		"":                                &vaultv1.Account{Usage: &vaultv1.Account_Usage{IntegrationCount: 1}},
	} {
		var notes bytes.Buffer
		(&session{printer: &printer{notes: &notes}}).doubt(t.Context(), &accountClient{turns: turns{answer}}, "accounts/acmee")
		if said := notes.String(); !strings.Contains(said, want) || (said == "") != (want == "") {
			t.Errorf("%q does not say %q", said, want)
		}
	}
}
