package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/services/registry/internal/resource"
)

// wanted is a resource that is created, and updated, by saying what is wanted of it.
type wanted[R, S any] interface {
	ETag() string
	// Want changes what is wanted; changed is false when it was so already.
	Want(now time.Time, spec S) (next R, changed bool)
}

// kind is what creating and updating need to know of one kind of resource. It has a name of type N, and a spec of type S.
type kind[N fmt.Stringer, R wanted[R, S], S any] struct {
	// account is that of a name, parent what request IDs are told apart by.
	account, parent func(N) string
	// specRecord is what a request for a normal spec is digested from.
	specRecord func(S) any
	// encode and decode are for remembered results.
	encode func(R) (string, error)
	decode func(in, text string) (R, error)
	// uid is where the resource has its UID.
	uid func(*R) *string

	// lock makes all other writers of the resource wait, and reads it.
	lock func(ctx context.Context, w *writing, name N) (R, error)
	// insert makes a resource that is not there yet, in an account that is locked, refuses what forbids it, and records the change.
	insert func(ctx context.Context, w *writing, name N, spec S) (R, error)
	// replace stores what was made of a resource that is locked, refuses what forbids it, and records the change.
	replace func(ctx context.Context, w *writing, before, after R) error
}

// create stores a new resource, of a normal spec. A repeat of the request ID, which may be empty, returns what the first one created, as it was
// then.
//
// The account's lock comes first: whoever had it may have been a twin of the request, and then its result is found, or have created the resource.
func create[N fmt.Stringer, R wanted[R, S], S any](ctx context.Context, s *Store, now time.Time, k kind[N, R, S], name N, spec S, requestID string) (created R, err error) {
	var none R
	req, err := newRequest(k.parent(name), requestID, struct {
		Name string `json:"name"`
		Spec any    `json:"spec"`
	}{name.String(), k.specRecord(spec)})
	if err != nil {
		return none, err
	}
	made := false
	err = s.write(ctx, now, func(ctx context.Context, w *writing) error {
		made = false
		if err := w.lockAccount(ctx, k.account(name)); err != nil {
			return err
		}
		if result, found, err := w.recall(ctx, req); err != nil || found {
			if err == nil {
				created, err = k.decode(w.at.Incarnation, result)
			}
			return err
		}
		switch _, err := k.lock(ctx, w, name); {
		case err == nil:
			return resource.Exists(name.String())
		case !errors.Is(err, resource.ErrNotFound):
			return err
		}
		if created, err = k.insert(ctx, w, name, spec); err != nil {
			return err
		}
		made = true
		result, err := k.encode(created)
		if err != nil {
			return err
		}
		return w.remember(ctx, req, result)
	})
	if err != nil {
		return none, fmt.Errorf("create %s: %w", name, err)
	}
	if made && s.trial {
		*k.uid(&created) = ""
	}
	return created, nil
}

// update replaces what is wanted of a resource by what want makes of it, if the etag, which may be empty, is current. Where there is no such
// resource, it creates the one that missing makes; missing may be nil. An etag speaks of a resource that was there, so with one nothing is created.
func update[N fmt.Stringer, R wanted[R, S], S any](ctx context.Context, s *Store, now time.Time, k kind[N, R, S], name N, etag string, want func(R) (S, error), missing func() (S, error)) (updated R, err error) {
	var none R
	made := false
	err = s.write(ctx, now, func(ctx context.Context, w *writing) error {
		made = false
		updated, err = k.lock(ctx, w, name)
		if missing != nil && errors.Is(err, resource.ErrNotFound) {
			// The account's lock comes first; whoever had it may have created the resource.
			if err := w.lockAccount(ctx, k.account(name)); err != nil {
				return err
			}
			updated, err = k.lock(ctx, w, name)
		}
		if missing != nil && errors.Is(err, resource.ErrNotFound) {
			if err := resource.CheckETag(name.String(), etag, ""); err != nil {
				return err
			}
			spec, err := missing()
			if err != nil {
				return err
			}
			updated, err = k.insert(ctx, w, name, spec)
			made = err == nil
			return err
		}
		if err != nil {
			return err
		}
		if err := resource.CheckETag(name.String(), etag, updated.ETag()); err != nil {
			return err
		}
		spec, err := want(updated)
		if err != nil {
			return err
		}
		before := updated
		var changed bool
		if updated, changed = before.Want(w.now, spec); !changed {
			return errUnchanged
		}
		return k.replace(ctx, w, before, updated)
	})
	if err != nil {
		return none, fmt.Errorf("update %s: %w", name, err)
	}
	if made && s.trial {
		*k.uid(&updated) = ""
	}
	return updated, nil
}
