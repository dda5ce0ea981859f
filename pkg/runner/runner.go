package runner

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
)

// closeTimeout bounds the last call, which tells the vault that nobody uses the lease any more. Whether it arrives or
// not, the lease ends with its grant.
const closeTimeout = 3 * time.Second

// Config is what a Runner is made from.
type Config struct {
	// Conn leads to the vault's listener for runners. Its transport must be private: the grant refuses to travel
	// otherwise. The Runner does not close it.
	Conn grpc.ClientConnInterface
	// Grant is the bearer token that the platform made.
	Grant secret.Text
	// Material is the form wanted: access tokens, which is what zero means; assertions (federated tokens), of integrations without a
	// secret; or the client secret, which is delivered only where the integration allows it.
	Material typev1.Material
	// Audience is what the streamed token is for; empty means the cloud's Resource Manager. Client secrets and assertions have none.
	Audience string
	// Log gets what goes wrong and what changes; never a secret.
	Log *slog.Logger
}

// Runner follows one lease. It is safe for concurrent use.
type Runner struct {
	cfg      Config
	client   vaultv1.CredentialServiceClient
	instance string
	bearer   grpc.CallOption
	state    *state
	started  atomic.Bool

	mu     sync.Mutex
	others map[string]*other // by canonical audience
}

// New makes a Runner with an instance ID of its own. Nothing happens before Run.
func New(cfg Config) (*Runner, error) {
	var errs []error
	if cfg.Conn == nil {
		errs = append(errs, errors.New("no connection"))
	}
	if cfg.Grant.IsZero() {
		errs = append(errs, errors.New("no grant"))
	}
	if cfg.Log == nil {
		errs = append(errs, errors.New("no log"))
	}
	switch cfg.Material {
	case typev1.Material_MATERIAL_UNSPECIFIED:
		cfg.Material = typev1.Material_MATERIAL_ACCESS_TOKEN
	case typev1.Material_MATERIAL_ACCESS_TOKEN:
	case typev1.Material_MATERIAL_CLIENT_SECRET:
		if cfg.Audience != "" {
			errs = append(errs, errors.New("an audience for a client secret, which has none"))
		}
	case typev1.Material_MATERIAL_FEDERATED_TOKEN:
		if cfg.Audience != "" {
			errs = append(errs, errors.New("an audience for an assertion, which has none to choose"))
		}
	default:
		errs = append(errs, fmt.Errorf("unknown material %d", cfg.Material))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("make a runner: %w", err)
	}
	return &Runner{
		cfg:      cfg,
		client:   vaultv1.NewCredentialServiceClient(cfg.Conn),
		instance: rand.Text(),
		bearer:   grpc.PerRPCCredentials(bearer{cfg.Grant}),
		state:    newState(),
		others:   map[string]*other{},
	}, nil
}

// Run follows the vault until ctx ends, which is nil, or until delivery has ended for good, which is a *FinalError. No
// other error ends it. At the end it closes the lease, within three seconds and without insisting, so that the vault keeps nothing for it
// any more and another instance may take its place under the grant. It runs once.
func (r *Runner) Run(ctx context.Context) error {
	if !r.started.CompareAndSwap(false, true) {
		return errors.New("runner runs already")
	}
	err := newFollower(r).run(ctx)
	var final *FinalError
	if errors.As(err, &final) {
		r.state.finish(final)
		if final.leavesLease() {
			r.closeLease(ctx)
		}
		return final
	}
	r.state.finish(ErrStopped)
	r.closeLease(ctx)
	return nil
}

// Credential returns the newest credential, waiting until there is one that works. Its error is a *FinalError after
// delivery has ended, ErrStopped after Run has returned, else ctx's, joined with what last went wrong. As long as nothing
// has been delivered it is also, at once, a refusal of the vault's that does not pass by itself (MATERIAL_NOT_ALLOWED,
// HOLD_TOO_LONG); the Runner goes on asking, should somebody mend it.
func (r *Runner) Credential(ctx context.Context) (Credential, error) {
	return r.state.wait(ctx, func(Credential) bool { return true })
}

// Next returns the newest credential as soon as it is another delivery than last. Its errors are those of Credential.
func (r *Runner) Next(ctx context.Context, last Credential) (Credential, error) {
	return r.state.wait(ctx, func(c Credential) bool { return c.Lease != last.Lease || c.Generation != last.Generation })
}

// Done is closed when nothing will be delivered any more; Err then says why.
func (r *Runner) Done() <-chan struct{} { return r.state.done }

// Err returns why delivery has ended: a *FinalError or ErrStopped. It is nil before that.
func (r *Runner) Err() error { return r.state.err() }

// Acknowledge tells the vault that nothing is used any more that was delivered before c, so that client secrets that were replaced need not be
// kept for this runner. Nobody else can know that: a Runner never says it by itself, and what was started with an older secret must have ended
// before. Its errors are the vault's; what is not acknowledged is kept until the lease is closed.
func (r *Runner) Acknowledge(ctx context.Context, c Credential) error {
	_, err := r.client.AcknowledgeCredential(ctx, &vaultv1.AcknowledgeCredentialRequest{InstanceId: r.instance, Generation: c.Generation}, r.bearer)
	if err != nil {
		return fmt.Errorf("acknowledge generation %d: %w", c.Generation, err)
	}
	return nil
}

// closeLease tells the vault that nobody uses the lease any more.
func (r *Runner) closeLease(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_, err := r.client.CloseLease(ctx, &vaultv1.CloseLeaseRequest{InstanceId: r.instance}, r.bearer)
	if err != nil {
		r.cfg.Log.InfoContext(ctx, "lease not closed, it ends with its grant", slog.Any(obs.KeyError, err))
	}
}

// bearer shows the grant with each call, and only over a private transport.
type bearer struct{ grant secret.Text }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.grant.Expose()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }
