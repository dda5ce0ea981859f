package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

// explicitly reads a project's explicit attachments, of which there are at most two, and their integrations.
func explicitly(ctx context.Context, v view, to project.Project) (explicit []attachment.Attachment, of []integration.Integration, err error) {
	explicit, err = sqldb.Collect(ctx, v.Tx, scanAttachment(v.at.Incarnation), `SELECT `+attachmentColumns+` FROM attachments WHERE project_uid = $1 ORDER BY name`, to.UID)
	if err != nil || len(explicit) == 0 {
		return nil, nil, err
	}
	of, err = sqldb.Collect(ctx, v.Tx, scanIntegration(v.at.Incarnation),
		`SELECT `+integrationColumns+` FROM integrations WHERE uid IN (SELECT integration_uid FROM attachments WHERE project_uid = $1)`, to.UID)
	return explicit, of, err
}

// automatic reads the integrations that are attached to a project by themselves, at most limit of those after a name, in the
// order of their names. It goes from each name to the next, which of each label of the project is one step in an index: there may be a thousand
// integrations with fifty labels each, of which the first one is wanted. The few whose labels a release without that index has inserted stand together
// in it under no name, and are looked up: that replicas of it go on beside this one is no reason for them to give nothing.
func automatic(ctx context.Context, v view, to project.Project, after string, limit int) ([]integration.Integration, error) {
	const unattached = `a.integration_uid NOT IN (SELECT integration_uid FROM attachments WHERE project_uid = $1)`
	next := func(after string) string {
		return `(SELECT MIN(first) FROM (SELECT (SELECT a.integration_name FROM auto_labels a
			WHERE a.account = p.account AND a.label = p.label AND a.integration_name > ` + after + ` AND ` + unattached + `
				AND EXISTS (SELECT 1 FROM integrations i WHERE i.uid = a.integration_uid AND i.delete_time = 0)
			ORDER BY a.integration_name LIMIT 1) AS first FROM project_labels p WHERE p.project_uid = $1
			UNION ALL SELECT name FROM unnamed WHERE name > ` + after + `) AS firsts)`
	}
	return sqldb.Collect(ctx, v.Tx, scanIntegration(v.at.Incarnation), `WITH RECURSIVE unnamed (name) AS (
			SELECT i.name FROM project_labels p JOIN auto_labels a ON a.account = p.account AND a.label = p.label AND a.integration_name = ''
				JOIN integrations i ON i.uid = a.integration_uid
			WHERE p.project_uid = $1 AND i.delete_time = 0 AND `+unattached+`),
		attached (name, place) AS (
			SELECT `+next("$2")+`, 1 UNION ALL SELECT `+next("attached.name")+`, place + 1 FROM attached WHERE name IS NOT NULL AND place < $3)
		SELECT `+integrationColumns+` FROM integrations WHERE name IN (SELECT name FROM attached) ORDER BY name`, to.UID, after, limit)
}

// matchedProjects counts the projects to which the integration is attached by itself.
func (w *writing) matchedProjects(ctx context.Context, integrationUID string) (count int, err error) {
	err = w.QueryRow(ctx, `SELECT COUNT(DISTINCT p.project_uid)
		FROM auto_labels a JOIN project_labels p ON p.account = a.account AND p.label = a.label
		WHERE a.integration_uid = $1 AND p.project_uid NOT IN (SELECT project_uid FROM attachments WHERE integration_uid = $1)`,
		integrationUID).Scan(&count)
	return count, err
}

// ResolveAccess says what gives a project an access, and at which moment that was so.
func (s *Store) ResolveAccess(ctx context.Context, name project.Name, access attachment.Access) (resolved attachment.Resolution, at resource.Position, err error) {
	at, err = s.read(ctx, func(ctx context.Context, v view) error {
		to, err := oneProject(ctx, v, name)
		if err != nil {
			return err
		}
		explicit, of, err := explicitly(ctx, v, to)
		if err != nil {
			return err
		}
		// Explicit ones come first.
		if !slices.ContainsFunc(attachment.Candidates(to, explicit, of), func(c attachment.Candidate) bool { return slices.Contains(c.Accesses(), access) }) {
			first, err := automatic(ctx, v, to, "", 1)
			if err != nil {
				return err
			}
			of = append(of, first...)
		}
		resolved, err = attachment.Resolve(access, to, attachment.Candidates(to, explicit, of))
		return err
	})
	if err != nil {
		return attachment.Resolution{}, at, fmt.Errorf("resolve %s of %s: %w", access, name, err)
	}
	return resolved, at, nil
}

// EffectiveAttachments reads a page of what gives a project access, in the order of attachment.Candidates, and one more where
// there is more, and says of which moment it is. The page goes on after an attachment.Candidate's place, the only value of
// page.After.
func (s *Store) EffectiveAttachments(ctx context.Context, name project.Name, page resource.Page) (found []attachment.Effective, at resource.Position, err error) {
	after := strings.Join(page.After, "")
	at, err = s.read(ctx, func(ctx context.Context, v view) error {
		to, err := oneProject(ctx, v, name)
		if err != nil {
			return err
		}
		explicit, of, err := explicitly(ctx, v, to)
		if err != nil {
			return err
		}
		// What the others come after, whatever page they are on.
		first, err := automatic(ctx, v, to, "", 1)
		if err != nil {
			return err
		}
		of = append(of, first...)
		next, err := automatic(ctx, v, to, attachment.AutomaticAfter(after), page.Size+1)
		if err != nil {
			return err
		}
		// The first one is among the next on the first page.
		for _, i := range next {
			if !slices.ContainsFunc(of, func(o integration.Integration) bool { return o.UID == i.UID }) {
				of = append(of, i)
			}
		}
		found = slices.DeleteFunc(attachment.Rank(attachment.Candidates(to, explicit, of)), func(e attachment.Effective) bool {
			return e.Place() <= after
		})
		found = found[:min(len(found), page.Size+1)]
		return nil
	})
	if err != nil {
		return nil, at, fmt.Errorf("list what gives %s access: %w", name, err)
	}
	return found, at, nil
}
