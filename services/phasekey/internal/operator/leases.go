package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

var leaseView = view[*vaultv1.Lease]{
	{head: "LEASE", cell: func(l *vaultv1.Lease) string { return id(l.GetName()) }},
	{label: "Resource", cell: (*vaultv1.Lease).GetName},
	{head: "STATE", cell: func(l *vaultv1.Lease) string { return word(l.GetState()) }},
	{head: "RUN", cell: (*vaultv1.Lease).GetRun},
	{head: "PROJECT", cell: func(l *vaultv1.Lease) string { return id(l.GetProject()) }},
	{head: "PHASE", cell: func(l *vaultv1.Lease) string { return word(l.GetPhase()) }},
	{head: "INTEGRATION", cell: func(l *vaultv1.Lease) string { return id(l.GetIntegration()) }},
	{label: "Instance", cell: (*vaultv1.Lease).GetInstanceId},
	{label: "Deliveries", cell: func(l *vaultv1.Lease) string { return fmt.Sprint(l.GetGeneration()) }},
	{head: "MATERIAL", cell: func(l *vaultv1.Lease) string { return word(l.GetMaterial()) }},
	{label: "Audience", cell: (*vaultv1.Lease).GetAudience},
	{label: "Version", cell: func(l *vaultv1.Lease) string { return fmt.Sprint(l.GetCredentialVersion()) }},
	{label: "Holds versions", cell: func(l *vaultv1.Lease) string {
		return strings.Trim(strings.Join(strings.Fields(fmt.Sprint(l.GetHeldVersions())), ", "), "[]")
	}},
	{label: "Opened", cell: func(l *vaultv1.Lease) string { return at(l.GetOpenTime()) }},
	{head: "DELIVERED", cell: func(l *vaultv1.Lease) string { return age(l.GetDeliverTime()) }},
	{label: "Works until", cell: func(l *vaultv1.Lease) string { return at(l.GetExpireTime()) }},
	{label: "Closed", cell: func(l *vaultv1.Lease) string { return at(l.GetCloseTime()) }},
}

func leases(o *options) *cobra.Command {
	return noun("leases", "Who was given credentials, one runner instance each", o.listLeases(), o.getLease(), o.revokeLease())
}

func (s *session) leases() (vaultv1.LeaseServiceClient, error) {
	conn, err := s.vault()
	return vaultv1.NewLeaseServiceClient(conn), err
}

// lease finds a lease by its name, or by its ID among the account's.
func (s *session) lease(ctx context.Context, given string) (vaultv1.LeaseServiceClient, string, error) {
	client, err := s.leases()
	if err != nil || strings.HasPrefix(given, "accounts/") {
		return client, given, err
	}
	parent, err := s.parent()
	if err != nil {
		return nil, "", err
	}
	if strings.ContainsAny(given, `"\ `) {
		return nil, "", fmt.Errorf("%q is no lease's ID", given)
	}
	// A lease's ID is unique in the vault, but its name begins with its grant's.
	answer, err := client.ListLeases(ctx, &vaultv1.ListLeasesRequest{Parent: parent + "/grants/-", PageSize: 1000, Filter: `name:"/leases/` + given + `"`})
	for err == nil && len(answer.GetLeases()) == 0 && answer.GetNextPageToken() != "" {
		answer, err = client.ListLeases(ctx, &vaultv1.ListLeasesRequest{
			Parent: parent + "/grants/-", PageSize: 1000, Filter: `name:"/leases/` + given + `"`, PageToken: answer.GetNextPageToken(),
		})
	}
	switch {
	case err != nil:
		return nil, "", err
	case len(answer.GetLeases()) == 0 || id(answer.GetLeases()[0].GetName()) != given:
		return nil, "", errors.New("no lease of this account has that ID: `phasekey leases list` shows what there is")
	}
	return client, answer.GetLeases()[0].GetName(), nil
}

func (o *options) listLeases() *cobra.Command {
	var grant, filter, order string
	c := o.long(o.watchable(o.verb("list", "Show an account's leases, or a grant's", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.leases()
		if err != nil {
			return err
		}
		parent, err := s.in("grants", grant)
		if err != nil {
			return err
		}
		return show(ctx, s.printer, leaseView, func(ctx context.Context, size int32, token string) (*vaultv1.ListLeasesResponse, error) {
			return client.ListLeases(ctx, &vaultv1.ListLeasesRequest{Parent: parent, PageSize: size, PageToken: token, Filter: filter, OrderBy: order})
		}, func(r *vaultv1.ListLeasesResponse) *[]*vaultv1.Lease { return &r.Leases })
	})))
	c.Flags().StringVar(&grant, "grant", "-", "the grant; - for all")
	o.completeFlag(c, "grant", grantNames)
	c.Flags().StringVar(&filter, "filter", "", `which, after AIP-160: 'state = OPEN AND run = "run-1"'`)
	c.Flags().StringVar(&order, "order-by", "", "after AIP-132: 'open_time desc'")
	return c
}

func (o *options) getLease() *cobra.Command {
	return o.watchable(o.verb("get LEASE", "Show a lease", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.lease(ctx, args[0])
		if err != nil {
			return err
		}
		return showOne(ctx, s.printer, leaseView, func(ctx context.Context) (*vaultv1.Lease, error) {
			return client.GetLease(ctx, &vaultv1.GetLeaseRequest{Name: name})
		})
	}))
}

func (o *options) revokeLease() *cobra.Command {
	return o.careful(o.verb("revoke LEASE", "End one runner instance's lease; its grant goes on", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.lease(ctx, args[0])
		if err != nil {
			return err
		}
		if err := s.confirm("End %s", name); err != nil {
			return err
		}
		answer, err := client.RevokeLease(ctx, &vaultv1.RevokeLeaseRequest{Name: name})
		if err != nil {
			return err
		}
		return card(s.printer, leaseView, answer.GetLease())
	}))
}
