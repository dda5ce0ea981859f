package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.einride.tech/aip/ordering"
	"google.golang.org/protobuf/proto"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/aipfilter"
	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

// lists is how resources of one kind are listed.
type lists[T any, M proto.Message] struct {
	// name is what page tokens are bound to.
	name string
	// fields are those that filters may name, keys those that orders may.
	fields  aipfilter.Fields[T]
	keys    []resource.Key
	keysOf  func(T) resource.Keys
	message func(T) M
}

var integrationLists = lists[integration.Integration, *registryv1.Integration]{
	name: "integrations",
	fields: aipfilter.Fields[integration.Integration]{
		"name":                    aipfilter.Text(func(i integration.Integration) string { return i.Name.String() }),
		"uid":                     aipfilter.Text(func(i integration.Integration) string { return i.UID }),
		"display_name":            aipfilter.Text(func(i integration.Integration) string { return i.Spec.DisplayName }),
		"tenant_id":               aipfilter.Text(func(i integration.Integration) string { return i.Spec.TenantID }),
		"cloud":                   aipfilter.Text(func(i integration.Integration) string { return i.Spec.Cloud }),
		"default_subscription_id": aipfilter.Text(func(i integration.Integration) string { return i.Spec.DefaultSubscriptionID }),
		"credential_kind": aipfilter.Enum(typev1.CredentialKind_value, prefixCredentialKind,
			func(i integration.Integration) integration.CredentialKind { return i.Spec.CredentialKind }),
		"client_id":   aipfilter.Text(func(i integration.Integration) string { return i.ClientID }),
		"state":       aipfilter.Enum(registryv1.Integration_State_value, prefixState, integration.Integration.State),
		"auto_attach": aipfilter.Bool(func(i integration.Integration) bool { return i.Spec.AutoAttach }),
		"labels":      aipfilter.Texts(func(i integration.Integration) []string { return i.Spec.Labels }),
		"create_time": aipfilter.Time(func(i integration.Integration) time.Time { return i.CreateTime }),
		"update_time": aipfilter.Time(func(i integration.Integration) time.Time { return i.UpdateTime }),
	},
	keys:    []resource.Key{resource.ByName, resource.ByDisplayName, resource.ByCreateTime, resource.ByUpdateTime},
	keysOf:  integration.Integration.Keys,
	message: messageOfIntegration,
}

var projectLists = lists[project.Project, *registryv1.Project]{
	name: "projects",
	fields: aipfilter.Fields[project.Project]{
		"name":         aipfilter.Text(func(p project.Project) string { return p.Name.String() }),
		"uid":          aipfilter.Text(func(p project.Project) string { return p.UID }),
		"display_name": aipfilter.Text(func(p project.Project) string { return p.Spec.DisplayName }),
		"kind":         aipfilter.Enum(registryv1.Project_Kind_value, prefixProjectKind, func(p project.Project) project.Kind { return p.Spec.Kind }),
		"labels":       aipfilter.Texts(func(p project.Project) []string { return p.Spec.Labels }),
		"create_time":  aipfilter.Time(func(p project.Project) time.Time { return p.CreateTime }),
		"update_time":  aipfilter.Time(func(p project.Project) time.Time { return p.UpdateTime }),
	},
	keys:    []resource.Key{resource.ByName, resource.ByDisplayName, resource.ByCreateTime, resource.ByUpdateTime},
	keysOf:  project.Project.Keys,
	message: messageOfProject,
}

var attachmentLists = lists[attachment.Attachment, *registryv1.Attachment]{
	name: "attachments",
	fields: aipfilter.Fields[attachment.Attachment]{
		"name":            aipfilter.Text(func(a attachment.Attachment) string { return a.Name.String() }),
		"uid":             aipfilter.Text(func(a attachment.Attachment) string { return a.UID }),
		"integration":     aipfilter.Text(func(a attachment.Attachment) string { return a.Name.IntegrationName().String() }),
		"integration_uid": aipfilter.Text(func(a attachment.Attachment) string { return a.IntegrationUID }),
		"project_uid":     aipfilter.Text(func(a attachment.Attachment) string { return a.ProjectUID }),
		"accesses":        aipfilter.Enums(typev1.Access_value, prefixAccess, func(a attachment.Attachment) []attachment.Access { return a.Spec.Accesses }),
		"subscription_id": aipfilter.Text(func(a attachment.Attachment) string { return a.Spec.SubscriptionID }),
		"create_time":     aipfilter.Time(func(a attachment.Attachment) time.Time { return a.CreateTime }),
		"update_time":     aipfilter.Time(func(a attachment.Attachment) time.Time { return a.UpdateTime }),
	},
	keys:    []resource.Key{resource.ByName, resource.ByCreateTime, resource.ByUpdateTime},
	keysOf:  attachment.Attachment.Keys,
	message: messageOfAttachment,
}

// listRequest is what the requests of all lists have.
type listRequest interface {
	GetParent() string
	GetPageSize() int32
	GetPageToken() string
	GetFilter() string
	GetOrderBy() string
}

// pageFor is the page that a request's token and size ask for. Which database the token must be of is known as of the last transaction, and asked
// for when it seems to be of another: it may have been given by another replica, which knows more.
func pageFor(ctx context.Context, s store, scope *pagetoken.Scope, order []resource.Order, token string, size int32) (resource.Page, error) {
	page := resource.FirstPage(scope.Parent, order, size)
	scope.Key, scope.Incarnation = s.PageKey(), s.Incarnation()
	if token == "" {
		return page, nil
	}
	place, err := scope.OpenTexts(token)
	if errors.Is(err, pagetoken.ErrInvalid) {
		at, headErr := s.Head(ctx)
		if headErr != nil {
			return page, headErr
		}
		scope.Incarnation = at.Incarnation
		place, err = scope.OpenTexts(token)
	}
	page.After = place
	if err == nil && !page.After.Fits(page.Order) {
		err = pagetoken.ErrInvalid
	}
	return page, err
}

// readAt takes in of which moment a page is that was asked for with a token: the database may have got another incarnation since the token was judged,
// and have in the token's place whatever it has.
func readAt(scope *pagetoken.Scope, token string, at resource.Position) error {
	if token != "" && at.Incarnation != scope.Incarnation {
		return pagetoken.ErrInvalid
	}
	scope.Incarnation = at.Incarnation
	return nil
}

// list answers a request with a page that read gives, and the token of the next one.
func list[T any, M proto.Message](ctx context.Context, l lists[T, M], s store, req listRequest,
	read func(ctx context.Context, page resource.Page, passes func(T) bool) ([]T, resource.Place, resource.Position, error),
) (items []M, next string, at resource.Position, err error) {
	passes, err := l.fields.Parse(req.GetFilter())
	if problem := (*aipfilter.Error)(nil); errors.As(err, &problem) {
		return nil, "", at, invalid("filter", problem.Error())
	}
	if err != nil {
		return nil, "", at, err
	}
	order, err := parseOrder(req.GetOrderBy(), l.keys)
	if err != nil {
		return nil, "", at, err
	}
	scope := pagetoken.Scope{List: l.name, Parent: req.GetParent(), Filter: req.GetFilter(), OrderBy: req.GetOrderBy()}
	page, err := pageFor(ctx, s, &scope, order, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, "", at, err
	}
	found, rest, at, err := read(ctx, page, passes)
	if err != nil {
		return nil, "", at, err
	}
	if err := readAt(&scope, req.GetPageToken(), at); err != nil {
		return nil, "", at, err
	}
	items, more := pageOf(found, page.Size, l.message)
	switch {
	case more:
		next = scope.SealTexts(l.keysOf(found[len(items)-1]).Place(page.Order)...)
	case rest != nil:
		next = scope.SealTexts(rest...)
	}
	return items, next, at, nil
}

// parseOrder reads the keys that a list is to be ordered by.
func parseOrder(orderBy string, keys []resource.Key) ([]resource.Order, error) {
	const field = "order_by"
	var parsed ordering.OrderBy
	if err := parsed.UnmarshalString(orderBy); err != nil {
		return nil, invalid(field, "must be fields separated by commas, each optionally followed by desc")
	}
	var order []resource.Order
	for i, f := range parsed.Fields {
		key := resource.Key(f.Path)
		switch {
		case !slices.Contains(keys, key):
			return nil, invalid(field, fmt.Sprintf("names at place %d a field that it cannot order by", i+1))
		case slices.ContainsFunc(order, func(o resource.Order) bool { return o.By == key }):
			return nil, invalid(field, fmt.Sprintf("names at place %d a field again", i+1))
		}
		order = append(order, resource.Order{By: key, Desc: f.Desc})
	}
	return order, nil
}

// maxPageBytes keeps a page below gRPC's usual 4 MiB, whatever the size that was asked for.
const maxPageBytes = 3 << 20

// pageOf converts the resources of a page, of which found has one more when there is more. More says that the list goes on
// after the last one of items.
func pageOf[T any, M proto.Message](found []T, size int, convert func(T) M) (items []M, more bool) {
	total := 0
	for i, one := range found {
		item := convert(one)
		total += proto.Size(item)
		if i == size || i > 0 && total > maxPageBytes {
			return items, true
		}
		items = append(items, item)
	}
	return items, false
}
