package rpc_test

import (
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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/testing/protocmp"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/rpc"
)

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

// streamCase is what happens to a stream after its first credential, and what comes of it.
type streamCase struct {
	name   string
	step   func(v *vault, g *vaultv1.Grant)
	wait   time.Duration
	taken  []string
	code   codes.Code
	reason string
	audit  []string
	// holders are the version's after it.
	holders int32
}

// run has it happen to a stream of that material, by a vault that gives secrets only where that is one.
func (c streamCase) run(t *testing.T, material typev1.Material) {
	t.Run(c.name, func(t *testing.T) {
		inBubble(t, func(v *vault) {
			if material == typev1.Material_MATERIAL_CLIENT_SECRET {
				v.gives(both)
			}
			g, shown := v.grant()
			ctx, cancel := context.WithCancel(shown)
			r := v.stream(ctx, &vaultv1.StreamCredentialsRequest{InstanceId: "instance-1", Material: material})
			if c.step != nil {
				c.step(v, g)
			}
			time.Sleep(c.wait)
			synctest.Wait()
			taken, err := r.state()
			if !slices.Equal(taken, c.taken) {
				v.t.Errorf("took %v, want %v", taken, c.taken)
			}
			if c.code != codes.OK || err != nil {
				refused(v.t, "end", err, c.code, c.reason)
			}
			v.audit(c.audit...)
			resp, err := v.rotation.ListCredentialVersions(v.t.Context(), &vaultv1.ListCredentialVersionsRequest{Parent: "accounts/acme/integrations/read"})
			if err != nil || resp.GetCredentialVersions()[0].GetHolders() != c.holders {
				v.t.Errorf("versions %v, %v", resp, err)
			}
			cancel()
			synctest.Wait()
		})
	})
}

func TestCredentials_Stream(t *testing.T) {
	created, opened, sent := "GrantCreated platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1"
	for _, tt := range []streamCase{
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
		tt.run(t, typev1.Material_MATERIAL_UNSPECIFIED)
	}
}

// givingHub gives each stream the same deliveries, and then ends it.
type givingHub struct {
	brokenHub
	gives []delivery.Delivery
}

func (h givingHub) Stream(_ context.Context, _ delivery.Request, send func(delivery.Delivery) error, _ func(time.Duration) error) error {
	for _, d := range h.gives {
		if err := send(d); err != nil {
			return err
		}
	}
	return h.err
}

// Deliveries that are alike are sent as each would be alone.
func TestCredentials_WhatIsAlikeIsWhatItIsAlone(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)
	one := delivery.Delivery{
		LeaseUID: "lease-1", Generation: 7, Version: 3, Phase: grant.Applying, Access: grant.Write, Reason: delivery.Rotated, IssueTime: now, RefreshTime: now.Add(time.Minute),
		ExpireTime: now.Add(time.Hour), GrantExpireTime: now.Add(2 * time.Hour), Cloud: "public", TenantID: "tenant", ClientID: "client", SubscriptionID: "subscription",
		Material: lease.AccessToken, Audience: "https://management.azure.com", Token: secret.New("CANARY"), Environment: map[string]string{"ARM_TENANT_ID": "tenant"},
	}
	other, bare := one, one
	other.LeaseUID, other.Generation, other.GrantExpireTime = strings.Repeat("l", 200), 1<<40, now.Add(3*time.Hour)
	bare.LeaseUID, bare.Generation, bare.GrantExpireTime = "", 0, time.Time{}
	var alone, alike []delivery.Delivery
	same := &delivery.Alike{}
	for _, d := range []delivery.Delivery{one, other, bare, one} {
		alone = append(alone, d)
		d.Alike = same
		alike = append(alike, d)
	}
	synctest.Test(t, func(t *testing.T) {
		v := &vault{t: t}
		v.serve(rpc.Config{Hub: givingHub{brokenHub{delivery.ErrDraining}, slices.Concat(alone, alike)}, Changed: func() {}}, slog.New(slog.DiscardHandler))
		stream, err := v.runner.StreamCredentials(t.Context(), &vaultv1.StreamCredentialsRequest{InstanceId: "instance-1"})
		if err != nil {
			t.Fatal(err)
		}
		var taken []*vaultv1.StreamCredentialsResponse
		for {
			m, err := stream.Recv()
			if err != nil {
				break
			}
			taken = append(taken, m)
		}
		if n := len(alone); len(taken) != 2*n {
			t.Fatalf("took %d messages", len(taken))
		}
		if diff := cmp.Diff(taken[:len(alone)], taken[len(alone):], protocmp.Transform()); diff != "" {
			t.Errorf("alone, and alike: %s", diff)
		}
		if c := taken[len(alone)+1].GetCredential(); c.GetLease() != other.LeaseUID || c.GetAccessToken().GetToken() != "CANARY" || c.GetEnvironment()["ARM_TENANT_ID"] != "tenant" {
			t.Errorf("took %v", c.GetLease())
		}
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
