package rpc_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/broker/internal/consent"
)

const ready = "accounts/acme/integrations/ready"

func TestVerifyConsent_SaysWhatTheTenantSaid(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		at := time.Now().Add(-5 * time.Second)
		for _, tc := range []struct {
			name  string
			proof consent.Proof
			want  *brokerv1.VerifyConsentResponse
		}{
			{"consented", consent.Proof{Consented: true, PrincipalObjectID: "oid", Time: at},
				&brokerv1.VerifyConsentResponse{Consented: true, ServicePrincipalObjectId: "oid", VerifyTime: timestamppb.New(at)}},
			{"refused", consent.Proof{Refusal: "AADSTS7000112", Time: at},
				&brokerv1.VerifyConsentResponse{Refusal: "AADSTS7000112", VerifyTime: timestamppb.New(at)}},
		} {
			w.vault.says(tc.proof, nil)
			for _, caller := range []string{platform, operator} {
				got, err := w.client(t, caller).VerifyConsent(t.Context(), &brokerv1.VerifyConsentRequest{Integration: ready})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, got, protocmp.Transform()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", tc.name, diff)
				}
			}
		}
		if diff := cmp.Diff([]string{ready, ready, ready, ready}, w.vault.asked); diff != "" {
			t.Errorf("asked (-want +got):\n%s", diff)
		}
	})
}

func TestVerifyConsent_HastensWhoWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, platform)
		due := func() int {
			uids, err := w.store.Due(t.Context(), time.Now(), 10)
			if err != nil {
				t.Fatal(err)
			}
			return len(uids)
		}
		verify := func() {
			if _, err := c.VerifyConsent(t.Context(), &brokerv1.VerifyConsentRequest{Integration: ready}); err != nil {
				t.Fatal(err)
			}
		}
		verify()
		if due() != 0 {
			t.Error("an integration is due though no session waits for it")
		}
		if _, err := c.CreateConsentSession(t.Context(), create("ready")); err != nil {
			t.Fatal(err)
		}
		// A round that puts the next one off.
		now := time.Now()
		claim, err := w.store.Claim(t.Context(), now, now.Add(time.Minute), "uid-ready")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.store.Settle(t.Context(), claim, func(target consent.Target, _ []consent.Session) (consent.Target, []consent.Session) {
			target.DueTime, target.LookTime = now.Add(time.Minute), now.Add(time.Minute)
			return target, nil
		}); err != nil {
			t.Fatal(err)
		}
		if due() != 0 {
			t.Fatal("the integration is due before it is verified")
		}
		verify()
		if due() != 1 {
			t.Error("verified, the integration is not due")
		}
	})
}

func TestVerifyConsent_Refusals(t *testing.T) {
	for _, tc := range []struct {
		name, caller, integration string
		world                     func(*world)
		code                      codes.Code
		reason                    string
		fields                    []string
		asked                     bool
	}{
		{name: "no name", caller: operator, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"integration"}},
		{name: "unknown", integration: "accounts/acme/integrations/none", code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "being deleted", integration: "accounts/acme/integrations/deleting", code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING"},
		{name: "not replicated", integration: "accounts/acme/integrations/new", code: codes.Unavailable, reason: "CREDENTIAL_NOT_READY"},
		{name: "another account's", integration: "accounts/umbrella/integrations/ready", code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "role that may not", caller: vault, integration: ready, code: codes.PermissionDenied, reason: "CALLER_NOT_ALLOWED"},
		{name: "the registry is away", integration: ready, world: func(w *world) { w.registry.err = fmt.Errorf("dial 10.0.0.1: %w", consent.ErrUnavailable) },
			code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
		{name: "the vault is away", integration: ready, asked: true, world: func(w *world) {
			w.vault.says(consent.Proof{}, fmt.Errorf("dial 10.0.0.1: %w", consent.ErrUnavailable))
		}, code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
		{name: "the vault is not ready", integration: ready, asked: true, world: func(w *world) {
			w.vault.says(consent.Proof{}, fmt.Errorf("%w: %w", consent.ErrUnavailable, consent.ErrNotReady))
		}, code: codes.Unavailable, reason: "CREDENTIAL_NOT_READY"},
		{name: "Entra ID is away", integration: ready, asked: true, world: func(w *world) {
			w.vault.says(consent.Proof{}, fmt.Errorf("%w: %w", consent.ErrUnavailable, consent.ErrEntra))
		}, code: codes.Unavailable, reason: "ENTRA_UNAVAILABLE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				if tc.world != nil {
					tc.world(w)
				}
				if tc.caller == "" {
					tc.caller = platform
				}
				_, err := w.client(t, tc.caller).VerifyConsent(t.Context(), &brokerv1.VerifyConsentRequest{Integration: tc.integration})
				check(t, err, tc.code, tc.reason, tc.fields...)
				if asked := len(w.vault.asked) > 0; asked != tc.asked {
					t.Errorf("the vault was asked: %v", asked)
				}
				if tc.code == codes.Unavailable && rpcerr.RetryDelay(err) <= 0 {
					t.Error("no word on when to come back")
				}
			})
		})
	}
}

func TestCancelConsentSession(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, platform)
		created, err := c.CreateConsentSession(t.Context(), create("ready"))
		if err != nil {
			t.Fatal(err)
		}
		watch, err := c.WatchConsentSession(t.Context(), &brokerv1.WatchConsentSessionRequest{Name: created.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err != nil {
			t.Fatal(err)
		}
		cancel := func() *brokerv1.ConsentSession {
			t.Helper()
			answer, err := c.CancelConsentSession(t.Context(), &brokerv1.CancelConsentSessionRequest{Name: created.GetName()})
			if err != nil {
				t.Fatal(err)
			}
			return answer.GetConsentSession()
		}
		cancelled := cancel()
		created.State, created.ConsentUri, created.LastRefusal = brokerv1.ConsentSession_STATE_EXPIRED, "", "CANCELLED"
		if diff := cmp.Diff(created, cancelled, protocmp.Transform()); diff != "" {
			t.Errorf("cancelled (-want +got):\n%s", diff)
		}
		if seen, err := watch.Recv(); err != nil || !cmp.Equal(seen.GetConsentSession(), cancelled, protocmp.Transform()) {
			t.Errorf("a watcher sees %v, error %v", seen, err)
		}
		// Proof that comes too late changes nothing, and neither does another call.
		w.settle(t, "uid-ready", consent.Observation{Finding: consent.Ready, Proof: &consent.Proof{Consented: true, PrincipalObjectID: "oid"}})
		if diff := cmp.Diff(cancelled, cancel(), protocmp.Transform()); diff != "" {
			t.Errorf("cancelled again (-first +second):\n%s", diff)
		}
		// Its place is free.
		for range maxOpen {
			if _, err := c.CreateConsentSession(t.Context(), create("ready")); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestCancelConsentSession_AfterProof(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, operator)
		created, err := c.CreateConsentSession(t.Context(), create("ready"))
		if err != nil {
			t.Fatal(err)
		}
		w.settle(t, "uid-ready", consent.Observation{Finding: consent.Ready, Proof: &consent.Proof{Consented: true, PrincipalObjectID: "oid"}})
		answer, err := c.CancelConsentSession(t.Context(), &brokerv1.CancelConsentSessionRequest{Name: created.GetName()})
		if err != nil || answer.GetConsentSession().GetState() != brokerv1.ConsentSession_STATE_COMPLETED {
			t.Errorf("a proven session: %v, error %v", answer, err)
		}
		if end := answer.GetConsentSession().GetExpireTime().AsTime(); end.After(time.Now()) {
			t.Errorf("consent may be given again by its link until %s", end)
		}
	})
}

func TestCancelConsentSession_Refusals(t *testing.T) {
	for _, tc := range []struct {
		name, caller, session string
		code                  codes.Code
		reason                string
		fields                []string
	}{
		{name: "no name", caller: operator, code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"name"}},
		{name: "unknown", caller: platform, session: "accounts/acme/consentSessions/none", code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "another account's", caller: platform, session: "accounts/umbrella/consentSessions/none",
			code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "role that may not", caller: vault, session: "accounts/acme/consentSessions/none", code: codes.PermissionDenied, reason: "CALLER_NOT_ALLOWED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				_, err := w.client(t, tc.caller).CancelConsentSession(t.Context(), &brokerv1.CancelConsentSessionRequest{Name: tc.session})
				check(t, err, tc.code, tc.reason, tc.fields...)
			})
		})
	}
}
