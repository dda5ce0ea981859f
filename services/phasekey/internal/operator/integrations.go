package operator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

var integrationView = view[*registryv1.Integration]{
	{head: "NAME", cell: func(i *registryv1.Integration) string { return id(i.GetName()) }},
	{label: "Resource", cell: (*registryv1.Integration).GetName},
	{head: "STATE", cell: func(i *registryv1.Integration) string { return word(i.GetState()) }},
	{label: "Display name", cell: (*registryv1.Integration).GetDisplayName},
	{head: "TENANT", cell: (*registryv1.Integration).GetTenantId},
	{label: "Cloud", cell: (*registryv1.Integration).GetCloud},
	{label: "Subscription", cell: (*registryv1.Integration).GetDefaultSubscriptionId},
	{label: "Kind", cell: func(i *registryv1.Integration) string { return word(i.GetCredentialKind()) }},
	{label: "Application", cell: (*registryv1.Integration).GetApplicationDisplayName},
	{head: "CLIENT ID", label: "Client ID", cell: (*registryv1.Integration).GetClientId},
	{label: "Principal", cell: (*registryv1.Integration).GetServicePrincipalObjectId},
	{head: "LABELS", cell: func(i *registryv1.Integration) string { return strings.Join(i.GetLabels(), ", ") }},
	{label: "Attached by labels", cell: func(i *registryv1.Integration) string { return yes(i.GetAutoAttach()) }},
	{label: "Materials", cell: func(i *registryv1.Integration) string { return words(i.GetDeliveryMaterials()) }},
	{label: "Audiences", cell: func(i *registryv1.Integration) string { return strings.Join(i.GetAllowedAudiences(), ", ") }},
	{label: "Rotated every", cell: func(i *registryv1.Integration) string { return period(i.GetRotationPeriod()) }},
	{label: "Conditions", cell: conditions},
	{label: "Changed", cell: func(i *registryv1.Integration) string { return at(i.GetUpdateTime()) }},
	{head: "AGE", label: "Created", cell: func(i *registryv1.Integration) string { return age(i.GetCreateTime()) }},
	{label: "Etag", cell: (*registryv1.Integration).GetEtag},
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// conditions says what the vault found out, a line for each.
func conditions(i *registryv1.Integration) string {
	var lines []string
	for _, c := range i.GetConditions() {
		line := fmt.Sprintf("%s %s", word(c.GetType()), word(c.GetStatus()))
		if c.GetReason() != "" {
			line += " " + c.GetReason()
		}
		if c.GetMessage() != "" {
			line += ": " + c.GetMessage()
		}
		if c.GetLastTransitionTime() != nil {
			line += " (" + age(c.GetLastTransitionTime()) + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func integrations(o *options) *cobra.Command {
	return noun("integrations", "One Entra application, and its principal in one customer's tenant, each",
		o.listIntegrations(), o.getIntegration(), o.waitForIntegration(), o.checkPermissions(), o.createIntegration(), o.updateIntegration(), o.deleteIntegration())
}

func (s *session) integrations() (registryv1.IntegrationServiceClient, error) {
	conn, err := s.registry()
	return registryv1.NewIntegrationServiceClient(conn), err
}

func (o *options) listIntegrations() *cobra.Command {
	var filter, order string
	c := o.long(o.watchable(o.verb("list", "Show an account's integrations", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.integrations()
		if err != nil {
			return err
		}
		parent, err := s.parent()
		if err != nil {
			return err
		}
		return show(ctx, s.printer, integrationView, func(ctx context.Context, size int32, token string) (*registryv1.ListIntegrationsResponse, error) {
			return client.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: parent, PageSize: size, PageToken: token, Filter: filter, OrderBy: order})
		}, func(r *registryv1.ListIntegrationsResponse) *[]*registryv1.Integration { return &r.Integrations })
	})))
	c.Flags().StringVar(&filter, "filter", "", `which, after AIP-160: 'state = STATE_ACTIVE AND labels:"production"'`)
	c.Flags().StringVar(&order, "order-by", "", "after AIP-132: 'create_time desc'")
	return c
}

func (o *options) getIntegration() *cobra.Command {
	return o.watchable(o.verb("get INTEGRATION", "Show an integration, and what the vault has found out about it", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.integration(args[0])
		if err != nil {
			return err
		}
		return showOne(ctx, s.printer, integrationView, func(ctx context.Context) (*registryv1.Integration, error) {
			return client.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
		})
	}))
}

func (s *session) integration(given string) (registryv1.IntegrationServiceClient, string, error) {
	name, err := s.in("integrations", given)
	if err != nil {
		return nil, "", err
	}
	client, err := s.integrations()
	return client, name, err
}

// integrationFlags are what people may want of an integration.
type integrationFlags struct {
	display, tenant, cloud, subscription, kind string
	audiences, labels, materials               []string
	autoAttach                                 bool
}

// integrationFields are the fields that the flags change.
var integrationFields = map[string]string{
	"display-name": "display_name", "subscription": "default_subscription_id", "kind": "credential_kind", "audience": "allowed_audiences",
	"label": "labels", "material": "delivery_materials", "auto-attach": "auto_attach", "rotation-period": "rotation_period",
}

func (f *integrationFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.display, "display-name", "", "what the customer's administrator reads")
	flags.StringVar(&f.subscription, "subscription", "", "the subscription of attachments that name none")
	flags.StringVar(&f.kind, "kind", "", "how the application shows who it is: "+strings.Join(choices[typev1.CredentialKind](), " or "))
	flags.StringSliceVar(&f.audiences, "audience", nil, "what else than Resource Manager tokens may be for, such as https://graph.microsoft.com, which azurerm asks for; repeatable")
	flags.StringArrayVar(&f.labels, "label", nil, "a label; repeatable")
	flags.StringSliceVar(&f.materials, "material", nil, "what runners may be given: "+strings.Join(choices[typev1.Material](), ", ")+"; repeatable")
	flags.BoolVar(&f.autoAttach, "auto-attach", false, "attach to projects by the labels that begin with autoattach:")
	flags.Duration("rotation-period", 0, "how often the credential is replaced")
	enumFlag(c, "kind", choices[typev1.CredentialKind]())
	enumFlag(c, "material", choices[typev1.Material]())
}

func (f *integrationFlags) integration(c *cobra.Command) (_ *registryv1.Integration, err error) {
	i := &registryv1.Integration{
		DisplayName: f.display, TenantId: f.tenant, Cloud: f.cloud, DefaultSubscriptionId: f.subscription,
		AllowedAudiences: f.audiences, Labels: f.labels, AutoAttach: f.autoAttach,
	}
	if f.kind != "" {
		if i.CredentialKind, err = parse[typev1.CredentialKind](f.kind); err != nil {
			return nil, fmt.Errorf("--kind: %w", err)
		}
	}
	if i.DeliveryMaterials, err = parseAll[typev1.Material](f.materials); err != nil {
		return nil, fmt.Errorf("--material: %w", err)
	}
	i.RotationPeriod, err = duration(c, "rotation-period")
	return i, err
}

func (o *options) createIntegration() *cobra.Command {
	var (
		f              integrationFlags
		requestID      string
		validate, wait bool
		c              *cobra.Command
	)
	c = o.verb("create ID", "Add an integration for a customer's tenant", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.integration(args[0])
		if err != nil {
			return err
		}
		wanted, err := f.integration(c)
		if err != nil {
			return err
		}
		if wanted.GetDisplayName() == "" {
			wanted.DisplayName = id(name)
		}
		parent, last := split(name)
		made, err := client.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
			Parent: parent, IntegrationId: last, Integration: wanted, RequestId: requestID, ValidateOnly: validate,
		})
		if err != nil {
			return err
		}
		if wait && !validate {
			if made, err = s.awaitIntegration(ctx, client, made, func(i *registryv1.Integration) bool {
				return i.GetState() != registryv1.Integration_STATE_PROVISIONING
			}); err != nil {
				return err
			}
		}
		return card(s.printer, integrationView, made)
	})
	f.add(c)
	flags := c.Flags()
	flags.StringVar(&f.tenant, "tenant", "", "the customer's tenant, a UUID")
	flags.StringVar(&f.cloud, "cloud", "", "the tenant's cloud; public otherwise")
	requestIDFlag(c, &requestID)
	flags.BoolVar(&validate, "validate-only", false, "say whether it would work, and do nothing")
	flags.BoolVar(&wait, "wait", false, "wait until the application can be consented to")
	_ = c.MarkFlagRequired("tenant")
	return c
}

// awaitIntegration waits for an integration, and says what it waits for.
func (s *session) awaitIntegration(ctx context.Context, client registryv1.IntegrationServiceClient, i *registryv1.Integration, done func(*registryv1.Integration) bool) (*registryv1.Integration, error) {
	return poll(ctx, s.printer, i, time.Second, func(i *registryv1.Integration) string {
		return strings.TrimSpace(word(i.GetState()) + " " + unmet(i))
	}, done, func(ctx context.Context) (*registryv1.Integration, error) {
		return client.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: i.GetName()})
	})
}

func (o *options) waitForIntegration() *cobra.Command {
	return o.verb("wait INTEGRATION", "Wait until an integration is active, and say what it waits for", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.integration(args[0])
		if err != nil {
			return err
		}
		i, err := client.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
		if err != nil {
			return err
		}
		if i, err = s.awaitIntegration(ctx, client, i, func(i *registryv1.Integration) bool {
			return i.GetState() == registryv1.Integration_STATE_ACTIVE
		}); err != nil {
			return err
		}
		return card(s.printer, integrationView, i)
	})
}

// awaitGone waits until an integration is not there any more, and says what the vault is at.
func (s *session) awaitGone(ctx context.Context, client registryv1.IntegrationServiceClient, i *registryv1.Integration) error {
	_, err := s.awaitIntegration(ctx, client, i, func(*registryv1.Integration) bool { return false })
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// unmet is the first condition that does not hold, and why.
func unmet(i *registryv1.Integration) string {
	for _, c := range i.GetConditions() {
		if c.GetStatus() != registryv1.Condition_STATUS_TRUE {
			return strings.TrimSpace(word(c.GetType()) + ": " + c.GetReason() + " " + c.GetMessage())
		}
	}
	return ""
}

func (o *options) updateIntegration() *cobra.Command {
	var (
		f        integrationFlags
		etag     string
		validate bool
		c        *cobra.Command
	)
	c = o.verb("update INTEGRATION", "Change what is given of an integration", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.integration(args[0])
		if err != nil {
			return err
		}
		wanted, err := f.integration(c)
		if err != nil {
			return err
		}
		changed := mask(c.Flags(), integrationFields)
		if len(changed.GetPaths()) == 0 {
			return errNothingGiven
		}
		wanted.Name, wanted.Etag = name, etag
		updated, err := client.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: wanted, UpdateMask: changed, ValidateOnly: validate})
		if err != nil {
			return err
		}
		return card(s.printer, integrationView, updated)
	})
	f.add(c)
	c.Flags().StringVar(&etag, "etag", "", "change only what has this etag")
	c.Flags().BoolVar(&validate, "validate-only", false, "say whether it would work, and do nothing")
	return c
}

func (o *options) deleteIntegration() *cobra.Command {
	var (
		etag        string
		force, wait bool
	)
	c := o.careful(o.verb("delete INTEGRATION", "Delete an integration, and its application for good", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.integration(args[0])
		if err != nil {
			return err
		}
		if err := s.confirm("Delete %s, end what runs with it, and remove its application for good", name); err != nil {
			return err
		}
		gone, err := client.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: name, Etag: etag, Force: force})
		if err != nil {
			return err
		}
		if wait {
			if err := s.awaitGone(ctx, client, gone); err != nil {
				return err
			}
			s.note("%s is gone", name)
			return nil
		}
		return card(s.printer, integrationView, gone)
	}))
	c.Flags().StringVar(&etag, "etag", "", "delete only what has this etag")
	c.Flags().BoolVar(&force, "force", false, "detach it from its projects first")
	c.Flags().BoolVar(&wait, "wait", false, "wait until its application is removed")
	return c
}
