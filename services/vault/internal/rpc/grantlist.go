package rpc

import (
	"context"
	"strings"
	"time"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/aipfilter"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/grant"
)

// revokeAtOnce is how many grants are revoked in one transaction: what else works on their integrations waits for that, and streams are
// told after each.
const revokeAtOnce = 50

var grantKeys = keys{
	of: map[string][]string{
		"name": {grant.ByUID}, "create_time": {grant.ByCreateTime}, "expire_time": {grant.ByExpireTime},
	},
	times: []string{grant.ByCreateTime, grant.ByExpireTime},
}

// grantFields are those that filters of grants may name, of which states are those of now.
func grantFields(now time.Time) aipfilter.Fields[grant.Grant] {
	return aipfilter.Fields[grant.Grant]{
		"name":               aipfilter.Text(grant.Grant.Name),
		"run":                aipfilter.Text(func(g grant.Grant) string { return g.Run }),
		"project":            aipfilter.Text(func(g grant.Grant) string { return g.Project }),
		"integration":        aipfilter.Text(func(g grant.Grant) string { return g.Integration }),
		"phase":              aipfilter.Enum(typev1.Phase_value, prefixPhase, func(g grant.Grant) grant.Phase { return g.Phase }),
		"access":             aipfilter.Enum(typev1.Access_value, prefixAccess, grant.Grant.Access),
		"state":              aipfilter.Enum(vaultv1.Grant_State_value, prefixState, func(g grant.Grant) string { return stateWord(g, now) }),
		"certificate_sha256": aipfilter.Text(func(g grant.Grant) string { return g.CertificateSHA256 }),
		"create_time":        aipfilter.Time(func(g grant.Grant) time.Time { return g.CreateTime }),
		"expire_time":        aipfilter.Time(func(g grant.Grant) time.Time { return g.ExpireTime }),
		"revoke_time":        aipfilter.Time(func(g grant.Grant) time.Time { return g.RevokeTime }),
	}
}

// stateWord is the grant's state, as filters name it.
func stateWord(g grant.Grant, now time.Time) string {
	return strings.TrimPrefix(messageOfState(g.State(now)).String(), prefixState)
}

func (s grantService) ListGrants(ctx context.Context, req *vaultv1.ListGrantsRequest) (*vaultv1.ListGrantsResponse, error) {
	now := clock()
	passes, err := grantFields(now).Parse(req.GetFilter())
	if err != nil {
		return nil, wrongFilter(err)
	}
	wanted, err := s.pages.page(grantsList, grantKeys, req)
	if err != nil {
		return nil, statusOf(err)
	}
	required := aipfilter.Required(req.GetFilter())
	l := grant.List{
		Account: strings.TrimPrefix(req.GetParent(), accounts), Page: wanted, Passes: passes,
		Run: required["run"], Project: required["project"], Integration: required["integration"],
	}
	if strings.TrimPrefix(required["state"], prefixState) == "ACTIVE" {
		l.ActiveAt = now
	}
	found, rest, err := s.grants.Grants(ctx, l)
	if err != nil {
		return nil, statusOf(err)
	}
	if len(found) > wanted.Size {
		found = found[:wanted.Size]
		rest = found[wanted.Size-1].Place(wanted.Order)
	}
	resp := &vaultv1.ListGrantsResponse{}
	if rest != nil {
		resp.NextPageToken = s.pages.next(grantsList, req, rest)
	}
	for _, g := range found {
		resp.Grants = append(resp.Grants, messageOfGrantWithoutToken(now, g))
	}
	return resp, nil
}

func (s grantService) RevokeGrants(ctx context.Context, req *vaultv1.RevokeGrantsRequest) (*vaultv1.RevokeGrantsResponse, error) {
	scope := grant.Scope{Run: req.GetRun(), Integration: req.GetIntegration()}
	if scope.Integration != "" && !strings.HasPrefix(scope.Integration, req.GetParent()+"/") {
		return nil, rpcerr.Invalid("integration", "must be of the parent's account")
	}
	account, resp := strings.TrimPrefix(req.GetParent(), accounts), &vaultv1.RevokeGrantsResponse{}
	for more := true; more; {
		var revoked int
		var err error
		revoked, more, err = s.grants.RevokeGrants(ctx, clock(), account, scope, revokeAtOnce, callerOf(ctx))
		if err != nil {
			return nil, statusOf(err)
		}
		resp.RevokedCount += int64(revoked)
		s.changed()
	}
	return resp, nil
}
