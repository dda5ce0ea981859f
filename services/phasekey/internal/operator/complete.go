package operator

import (
	"context"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

// completionTime is how long somebody who presses Tab waits at most.
const completionTime = 2 * time.Second

// names finds what an argument may name, after the arguments before it, of what was typed.
type names func(ctx context.Context, s *session, before []string, typed string) ([]cobra.Completion, error)

// known are the names of what arguments are called in a command's usage.
var known = map[string]names{"INTEGRATION": integrationNames, "PROJECT": projectNames, "GRANT": grantNames, "LEASE": leaseNames}

// completing has shells complete the arguments of a usage.
func (o *options) completing(use string) cobra.CompletionFunc {
	var args []names
	for _, word := range strings.Fields(use)[1:] {
		what := known[strings.Trim(word, "([])")]
		if what == nil {
			break
		}
		args = append(args, what)
	}
	return o.completingBy(args...)
}

// completingBy has shells complete arguments, each by names of its own.
func (o *options) completingBy(args ...names) cobra.CompletionFunc {
	return func(c *cobra.Command, before []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(before) >= len(args) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return o.complete(c, args[len(before)], before, typed)
	}
}

func (o *options) completeFlag(c *cobra.Command, flag string, what names) {
	_ = c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return o.complete(c, what, nil, typed)
	})
}

// complete asks the deployment. Where that fails nothing is proposed, and nothing said: the command line that is being typed is no place for it.
func (o *options) complete(c *cobra.Command, what names, before []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completionTime)
	defer cancel()
	var found []cobra.Completion
	if s, err := o.open(ctx, c); err == nil {
		s.limit = 0
		found, err = what(ctx, s, before, typed)
		if err != nil {
			found = nil
		}
		_ = s.close()
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// begun is what can be the beginning of an ID.
var begun = regexp.MustCompile(`^[0-9A-Za-z_-]*$`)

// matching finds those of a collection whose IDs begin with what was typed, or whose whole names do, and says about each what tells people which it is.
func matching[R interface {
	proto.Message
	GetNextPageToken() string
}, M named](ctx context.Context, s *session, parent, collection, typed string, list func(ctx context.Context, filter string, size int32, token string) (R, error), items func(R) *[]M, about func(M) string,
) ([]cobra.Completion, error) {
	stem := parent + "/" + collection + "/"
	start, whole := strings.CutPrefix(typed, stem)
	if strings.HasPrefix(typed, "accounts/") && strings.HasPrefix(stem, typed) {
		start, whole = "", true
	}
	if !begun.MatchString(start) {
		return nil, nil
	}
	answer, err := all(ctx, s.printer, func(ctx context.Context, size int32, token string) (R, error) {
		return list(ctx, `name:"/`+collection+`/`+start+`"`, size, token)
	}, items)
	if err != nil {
		return nil, err
	}
	var found []cobra.Completion
	for _, m := range *items(answer) {
		name := m.GetName()
		if !whole {
			name = id(name)
		}
		found = append(found, cobra.CompletionWithDesc(name, clean(about(m))))
	}
	return found, nil
}

func integrationNames(ctx context.Context, s *session, _ []string, typed string) ([]cobra.Completion, error) {
	parent, err := s.parent()
	if err != nil {
		return nil, err
	}
	client, err := s.integrations()
	if err != nil {
		return nil, err
	}
	return matching(ctx, s, parent, "integrations", typed, func(ctx context.Context, filter string, size int32, token string) (*registryv1.ListIntegrationsResponse, error) {
		return client.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: parent, Filter: filter, PageSize: size, PageToken: token})
	}, func(r *registryv1.ListIntegrationsResponse) *[]*registryv1.Integration { return &r.Integrations }, (*registryv1.Integration).GetDisplayName)
}

func projectNames(ctx context.Context, s *session, _ []string, typed string) ([]cobra.Completion, error) {
	parent, err := s.parent()
	if err != nil {
		return nil, err
	}
	conn, err := s.registry()
	if err != nil {
		return nil, err
	}
	client := registryv1.NewProjectServiceClient(conn)
	return matching(ctx, s, parent, "projects", typed, func(ctx context.Context, filter string, size int32, token string) (*registryv1.ListProjectsResponse, error) {
		return client.ListProjects(ctx, &registryv1.ListProjectsRequest{Parent: parent, Filter: filter, PageSize: size, PageToken: token})
	}, func(r *registryv1.ListProjectsResponse) *[]*registryv1.Project { return &r.Projects }, (*registryv1.Project).GetDisplayName)
}

// attachedNames are the integrations that are attached to the project before them.
func attachedNames(ctx context.Context, s *session, before []string, typed string) ([]cobra.Completion, error) {
	parent, err := s.in("projects", before[0])
	if err != nil {
		return nil, err
	}
	client, err := s.attachments()
	if err != nil {
		return nil, err
	}
	return matching(ctx, s, parent, "attachments", typed, func(ctx context.Context, filter string, size int32, token string) (*registryv1.ListAttachmentsResponse, error) {
		return client.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: parent, Filter: filter, PageSize: size, PageToken: token})
	}, func(r *registryv1.ListAttachmentsResponse) *[]*registryv1.Attachment { return &r.Attachments }, func(a *registryv1.Attachment) string {
		return words(a.GetAccesses())
	})
}

// grantNames are those of grants that live: of others there are too many to choose from.
func grantNames(ctx context.Context, s *session, _ []string, typed string) ([]cobra.Completion, error) {
	parent, err := s.parent()
	if err != nil {
		return nil, err
	}
	client, err := s.grants()
	if err != nil {
		return nil, err
	}
	return matching(ctx, s, parent, "grants", typed, func(ctx context.Context, filter string, size int32, token string) (*vaultv1.ListGrantsResponse, error) {
		return client.ListGrants(ctx, &vaultv1.ListGrantsRequest{Parent: parent, Filter: "state = ACTIVE AND " + filter, PageSize: size, PageToken: token})
	}, func(r *vaultv1.ListGrantsResponse) *[]*vaultv1.Grant { return &r.Grants }, func(g *vaultv1.Grant) string {
		return g.GetRun() + ", " + word(g.GetPhase()) + " of " + id(g.GetProject())
	})
}

// leaseNames are those of leases that are open, as with grants.
func leaseNames(ctx context.Context, s *session, _ []string, typed string) ([]cobra.Completion, error) {
	parent, err := s.in("grants", "-")
	if err != nil {
		return nil, err
	}
	client, err := s.leases()
	if err != nil {
		return nil, err
	}
	return matching(ctx, s, parent, "leases", typed, func(ctx context.Context, filter string, size int32, token string) (*vaultv1.ListLeasesResponse, error) {
		return client.ListLeases(ctx, &vaultv1.ListLeasesRequest{Parent: parent, Filter: "state = OPEN AND " + filter, PageSize: size, PageToken: token})
	}, func(r *vaultv1.ListLeasesResponse) *[]*vaultv1.Lease { return &r.Leases }, func(l *vaultv1.Lease) string {
		return l.GetRun() + ", " + word(l.GetPhase()) + " of " + id(l.GetProject())
	})
}
