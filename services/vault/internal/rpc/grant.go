package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/grant"
)

// grantService implements vaultv1.GrantServiceServer.
type grantService struct {
	vaultv1.UnsafeGrantServiceServer
	grants   grants
	resolver resolver
	pages    pages
	changed  func()
}

func (s grantService) CreateGrant(ctx context.Context, req *vaultv1.CreateGrantRequest) (*vaultv1.Grant, error) {
	now := clock()
	asked, err := requestOf(req)
	if err != nil {
		return nil, err
	}
	token, hash := grant.Mint()
	request := grant.RequestKey{ID: strings.ToLower(req.GetRequestId()), Fingerprint: asked.Fingerprint()}
	// A repeat is answered from what there is, whatever the registry would say now, or whether it answers.
	if request.ID != "" && !req.GetValidateOnly() {
		g, found, err := s.grants.RepeatGrant(ctx, now, asked.Account, hash, request, callerOf(ctx))
		if err != nil {
			return nil, statusOf(err)
		}
		if found {
			return messageOfGrant(now, g, token), nil
		}
	}
	// Said before the registry is asked, whose answer does not matter then; the store looks again.
	of, err := s.grants.Account(ctx, asked.Account)
	if err = errors.Join(err, of.Check()); err != nil {
		return nil, statusOf(err)
	}
	if _, err := grant.Limit(now, asked.ExpireTime); err != nil {
		return nil, rpcerr.Invalid("grant.expire_time", err.Error())
	}
	g, err := s.resolve(ctx, now, asked)
	if err != nil {
		return nil, statusOf(err)
	}
	if req.GetValidateOnly() {
		message := messageOfGrantWithoutToken(now, g)
		message.Name = ""
		return message, nil
	}
	g, err = s.grants.CreateGrant(ctx, now, g, hash, request, callerOf(ctx))
	if err != nil {
		return nil, statusOf(err)
	}
	return messageOfGrant(now, g, token), nil
}

// resolve makes the grant of what the registry says that the project gets.
func (s grantService) resolve(ctx context.Context, now time.Time, asked grant.Request) (grant.Grant, error) {
	answer, err := s.resolver.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: asked.Project, Phase: messageOfPhase(asked.Phase)})
	if err != nil {
		return grant.Grant{}, fmt.Errorf("resolve access of %s: %w", asked.Project, fromRegistry(ctx, err))
	}
	// The access follows from the phase, here as there. Should they ever differ, nothing is granted.
	if accessOf(answer.GetAccess()) != asked.Phase.Access() || answer.GetIntegrationUid() == "" || answer.GetProjectUid() == "" {
		return grant.Grant{}, fmt.Errorf("resolve access of %s: registry answered %v for phase %s", asked.Project, answer.GetAccess(), asked.Phase)
	}
	uid, err := uuid.NewV7() // in the order of creation, so that lists are
	if err != nil {
		return grant.Grant{}, fmt.Errorf("name grant: %w", err)
	}
	return grant.New(now, uid.String(), asked, grant.Resolution{
		Integration: answer.GetIntegration(), IntegrationUID: answer.GetIntegrationUid(), ProjectUID: answer.GetProjectUid(),
		SubscriptionID: answer.GetSubscriptionId(), Incarnation: answer.GetIncarnation(), Revision: answer.GetRevision(),
	})
}

func (s grantService) GetGrant(ctx context.Context, req *vaultv1.GetGrantRequest) (*vaultv1.Grant, error) {
	account, uid := splitName(req.GetName())
	g, err := s.grants.Grant(ctx, account, uid)
	if err != nil {
		return nil, statusAbout(err, req.GetName())
	}
	return messageOfGrantWithoutToken(clock(), g), nil
}

func (s grantService) ExtendGrant(ctx context.Context, req *vaultv1.ExtendGrantRequest) (*vaultv1.ExtendGrantResponse, error) {
	now := clock()
	end, err := timeOf("expire_time", req.GetExpireTime())
	if err != nil {
		return nil, err
	}
	account, uid := splitName(req.GetName())
	g, err := s.grants.ExtendGrant(ctx, now, account, uid, end, callerOf(ctx))
	if errors.Is(err, grant.ErrTooFar) {
		return nil, rpcerr.Invalid("expire_time", grant.ErrTooFar.Error())
	}
	if err != nil {
		return nil, statusAbout(err, req.GetName())
	}
	s.changed()
	return &vaultv1.ExtendGrantResponse{Grant: messageOfGrantWithoutToken(now, g)}, nil
}

func (s grantService) RevokeGrant(ctx context.Context, req *vaultv1.RevokeGrantRequest) (*vaultv1.RevokeGrantResponse, error) {
	now := clock()
	account, uid := splitName(req.GetName())
	g, err := s.grants.RevokeGrant(ctx, now, account, uid, callerOf(ctx))
	if err != nil {
		return nil, statusAbout(err, req.GetName())
	}
	s.changed()
	return &vaultv1.RevokeGrantResponse{Grant: messageOfGrantWithoutToken(now, g)}, nil
}

// accounts begins every resource name.
const accounts = "accounts/"

// splitName reads accounts/{account}/grants/{grant}, whose shape has been checked.
func splitName(name string) (account, uid string) {
	account, uid, _ = strings.Cut(strings.TrimPrefix(name, accounts), "/grants/")
	return account, uid
}

// requestOf is what the platform asks for.
func requestOf(req *vaultv1.CreateGrantRequest) (grant.Request, error) {
	asked := req.GetGrant()
	if !strings.HasPrefix(asked.GetProject(), req.GetParent()+"/") {
		return grant.Request{}, rpcerr.Invalid("grant.project", "must be of the parent's account")
	}
	end, err := timeOf("grant.expire_time", asked.GetExpireTime())
	if err != nil {
		return grant.Request{}, err
	}
	return grant.Request{
		Account: strings.TrimPrefix(req.GetParent(), accounts), Project: asked.GetProject(), Phase: phaseOf(asked.GetPhase()),
		Run: asked.GetRun(), ExpireTime: end, CertificateSHA256: asked.GetCertificateSha256(),
	}, nil
}

// timeOf is a field's time; zero when it is absent.
func timeOf(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil {
		return time.Time{}, rpcerr.Invalid(field, "must be a time between the years 1 and 9999")
	}
	at := t.AsTime().Truncate(time.Microsecond)
	if at.IsZero() {
		// The first moment there is would read as none, and none as the default.
		return time.Time{}, rpcerr.Invalid(field, grant.ErrPast.Error())
	}
	return at, nil
}
