package story

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

func absent(err error) bool { return status.Code(err) == codes.NotFound }

func (t *teller) integrate(ctx context.Context) (string, error) {
	if _, err := t.platform.projects.CreateProject(ctx, &registryv1.CreateProjectRequest{
		Parent: account, ProjectId: "network", RequestId: t.memory.requestID("project"),
		Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK, DisplayName: "Network"},
	}); err != nil {
		return "", err
	}
	for _, i := range t.pair() {
		if _, err := t.platform.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
			Parent: account, IntegrationId: i.id, RequestId: t.memory.requestID(i.id),
			Integration: &registryv1.Integration{
				DisplayName: i.id, TenantId: t.config.World.CustomerTenant, DefaultSubscriptionId: t.config.World.Subscription,
			},
		}); err != nil {
			return "", err
		}
		t.sayf("   %s: created in the registry", i.resource())
	}
	applications, names := map[string]bool{}, map[string]bool{}
	for _, i := range t.pair() {
		err := until(ctx, look, "waiting for the application of "+i.id, func(ctx context.Context) (bool, error) {
			got, err := t.platform.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: i.resource()})
			if err != nil {
				return false, err
			}
			i.clientID, i.name = got.GetClientId(), got.GetApplicationDisplayName()
			return i.clientID != "", t.know(i, got)
		})
		if err != nil {
			return "", err
		}
		applications[i.clientID], names[i.name] = true, true
		t.sayf("   %s: application %q, client ID %s", i.id, i.name, i.clientID)
	}
	return fmt.Sprintf("%d applications, %d names", len(applications), len(names)), nil
}

func (t *teller) consent(ctx context.Context) (string, error) {
	var all sync.WaitGroup
	failures := make([]error, 2)
	for n, i := range t.pair() {
		all.Go(func() { failures[n] = t.consentTo(ctx, i) })
	}
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		return "", err
	}
	principals, names := map[string]bool{}, map[string]bool{}
	for _, i := range t.pair() {
		name, err := t.customer.principalName(ctx, i.clientID)
		if err != nil {
			return "", err
		}
		principals[i.principal], names[name] = true, true
	}
	declined := "declined never"
	if t.memory.Declined {
		declined = "declined once"
	}
	return fmt.Sprintf("%s, %d principals, %d names", declined, len(principals), len(names)), nil
}

// consentTo is the administrator, in a browser: who opens the link that the platform has sent, waits until the page has its
// button, presses it, signs in at Entra ID and approves there, and comes back. The one of network-write declines first.
func (t *teller) consentTo(ctx context.Context, i *integration) error {
	link, err := t.link(ctx, i)
	if err != nil {
		return err
	}
	// The last part of a link is a secret: whoever has it acts in the session.
	t.sayf("   %s: the administrator opens %s/…, which will be the page of the result too", i.id, link[:strings.LastIndexByte(link, '/')])
	browser, err := newBrowser(t.transport)
	if err != nil {
		return err
	}
	said := ""
	err = until(ctx, refresh, "consenting to "+i.id, func(ctx context.Context) (bool, error) {
		p, err := browser.open(ctx, link)
		if err != nil {
			return false, err
		}
		if p.status != http.StatusOK {
			return false, fmt.Errorf("page of %s: status %d: %s", i.id, p.status, p.title)
		}
		if p.title != said {
			said = p.title
			t.sayf("   %s: the page says: %s", i.id, p.title)
		}
		if p.form != nil {
			return false, t.approve(ctx, browser, p, i)
		}
		i.blocks = p.blocks
		return len(p.blocks) > 0, nil
	})
	if err != nil {
		return err
	}
	return until(ctx, look, "waiting for the registry to know the principal of "+i.id, func(ctx context.Context) (bool, error) {
		got, err := t.platform.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: i.resource()})
		if err != nil {
			return false, err
		}
		i.principal = got.GetServicePrincipalObjectId()
		return i.principal != "", t.know(i, got)
	})
}

// link is where an administrator consents: of a session that the story began before, if that is open.
func (t *teller) link(ctx context.Context, i *integration) (string, error) {
	for _, what := range []string{"consent to " + i.id, fmt.Sprintf("consent to %s, life %d", i.id, t.memory.Lives)} {
		session, err := t.platform.consent.CreateConsentSession(ctx, &brokerv1.CreateConsentSessionRequest{
			Parent: account, RequestId: t.memory.requestID(what), ConsentSession: &brokerv1.ConsentSession{Integration: i.resource()},
		})
		if err != nil {
			return "", err
		}
		if link := session.GetConsentUri(); link != "" {
			return link, nil
		}
	}
	return "", fmt.Errorf("a new consent session of %s has no link", i.id)
}

// approve presses the page's button, and does at Entra ID what its pages ask for. A page of Entra's that shows an error leads
// nowhere: the administrator begins again.
func (t *teller) approve(ctx context.Context, b *browser, p page, i *integration) error {
	signIn, err := b.press(ctx, p)
	if err != nil {
		return err
	}
	if signIn.at.Host == p.at.Host && signIn.at.Path == p.at.Path {
		return nil // the page has changed meanwhile, and waits again
	}
	if signIn.form == nil {
		t.sayf("   %s: Entra's page says: %s", i.id, signIn.text)
		return nil
	}
	question, err := b.press(ctx, signIn, "username", t.config.World.Administrator)
	if err != nil {
		return err
	}
	decision := "accept"
	if i == t.write && !t.memory.Declined {
		decision = "cancel"
		if err := t.memory.change(func() { t.memory.Declined = true }); err != nil {
			return err
		}
	}
	t.sayf("   %s: %s signs in at Entra ID and presses %s", i.id, t.config.World.Administrator, decision)
	_, err = b.press(ctx, question, "decision", decision)
	return err
}

func (t *teller) assign(ctx context.Context) (string, error) {
	roles := make([]string, 0, 2)
	for _, i := range t.pair() {
		if len(i.blocks) == 0 {
			// An earlier life has closed the page. It can be had again.
			if err := t.consentTo(ctx, i); err != nil {
				return "", err
			}
		}
		at := slices.IndexFunc(i.blocks, func(block string) bool { return strings.Contains(block, "--role "+i.role) })
		if at < 0 {
			return "", fmt.Errorf("the page of %s has no line for %s", i.id, i.role)
		}
		if err := t.customer.az(ctx, i.blocks[at]); err != nil {
			return "", err
		}
		t.sayf("   %s: %s", i.name, i.blocks[at])
		roles = append(roles, i.role)
	}
	t.sayf("   waiting for all of Resource Manager to know the roles")
	return strings.Join(roles, ", "), until(ctx, look, "waiting for the roles", t.customer.settled)
}

func (t *teller) attach(ctx context.Context) (string, error) {
	for _, a := range []struct {
		integration *integration
		access      typev1.Access
	}{{t.read, typev1.Access_ACCESS_READ}, {t.write, typev1.Access_ACCESS_WRITE}} {
		if _, err := t.platform.attachments.CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
			Parent: project, RequestId: t.memory.requestID("attach " + a.integration.id),
			Attachment: &registryv1.Attachment{Integration: a.integration.resource(), Accesses: []typev1.Access{a.access}},
		}); err != nil {
			return "", err
		}
	}
	resolved := make([]string, 0, 2)
	for _, phase := range []typev1.Phase{typev1.Phase_PHASE_PLANNING, typev1.Phase_PHASE_APPLYING} {
		answer, err := t.platform.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: project, Phase: phase})
		if err != nil {
			return "", err
		}
		t.sayf("   %s resolves to %s", phase, answer.GetIntegration())
		resolved = append(resolved, strings.TrimPrefix(answer.GetAccess().String(), "ACCESS_"))
	}
	return strings.Join(resolved, ", "), nil
}
