package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

var attachmentView = view[*registryv1.Attachment]{
	{head: "PROJECT", cell: func(a *registryv1.Attachment) string { parent, _ := split(a.GetName()); return id(parent) }},
	{head: "INTEGRATION", cell: func(a *registryv1.Attachment) string { return id(a.GetIntegration()) }},
	{label: "Resource", cell: (*registryv1.Attachment).GetName},
	{head: "ACCESS", cell: func(a *registryv1.Attachment) string { return words(a.GetAccesses()) }},
	{head: "SUBSCRIPTION", cell: (*registryv1.Attachment).GetSubscriptionId},
	{head: "AGE", label: "Created", cell: func(a *registryv1.Attachment) string { return age(a.GetCreateTime()) }},
	{label: "Etag", cell: (*registryv1.Attachment).GetEtag},
}

var effectiveView = view[*registryv1.EffectiveAttachment]{
	{head: "INTEGRATION", cell: func(e *registryv1.EffectiveAttachment) string { return id(e.GetIntegration()) }},
	{head: "GIVES", cell: func(e *registryv1.EffectiveAttachment) string { return words(e.GetAccesses()) }},
	{head: "BY", cell: func(e *registryv1.EffectiveAttachment) string {
		if e.GetAttachment() != "" {
			return "attachment"
		}
		return "labels " + strings.Join(e.GetLabels(), ", ")
	}},
	{head: "OUTRANKED BY", cell: func(e *registryv1.EffectiveAttachment) string {
		var out []string
		for _, o := range e.GetOutrankedAccesses() {
			out = append(out, word(o.GetAccess())+": "+id(o.GetIntegration()))
		}
		return strings.Join(out, ", ")
	}},
	{head: "SUBSCRIPTION", cell: (*registryv1.EffectiveAttachment).GetSubscriptionId},
}

var resolvedView = view[*registryv1.ResolveAccessResponse]{
	{label: "Access", cell: func(r *registryv1.ResolveAccessResponse) string { return word(r.GetAccess()) }},
	{label: "Integration", cell: (*registryv1.ResolveAccessResponse).GetIntegration},
	{label: "By", cell: func(r *registryv1.ResolveAccessResponse) string {
		if r.GetAttachment() != "" {
			return r.GetAttachment()
		}
		return "labels " + strings.Join(r.GetLabels(), ", ")
	}},
	{label: "Tenant", cell: (*registryv1.ResolveAccessResponse).GetTenantId},
	{label: "Subscription", cell: (*registryv1.ResolveAccessResponse).GetSubscriptionId},
}

func attachments(o *options) *cobra.Command {
	return noun("attachments", "Which integration a project gets, for reading and for writing",
		o.listAttachments(), o.effectiveAttachments(), o.resolveAccess(), o.createAttachment(), o.updateAttachment(), o.deleteAttachment())
}

func (s *session) attachments() (registryv1.AttachmentServiceClient, error) {
	conn, err := s.registry()
	return registryv1.NewAttachmentServiceClient(conn), err
}

// attachment is the name of a project's attachment of an integration, each given by its name or its ID.
func (s *session) attachment(project, integration string) (string, error) {
	name, err := s.in("projects", project)
	return name + "/attachments/" + id(integration), err
}

func (o *options) listAttachments() *cobra.Command {
	var project, filter, order string
	c := o.long(o.watchable(o.verb("list", "Show an account's explicit attachments, or a project's", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.attachments()
		if err != nil {
			return err
		}
		parent, err := s.in("projects", project)
		if err != nil {
			return err
		}
		return show(ctx, s.printer, attachmentView, func(ctx context.Context, size int32, token string) (*registryv1.ListAttachmentsResponse, error) {
			return client.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: parent, PageSize: size, PageToken: token, Filter: filter, OrderBy: order})
		}, func(r *registryv1.ListAttachmentsResponse) *[]*registryv1.Attachment { return &r.Attachments })
	})))
	c.Flags().StringVar(&project, "project", "-", "the project; - for all")
	o.completeFlag(c, "project", projectNames)
	c.Flags().StringVar(&filter, "filter", "", "which, after AIP-160")
	c.Flags().StringVar(&order, "order-by", "", "after AIP-132: 'create_time desc'")
	return c
}

func (o *options) effectiveAttachments() *cobra.Command {
	return o.long(o.verb("effective PROJECT", "Show everything that gives a project access, explicitly or by labels, and why", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, err := s.attachments()
		if err != nil {
			return err
		}
		parent, err := s.in("projects", args[0])
		if err != nil {
			return err
		}
		answer, err := all(ctx, s.printer, func(ctx context.Context, size int32, token string) (*registryv1.ListEffectiveAttachmentsResponse, error) {
			return client.ListEffectiveAttachments(ctx, &registryv1.ListEffectiveAttachmentsRequest{Parent: parent, PageSize: size, PageToken: token})
		}, func(r *registryv1.ListEffectiveAttachmentsResponse) *[]*registryv1.EffectiveAttachment {
			return &r.EffectiveAttachments
		})
		switch {
		case err != nil:
			return err
		case s.json:
			return s.document(answer)
		}
		return table(s.printer, effectiveView, answer.GetEffectiveAttachments())
	}))
}

func (o *options) resolveAccess() *cobra.Command {
	var phase string
	c := o.verb("resolve PROJECT", "Show what a project gets in a phase", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, err := s.attachments()
		if err != nil {
			return err
		}
		project, err := s.in("projects", args[0])
		if err != nil {
			return err
		}
		p, err := parse[typev1.Phase](phase)
		if err != nil {
			return fmt.Errorf("--phase: %w", err)
		}
		resolved, err := client.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: project, Phase: p})
		if err != nil {
			return err
		}
		return card(s.printer, resolvedView, resolved)
	})
	phaseFlag(c, &phase)
	return c
}

// phaseFlag adds --phase, without which there is no access.
func phaseFlag(c *cobra.Command, phase *string) {
	c.Flags().StringVar(phase, "phase", "", "what the run is doing: "+strings.Join(choices[typev1.Phase](), ", "))
	enumFlag(c, "phase", choices[typev1.Phase]())
	_ = c.MarkFlagRequired("phase")
}

// attachmentFlags are what people may want of an attachment.
type attachmentFlags struct {
	accesses     []string
	subscription string
}

func (f *attachmentFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.accesses, "access", nil, "for what: read, write, or both, which is meant when neither is given")
	c.Flags().StringVar(&f.subscription, "subscription", "", "the subscription to work in, instead of the integration's own")
	enumFlag(c, "access", choices[typev1.Access]())
}

func (f *attachmentFlags) attachment(integration string) (*registryv1.Attachment, error) {
	accesses, err := parseAll[typev1.Access](f.accesses)
	if err != nil {
		return nil, fmt.Errorf("--access: %w", err)
	}
	return &registryv1.Attachment{Integration: integration, Accesses: accesses, SubscriptionId: f.subscription}, nil
}

func (o *options) createAttachment() *cobra.Command {
	var (
		f         attachmentFlags
		requestID string
	)
	c := o.verb("create PROJECT INTEGRATION", "Give a project an integration", cobra.ExactArgs(2), func(ctx context.Context, s *session, args []string) error {
		client, err := s.attachments()
		if err != nil {
			return err
		}
		parent, err := s.in("projects", args[0])
		if err != nil {
			return err
		}
		integration, err := s.in("integrations", args[1])
		if err != nil {
			return err
		}
		wanted, err := f.attachment(integration)
		if err != nil {
			return err
		}
		made, err := client.CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{Parent: parent, Attachment: wanted, RequestId: requestID})
		if err != nil {
			return err
		}
		return card(s.printer, attachmentView, made)
	})
	f.add(c)
	requestIDFlag(c, &requestID)
	return c
}

func (o *options) updateAttachment() *cobra.Command {
	var (
		f    attachmentFlags
		etag string
		c    *cobra.Command
	)
	c = o.verb("update PROJECT INTEGRATION", "Change what is given of an attachment", cobra.ExactArgs(2), func(ctx context.Context, s *session, args []string) error {
		client, err := s.attachments()
		if err != nil {
			return err
		}
		name, err := s.attachment(args[0], args[1])
		if err != nil {
			return err
		}
		wanted, err := f.attachment("")
		if err != nil {
			return err
		}
		changed := mask(c.Flags(), map[string]string{"access": "accesses", "subscription": "subscription_id"})
		if len(changed.GetPaths()) == 0 {
			return errNothingGiven
		}
		wanted.Name, wanted.Etag = name, etag
		updated, err := client.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{Attachment: wanted, UpdateMask: changed})
		if err != nil {
			return err
		}
		return card(s.printer, attachmentView, updated)
	})
	f.add(c)
	c.ValidArgsFunction = o.completingBy(projectNames, attachedNames)
	c.Flags().StringVar(&etag, "etag", "", "change only what has this etag")
	return c
}

func (o *options) deleteAttachment() *cobra.Command {
	c := o.careful(o.verb("delete PROJECT INTEGRATION", "Take an integration from a project, and from the runs that have it by this", cobra.ExactArgs(2), func(ctx context.Context, s *session, args []string) error {
		client, err := s.attachments()
		if err != nil {
			return err
		}
		name, err := s.attachment(args[0], args[1])
		if err != nil {
			return err
		}
		if strings.HasSuffix(name, "/") {
			return errors.New("which integration?")
		}
		if err := s.confirm("Delete %s, and end what runs by it", name); err != nil {
			return err
		}
		if _, err := client.DeleteAttachment(ctx, &registryv1.DeleteAttachmentRequest{Name: name}); err != nil {
			return err
		}
		s.note("%s is deleted", name)
		return nil
	}))
	c.ValidArgsFunction = o.completingBy(projectNames, attachedNames)
	return c
}
