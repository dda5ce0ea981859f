package entrasim

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/entrasim/internal/chance"
)

// Identity providers' names as they stand in the tokens of Azure's resources.
const issuerPrefix = "https://sts.windows.net/"

// accessToken is a token's claims, the v1 form that Graph and Resource Manager take.
type accessToken struct {
	Audience string   `json:"aud"`
	Issuer   string   `json:"iss"`
	IssuedAt int64    `json:"iat"`
	From     int64    `json:"nbf"`
	Expires  int64    `json:"exp"`
	AIO      string   `json:"aio"`
	AppID    string   `json:"appid"`
	AppACR   string   `json:"appidacr"`
	IDP      string   `json:"idp"`
	IDType   string   `json:"idtyp"`
	ObjectID string   `json:"oid"`
	Roles    []string `json:"roles,omitempty"`
	Subject  string   `json:"sub"`
	TenantID string   `json:"tid"`
	UTI      string   `json:"uti"`
	Version  string   `json:"ver"`
}

// The times are judged by checkToken, each with an error of its own.
func (accessToken) GetExpirationTime() (*jwt.NumericDate, error) { return nil, nil } //nolint:nilnil // jwt's way of saying absent
func (accessToken) GetIssuedAt() (*jwt.NumericDate, error)       { return nil, nil } //nolint:nilnil // jwt's way of saying absent
func (accessToken) GetNotBefore() (*jwt.NumericDate, error)      { return nil, nil } //nolint:nilnil // jwt's way of saying absent
func (t accessToken) GetIssuer() (string, error)                 { return t.Issuer, nil }
func (t accessToken) GetSubject() (string, error)                { return t.Subject, nil }
func (t accessToken) GetAudience() (jwt.ClaimStrings, error) {
	return jwt.ClaimStrings{t.Audience}, nil
}

// mint makes an access token for a principal. The claims it returns hold no secret.
func (s *Simulator) mint(dice *chance.Dice, now time.Time, p *principal, by proof, resource *resource, audience string) (string, accessToken, error) {
	life := dice.Between(s.config.TokenLife.Min, s.config.TokenLife.Max).Truncate(time.Second)
	issuer := issuerPrefix + p.Tenant + "/"
	acr := "1"
	if by.asserted() {
		acr = "2"
	}
	claims := accessToken{
		Audience: audience, Issuer: issuer, IDP: issuer,
		IssuedAt: now.Unix(), From: now.Unix(), Expires: now.Add(life).Unix(),
		AIO: "E2" + dice.Text(22, letters), AppID: p.AppID, AppACR: acr, IDType: "app",
		ObjectID: p.ID, Subject: p.ID, TenantID: p.Tenant, Roles: p.Roles[resource.appID],
		UTI: dice.Text(22, letters), Version: "1.0",
	}
	text, err := json.Marshal(claims)
	if err != nil {
		return "", accessToken{}, fmt.Errorf("encode token: %w", err)
	}
	return s.key.token(text), claims, nil
}

// What can be wrong with a bearer token. Each plane has its own words for it.
var (
	errTokenMissing  = errors.New("no bearer token")
	errTokenInvalid  = errors.New("token is malformed or not signed by this login service")
	errTokenExpired  = errors.New("token has expired")
	errTokenTooEarly = errors.New("token is not valid yet")
	errTokenAudience = errors.New("token is for another resource")
)

// checkToken verifies an Authorization header for a resource. The claims come
// back with every error that is judged after the signature.
func (s *Simulator) checkToken(header string, now time.Time, r *resource) (*accessToken, error) {
	scheme, text, found := strings.Cut(header, " ")
	if !found || !strings.EqualFold(scheme, "Bearer") || text == "" {
		return nil, errTokenMissing
	}
	claims := &accessToken{}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodRS256.Alg()}), jwt.WithoutClaimsValidation())
	_, err := parser.ParseWithClaims(strings.TrimSpace(text), claims, func(t *jwt.Token) (any, error) {
		if t.Header["kid"] != s.key.id {
			return nil, errTokenInvalid
		}
		return s.key.public, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errTokenInvalid, err)
	}
	return claims, claims.judge(now, r)
}

// judge judges a token that is well signed.
func (t *accessToken) judge(now time.Time, r *resource) error {
	switch {
	case !slices.Contains(r.audiences, t.Audience):
		return errTokenAudience
	case now.Unix() >= t.Expires:
		return errTokenExpired
	case now.Unix() < t.From:
		return errTokenTooEarly
	}
	return nil
}

// resource is something tokens can be asked for.
type resource struct {
	appID     string
	audiences []string
}

func (s *Simulator) graphResource() *resource {
	return &resource{appID: graphAppID, audiences: append(audiencesOf(s.config.endpoints().Graph),
		"https://graph.microsoft.com", "https://graph.microsoft.com/", graphAppID,
		"https://graph.microsoft.us", "https://dod-graph.microsoft.us", "https://microsoftgraph.chinacloudapi.cn",
	)}
}

func (s *Simulator) armResource() *resource {
	return &resource{appID: armAppID, audiences: append(audiencesOf(s.config.endpoints().ResourceManager),
		"https://management.azure.com", "https://management.azure.com/",
		"https://management.core.windows.net", "https://management.core.windows.net/",
		"https://management.usgovcloudapi.net", "https://management.usgovcloudapi.net/",
		"https://management.core.usgovcloudapi.net", "https://management.core.usgovcloudapi.net/",
		"https://management.chinacloudapi.cn", "https://management.chinacloudapi.cn/",
		"https://management.core.chinacloudapi.cn", "https://management.core.chinacloudapi.cn/", armAppID,
	)}
}

// audiencesOf are those of a plane by its origin: clients that are told where a
// cloud is, and no audience, ask for that. With one origin it is that of all.
func audiencesOf(origin string) []string {
	return []string{origin, origin + "/"}
}

// findResource returns the resource a scope's first part names, nil if unknown.
func (s *Simulator) findResource(audience string) *resource {
	// Graph first, for a token to both: only Graph gives roles in tokens.
	for _, r := range []*resource{s.graphResource(), s.armResource()} {
		if slices.Contains(r.audiences, audience) {
			return r
		}
	}
	return nil
}
