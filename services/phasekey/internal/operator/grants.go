package operator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

var grantView = view[*vaultv1.Grant]{
	{head: "GRANT", cell: func(g *vaultv1.Grant) string { return id(g.GetName()) }},
	{label: "Resource", cell: (*vaultv1.Grant).GetName},
	{head: "STATE", cell: func(g *vaultv1.Grant) string { return word(g.GetState()) }},
	{head: "RUN", cell: (*vaultv1.Grant).GetRun},
	{head: "PROJECT", cell: func(g *vaultv1.Grant) string { return id(g.GetProject()) }},
	{head: "PHASE", cell: func(g *vaultv1.Grant) string { return word(g.GetPhase()) }},
	{head: "ACCESS", cell: func(g *vaultv1.Grant) string { return word(g.GetAccess()) }},
	{head: "INTEGRATION", cell: func(g *vaultv1.Grant) string { return id(g.GetIntegration()) }},
	{label: "Subscription", cell: (*vaultv1.Grant).GetSubscriptionId},
	{label: "Certificate", cell: (*vaultv1.Grant).GetCertificateSha256},
	{label: "Created", cell: func(g *vaultv1.Grant) string { return at(g.GetCreateTime()) }},
	{head: "ENDS", cell: func(g *vaultv1.Grant) string { return age(g.GetExpireTime()) }},
	{label: "Revoked", cell: func(g *vaultv1.Grant) string { return at(g.GetRevokeTime()) }},
}

func grants(o *options) *cobra.Command {
	return noun("grants", "The permissions with which runners get credentials", o.listGrants(), o.getGrant(), o.createGrant(), o.extendGrant(), o.revokeGrant())
}

func (s *session) grants() (vaultv1.GrantServiceClient, error) {
	conn, err := s.vault()
	return vaultv1.NewGrantServiceClient(conn), err
}

func (s *session) grant(given string) (vaultv1.GrantServiceClient, string, error) {
	name, err := s.in("grants", given)
	if err != nil {
		return nil, "", err
	}
	client, err := s.grants()
	return client, name, err
}

func (o *options) listGrants() *cobra.Command {
	var filter, order string
	c := o.long(o.watchable(o.verb("list", "Show an account's grants", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.grants()
		if err != nil {
			return err
		}
		parent, err := s.parent()
		if err != nil {
			return err
		}
		return show(ctx, s.printer, grantView, func(ctx context.Context, size int32, token string) (*vaultv1.ListGrantsResponse, error) {
			return client.ListGrants(ctx, &vaultv1.ListGrantsRequest{Parent: parent, PageSize: size, PageToken: token, Filter: filter, OrderBy: order})
		}, func(r *vaultv1.ListGrantsResponse) *[]*vaultv1.Grant { return &r.Grants })
	})))
	c.Flags().StringVar(&filter, "filter", "", `which, after AIP-160: 'state = ACTIVE AND run = "run-1"'`)
	c.Flags().StringVar(&order, "order-by", "", "after AIP-132: 'create_time desc'")
	return c
}

func (o *options) getGrant() *cobra.Command {
	return o.watchable(o.verb("get GRANT", "Show a grant, without its token", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.grant(args[0])
		if err != nil {
			return err
		}
		return showOne(ctx, s.printer, grantView, func(ctx context.Context) (*vaultv1.Grant, error) {
			return client.GetGrant(ctx, &vaultv1.GetGrantRequest{Name: name})
		})
	}))
}

func (o *options) createGrant() *cobra.Command {
	var (
		run, phase, certificate, requestID, file string
		life                                     time.Duration
		validate                                 bool
	)
	c := o.verb("create PROJECT", "Make a grant for one phase of one run; its token is shown once", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) (err error) {
		client, err := s.grants()
		if err != nil {
			return err
		}
		project, err := s.in("projects", args[0])
		if err != nil {
			return err
		}
		wanted := &vaultv1.Grant{Project: project, Run: run, CertificateSha256: certificate}
		if wanted.Phase, err = parse[typev1.Phase](phase); err != nil {
			return fmt.Errorf("--phase: %w", err)
		}
		if life != 0 {
			wanted.ExpireTime = timestamppb.New(time.Now().Add(life))
		}
		var to *os.File
		if file != "" && !validate {
			// Before the grant is made: a token that cannot be written is lost.
			if to, err = os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil { //nolint:gosec // the file that the flag names
				return fmt.Errorf("--token-file: %w", err)
			}
			defer func() { err = errors.Join(err, to.Close()) }()
		}
		parent, _ := split(project)
		made, err := client.CreateGrant(ctx, &vaultv1.CreateGrantRequest{Parent: parent, Grant: wanted, RequestId: requestID, ValidateOnly: validate})
		if err != nil {
			if to != nil {
				err = errors.Join(err, os.Remove(file))
			}
			return err
		}
		if to != nil {
			if _, err := to.WriteString(made.GetToken() + "\n"); err != nil {
				return fmt.Errorf("--token-file: %w", err)
			}
			made.Token = ""
		}
		if err := card(s.printer, grantView, made); err != nil || s.json || made.GetToken() == "" {
			return err
		}
		_, err = fmt.Fprintf(s.out, "Token         %s\n", made.GetToken())
		return err
	})
	phaseFlag(c, &phase)
	flags := c.Flags()
	flags.StringVar(&run, "run", "", "the platform's name for the run")
	_ = c.MarkFlagRequired("run")
	lifeFlag(c, &life, "expires-in", 0, "how long it lives, at most 24 hours; one hour otherwise")
	flags.StringVar(&certificate, "certificate-sha256", "", "the only client certificate that may show the token")
	flags.StringVar(&file, "token-file", "", "a new file for the token, which only its owner can read; on standard output otherwise")
	requestIDFlag(c, &requestID)
	flags.BoolVar(&validate, "validate-only", false, "say what it would give, and do nothing")
	return c
}

func (o *options) extendGrant() *cobra.Command {
	var life time.Duration
	c := o.verb("extend GRANT", "Move a grant's end", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.grant(args[0])
		if err != nil {
			return err
		}
		answer, err := client.ExtendGrant(ctx, &vaultv1.ExtendGrantRequest{Name: name, ExpireTime: timestamppb.New(time.Now().Add(life))})
		if err != nil {
			return err
		}
		return card(s.printer, grantView, answer.GetGrant())
	})
	lifeFlag(c, &life, "expires-in", time.Hour, "how long it shall live from now, at most 24 hours")
	return c
}

func (o *options) revokeGrant() *cobra.Command {
	var run, integration string
	c := o.careful(o.verb("revoke (GRANT | --run RUN | --integration INTEGRATION)", "Revoke a grant, or all of a run or an integration: their runners stop at once", cobra.MaximumNArgs(1), func(ctx context.Context, s *session, args []string) error {
		if len(args)+set(run)+set(integration) != 1 {
			return errors.New("which? Give a grant, or --run, or --integration")
		}
		if len(args) == 0 {
			return s.revokeGrants(ctx, run, integration)
		}
		client, name, err := s.grant(args[0])
		if err != nil {
			return err
		}
		if err := s.confirm("Revoke %s, and end what runs with it", name); err != nil {
			return err
		}
		answer, err := client.RevokeGrant(ctx, &vaultv1.RevokeGrantRequest{Name: name})
		if err != nil {
			return err
		}
		return card(s.printer, grantView, answer.GetGrant())
	}))
	c.Flags().StringVar(&run, "run", "", "all grants of this run")
	c.Flags().StringVar(&integration, "integration", "", "all grants that rest on this integration")
	o.completeFlag(c, "integration", integrationNames)
	return c
}

func set(text string) int {
	if text == "" {
		return 0
	}
	return 1
}

// revokeGrants revokes what a run, or an integration, has. What takes longer than a call is repeated.
func (s *session) revokeGrants(ctx context.Context, run, integration string) error {
	client, err := s.grants()
	if err != nil {
		return err
	}
	parent, err := s.parent()
	if err != nil {
		return err
	}
	request := &vaultv1.RevokeGrantsRequest{Parent: parent, Scope: &vaultv1.RevokeGrantsRequest_Run{Run: run}}
	what := "run " + run
	if integration != "" {
		if what, err = s.in("integrations", integration); err != nil {
			return err
		}
		request.Scope = &vaultv1.RevokeGrantsRequest_Integration{Integration: what}
	}
	if err := s.confirm("Revoke all grants of %s, and end what runs with them", what); err != nil {
		return err
	}
	for {
		answer, err := client.RevokeGrants(ctx, request)
		switch {
		case status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil:
			s.note("there are many: going on")
		case err != nil:
			return err
		case s.json:
			return s.document(answer)
		default:
			_, err := fmt.Fprintf(s.out, "Revoked  %d\n", answer.GetRevokedCount())
			return err
		}
	}
}
