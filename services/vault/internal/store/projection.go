package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/lease"
)

// Projection says how much of the registry the vault has been told.
type Projection struct {
	// Incarnation is the registry database's; empty before the first word from it.
	Incarnation string
	// Revision is the one up to which everything is here.
	Revision int64
	// Cursor resumes watching there; empty when nothing can be resumed, or labels are missing, and everything must be listed.
	Cursor string
	// BookmarkTime is when the registry last said so.
	BookmarkTime time.Time
}

// Integration is the part of a wanted integration that the vault works by.
type Integration struct {
	UID                   string
	Name                  string
	DisplayName           string
	TenantID              string
	Cloud                 string
	DefaultSubscriptionID string
	AllowedAudiences      []string
	// DeliveryMaterials are those that runners may be given; none means access tokens alone, see lease.Allowed.
	DeliveryMaterials []lease.Material
	// AutoLabels are the labels of projects to which it is attached by itself. They are told; what is read has none.
	AutoLabels     []string
	RotationPeriod time.Duration
	// Federated is true where the application proves who it is by assertions of the vault's, not by a client secret.
	Federated bool
	Deleting  bool
	Revision  int64
}

// Project is a stack or a module.
type Project struct {
	UID      string
	Name     string
	Labels   []string
	Revision int64
}

// Attachment gives a project an integration.
type Attachment struct {
	UID            string
	IntegrationUID string
	ProjectUID     string
	Reads          bool
	Writes         bool
	SubscriptionID string
	Revision       int64
}

// Wanted is a set of resources: all there are, or those that changed, each at most once.
type Wanted struct {
	Integrations []Integration
	Projects     []Project
	Attachments  []Attachment
	// The UIDs of those that are gone; empty in a set of all.
	GoneIntegrations []string
	GoneProjects     []string
	// Gone attachments are given whole: streams of their integrations must hear of it.
	GoneAttachments []Attachment
}

func (w Wanted) empty() bool {
	return len(w.Integrations)+len(w.Projects)+len(w.Attachments)+len(w.GoneIntegrations)+len(w.GoneProjects)+len(w.GoneAttachments) == 0
}

// touched are the UIDs of the integrations whose streams may be affected, each once: also are those for which projects matter.
func (w Wanted) touched(also []string) []string {
	seen := make(map[string]bool)
	var out []string
	note := func(uid string) {
		if !seen[uid] {
			seen[uid] = true
			out = append(out, uid)
		}
	}
	for _, i := range w.Integrations {
		note(i.UID)
	}
	for _, uid := range w.GoneIntegrations {
		note(uid)
	}
	for _, a := range w.Attachments {
		note(a.IntegrationUID)
	}
	for _, a := range w.GoneAttachments {
		note(a.IntegrationUID)
	}
	for _, uid := range also {
		note(uid)
	}
	return out
}

// Projection tells how much of the registry is here; the zero value when nothing is.
func (s *Store) Projection(ctx context.Context) (Projection, error) {
	var out Projection
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		var bookmark int64
		err := tx.QueryRow(ctx, `SELECT incarnation, revision, CASE WHEN `+someUnlabelled+` THEN '' ELSE cursor END, bookmark_time
			FROM projection WHERE singleton = 1`).
			Scan(&out.Incarnation, &out.Revision, &out.Cursor, &bookmark)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		out.BookmarkTime = sqldb.Time(bookmark)
		return err
	})
	if err != nil {
		return Projection{}, fmt.Errorf("read projection: %w", err)
	}
	return out, nil
}

// AdvanceProjection applies what changed since the revision that is here, up to at.Revision; with nothing changed it notes
// that the registry is alive. Every replica follows the registry and calls it: whoever comes second adds nothing but labels that
// the first did not know of, for the row that says how far we are is the first thing that is written. ErrChanged: what is here is not to be gone on from, list again.
func (s *Store) AdvanceProjection(ctx context.Context, now time.Time, at Projection, changed Wanted) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		behind := `revision < $3`
		if changed.empty() {
			behind = `revision <= $3`
		}
		n, err := tx.Exec(ctx, `UPDATE projection SET revision = $3, cursor = $4, bookmark_time = $1
			WHERE singleton = 1 AND incarnation = $2 AND `+behind,
			sqldb.Micros(at.BookmarkTime), at.Incarnation, at.Revision, at.Cursor)
		if err != nil {
			return err
		}
		if n == 0 {
			if err := checkHeard(ctx, tx); err != nil {
				return err
			}
			return addLabels(ctx, tx, at.Incarnation, changed)
		}
		also, err := grantedThrough(ctx, tx, now, changed)
		if err != nil {
			return err
		}
		return s.project(ctx, tx, now, changed, also)
	})
	if err != nil {
		return fmt.Errorf("advance projection: %w", err)
	}
	return nil
}

// checkHeard is ErrChanged when what is here is of no incarnation any more: see FollowTimeline.
func checkHeard(ctx context.Context, tx sqldb.Tx) error {
	var void bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM projection WHERE singleton = 1 AND incarnation = '')`).Scan(&void); err != nil {
		return err
	}
	if void {
		return ErrChanged
	}
	return nil
}

// ForgetCursor notes that the registry has refused to go on from this cursor: what is here may be older than what it
// remembers, or be of a history that it has lost. Another cursor, which a replica has brought meanwhile, stays.
func (s *Store) ForgetCursor(ctx context.Context, cursor string) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE projection SET cursor = '' WHERE singleton = 1 AND cursor = $1`, cursor)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget cursor: %w", err)
	}
	return nil
}

// ReplaceProjection makes all the whole truth at at.Revision, unless as much is here already, with a cursor to go on from. If
// more is here, but without labels, it is ErrChanged: list again.
func (s *Store) ReplaceProjection(ctx context.Context, now time.Time, at Projection, all Wanted) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `INSERT INTO projection (singleton, incarnation, revision, cursor, bookmark_time) VALUES (1, $1, $2, $3, $4)
			ON CONFLICT (singleton) DO UPDATE SET incarnation = excluded.incarnation, revision = excluded.revision,
				cursor = excluded.cursor, bookmark_time = excluded.bookmark_time
			WHERE projection.incarnation <> excluded.incarnation OR projection.revision < excluded.revision OR projection.cursor = ''
				OR projection.revision = excluded.revision AND `+someUnlabelled,
			at.Incarnation, at.Revision, at.Cursor, sqldb.Micros(at.BookmarkTime))
		if err != nil {
			return err
		}
		if n == 0 {
			return checkLabelled(ctx, tx)
		}
		// Streams of what is no longer there must hear of it too.
		gone, err := sqldb.Collect(ctx, tx, scanUID, `SELECT uid FROM integrations`)
		if err != nil {
			return err
		}
		for _, table := range []string{"attachments", "projects", "integrations"} {
			if _, err := tx.Exec(ctx, `DELETE FROM `+table); err != nil {
				return err
			}
		}
		all.GoneIntegrations = nil
		present := make(map[string]bool, len(all.Integrations))
		for _, i := range all.Integrations {
			present[i.UID] = true
		}
		for _, uid := range gone {
			if !present[uid] {
				all.GoneIntegrations = append(all.GoneIntegrations, uid)
			}
		}
		return s.project(ctx, tx, now, all, nil)
	})
	if err != nil {
		return fmt.Errorf("replace projection: %w", err)
	}
	return nil
}

// project writes what changed, and tells the streams of the integrations that are in it, and of those besides.
func (s *Store) project(ctx context.Context, tx sqldb.Tx, now time.Time, changed Wanted, also []string) error {
	shards := 0
	if len(changed.Integrations) > 0 {
		// The database says what belongs to which shard, not a replica that may not know yet that it was divided anew.
		var err error
		if shards, err = fence.Shards(ctx, tx); err != nil {
			return err
		}
	}
	for _, i := range changed.Integrations {
		audiences, err := json.Marshal(append([]string{}, i.AllowedAudiences...))
		if err != nil {
			return err
		}
		materials, err := json.Marshal(append([]lease.Material{}, i.DeliveryMaterials...))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO integrations
			(uid, name, shard, display_name, tenant_id, cloud, default_subscription_id, allowed_audiences, rotation_period, deleting, revision,
			 delivery_materials, labels_revision, credential_kind)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $11, $13)
			ON CONFLICT (uid) DO UPDATE SET name = excluded.name, shard = excluded.shard, display_name = excluded.display_name,
				tenant_id = excluded.tenant_id, cloud = excluded.cloud, default_subscription_id = excluded.default_subscription_id,
				allowed_audiences = excluded.allowed_audiences, rotation_period = excluded.rotation_period,
				deleting = excluded.deleting, revision = excluded.revision, delivery_materials = excluded.delivery_materials,
				labels_revision = excluded.labels_revision, credential_kind = excluded.credential_kind`,
			i.UID, i.Name, election.ShardOf(i.UID, shards), i.DisplayName, i.TenantID, i.Cloud, i.DefaultSubscriptionID, string(audiences),
			i.RotationPeriod.Microseconds(), bit(i.Deleting), i.Revision, string(materials), kind(i.Federated)); err != nil {
			return err
		}
		if err := putLabels(ctx, tx, autoLabels, i.UID, i.AutoLabels); err != nil {
			return err
		}
	}
	for _, p := range changed.Projects {
		if _, err := tx.Exec(ctx, `INSERT INTO projects (uid, name, revision, labels_revision) VALUES ($1, $2, $3, $3)
			ON CONFLICT (uid) DO UPDATE SET name = excluded.name, revision = excluded.revision, labels_revision = excluded.labels_revision`,
			p.UID, p.Name, p.Revision); err != nil {
			return err
		}
		if err := putLabels(ctx, tx, projectLabels, p.UID, p.Labels); err != nil {
			return err
		}
	}
	for _, a := range changed.Attachments {
		if _, err := tx.Exec(ctx, `INSERT INTO attachments (uid, integration_uid, project_uid, reads, writes, subscription_id, revision)
			VALUES ($1, $2, $3, $4, $5, $6, $7)
			ON CONFLICT (uid) DO UPDATE SET reads = excluded.reads, writes = excluded.writes,
				subscription_id = excluded.subscription_id, revision = excluded.revision`,
			a.UID, a.IntegrationUID, a.ProjectUID, bit(a.Reads), bit(a.Writes), a.SubscriptionID, a.Revision); err != nil {
			return err
		}
	}
	for _, a := range changed.GoneAttachments {
		if _, err := tx.Exec(ctx, `DELETE FROM attachments WHERE uid = $1`, a.UID); err != nil {
			return err
		}
	}
	for _, uid := range changed.GoneProjects {
		if _, err := tx.Exec(ctx, `DELETE FROM projects WHERE uid = $1`, uid); err != nil {
			return err
		}
	}
	for _, uid := range changed.GoneIntegrations {
		if _, err := tx.Exec(ctx, `DELETE FROM integrations WHERE uid = $1`, uid); err != nil {
			return err
		}
	}
	for _, uid := range changed.touched(also) {
		if err := noteChange(ctx, tx, now, uid, ""); err != nil {
			return err
		}
	}
	return nil
}

// Integration returns a wanted integration; sqldb.ErrNoRows when the registry has not told of it, or told that it is gone.
func (s *Store) Integration(ctx context.Context, uid string) (Integration, error) {
	return s.integration(ctx, `uid = $1`, uid)
}

// IntegrationByName is Integration by resource name.
func (s *Store) IntegrationByName(ctx context.Context, name string) (Integration, error) {
	return s.integration(ctx, `name = $1`, name)
}

func (s *Store) integration(ctx context.Context, where, key string) (Integration, error) {
	var out Integration
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		var err error
		out, err = scanIntegration(tx.QueryRow(ctx, `SELECT `+integrationColumns+` FROM integrations WHERE `+where, key))
		return err
	})
	if err != nil {
		return Integration{}, fmt.Errorf("read integration %s: %w", key, err)
	}
	return out, nil
}

const integrationColumns = `integrations.uid, integrations.name, integrations.display_name, integrations.tenant_id,
	integrations.cloud, integrations.default_subscription_id, integrations.allowed_audiences, integrations.rotation_period,
	integrations.deleting, integrations.revision, integrations.delivery_materials, integrations.credential_kind`

// scanIntegration reads a row that begins with integrationColumns; more are further columns.
func scanIntegration(row sqldb.Row, more ...any) (Integration, error) {
	var (
		out       Integration
		audiences string
		materials string
		how       string
		period    int64
		deleting  int64
	)
	columns := []any{&out.UID, &out.Name, &out.DisplayName, &out.TenantID, &out.Cloud, &out.DefaultSubscriptionID,
		&audiences, &period, &deleting, &out.Revision, &materials, &how}
	if err := row.Scan(append(columns, more...)...); err != nil {
		return Integration{}, err
	}
	if err := json.Unmarshal([]byte(audiences), &out.AllowedAudiences); err != nil {
		return Integration{}, fmt.Errorf("audiences of integration %s: %w", out.UID, err)
	}
	if err := json.Unmarshal([]byte(materials), &out.DeliveryMaterials); err != nil {
		return Integration{}, fmt.Errorf("materials of integration %s: %w", out.UID, err)
	}
	out.RotationPeriod = time.Duration(period) * time.Microsecond
	out.Deleting = deleting != 0
	out.Federated = how == kind(true)
	return out, nil
}

// kind is the word that the database has.
func kind(federated bool) string {
	if federated {
		return "FEDERATED"
	}
	return "CLIENT_SECRET"
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
