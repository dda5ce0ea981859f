package story

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// remove has the platform delete everything while a child still holds a secret, and judges the order in which it goes.
func (t *teller) remove(ctx context.Context) (string, error) {
	ask := t.end
	if t.memory.Cursor != "" {
		// An earlier life has begun to ask.
		ask = t.askForDeletion
	}
	if err := ask(ctx); err != nil {
		return "", err
	}
	tombstones, err := t.tombstones(ctx)
	if err != nil {
		return "", err
	}
	gone, left := 0, 0
	for _, i := range t.pair() {
		events, err := t.customer.journal(ctx, i.clientID)
		if err != nil {
			return "", err
		}
		at := func(kind string) int {
			return slices.IndexFunc(events, func(e event) bool { return e.Kind == kind })
		}
		deleted, purged := at("application.deleted"), at("application.purged")
		if deleted < 0 || purged < deleted {
			return "", fmt.Errorf("the application of %s was not deleted, or not for good", i.id)
		}
		gone++
		left += len(passwords(events[:deleted]))
		t.sayf("   %s: passwords removed, then the application deleted, then purged, then the tombstone", i.id)
	}
	if _, err := t.platform.projects.DeleteProject(ctx, &registryv1.DeleteProjectRequest{Name: project}); err != nil && !absent(err) {
		return "", err
	}
	t.sayf("   what the customer can remove now:")
	for _, i := range t.pair() {
		t.sayf("      az ad sp delete --id %s", i.principal)
	}
	return fmt.Sprintf("%d gone for good, %d secrets left, %d tombstones", gone, left, tombstones), nil
}

// end asks for the deletion of both integrations, and sees a runner being told.
func (t *teller) end(ctx context.Context) error {
	list, err := t.platform.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: account})
	if err != nil {
		return err
	}
	c, _, err := t.holder(ctx, t.write, "--on-revoke", "terminate")
	if err != nil {
		return err
	}
	err = t.memory.change(func() { t.memory.Cursor = list.GetCursor() })
	if err == nil {
		err = t.askForDeletion(ctx)
	}
	if err == nil {
		err = c.await(ctx, "waiting for the runner to be told", func(p Progress) bool { return p.Terminated })
	}
	_, ended := c.end()
	switch {
	case err != nil:
		return errors.Join(err, ended)
	case !strings.Contains(c.stderr.text(), "INTEGRATION_DELETED"):
		return errors.Join(errors.New("the runner was not told INTEGRATION_DELETED"), ended)
	}
	t.sayf("   the runner that held its secret was told INTEGRATION_DELETED, and has ended its child")
	return nil
}

func (t *teller) askForDeletion(ctx context.Context) error {
	for _, i := range t.pair() {
		_, err := t.platform.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: i.resource(), Force: true})
		if absent(err) {
			continue // an earlier life has asked, and it is gone
		}
		if err != nil {
			return err
		}
		t.sayf("   %s is to be deleted, with its attachments", i.resource())
	}
	return nil
}

// tombstones waits until the registry's changes say of both integrations that they are gone, and counts them.
func (t *teller) tombstones(ctx context.Context) (int, error) {
	watch, err := t.platform.watch.Watch(ctx, &registryv1.WatchRequest{Cursor: t.memory.Cursor})
	if err != nil {
		return 0, err
	}
	seen := map[string]bool{}
	for len(seen) < len(t.pair()) {
		message, err := watch.Recv()
		if err != nil {
			return len(seen), fmt.Errorf("watching the registry: %w", err)
		}
		for _, e := range message.GetEvents() {
			if uid := e.GetIntegration().GetUid(); e.GetDeleted() && uid != "" {
				seen[uid] = true
			}
		}
	}
	return len(seen), nil
}
