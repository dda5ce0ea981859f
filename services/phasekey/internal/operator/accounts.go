package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
)

// accountView is an account. What is not counted is not shown as nothing.
var accountView = view[*vaultv1.Account]{
	{head: "ACCOUNT", cell: func(a *vaultv1.Account) string { return id(a.GetName()) }},
	{head: "STATE", cell: func(a *vaultv1.Account) string { return word(a.GetState()) }},
	{label: "Frozen because", cell: (*vaultv1.Account).GetFreezeReason},
	{label: "Frozen", cell: func(a *vaultv1.Account) string { return at(a.GetFreezeTime()) }},
	{head: "GRANTS", label: "Live grants", cell: counted((*vaultv1.Account_Usage).GetLiveGrantCount)},
	{head: "LEASES", label: "Open leases", cell: counted((*vaultv1.Account_Usage).GetOpenLeaseCount)},
	{head: "SECRETS HELD", label: "Secrets held", cell: counted((*vaultv1.Account_Usage).GetHeldSecretCount)},
	{label: "Streams here", cell: counted((*vaultv1.Account_Usage).GetReplicaStreamCount)},
	{head: "INTEGRATIONS", cell: counted((*vaultv1.Account_Usage).GetIntegrationCount)},
	{head: "DAY", label: "Deliveries, day", cell: counted((*vaultv1.Account_Usage).GetDayDeliveryCount)},
	{head: "30 DAYS", label: "30 days", cell: counted((*vaultv1.Account_Usage).GetMonthDeliveryCount)},
}

// uncounted is how many columns an account has without its usage, which only a read of the account counts.
const uncounted = 4

func counted(of func(*vaultv1.Account_Usage) int64) func(*vaultv1.Account) string {
	return func(a *vaultv1.Account) string {
		if a.GetUsage() == nil {
			return ""
		}
		return fmt.Sprint(of(a.GetUsage()))
	}
}

func accounts(o *options) *cobra.Command {
	return noun("accounts", "Customers of the platform: how much they use, and whether anything is delivered to them",
		o.getAccount(), o.freezeAccount(), o.unfreezeAccount())
}

// accountGiven is the account that an argument names, or the session's.
func (s *session) accountGiven(args []string) (vaultv1.AccountServiceClient, string, error) {
	if len(args) > 0 {
		s.account = args[0]
	}
	name, err := s.parent()
	if err != nil {
		return nil, "", err
	}
	conn, err := s.vault()
	return vaultv1.NewAccountServiceClient(conn), name, err
}

func (o *options) getAccount() *cobra.Command {
	return o.watchable(o.verb("get [ACCOUNT]", "Show what an account uses", cobra.MaximumNArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.accountGiven(args)
		if err != nil {
			return err
		}
		return showOne(ctx, s.printer, accountView, func(ctx context.Context) (*vaultv1.Account, error) {
			return client.GetAccount(ctx, &vaultv1.GetAccountRequest{Name: name})
		})
	}))
}

func (o *options) freezeAccount() *cobra.Command {
	var reason string
	c := o.careful(o.verb("freeze ACCOUNT", "Deliver nothing to an account any more: all of its runners stop at once", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.accountGiven(args)
		if err != nil {
			return err
		}
		if reason == "" {
			return errors.New("say --reason: whoever finds the account frozen wants to know")
		}
		if err := s.confirm("Freeze %s, and end all that runs", name); err != nil {
			return err
		}
		for {
			answer, err := client.FreezeAccount(ctx, &vaultv1.FreezeAccountRequest{Name: name, Reason: reason})
			if status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil && pause(ctx, time.Second) {
				s.note("it is frozen; what its leases hold is being released")
				continue
			}
			if err != nil {
				return err
			}
			s.doubt(ctx, client, name)
			return card(s.printer, accountView[:uncounted], answer.GetAccount())
		}
	}))
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit and for whoever finds it frozen")
	return c
}

// doubt says so where the vault knows nothing of an account that was frozen: that may be meant, and may be a slip.
func (s *session) doubt(ctx context.Context, client vaultv1.AccountServiceClient, name string) {
	account, err := client.GetAccount(ctx, &vaultv1.GetAccountRequest{Name: name})
	switch u := account.GetUsage(); {
	case err != nil:
		s.note("it is frozen; whether the vault knows anything of %s cannot be said: %s", name, rpcerr.Explain(err))
	case u.GetIntegrationCount() == 0 && u.GetLiveGrantCount() == 0 && u.GetMonthDeliveryCount() == 0:
		s.note("the vault knows nothing of %s: check that this is the account that was meant (`phasekey accounts unfreeze` undoes it)", name)
	}
}

func (o *options) unfreezeAccount() *cobra.Command {
	return o.verb("unfreeze ACCOUNT", "Deliver to an account again", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.accountGiven(args)
		if err != nil {
			return err
		}
		answer, err := client.UnfreezeAccount(ctx, &vaultv1.UnfreezeAccountRequest{Name: name})
		if err != nil {
			return err
		}
		return card(s.printer, accountView[:uncounted], answer.GetAccount())
	})
}
