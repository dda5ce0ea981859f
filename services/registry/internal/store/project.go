package store

import (
	"context"
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

func scanProject(in string) func(row sqldb.Row) (project.Project, error) {
	return func(row sqldb.Row) (project.Project, error) {
		p := project.Project{Incarnation: in}
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
}

// projects is how projects are created and updated.
var projects = kind[project.Name, project.Project, project.Spec]{
	account:    func(n project.Name) string { return n.Account },
	parent:     func(n project.Name) string { return "projects of " + n.Account },
	specRecord: func(s project.Spec) any { return recordOfProjectSpec(s) },
	encode:     func(p project.Project) (string, error) { return encode(recordOfProject(p)) },
	decode: func(in, text string) (project.Project, error) {
		var r projectRecord
		err := decode(text, &r)
		return r.project(in), err
	},
	uid: func(p *project.Project) *string { return &p.UID },
	lock: func(ctx context.Context, w *writing, name project.Name) (project.Project, error) {
		return w.lockProject(ctx, name)
	},
	insert: func(ctx context.Context, w *writing, name project.Name, spec project.Spec) (project.Project, error) {
		if err := w.checkQuota(ctx, name.Account, quota.Projects); err != nil {
			return project.Project{}, err
		}
		p := project.New(w.now, name, uuid.NewString(), spec)
		p.Incarnation = w.at.Incarnation
		return p, w.insertProject(ctx, p)
	},
	replace: func(ctx context.Context, w *writing, before, after project.Project) error {
		labels, err := encode(after.Spec.Labels)
		if err != nil {
			return err
		}
		_, err = w.Exec(ctx, `UPDATE projects SET display_name = $2, generation = $3, update_time = $4, labels = $5 WHERE uid = $1`,
			after.UID, after.Spec.DisplayName, after.Generation, sqldb.Micros(after.UpdateTime), labels)
		if err != nil {
			return err
		}
		w.record(change.Change{Project: &after})
		return w.replaceLabels(ctx, projectLabels, projectOwner(after), before.Spec.Labels, after.Spec.Labels)
	},
}

// CreateProject stores a new project. A repeat of the request ID, which may be empty, returns what the first one created, as
// it was then.
func (s *Store) CreateProject(ctx context.Context, now time.Time, name project.Name, spec project.Spec, requestID string) (project.Project, error) {
	return create(ctx, s, now, projects, name, spec.Normal(), requestID)
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
	return w.insertLabels(ctx, projectLabels, projectOwner(p), p.Spec.Labels)
}

// projectOwner is a project as its labels name it.
func projectOwner(p project.Project) []any { return []any{p.UID, p.Name.Account} }

// lockProject makes all other writers of the project wait, and reads it.
func (w *writing) lockProject(ctx context.Context, name project.Name) (project.Project, error) {
	p, err := scanProject(w.at.Incarnation)(w.QueryRow(ctx, `UPDATE projects SET writes = writes + 1 WHERE name = $1 RETURNING `+projectColumns, name.String()))
	return p, notFound(err, name.String())
}

func oneProject(ctx context.Context, v view, name project.Name) (project.Project, error) {
	p, err := scanProject(v.at.Incarnation)(v.QueryRow(ctx, `SELECT `+projectColumns+` FROM projects WHERE name = $1`, name.String()))
	return p, notFound(err, name.String())
}

// Project reads one.
func (s *Store) Project(ctx context.Context, name project.Name) (found project.Project, err error) {
	_, err = s.read(ctx, func(ctx context.Context, v view) error {
		found, err = oneProject(ctx, v, name)
		return err
	})
	if err != nil {
		return project.Project{}, fmt.Errorf("read %s: %w", name, err)
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
func (s *Store) UpdateProject(ctx context.Context, now time.Time, name project.Name, etag string, want func(project.Project) (project.Spec, error), missing func() (project.Spec, error)) (project.Project, error) {
	return update(ctx, s, now, projects, name, etag, want, missing)
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
				Message:  fmt.Sprintf("%s has %d attachments", name, len(attached)),
				Subject:  name.String(),
				Advice:   "remove them first, or set force",
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
