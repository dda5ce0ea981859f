// Package rpc serves the vault's API: it turns messages into the domain's terms, has the hub, the store and the registry do
// what they do, and turns results and refusals back. What a field may hold is checked before by the server's chain, as the
// protos say; what the protos cannot say is checked here.
package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/limit"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/page"
	"phasekey.dev/services/vault/internal/signingkey"
)

// grants keeps grants; see store.Store.
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

// leases keeps leases; see store.Store.
type leases interface {
	Lease(ctx context.Context, account, grantUID, uid string) (lease.Detail, error)
	Leases(ctx context.Context, l lease.List) (found []lease.Detail, rest page.Place, err error)
	RevokeLease(ctx context.Context, now time.Time, account, grantUID, uid string, caller grant.Caller) (lease.Detail, error)
}

// accountStore keeps what there is to say of whole accounts; see store.Store.
type accountStore interface {
	Usage(ctx context.Context, now time.Time, account string) (grant.Account, grant.Usage, error)
	FreezeAccount(ctx context.Context, now time.Time, account, reason string, caller grant.Caller) (grant.Account, error)
	ReleaseFrozen(ctx context.Context, now time.Time, account, after string, limit int) (last string, err error)
	UnfreezeAccount(ctx context.Context, now time.Time, account string, caller grant.Caller) error
}

// hub delivers; see delivery.Hub.
type hub interface {
	Streams(account string) int
	Stream(ctx context.Context, r delivery.Request, send func(delivery.Delivery) error, leave func(within time.Duration) error) error
	Fetch(ctx context.Context, r delivery.Request) (delivery.Delivery, error)
	Acknowledge(ctx context.Context, r delivery.Request, generation int64) (released []int64, err error)
	CloseLease(ctx context.Context, r delivery.Request) error
}

// versions keeps credential versions; see store.Store.
type versions interface {
	CredentialVersions(ctx context.Context, integration string, before int64, limit int) ([]credential.Version, error)
}

// resolver is the part of the registry's AttachmentService that grants are made by.
type resolver interface {
	ResolveAccess(ctx context.Context, in *registryv1.ResolveAccessRequest, opts ...grpc.CallOption) (*registryv1.ResolveAccessResponse, error)
}

// prober asks a customer's tenant whether it knows the application, or says what it last answered.
type prober interface {
	Probe(ctx context.Context, integrationName string) (credential.Probe, error)
}

// Config is what the services are made from.
type Config struct {
	Grants    grants
	Leases    leases
	Accounts  accountStore
	Versions  versions
	Rotations rotations
	Pauses    pauses
	// SigningKeys are by what the vault signs for federated integrations, SigningTiming how long they take.
	SigningKeys   signingKeys
	SigningTiming signingkey.Timing
	Hub           hub
	Resolver      resolver
	Prober        prober
	Checker       checker
	// Trail is the audit's, Keys those that it is authenticated and signed by.
	Trail auditTrail
	Keys  audit.Keys
	Tails tailer
	// PageKey is what the database's page tokens are sealed with.
	PageKey secret.Text
	// Changed is called after something was changed that streams must hear of, so that they hear sooner.
	Changed func()
}

// Register returns the function that registers the services for the platform's services and operators.
func Register(cfg Config) func(grpc.ServiceRegistrar) {
	return func(to grpc.ServiceRegistrar) {
		pages := pages{key: cfg.PageKey}
		vaultv1.RegisterGrantServiceServer(to, grantService{grants: cfg.Grants, pages: pages, resolver: cfg.Resolver, changed: cfg.Changed})
		vaultv1.RegisterLeaseServiceServer(to, leaseService{leases: cfg.Leases, pages: pages, changed: cfg.Changed})
		vaultv1.RegisterAccountServiceServer(to, accountService{accounts: cfg.Accounts, hub: cfg.Hub, changed: cfg.Changed})
		vaultv1.RegisterAccessServiceServer(to, accessService{prober: cfg.Prober, checker: cfg.Checker})
		vaultv1.RegisterRotationServiceServer(to, rotationService{versions: cfg.Versions, rotations: cfg.Rotations, pauses: cfg.Pauses, keys: cfg.SigningKeys, timing: cfg.SigningTiming, pages: pages})
		vaultv1.RegisterAuditServiceServer(to, auditService{trail: cfg.Trail, tails: cfg.Tails, keys: cfg.Keys, pages: pages})
		RegisterRunners(cfg)(to)
	}
}

// RegisterRunners returns the function that registers what runners may call.
func RegisterRunners(cfg Config) func(grpc.ServiceRegistrar) {
	return func(to grpc.ServiceRegistrar) {
		vaultv1.RegisterCredentialServiceServer(to, credentialService{hub: cfg.Hub, changed: cfg.Changed})
	}
}

// callerOf is whom the audit names.
func callerOf(ctx context.Context) grant.Caller {
	caller := grant.Caller{RequestID: grpcserver.RequestID(ctx)}
	if info, ok := tlsOf(ctx); ok {
		if id, err := mtls.IDFromState(info.State); err == nil {
			caller.Identity = id
		}
	}
	return caller
}

// certificateOf is the SHA-256 of the caller's certificate in lower-case hexadecimal; empty without one.
func certificateOf(ctx context.Context) string {
	info, ok := tlsOf(ctx)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return ""
	}
	sum := sha256.Sum256(info.State.PeerCertificates[0].Raw)
	return hex.EncodeToString(sum[:])
}

// sourceOf is what the caller's address counts as.
func sourceOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	return limit.Source(p.Addr.String())
}

func tlsOf(ctx context.Context) (credentials.TLSInfo, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return credentials.TLSInfo{}, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	return info, ok
}

// clock is the time as the database has it, in whole microseconds, so that what is answered now and what is read later agree.
func clock() time.Time { return time.Now().Truncate(time.Microsecond) }
