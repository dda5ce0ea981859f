package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/store"
)

// Why a probe has no answer.
var (
	// ErrNotReady: there is no application yet that Entra knows everywhere, or no secret to ask with.
	ErrNotReady = errors.New("application is not ready")
	// ErrDeleting: the integration is being deleted.
	ErrDeleting = errors.New("integration is being deleted")
	// ErrEntra: Entra does not answer, or says nothing that helps.
	ErrEntra = errors.New("entra id is not available")
	// ErrNoCloud: the integration is in a cloud that the configuration does not have.
	ErrNoCloud = errors.New("no such cloud is configured")
)

// Directory is one cloud's Entra ID and Graph. One call is one request; errors are *directory.Error.
type Directory interface {
	EnsureApplication(ctx context.Context, spec directory.Spec) (directory.Application, error)
	RepairApplication(ctx context.Context, spec directory.Spec) (directory.Application, error)
	FindApplication(ctx context.Context, uniqueName string) (directory.Application, error)
	AddPassword(ctx context.Context, objectID, displayName string, end time.Time) (directory.Password, secret.Text, error)
	RemovePassword(ctx context.Context, objectID, keyID string) error
	DeleteApplication(ctx context.Context, objectID string) error
	PurgeApplication(ctx context.Context, objectID string) error
	EnsureTrust(ctx context.Context, objectID string, wanted []directory.Trust) (left int, err error)
	RemoveTrust(ctx context.Context, objectID string, names []string) (left int, err error)
	Token(ctx context.Context, request directory.TokenRequest) (directory.Token, error)
	// HomeTenantID is the platform's own tenant.
	HomeTenantID() string
	// ResourceManager is the audience that tokens are asked for.
	ResourceManager() string
}

// Clouds are the directories by the names of their clouds.
type Clouds map[string]Directory

func (c Clouds) in(name string) (Directory, error) {
	d, ok := c[name]
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrNoCloud, name)
	}
	return d, nil
}

// sealer encrypts what is stored, bound to an identity.
type sealer interface {
	Seal(identity string, text secret.Text) ([]byte, error)
	Open(ctx context.Context, identity string, sealed []byte) (secret.Text, error)
}

// ProberConfig is what a Prober is made from.
type ProberConfig struct {
	Store   *store.Store
	Clouds  Clouds
	Keyring sealer
	// Signer signs for federated versions; nil where the vault is no issuer.
	Signer *signer.Signer
	Timing credential.Timing
	// Timeout bounds one question to Entra.
	Timeout time.Duration
}

// Prober asks customers' tenants whether they know an integration's application, on any replica.
type Prober struct {
	config  ProberConfig
	present signer.Presenter
}

// NewProber makes a Prober.
func NewProber(config ProberConfig) *Prober {
	return &Prober{config: config, present: signer.Presenter{Keyring: config.Keyring, Signer: config.Signer}}
}

// answerPoll is how often a caller looks whether the one who asks has an answer.
const answerPoll = 100 * time.Millisecond

// Probe asks the integration's tenant, unless that is being done or was done moments ago: then it returns the last answer.
// sqldb.ErrNoRows: no such integration. The answer is stored, and the master acts on it.
func (p *Prober) Probe(ctx context.Context, integrationName string) (credential.Probe, error) {
	integration, err := p.config.Store.IntegrationByName(ctx, integrationName)
	if err != nil {
		return credential.Probe{}, err
	}
	if integration.Deleting {
		return credential.Probe{}, fmt.Errorf("probe %s: %w", integrationName, ErrDeleting)
	}
	facts, err := p.config.Store.Facts(ctx, integration.UID)
	if errors.Is(err, sqldb.ErrNoRows) {
		return credential.Probe{}, fmt.Errorf("probe %s: %w", integrationName, ErrNotReady)
	}
	if err != nil {
		return credential.Probe{}, err
	}
	version, ok := facts.ProbeVersion(time.Now(), p.config.Timing)
	if !ok || facts.Application.ReadyTime.IsZero() {
		return credential.Probe{}, fmt.Errorf("probe %s: %w", integrationName, ErrNotReady)
	}
	claimed, probe, err := p.ask(ctx, facts, version)
	switch {
	case err != nil && claimed:
		return credential.Probe{}, fmt.Errorf("probe %s: %w: %w", integrationName, ErrEntra, err)
	case err != nil:
		return credential.Probe{}, err
	case !claimed:
		if probe, err = p.answer(ctx, integration.UID); err != nil {
			return credential.Probe{}, fmt.Errorf("probe %s: %w", integrationName, err)
		}
	}
	return probe, nil
}

// ask asks the tenant with the version, if the question can be claimed, and stores what it said. claimed is false when
// somebody else asks or has just asked. An error with claimed set is Entra's: the answer says nothing.
func (p *Prober) ask(ctx context.Context, facts store.Facts, version credential.Version) (claimed bool, probe credential.Probe, err error) {
	cloud, err := p.config.Clouds.in(facts.Integration.Cloud)
	if err != nil {
		return false, credential.Probe{}, err
	}
	request := directory.TokenRequest{
		TenantID: facts.Integration.TenantID, ClientID: facts.Application.ClientID, Audience: cloud.ResourceManager(), RequestID: uuid.NewString(),
	}
	refused := p.present.Present(ctx, version, false, &request)
	if _, ok := errors.AsType[*directory.Error](refused); refused != nil && !ok {
		return false, credential.Probe{}, refused
	}
	uid := facts.Integration.UID
	began := time.Now()
	now, err := p.config.Store.Now(ctx, began)
	if err != nil {
		return false, credential.Probe{}, err
	}
	claimed, err = p.config.Store.ClaimProbe(ctx, uid, now, p.config.Timing.ProbeSpacing, p.config.Timeout)
	if err != nil || !claimed {
		return false, credential.Probe{}, err
	}
	probe = credential.Probe{Time: now, VersionID: version.ID}
	callCtx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	var token directory.Token
	if refused == nil {
		token, refused = cloud.Token(callCtx, request)
	}
	probe.Finding, probe.Code = findingOf(refused)
	if refused == nil {
		probe.PrincipalObjectID = token.PrincipalObjectID
	}
	// The claim ends even if the caller is gone.
	recordCtx, cancelRecord := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancelRecord()
	if err := p.config.Store.RecordProbe(recordCtx, uid, now.Add(time.Since(began)), probe, refusal(refused).RetryAfter); err != nil {
		return false, credential.Probe{}, err
	}
	if probe.Finding == credential.Unsure {
		return true, credential.Probe{}, refused
	}
	return true, probe, nil
}

// answer is the last answer there is, or the first that comes.
func (p *Prober) answer(ctx context.Context, uid string) (credential.Probe, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.config.Timeout, ErrEntra)
	defer cancel()
	for {
		probe, err := p.config.Store.Probe(ctx, uid)
		if err != nil || !probe.Time.IsZero() {
			return probe, err
		}
		timer := time.NewTimer(answerPoll)
		select {
		case <-ctx.Done():
			timer.Stop()
			return credential.Probe{}, context.Cause(ctx)
		case <-timer.C:
		}
	}
}
