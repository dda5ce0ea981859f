package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
)

const projectColumns = `uid, name, kind, display_name, generation, create_time, update_time, labels`

func scanProject(row sqldb.Row) (project.Project, error) {
	var p project.Project
	var name, kind, labels string
	var created, updated int64
	if err := row.Scan(&p.UID, &name, &kind, &p.Spec.DisplayName, &p.Generation, &created, &updated, &labels); err != nil {
		return p, err
	}
	if err := decode(labels, &p.Spec.Labels); err != nil {
		return p, err
	}
	var ok bool
	if p.Name, ok = project.ParseName(name); !ok {
		return p, fmt.Errorf("project %s has the impossible name %q", p.UID, name)
	}
	p.Spec.Kind = project.Kind(kind)
	p.CreateTime, p.UpdateTime = sqldb.Time(created), sqldb.Time(updated)
	return p, nil
}

// CreateProject stores a new project. A repeat of the request ID, which may be empty, returns what the first one created, as
// it was then.
func (s *Store) CreateProject(ctx context.Context, now time.Time, name project.Name, spec project.Spec, requestID string) (created project.Project, err error) {
	spec = spec.Normal()
	req, err := newRequest("projects of "+name.Account, requestID, struct {
		Name string            `json:"name"`
		Spec projectSpecRecord `json:"spec"`
	}{name.String(), recordOfProjectSpec(spec)})
	if err != nil {
		return created, err
	}
	err = s.write(ctx, now, func(ctx context.Context, w *writing) error {
		if err := w.lockAccount(ctx, name.Account); err != nil {
			return err
		}
		_, lookup := oneProject(ctx, w.Tx, name)
		var before projectRecord
		if found, err := w.recall(ctx, req, &before); err != nil || found {
			created = before.project()
			return err
		}
		if !errors.Is(lookup, resource.ErrNotFound) {
			return existsUnless(lookup, name.String())
		}
		if err := w.checkQuota(ctx, name.Account, quota.Projects); err != nil {
			return err
		}
		created = project.New(w.now, name, uuid.NewString(), spec)
		if err := w.insertProject(ctx, created); err != nil {
			return err
		}
		if err := w.remember(ctx, req, recordOfProject(created)); err != nil {
			return err
		}
		created.UID = s.uidOf(created.UID)
		return nil
	})
	if err != nil {
		return project.Project{}, fmt.Errorf("create %s: %w", name, err)
	}
	return created, nil
}

func (w *writing) insertProject(ctx context.Context, p project.Project) error {
	labels, err := encode(p.Spec.Labels)
	if err != nil {
		return err
	}
	_, err = w.Exec(ctx, `INSERT INTO projects (`+projectColumns+`, writes) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 1)`,
		p.UID, p.Name.String(), string(p.Spec.Kind), p.Spec.DisplayName, p.Generation, sqldb.Micros(p.CreateTime), sqldb.Micros(p.UpdateTime),
		labels)
	if err != nil {
		return err
	}
	w.record(change.Change{Project: &p})
	return w.insertLabels(ctx, projectLabels, p.UID, p.Name.Account, p.Spec.Labels)
}

// lockProject makes all other writers of the project wait, and reads it.
func (w *writing) lockProject(ctx context.Context, name project.Name) (project.Project, error) {
	p, err := scanProject(w.QueryRow(ctx, `UPDATE projects SET writes = writes + 1 WHERE name = $1 RETURNING `+projectColumns, name.String()))
	return p, notFound(err, name.String())
}

func oneProject(ctx context.Context, tx sqldb.Tx, name project.Name) (project.Project, error) {
	p, err := scanProject(tx.QueryRow(ctx, `SELECT `+projectColumns+` FROM projects WHERE name = $1`, name.String()))
	return p, notFound(err, name.String())
}

// Project reads one.
func (s *Store) Project(ctx context.Context, name project.Name) (found project.Project, err error) {
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		found, err = oneProject(ctx, tx, name)
		return err
	})
	if err != nil {
		return project.Project{}, fmt.Errorf("read %s: %w", name, meaning(err))
	}
	return found, nil
}

// BatchProjects reads several at one moment, in the order of their names, of which none comes twice.
func (s *Store) BatchProjects(ctx context.Context, names []project.Name) ([]project.Project, error) {
	return batch(ctx, s, names, scanProject, `SELECT `+projectColumns+` FROM projects`, func(p project.Project) project.Name { return p.Name })
}

// Projects reads a page of those that pass the filter, which may be nil, and one more where there is more, and says of which
// moment they are. Where it has read all that one page may and found too little, rest is the place behind which the list goes on.
func (s *Store) Projects(ctx context.Context, page resource.Page, passes func(project.Project) bool) (found []project.Project, rest resource.Place, at resource.Position, err error) {
	names, err := accountSpan(page.Parent)
	if err != nil {
		return nil, nil, at, err
	}
	return list(ctx, s, listing[project.Project]{table: "projects", columns: projectColumns, scan: scanProject, keys: project.Project.Keys}, names, page, passes)
}

// UpdateProject replaces what the platform says of a project by what want makes of it, if the etag, which may be empty, is
// current. Where there is no project, it creates the one that missing makes; missing may be nil. An etag speaks of a
// project that was there, so with one nothing is created.
func (s *Store) UpdateProject(ctx context.Context, now time.Time, name project.Name, etag string, want func(project.Project) (project.Spec, error), missing func() (project.Spec, error)) (updated project.Project, err error) {
	err = s.write(ctx, now, func(ctx context.Context, w *writing) error {
		updated, err = w.lockProject(ctx, name)
		if errors.Is(err, resource.ErrNotFound) && missing != nil {
			// The account's lock comes first; whoever had it may have created the project.
			if err := w.lockAccount(ctx, name.Account); err != nil {
				return err
			}
			updated, err = w.lockProject(ctx, name)
		}
		if errors.Is(err, resource.ErrNotFound) && missing != nil {
			if err := resource.CheckETag(name.String(), etag, ""); err != nil {
				return err
			}
			spec, err := missing()
			if err != nil {
				return err
			}
			if err := w.checkQuota(ctx, name.Account, quota.Projects); err != nil {
				return err
			}
			updated = project.New(w.now, name, uuid.NewString(), spec)
			if err := w.insertProject(ctx, updated); err != nil {
				return err
			}
			updated.UID = s.uidOf(updated.UID)
			return nil
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
		before := updated.Spec.Labels
		var changed bool
		if updated, changed = updated.Want(w.now, spec); !changed {
			return errUnchanged
		}
		labels, err := encode(updated.Spec.Labels)
		if err != nil {
			return err
		}
		_, err = w.Exec(ctx, `UPDATE projects SET display_name = $2, generation = $3, update_time = $4, labels = $5 WHERE uid = $1`,
			updated.UID, updated.Spec.DisplayName, updated.Generation, sqldb.Micros(updated.UpdateTime), labels)
		if err != nil {
			return err
		}
		w.record(change.Change{Project: &updated})
		return w.replaceLabels(ctx, projectLabels, updated.UID, name.Account, before, updated.Spec.Labels)
	})
	if err != nil {
		return project.Project{}, fmt.Errorf("update %s: %w", name, err)
	}
	return updated, nil
}

// DeleteProject removes a project, and with force its attachments.
func (s *Store) DeleteProject(ctx context.Context, now time.Time, name project.Name, etag string, force bool) error {
	err := s.write(ctx, now, func(ctx context.Context, w *writing) error {
		p, err := w.lockProject(ctx, name)
		if err != nil {
			return err
		}
		if err := resource.CheckETag(name.String(), etag, p.ETag()); err != nil {
			return err
		}
		attached, err := w.attachmentsOf(ctx, "project_uid", p.UID)
		if err != nil {
			return err
		}
		if len(attached) > 0 && !force {
			return &resource.Error{
				Reason:   project.ErrAttached,
				Message:  fmt.Sprintf("%s has %d attachments; remove them first, or set force", name, len(attached)),
				Metadata: map[string]string{"name": name.String(), "attachments": strconv.Itoa(len(attached))},
			}
		}
		if err := w.deleteAttachments(ctx, attached); err != nil {
			return err
		}
		if _, err := w.Exec(ctx, `DELETE FROM projects WHERE uid = $1`, p.UID); err != nil {
			return err
		}
		w.record(change.Change{Deleted: true, Project: &p})
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
