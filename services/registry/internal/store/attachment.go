package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
)

const attachmentColumns = `uid, name, integration_uid, project_uid, reads_for, writes_for, subscription_id, generation, create_time, update_time`

func scanAttachment(in string) func(row sqldb.Row) (attachment.Attachment, error) {
	return func(row sqldb.Row) (attachment.Attachment, error) {
		a := attachment.Attachment{Incarnation: in}
		var name string
		var reads, writes sql.NullString
		var created, updated int64
		err := row.Scan(&a.UID, &name, &a.IntegrationUID, &a.ProjectUID, &reads, &writes, &a.Spec.SubscriptionID, &a.Generation, &created, &updated)
		if err != nil {
			return a, err
		}
		var ok bool
		if a.Name, ok = attachment.ParseName(name); !ok {
			return a, fmt.Errorf("attachment %s has the impossible name %q", a.UID, name)
		}
		if reads.Valid {
			a.Spec.Accesses = append(a.Spec.Accesses, attachment.Read)
		}
		if writes.Valid {
			a.Spec.Accesses = append(a.Spec.Accesses, attachment.Write)
		}
		a.CreateTime, a.UpdateTime = sqldb.Time(created), sqldb.Time(updated)
		return a, nil
	}
}

// attachments is how attachments are created and updated.
var attachments = kind[attachment.Name, attachment.Attachment, attachment.Spec]{
	account:    func(n attachment.Name) string { return n.Account },
	parent:     func(n attachment.Name) string { return "attachments of " + n.ProjectName().String() },
	specRecord: func(s attachment.Spec) any { return recordOfAttachmentSpec(s) },
	encode:     func(a attachment.Attachment) (string, error) { return encode(recordOfAttachment(a)) },
	decode: func(in, text string) (attachment.Attachment, error) {
		var r attachmentRecord
		err := decode(text, &r)
		return r.attachment(in), err
	},
	uid: func(a *attachment.Attachment) *string { return &a.UID },
	lock: func(ctx context.Context, w *writing, name attachment.Name) (attachment.Attachment, error) {
		return w.lockAttachment(ctx, name)
	},
	insert: func(ctx context.Context, w *writing, name attachment.Name, spec attachment.Spec) (attachment.Attachment, error) {
		of, err := w.lockEnds(ctx, name)
		if err != nil {
			return attachment.Attachment{}, err
		}
		return w.attach(ctx, name, of, spec)
	},
	replace: func(ctx context.Context, w *writing, _, after attachment.Attachment) error {
		if err := w.checkAccesses(ctx, after); err != nil {
			return err
		}
		_, err := w.Exec(ctx, `UPDATE attachments SET reads_for = $2, writes_for = $3, subscription_id = $4, generation = $5, update_time = $6 WHERE uid = $1`,
			after.UID, projectFor(after, attachment.Read), projectFor(after, attachment.Write), after.Spec.SubscriptionID,
			after.Generation, sqldb.Micros(after.UpdateTime))
		if err != nil {
			return err
		}
		w.record(change.Change{Attachment: &after})
		return nil
	},
}

// projectFor is the value of reads_for or writes_for.
func projectFor(a attachment.Attachment, access attachment.Access) sql.NullString {
	return sql.NullString{String: a.ProjectUID, Valid: slices.Contains(a.Spec.Accesses, access)}
}

// CreateAttachment attaches an integration to a project, both of one account. A repeat of the request ID, which may be
// empty, returns what the first one created, as it was then.
func (s *Store) CreateAttachment(ctx context.Context, now time.Time, name attachment.Name, spec attachment.Spec, requestID string) (attachment.Attachment, error) {
	return create(ctx, s, now, attachments, name, spec.Normal(), requestID)
}

// ends are the UIDs of what an attachment connects.
type ends struct {
	project, integration string
}

// lockEnds locks what an attachment is to connect, in the order in which all do: the project, the integration.
func (w *writing) lockEnds(ctx context.Context, name attachment.Name) (ends, error) {
	to, err := w.lockProject(ctx, name.ProjectName())
	if err != nil {
		return ends{}, err
	}
	of, err := w.lockIntegration(ctx, name.IntegrationName())
	if err != nil {
		return ends{}, err
	}
	if of.Deleting() {
		return ends{}, deleting(of.Name)
	}
	return ends{project: to.UID, integration: of.UID}, nil
}

// attach connects what this transaction has locked, and is not connected yet.
func (w *writing) attach(ctx context.Context, name attachment.Name, of ends, spec attachment.Spec) (attachment.Attachment, error) {
	if err := w.checkQuota(ctx, name.Account, quota.Attachments); err != nil {
		return attachment.Attachment{}, err
	}
	created := attachment.New(w.now, name, uuid.NewString(), spec)
	created.Incarnation, created.ProjectUID, created.IntegrationUID = w.at.Incarnation, of.project, of.integration
	if err := w.checkAccesses(ctx, created); err != nil {
		return attachment.Attachment{}, err
	}
	_, err := w.Exec(ctx, `INSERT INTO attachments (`+attachmentColumns+`, writes) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1)`,
		created.UID, name.String(), created.IntegrationUID, created.ProjectUID, projectFor(created, attachment.Read),
		projectFor(created, attachment.Write), created.Spec.SubscriptionID, created.Generation,
		sqldb.Micros(created.CreateTime), sqldb.Micros(created.UpdateTime))
	if err != nil {
		return attachment.Attachment{}, err
	}
	w.record(change.Change{Attachment: &created})
	return created, nil
}

// checkAccesses refuses an access for which the project has another attachment.
func (w *writing) checkAccesses(ctx context.Context, a attachment.Attachment) error {
	for _, access := range a.Spec.Accesses {
		other, err := w.attachmentFor(ctx, a.ProjectUID, access)
		switch {
		case errors.Is(err, sqldb.ErrNoRows):
		case err != nil:
			return err
		case other.UID != a.UID:
			return attachment.AccessTaken(access, other.Name)
		}
	}
	return nil
}

// attachmentFor is the one attachment that gives a project an access, or sqldb.ErrNoRows.
func (w *writing) attachmentFor(ctx context.Context, projectUID string, access attachment.Access) (attachment.Attachment, error) {
	column := "reads_for"
	if access == attachment.Write {
		column = "writes_for"
	}
	return scanAttachment(w.at.Incarnation)(w.QueryRow(ctx, `SELECT `+attachmentColumns+` FROM attachments WHERE `+column+` = $1`, projectUID))
}

// lockAttachment makes all other writers of the attachment wait, and reads it.
func (w *writing) lockAttachment(ctx context.Context, name attachment.Name) (attachment.Attachment, error) {
	a, err := scanAttachment(w.at.Incarnation)(w.QueryRow(ctx, `UPDATE attachments SET writes = writes + 1 WHERE name = $1 RETURNING `+attachmentColumns, name.String()))
	return a, notFound(err, name.String())
}

// attachmentsOf reads the attachments of the integration or project that this transaction has locked. Column is one of
// integration_uid and project_uid.
func (w *writing) attachmentsOf(ctx context.Context, column, uid string) ([]attachment.Attachment, error) {
	return sqldb.Collect(ctx, w.Tx, scanAttachment(w.at.Incarnation), `SELECT `+attachmentColumns+` FROM attachments WHERE `+column+` = $1 ORDER BY name`, uid)
}

// deleteAttachments removes those that are still there, in their order.
func (w *writing) deleteAttachments(ctx context.Context, attached []attachment.Attachment) error {
	for batch := range slices.Chunk(attached, atOnce) {
		rows := make([][]any, 1)
		for _, a := range batch {
			rows[0] = append(rows[0], a.UID)
		}
		places, uids := rowsOf(rows)
		// Read again: since they were listed they may have been changed or removed, by somebody who needs no lock but theirs.
		last, err := sqldb.Collect(ctx, w.Tx, scanAttachment(w.at.Incarnation), `DELETE FROM attachments WHERE uid IN `+places+` RETURNING `+attachmentColumns, uids...)
		if err != nil {
			return err
		}
		slices.SortFunc(last, func(a, b attachment.Attachment) int { return strings.Compare(a.Name.String(), b.Name.String()) })
		for _, a := range last {
			w.record(change.Change{Deleted: true, Attachment: &a})
		}
	}
	return nil
}

// Attachment reads one.
func (s *Store) Attachment(ctx context.Context, name attachment.Name) (found attachment.Attachment, err error) {
	_, err = s.read(ctx, func(ctx context.Context, v view) error {
		found, err = scanAttachment(v.at.Incarnation)(v.QueryRow(ctx, `SELECT `+attachmentColumns+` FROM attachments WHERE name = $1`, name.String()))
		return notFound(err, name.String())
	})
	if err != nil {
		return attachment.Attachment{}, fmt.Errorf("read %s: %w", name, err)
	}
	return found, nil
}

// BatchAttachments reads several at one moment, in the order of their names, of which none comes twice.
func (s *Store) BatchAttachments(ctx context.Context, names []attachment.Name) ([]attachment.Attachment, error) {
	return batch(ctx, s, names, scanAttachment, `SELECT `+attachmentColumns+` FROM attachments`, func(a attachment.Attachment) attachment.Name { return a.Name })
}

// Attachments reads a page of those that pass the filter, which may be nil, and one more where there is more, and says of which
// moment they are. Where it has read all that one page may and found too little, rest is the place behind which the list goes on. In the parent
// `accounts/{account}/projects/{project}` either may be the wildcard; without one a project that is not there is resource.ErrNotFound.
func (s *Store) Attachments(ctx context.Context, page resource.Page, passes func(attachment.Attachment) bool) (found []attachment.Attachment, rest resource.Place, at resource.Position, err error) {
	ids, ok := resource.SplitParent(page.Parent, "accounts", "projects")
	if !ok {
		return nil, nil, at, resource.NotFound(page.Parent)
	}
	l := listing[attachment.Attachment]{table: "attachments", columns: attachmentColumns, scan: scanAttachment, keys: attachment.Attachment.Keys}
	account, id := ids[0], ids[1]
	var names span
	switch {
	case account == resource.Wildcard:
		names = spanBelow("accounts/")
		if id != resource.Wildcard {
			// These names are not next to each other: they are found as by a filter, so many rows a page.
			also := passes
			passes = func(a attachment.Attachment) bool { return a.Name.Project == id && (also == nil || also(a)) }
		}
	case id == resource.Wildcard:
		names = spanBelow("accounts/" + account + "/")
	default:
		names = spanBelow(page.Parent + "/")
		l.parent = func(ctx context.Context, v view) error {
			_, err := oneProject(ctx, v, project.Name{Account: account, ID: id})
			return err
		}
	}
	return list(ctx, s, l, names, page, passes)
}

// UpdateAttachment replaces what is wanted by what want makes of it, if the etag, which may be empty, is current. Where there is no
// attachment, it creates the one that missing makes; missing may be nil. An etag speaks of an attachment that was there, so with one
// nothing is created.
func (s *Store) UpdateAttachment(ctx context.Context, now time.Time, name attachment.Name, etag string, want func(attachment.Attachment) (attachment.Spec, error), missing func() (attachment.Spec, error)) (attachment.Attachment, error) {
	return update(ctx, s, now, attachments, name, etag, want, missing)
}

// DeleteAttachment detaches.
func (s *Store) DeleteAttachment(ctx context.Context, now time.Time, name attachment.Name, etag string) error {
	err := s.write(ctx, now, func(ctx context.Context, w *writing) error {
		a, err := w.lockAttachment(ctx, name)
		if err != nil {
			return err
		}
		if err := resource.CheckETag(name.String(), etag, a.ETag()); err != nil {
			return err
		}
		return w.deleteAttachments(ctx, []attachment.Attachment{a})
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
