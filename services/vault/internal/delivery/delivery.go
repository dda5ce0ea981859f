package delivery

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

var (
	// ErrDraining means that this replica is stopping. Another one serves.
	ErrDraining = errors.New("replica is stopping")
	// ErrTooManyStreams means that the same runner instance has opened newer streams, more than it has a use for.
	ErrTooManyStreams = errors.New("runner instance has too many newer streams")
	// ErrAudienceNotAllowed is every AudienceError.
	ErrAudienceNotAllowed = errors.New("integration does not allow the audience")
	// ErrMaterialNotAllowed is every MaterialError.
	ErrMaterialNotAllowed = errors.New("integration does not give the material away")
	// ErrCloudUnknown means that the integration is in a cloud that the configuration does not have.
	ErrCloudUnknown = errors.New("cloud is not configured")
)

// AudienceError says which audience the integration does not allow. It is an ErrAudienceNotAllowed.
type AudienceError struct {
	Audience string
}

func (e *AudienceError) Error() string {
	return fmt.Sprintf("%v %s", ErrAudienceNotAllowed, e.Audience)
}

// Is makes it an ErrAudienceNotAllowed.
func (e *AudienceError) Is(target error) bool { return target == ErrAudienceNotAllowed }

// MaterialError says which material the integration does not give away. It is an ErrMaterialNotAllowed.
type MaterialError struct {
	Material lease.Material
}

func (e *MaterialError) Error() string {
	return fmt.Sprintf("%v: %s", ErrMaterialNotAllowed, e.Material)
}

// Is makes it an ErrMaterialNotAllowed.
func (e *MaterialError) Is(target error) bool { return target == ErrMaterialNotAllowed }

// Reason is why a credential was sent.
type Reason string

// The reasons there are.
const (
	// Initial: the first of a call.
	Initial Reason = "INITIAL"
	// Refresh: the one before it was getting old, or the grant's end moved.
	Refresh Reason = "REFRESH"
	// Rotated: the credential version it is made from is another one.
	Rotated Reason = "ROTATED"
	// Compromised: likewise, because somebody may have the one before who should not. It works no longer, or not for long.
	Compromised Reason = "COMPROMISED"
)

// Request is what a runner shows and wants.
type Request struct {
	// Token is the grant's.
	Token secret.Text
	// Source is what the runner's address counts as, see limit.Source.
	Source string
	// CertificateSHA256 is of the client certificate, in lower-case hexadecimal; empty without one.
	CertificateSHA256 string
	InstanceID        string
	Material          lease.Material
	// Audience is an access token's; empty for the cloud's Resource Manager.
	Audience string
	Caller   grant.Caller

	// unused is what the token hashes to when nobody had shown it before.
	unused grant.Hash
}

// Delivery is the whole of what a runner holds: each replaces the one before it entirely.
type Delivery struct {
	LeaseUID   string
	Generation int64
	// Version is the credential version's number.
	Version         int64
	Phase           grant.Phase
	Access          grant.Access
	Reason          Reason
	IssueTime       time.Time
	RefreshTime     time.Time
	ExpireTime      time.Time
	GrantExpireTime time.Time
	Cloud           string
	TenantID        string
	ClientID        string
	SubscriptionID  string
	Material        lease.Material
	// Audience and Token are an access token's or an assertion's, Secret is a client secret's.
	Audience string
	Token    secret.Text
	Secret   secret.Text
	// Environment is what a Terraform provider wants; no value is a secret.
	Environment map[string]string
	// Alike is the same in deliveries of which only LeaseUID, Generation and GrantExpireTime differ; nil where there are no others.
	Alike *Alike
}

// Alike is what many deliveries have in common, encoded by whoever sends the first of them.
type Alike struct {
	once    sync.Once
	encoded []byte
	err     error
}

// Encoded is what encode returned, which is called once.
func (a *Alike) Encoded(encode func() ([]byte, error)) ([]byte, error) {
	a.once.Do(func() { a.encoded, a.err = encode() })
	return a.encoded, a.err
}

// Cloud is what the hub has to know about a cloud.
type Cloud struct {
	// ResourceManager is the audience of tokens for its Resource Manager, without a slash at the end.
	ResourceManager string
	// Environment is what the azurerm provider calls it (ARM_ENVIRONMENT); empty for a cloud that it does not know.
	Environment string
}

// audience is what is to be asked for: the cloud's Resource Manager, or one that the integration allows. A slash at the end
// makes no difference, for clients write them with and without.
func audience(asked string, cloud Cloud, allowed []string) (string, error) {
	asked = strings.TrimSuffix(asked, "/")
	if asked == "" || asked == cloud.ResourceManager {
		return cloud.ResourceManager, nil
	}
	if !slices.Contains(allowed, asked) {
		return "", &AudienceError{Audience: asked}
	}
	return asked, nil
}

// environment is what a Terraform provider wants besides what the runner's own endpoint adds. An identity that only reads
// cannot register resource providers, which azurerm tries by default.
func environment(tenantID, clientID, subscriptionID string, access grant.Access, cloud Cloud) map[string]string {
	env := map[string]string{
		"ARM_TENANT_ID":       tenantID,
		"ARM_CLIENT_ID":       clientID,
		"ARM_SUBSCRIPTION_ID": subscriptionID,
		"AZURE_TENANT_ID":     tenantID,
		"AZURE_CLIENT_ID":     clientID,
	}
	if cloud.Environment != "" {
		env["ARM_ENVIRONMENT"] = cloud.Environment
	}
	if access == grant.Read {
		env["ARM_RESOURCE_PROVIDER_REGISTRATIONS"] = "none"
	}
	return env
}
