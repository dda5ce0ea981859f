package rpc

import (
	"context"
	"errors"
	"strings"
	"time"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/aipfilter"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// leaseService implements vaultv1.LeaseServiceServer.
type leaseService struct {
	vaultv1.UnsafeLeaseServiceServer
	leases  leases
	pages   pages
	changed func()
}

var leaseKeys = keys{
	of: map[string][]string{
		"name": {lease.ByGrant, lease.ByUID}, "open_time": {lease.ByOpenTime}, "deliver_time": {lease.ByDeliverTime},
	},
	times: []string{lease.ByOpenTime, lease.ByDeliverTime},
}

// leaseFields are those that filters of leases may name, of which states are those of now.
func leaseFields(now time.Time) aipfilter.Fields[lease.Detail] {
	return aipfilter.Fields[lease.Detail]{
		"name":         aipfilter.Text(lease.Detail.Name),
		"instance_id":  aipfilter.Text(func(d lease.Detail) string { return d.InstanceID }),
		"run":          aipfilter.Text(func(d lease.Detail) string { return d.Grant.Run }),
		"project":      aipfilter.Text(func(d lease.Detail) string { return d.Grant.Project }),
		"integration":  aipfilter.Text(func(d lease.Detail) string { return d.Grant.Integration }),
		"phase":        aipfilter.Enum(typev1.Phase_value, prefixPhase, func(d lease.Detail) grant.Phase { return d.Grant.Phase }),
		"state":        aipfilter.Enum(vaultv1.Lease_State_value, prefixState, func(d lease.Detail) lease.State { return d.State(now) }),
		"open_time":    aipfilter.Time(func(d lease.Detail) time.Time { return d.OpenTime }),
		"deliver_time": aipfilter.Time(func(d lease.Detail) time.Time { return d.DeliverTime }),
		"close_time":   aipfilter.Time(func(d lease.Detail) time.Time { return d.CloseTime }),
	}
}

func (s leaseService) GetLease(ctx context.Context, req *vaultv1.GetLeaseRequest) (*vaultv1.Lease, error) {
	account, grantUID, uid := splitLeaseName(req.GetName())
	d, err := s.leases.Lease(ctx, account, grantUID, uid)
	if err != nil {
		return nil, statusAboutLease(err, req.GetName())
	}
	return messageOfLease(clock(), d), nil
}

func (s leaseService) ListLeases(ctx context.Context, req *vaultv1.ListLeasesRequest) (*vaultv1.ListLeasesResponse, error) {
	now := clock()
	passes, err := leaseFields(now).Parse(req.GetFilter())
	if err != nil {
		return nil, wrongFilter(err)
	}
	wanted, err := s.pages.page(leasesList, leaseKeys, req)
	if err != nil {
		return nil, statusOf(err)
	}
	account, grantUID := splitName(req.GetParent())
	if grantUID == "-" {
		grantUID = ""
	}
	required := aipfilter.Required(req.GetFilter())
	l := lease.List{
		Account: account, GrantUID: grantUID, Page: wanted, Passes: passes,
		Run: required["run"], Project: required["project"], Integration: required["integration"],
	}
	if strings.TrimPrefix(required["state"], prefixState) == string(lease.Open) {
		l.OpenAt = now
	}
	found, rest, err := s.leases.Leases(ctx, l)
	if err != nil {
		return nil, statusOf(err)
	}
	if len(found) > wanted.Size {
		found = found[:wanted.Size]
		rest = found[wanted.Size-1].Place(wanted.Order)
	}
	resp := &vaultv1.ListLeasesResponse{}
	if rest != nil {
		resp.NextPageToken = s.pages.next(leasesList, req, rest)
	}
	for _, d := range found {
		resp.Leases = append(resp.Leases, messageOfLease(now, d))
	}
	return resp, nil
}

func (s leaseService) RevokeLease(ctx context.Context, req *vaultv1.RevokeLeaseRequest) (*vaultv1.RevokeLeaseResponse, error) {
	now := clock()
	account, grantUID, uid := splitLeaseName(req.GetName())
	d, err := s.leases.RevokeLease(ctx, now, account, grantUID, uid, callerOf(ctx))
	if err != nil {
		return nil, statusAboutLease(err, req.GetName())
	}
	s.changed()
	return &vaultv1.RevokeLeaseResponse{Lease: messageOfLease(now, d)}, nil
}

// splitLeaseName reads accounts/{account}/grants/{grant}/leases/{lease}, whose shape has been checked.
func splitLeaseName(name string) (account, grantUID, uid string) {
	account, rest := splitName(name)
	grantUID, uid, _ = strings.Cut(rest, "/leases/")
	return account, grantUID, uid
}

// statusAboutLease is statusAbout for an error about the lease of that name.
func statusAboutLease(err error, name string) error {
	if errors.Is(err, lease.ErrNotFound) {
		return statusAbout(grant.ErrNotFound, name)
	}
	return statusOf(err)
}

func messageOfLease(now time.Time, d lease.Detail) *vaultv1.Lease {
	return &vaultv1.Lease{
		Name:              d.Name(),
		State:             vaultv1.Lease_State(vaultv1.Lease_State_value[prefixState+string(d.State(now))]),
		InstanceId:        d.InstanceID,
		Run:               d.Grant.Run,
		Project:           d.Grant.Project,
		Integration:       d.Grant.Integration,
		Phase:             messageOfPhase(d.Grant.Phase),
		Generation:        d.Generation,
		Material:          typev1.Material(typev1.Material_value[prefixMaterial+string(d.Material)]),
		Audience:          d.Audience,
		CredentialVersion: d.Version,
		HeldVersions:      d.Holds,
		OpenTime:          timestamp(d.OpenTime),
		DeliverTime:       timestamp(d.DeliverTime),
		CloseTime:         timestamp(d.CloseTime),
		ExpireTime:        timestamp(d.ExpireTime),
	}
}
