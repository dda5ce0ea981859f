package rpc_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// condition is a filter, or a part of one, and what it means.
type condition[T any] struct {
	text  string
	holds func(T) bool
}

// filterOf draws a filter from conditions: several joined by AND, each of them several joined by OR, which binds tighter (AIP-160), with NOT and
// parentheses in between.
func filterOf[T any](p *player, conditions []condition[T], depth int) condition[T] {
	var all [][]condition[T]
	var texts []string
	for range 1 + p.dice.IntN(2) {
		var either []condition[T]
		var words []string
		for range 1 + p.dice.IntN(2) {
			one := conditions[p.dice.IntN(len(conditions))]
			if depth > 0 && p.dice.IntN(3) == 0 {
				one = filterOf(p, conditions, depth-1)
				one.text = p.pick("(", "( ") + one.text + p.pick(")", " )")
			}
			if p.dice.IntN(4) == 0 {
				not := one
				one = condition[T]{p.pick("NOT ", "-") + not.text, func(of T) bool { return !not.holds(of) }}
			}
			either, words = append(either, one), append(words, one.text)
		}
		all, texts = append(all, either), append(texts, strings.Join(words, " OR "))
	}
	return condition[T]{strings.Join(texts, " AND "), func(of T) bool {
		return !slices.ContainsFunc(all, func(either []condition[T]) bool {
			return !slices.ContainsFunc(either, func(one condition[T]) bool { return one.holds(of) })
		})
	}}
}

// key is a key of an order, and what it means.
type key[T any] struct {
	text    string
	compare func(a, b T) int
}

// orderOf draws an order: some of the keys, either way, and by name in the end.
func orderOf[T any](p *player, keys []key[T], byName func(a, b T) int) key[T] {
	var some []key[T]
	for _, i := range p.dice.Perm(len(keys)) {
		if p.dice.IntN(3) > 0 {
			continue
		}
		one := keys[i]
		if p.yes() {
			one = key[T]{one.text + " desc", func(a, b T) int { return keys[i].compare(b, a) }}
		}
		some = append(some, one)
	}
	var texts []string
	for _, one := range some {
		texts = append(texts, one.text)
	}
	return key[T]{strings.Join(texts, p.pick(",", ", ")), func(a, b T) int {
		for _, one := range some {
			if order := one.compare(a, b); order != 0 {
				return order
			}
		}
		return byName(a, b)
	}}
}

// text is a key that is a text.
func text[T any](name string, get func(T) string) key[T] {
	return key[T]{name, func(a, b T) int { return cmp.Compare(get(a), get(b)) }}
}

// timeKeys are the keys that are times.
func timeKeys[T any](p *player, name func(T) string) []key[T] {
	by := func(word string, get func(times) time.Time) key[T] {
		return key[T]{word, func(a, b T) int { return get(p.times[name(a)]).Compare(get(p.times[name(b)])) }}
	}
	return []key[T]{by("create_time", func(t times) time.Time { return t.created }), by("update_time", func(t times) time.Time { return t.updated })}
}

// found compares the pages of a drawn list with those of the model's resources that pass, in order.
func found[T any](p *player, what string, there map[string]*T, nameOf func(*T) string, conditions []condition[*T], keys []key[*T],
	list func(filter, orderBy, token string, size int32) (names []string, next string, err error),
) {
	p.t.Helper()
	filter := condition[*T]{"", func(*T) bool { return true }}
	if p.dice.IntN(8) > 0 {
		filter = filterOf(p, conditions, 2)
	}
	byName := text("name", nameOf)
	order := orderOf(p, append(append(keys, byName), timeKeys(p, nameOf)...), byName.compare)
	var want []string
	passing := slices.DeleteFunc(slices.Collect(maps.Values(there)), func(one *T) bool { return !filter.holds(one) })
	slices.SortFunc(passing, order.compare)
	for _, one := range passing {
		want = append(want, nameOf(one))
	}
	var got []string
	size, token := int32(1+p.dice.IntN(4)), ""
	for {
		names, next, err := list(filter.text, order.text, token, size)
		if err != nil {
			p.t.Fatalf("%s that pass %s by %q: %v", what, filter.text, order.text, err)
		}
		if got = append(got, names...); next == "" || len(got) > len(want) {
			break
		}
		if token = next; len(names) != int(size) {
			p.t.Fatalf("%s that pass %s by %q: a page of %d of %d that is not the last", what, filter.text, order.text, len(names), size)
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		p.t.Fatalf("%s that pass %s by %q, in pages of %d: -model +registry\n%s\n%s", what, filter.text, order.text, size, diff, strings.Join(p.trace[max(0, len(p.trace)-15):], "\n"))
	}
}

// find lists resources by filters and in orders that are drawn.
func (p *player) find(ctx context.Context) {
	p.t.Helper()
	integrations := func(i *modelIntegration) string { return i.name }
	found(p, "integrations", p.m.integrations, integrations, []condition[*modelIntegration]{
		{`display_name = "One"`, func(i *modelIntegration) bool { return i.display == "One" }},
		{`display_name != One`, func(i *modelIntegration) bool { return i.display != "One" }},
		{`display_name > "One"`, func(i *modelIntegration) bool { return i.display > "One" }},
		{`display_name:"w"`, func(i *modelIntegration) bool { return strings.Contains(i.display, "w") }},
		{`labels:"autoattach:prod"`, func(i *modelIntegration) bool { return slices.Contains(i.labels, "autoattach:prod") }},
		{`labels:*`, func(i *modelIntegration) bool { return len(i.labels) > 0 }},
		{`auto_attach = true`, func(i *modelIntegration) bool { return i.auto }},
		{`auto_attach != true`, func(i *modelIntegration) bool { return !i.auto }},
		{`state = DELETING`, func(i *modelIntegration) bool { return i.deleting }},
		{`state = STATE_PROVISIONING`, func(i *modelIntegration) bool { return i.state() == "PROVISIONING" }},
		{`state != DEGRADED`, func(i *modelIntegration) bool { return i.state() != "DEGRADED" }},
		{`display_name = "*e"`, func(i *modelIntegration) bool { return i.display == "One" }},
		{`default_subscription_id:*`, func(i *modelIntegration) bool { return i.subscription != "" }},
		{`default_subscription_id = ""`, func(i *modelIntegration) bool { return i.subscription == "" }},
		{`name < "accounts/acme/integrations/c"`, func(i *modelIntegration) bool { return i.name < "accounts/acme/integrations/c" }},
		{`tenant_id = "` + tenant + `"`, func(*modelIntegration) bool { return true }},
		{`client_id:*`, func(*modelIntegration) bool { return false }},
	}, []key[*modelIntegration]{text("display_name", func(i *modelIntegration) string { return i.display })},
		func(filter, orderBy, token string, size int32) (names []string, next string, err error) {
			got, err := p.w.vault.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: p.everything(), Filter: filter, OrderBy: orderBy, PageToken: token, PageSize: size})
			for _, i := range got.GetIntegrations() {
				names = append(names, i.GetName())
			}
			return names, got.GetNextPageToken(), err
		})

	projects := func(of *modelProject) string { return of.name }
	found(p, "projects", p.m.projects, projects, []condition[*modelProject]{
		{`display_name = Two`, func(of *modelProject) bool { return of.display == "Two" }},
		{`display_name <= "One"`, func(of *modelProject) bool { return of.display <= "One" }},
		{`labels:prod`, func(of *modelProject) bool { return slices.Contains(of.labels, "prod") }},
		{`labels:"net"`, func(of *modelProject) bool { return slices.Contains(of.labels, "net") }},
		{`kind = STACK`, func(*modelProject) bool { return true }},
		{`kind != KIND_STACK`, func(*modelProject) bool { return false }},
		{`name:"beta"`, func(of *modelProject) bool { return strings.Contains(of.name, "beta") }},
	}, []key[*modelProject]{text("display_name", func(of *modelProject) string { return of.display })},
		func(filter, orderBy, token string, size int32) (names []string, next string, err error) {
			got, err := p.w.vault.projects.ListProjects(ctx, &registryv1.ListProjectsRequest{Parent: p.everything(), Filter: filter, OrderBy: orderBy, PageToken: token, PageSize: size})
			for _, one := range got.GetProjects() {
				names = append(names, one.GetName())
			}
			return names, got.GetNextPageToken(), err
		})

	attachments := func(a *modelAttachment) string { return a.name }
	of := p.account() + "/integrations/" + p.pick("a", "b", "c")
	found(p, "attachments", p.m.attachments, attachments, []condition[*modelAttachment]{
		{`accesses:READ`, func(a *modelAttachment) bool { return a.read }},
		{`accesses:ACCESS_WRITE`, func(a *modelAttachment) bool { return a.write }},
		{`subscription_id:*`, func(a *modelAttachment) bool { return a.subscription != "" }},
		{`subscription_id = "` + subscription + `"`, func(a *modelAttachment) bool { return a.subscription == subscription }},
		{fmt.Sprintf(`integration = %q`, of), func(a *modelAttachment) bool { return a.integration == of }},
		{`name:"/q/"`, func(a *modelAttachment) bool { return strings.Contains(a.name, "/q/") }},
	}, nil, func(filter, orderBy, token string, size int32) (names []string, next string, err error) {
		got, err := p.w.vault.attachments.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: p.everything() + "/projects/-", Filter: filter, OrderBy: orderBy, PageToken: token, PageSize: size})
		for _, a := range got.GetAttachments() {
			names = append(names, a.GetName())
		}
		return names, got.GetNextPageToken(), err
	})
}
