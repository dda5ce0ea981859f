package entrasim

import (
	"encoding/json"
	"time"
)

// Well-known resources and their application IDs.
const (
	graphAppID = "00000003-0000-0000-c000-000000000000"
	armAppID   = "797f4846-ba00-4fd7-ba43-dac1f8f63013"
)

// Graph application permissions the simulator knows.
const (
	roleReadWriteOwnedBy = "Application.ReadWrite.OwnedBy"
	roleReadWriteAll     = "Application.ReadWrite.All"
	roleReadAll          = "Application.Read.All"
	rolePolicyReadWrite  = "Policy.ReadWrite.ApplicationConfiguration"
	rolePolicyRead       = "Policy.Read.All"
)

// graphRoles maps the permission IDs found in requiredResourceAccess to names.
func graphRoles() map[string]string {
	return map[string]string{
		"18a4783c-866b-4cc7-a460-3d5e5662c884": roleReadWriteOwnedBy,
		"1bfefb4e-e0b5-418b-a88f-73c46d2cc8e9": roleReadWriteAll,
		"9a5d68dd-52b0-4cc2-bd40-abcf6ac3ccca": roleReadAll,
		"be74164b-cff1-491c-8741-e671cb536e13": rolePolicyReadWrite,
		"246dd0d5-5bd0-4def-940b-0421030a5b68": rolePolicyRead,
	}
}

// Tenant is a directory.
type Tenant struct {
	ID          string `json:"id"`
	DisplayName string `json:"displayName"`
	// Domain is a name under which the tenant is found too.
	Domain   string `json:"domain"`
	Verified bool   `json:"verified"`
	// ConsentWorkflow: those who are no administrators may ask one.
	ConsentWorkflow bool      `json:"consentWorkflow"`
	Created         time.Time `json:"created"`
}

// Person is somebody who can sign in on the consent page.
type Person struct {
	ID          string `json:"id"`
	Tenant      string `json:"tenant"`
	UserName    string `json:"userName"`
	DisplayName string `json:"displayName"`
	Admin       bool   `json:"admin"`
}

// Subscription is an Azure subscription of a tenant.
type Subscription struct {
	ID          string `json:"id"`
	Tenant      string `json:"tenant"`
	DisplayName string `json:"displayName"`
	// ManagementGroup is the ID of the one it is in; empty for the tenant's root.
	ManagementGroup string `json:"managementGroup,omitempty"`
}

// ManagementGroup is a node of a tenant's hierarchy, in which subscriptions are
// the leaves. The root is always there, and has the tenant's ID.
type ManagementGroup struct {
	ID          string `json:"id"`
	Tenant      string `json:"tenant"`
	DisplayName string `json:"displayName"`
	// Parent is the ID of the one it is in; empty for the tenant's root.
	Parent string `json:"parent,omitempty"`
}

// AllPrincipals stands for everybody in a deny assignment.
const AllPrincipals = "00000000-0000-0000-0000-000000000000"

// DenyAssignment keeps principals from actions on a scope and all below it,
// whatever their roles allow.
type DenyAssignment struct {
	// ID is the full resource ID.
	ID          string `json:"id"`
	Tenant      string `json:"tenant"`
	Scope       string `json:"scope"`
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// Actions are patterns of what is denied, less NotActions.
	Actions        []string `json:"actions"`
	NotActions     []string `json:"notActions,omitempty"`
	DataActions    []string `json:"dataActions,omitempty"`
	NotDataActions []string `json:"notDataActions,omitempty"`
	// Principals are object IDs, or AllPrincipals, less ExcludePrincipals.
	Principals        []string `json:"principals"`
	ExcludePrincipals []string `json:"excludePrincipals,omitempty"`
	// DoNotApplyToChildScopes has it hold for the scope itself alone.
	DoNotApplyToChildScopes bool      `json:"doNotApplyToChildScopes,omitempty"`
	Created                 time.Time `json:"created"`
}

// RoleAssignment gives a principal a role on a scope and all below it.
type RoleAssignment struct {
	// ID is the full resource ID.
	ID            string    `json:"id"`
	Tenant        string    `json:"tenant"`
	Scope         string    `json:"scope"`
	PrincipalID   string    `json:"principalId"`
	PrincipalType string    `json:"principalType"`
	RoleID        string    `json:"roleId"` // the role definition's GUID
	Created       time.Time `json:"created"`
}

// principal is a service principal.
type principal struct {
	ID             string              `json:"id"`
	Tenant         string              `json:"tenant"`
	AppID          string              `json:"appId"`
	HomeTenant     string              `json:"homeTenant"`
	DisplayName    string              `json:"displayName"`
	AccountEnabled bool                `json:"accountEnabled"`
	Created        time.Time           `json:"created"`
	ReplyURLs      []string            `json:"replyUrls,omitempty"`
	Tags           []string            `json:"tags,omitempty"`
	Deleted        *time.Time          `json:"deleted,omitempty"`
	Owners         []string            `json:"owners,omitempty"`
	Roles          map[string][]string `json:"roles,omitempty"` // by resource application ID
	// Passwords and Keys are its own, besides the application's, and work in its
	// tenant alone.
	Passwords            []password      `json:"passwords,omitempty"`
	Keys                 []keyCredential `json:"keys,omitempty"`
	TokenEncryptionKeyID *string         `json:"tokenEncryptionKeyId,omitempty"`
	// Policy is the ID of the management policy assigned to it, if there is one.
	Policy string `json:"policy,omitempty"`
}

// application is what Graph stores of an application object.
type application struct {
	ID         string     `json:"id"`
	AppID      string     `json:"appId"`
	Tenant     string     `json:"tenant"`
	Publisher  string     `json:"publisher"`
	Created    time.Time  `json:"created"`
	UniqueName string     `json:"uniqueName,omitempty"`
	Deleted    *time.Time `json:"deleted,omitempty"`
	// Owners are the object IDs of principals that own it.
	Owners    []string        `json:"owners,omitempty"`
	Passwords []password      `json:"passwords,omitempty"`
	Keys      []keyCredential `json:"keys,omitempty"`
	// Policy is the ID of the management policy assigned to it, if there is one.
	Policy string `json:"policy,omitempty"`
	// Set is shared by the versions that do not change it, so it is replaced,
	// never written to.
	Set *applicationProperties `json:"set"`
}

// applicationProperties are those a client may write.
type applicationProperties struct {
	DisplayName               string                   `json:"displayName"`
	SignInAudience            string                   `json:"signInAudience"`
	Description               *string                  `json:"description"`
	Notes                     *string                  `json:"notes"`
	Tags                      []string                 `json:"tags"`
	IdentifierURIs            []string                 `json:"identifierUris"`
	GroupMembershipClaims     *string                  `json:"groupMembershipClaims"`
	IsFallbackPublicClient    *bool                    `json:"isFallbackPublicClient"`
	ServiceManagement         *string                  `json:"serviceManagementReference"`
	AppRoles                  []json.RawMessage        `json:"appRoles"`
	OptionalClaims            json.RawMessage          `json:"optionalClaims,omitempty"`
	Info                      json.RawMessage          `json:"info,omitempty"`
	API                       json.RawMessage          `json:"api,omitempty"`
	SPA                       redirects                `json:"spa"`
	PublicClient              redirects                `json:"publicClient"`
	Web                       webProperties            `json:"web"`
	RequiredResourceAccess    []requiredResourceAccess `json:"requiredResourceAccess"`
	ServicePrincipalLock      *principalLock           `json:"servicePrincipalLockConfiguration"`
	ParentalControlSettings   json.RawMessage          `json:"parentalControlSettings,omitempty"`
	VerifiedPublisher         json.RawMessage          `json:"verifiedPublisher,omitempty"`
	RequestSignatureVerify    json.RawMessage          `json:"requestSignatureVerification,omitempty"`
	SamlMetadataURL           *string                  `json:"samlMetadataUrl"`
	DefaultRedirectURI        *string                  `json:"defaultRedirectUri"`
	TokenEncryptionKeyID      *string                  `json:"tokenEncryptionKeyId"`
	NativeAuthenticationAPIs  *string                  `json:"nativeAuthenticationApisEnabled"`
	IsDeviceOnlyAuthSupported *bool                    `json:"isDeviceOnlyAuthSupported"`
}

type redirects struct {
	RedirectURIs []string `json:"redirectUris"`
}

type webProperties struct {
	HomePageURL           *string          `json:"homePageUrl"`
	LogoutURL             *string          `json:"logoutUrl"`
	RedirectURIs          []string         `json:"redirectUris"`
	ImplicitGrantSettings implicitSettings `json:"implicitGrantSettings"`
	RedirectURISettings   []redirectIndex  `json:"redirectUriSettings"`
}

type implicitSettings struct {
	EnableAccessToken bool `json:"enableAccessTokenIssuance"`
	EnableIDToken     bool `json:"enableIdTokenIssuance"`
}

type redirectIndex struct {
	URI   string `json:"uri"`
	Index *int   `json:"index"`
}

type requiredResourceAccess struct {
	ResourceAppID  string           `json:"resourceAppId"`
	ResourceAccess []resourceAccess `json:"resourceAccess"`
}

type resourceAccess struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}

type principalLock struct {
	IsEnabled                  bool  `json:"isEnabled"`
	AllProperties              *bool `json:"allProperties"`
	CredentialsWithUsageVerify *bool `json:"credentialsWithUsageVerify"`
	CredentialsWithUsageSign   *bool `json:"credentialsWithUsageSign"`
	IdentifierURIs             *bool `json:"identifierUris"`
	TokenEncryptionKeyID       *bool `json:"tokenEncryptionKeyId"`
}

// password is what Graph shows of a secret.
type password struct {
	KeyID       string    `json:"keyId"`
	DisplayName *string   `json:"displayName"`
	Hint        string    `json:"hint"`
	Start       time.Time `json:"start"`
	End         time.Time `json:"end"`
}

// secret is what the token service checks: a salted hash and its times.
type secret struct {
	KeyID string `json:"keyId"`
	AppID string `json:"appId"`
	// Principal is the object ID of the principal whose own it is, empty for
	// the application's.
	Principal string    `json:"principal,omitempty"`
	Salt      []byte    `json:"salt"`
	Hash      []byte    `json:"hash"`
	Start     time.Time `json:"start"`
	End       time.Time `json:"end"`
	// Added and Removed are the moments at the token service's replicas.
	Added   Moments `json:"added,omitempty"`
	Removed Moments `json:"removed,omitempty"`
	Gone    bool    `json:"gone,omitempty"` // removePassword has been committed
}

// federated is a federated identity credential: tokens of the issuer, for the
// subject and the audience, speak for the application.
type federated struct {
	ID          string   `json:"id"`
	AppID       string   `json:"appId"`
	Tenant      string   `json:"tenant"`
	Name        string   `json:"name"`
	Issuer      string   `json:"issuer"`
	Subject     string   `json:"subject"`
	Audiences   []string `json:"audiences"` // exactly one
	Description *string  `json:"description"`
}

// resourceGroup is an Azure resource group.
type resourceGroup struct {
	Subscription string            `json:"subscription"`
	Name         string            `json:"name"`
	Location     string            `json:"location"`
	ManagedBy    string            `json:"managedBy,omitempty"`
	Tags         map[string]string `json:"tags,omitempty"`
	Deleted      bool              `json:"deleted,omitempty"`
}
