package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// ordered is a delivery under way.
type ordered struct {
	order
	Delivery
	now time.Time
	uid string // of the lease, should it be opened

	// refusal is why it is not entitled, once that is known.
	refusal error
	lease   lease.Lease
	err     error
}

// Deliver opens or resumes the instance's lease, counts its generation up, and records the delivery where it finds
// everything that entitles to it, in one transaction with whatever else is delivered at the moment; each stands or falls by itself. Only
// what it returned without an error for may leave the vault: after an error nothing was recorded, except that after a sqldb.ErrUnknownOutcome, or when
// ctx has ended, a delivery may be on record that never was.
//
// A client secret is held from then on: the first delivery of a version to a lease raises the version's holders.
//
// Errors: those of grant.Standing.Check, lease.ErrClosed, lease.ErrTooMany, a lease.HoldError, and lease.ErrVersionGone when only
// the version is no longer usable, or the material or the audience no longer allowed: read the entitlement again.
func (s *Store) Deliver(ctx context.Context, now time.Time, d Delivery) (lease.Lease, error) {
	o := &ordered{order: newOrder(ctx), Delivery: d, now: now, uid: d.LeaseUID}
	if o.uid == "" {
		o.uid = uuid.NewString()
	}
	err := s.deliveries.wait(ctx, o)
	if err == nil {
		err = o.err
	}
	if err != nil {
		return lease.Lease{}, fmt.Errorf("deliver by grant %s: %w", d.GrantUID, err)
	}
	return o.lease, nil
}

// takeDeliveries takes what can be delivered together: one delivery a lease, and client secrets of one version alone, so that no batch locks the rows of several.
func takeDeliveries(waiting []*ordered) (batch, rest []*ordered) {
	taken := map[instance]bool{}
	held := ""
	for _, o := range waiting {
		k := instance{o.GrantUID, o.InstanceID}
		secret := o.Material == lease.ClientSecret
		switch {
		case o.ctx.Err() != nil: // its caller is gone
		case len(batch) == maxBatch, taken[k], secret && held != "" && held != o.VersionID:
			rest = append(rest, o)
		default:
			batch = append(batch, o)
			taken[k] = true
			if secret {
				held = o.VersionID
			}
		}
	}
	return batch, rest
}

// errAgain means that some of a batch are refused, and that it is to be begun anew without them.
var errAgain = errors.New("batch without those that are refused")

// deliver makes the deliveries of a batch, and says in each how that went. A panic, too, is the failure of these and of no others.
func (s *Store) deliver(ctx context.Context, batch []*ordered) {
	var left []*ordered
	for {
		left = slices.DeleteFunc(slices.Clone(batch), func(o *ordered) bool { return o.refusal != nil })
		if len(left) == 0 {
			break
		}
		err := caught.Panic(func() error {
			return s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error { return s.deliverIn(ctx, tx, left) })
		})
		if errors.Is(err, errAgain) {
			continue
		}
		if err != nil {
			for _, o := range left {
				o.err = err
			}
		}
		break
	}
	for _, o := range batch {
		if o.refusal != nil {
			o.err = o.refusal
		}
	}
}

// deliverIn makes the deliveries in a transaction, but for those that are refused; errAgain when by then something was written of them.
func (s *Store) deliverIn(ctx context.Context, tx sqldb.Tx, batch []*ordered) error {
	grants, leases, err := lockForDelivery(ctx, tx, batch)
	if err != nil {
		return err
	}
	var made []delivered
	for _, o := range batch {
		if o.refusal != nil {
			continue // in an earlier attempt at this transaction
		}
		g, ok := grants[o.GrantUID]
		if !ok {
			o.refusal = grant.ErrNotFound
			continue
		}
		admitted, opened, refusal := lease.Admit(o.now, leases[o.GrantUID], o.uid, o.GrantUID, o.InstanceID)
		if refusal != nil {
			// That the grant is over says more than that it has many leases.
			o.refusal = errors.Join(g.Check(o.now), refusal)
			continue
		}
		if o.LeaseUID != "" && admitted.UID != o.LeaseUID {
			o.refusal = lease.ErrVersionGone // another delivery opened it meanwhile
			continue
		}
		if o.Material == lease.ClientSecret {
			if err := lease.CheckHold(g.ExpireTime, o.HoldLimit); err != nil {
				if o.refusal, err = refused(ctx, tx, o.now, o.GrantUID, err); err != nil {
					return err
				}
				continue
			}
		}
		if opened {
			leases[o.GrantUID] = append(leases[o.GrantUID], admitted)
		}
		o.lease = admitted
		made = append(made, delivered{ordered: o, grant: g, opened: opened})
	}
	if len(made) == 0 {
		return nil
	}
	if err := putLeases(ctx, tx, made); err != nil {
		return err
	}
	if err := holdAll(ctx, tx, made); err != nil {
		return err
	}
	return s.recordDeliveries(ctx, tx, made)
}

// delivered is a delivery whose lease is written, in a transaction that has the grant's row.
type delivered struct {
	*ordered
	grant  grant.Grant
	opened bool
}

// refused says why a delivery is not recorded: that the grant does not entitle to it, or else why.
func refused(ctx context.Context, tx sqldb.Tx, now time.Time, grantUID string, why error) (refusal, err error) {
	found, err := standing(ctx, tx, grantUID)
	if err != nil {
		return nil, err
	}
	if err := found.Check(now); err != nil {
		return err, nil
	}
	return why, nil
}

// lockForDelivery locks the grants of the deliveries, and reads them and, of each, the leases that lease.Admit decides by.
func lockForDelivery(ctx context.Context, tx sqldb.Tx, batch []*ordered) (map[string]grant.Grant, map[string][]lease.Lease, error) {
	which, instances := make([]any, roundUp(len(batch))), tuples{casts: "tt"}
	for i, o := range batch {
		which[i] = o.GrantUID
		instances.add(o.GrantUID, o.InstanceID)
	}
	found, err := lockGrants(ctx, tx, placeholders(1, len(which)), which...)
	if err != nil {
		return nil, nil, fmt.Errorf("lock grants: %w", err)
	}
	grants := make(map[string]grant.Grant, len(found))
	for _, g := range found {
		grants[g.UID] = g
	}
	// Whoever has the grant can open and close leases all day: those that are over must not make the others slow.
	open, err := sqldb.Collect(ctx, tx, scanLease, `SELECT `+leaseColumns+` FROM leases WHERE close_time = 0 AND grant_uid IN (`+placeholders(1, len(which))+`)`, which...)
	if err != nil {
		return nil, nil, fmt.Errorf("read leases: %w", err)
	}
	closed, err := sqldb.Collect(ctx, tx, scanLease, `SELECT `+leaseColumns+` FROM (`+instances.values()+`) v, leases
		WHERE grant_uid = v.column1 AND instance_id = v.column2 AND close_time <> 0`, instances.args...)
	if err != nil {
		return nil, nil, fmt.Errorf("read closed leases: %w", err)
	}
	leases := make(map[string][]lease.Lease, len(found))
	for _, l := range slices.Concat(open, closed) {
		leases[l.GrantUID] = append(leases[l.GrantUID], l)
	}
	return grants, leases, nil
}

// putLeases writes the leases as they are after the deliveries.
func putLeases(ctx context.Context, tx sqldb.Tx, made []delivered) error {
	rows := tuples{casts: "tttiiii"}
	for _, d := range made {
		rows.add(d.lease.UID, d.lease.GrantUID, d.lease.InstanceID, d.lease.Generation, sqldb.Micros(d.lease.OpenTime), sqldb.Micros(d.lease.DeliverTime), 0)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO leases (`+leaseColumns+`) SELECT * FROM (`+rows.values()+`) v WHERE v.column1 <> ''
		ON CONFLICT (uid) DO UPDATE SET generation = excluded.generation, deliver_time = excluded.deliver_time`, rows.args...); err != nil {
		return fmt.Errorf("write leases: %w", err)
	}
	return nil
}

// holdAll has the leases hold that are given a client secret, which is of one version.
func holdAll(ctx context.Context, tx sqldb.Tx, made []delivered) error {
	var holds []holding
	var first *delivered
	for i, d := range made {
		if d.Material != lease.ClientSecret {
			continue
		}
		if first == nil {
			first = &made[i]
		}
		holds = append(holds, holding{leaseUID: d.lease.UID, grantUID: d.GrantUID, latest: d.HoldLimit, end: d.grant.ExpireTime})
	}
	if first == nil {
		return nil
	}
	err := hold(ctx, tx, first.VersionID, first.grant.IntegrationUID, holds)
	if !errors.Is(err, lease.ErrVersionGone) {
		return err
	}
	for _, d := range made {
		if d.Material != lease.ClientSecret {
			continue
		}
		if d.refusal, err = refused(ctx, tx, d.now, d.GrantUID, lease.ErrVersionGone); err != nil {
			return err
		}
	}
	return errAgain
}

// event is the delivery's record.
func (d delivered) event() AuditEvent {
	e := leaseEvent(d.now, CredentialDelivered, d.grant, d.lease, d.Caller)
	e.VersionID, e.Material, e.Reason, e.Audience, e.ClientRequestID, e.ExpireTime =
		d.VersionID, d.Material, d.Reason, d.Audience, d.ClientRequestID, d.ExpireTime
	return e
}

// common is what deliveries of one record have in common.
type common struct {
	account, integrationUID, versionID string
	material                           lease.Material
	reason, audience, clientRequestID  string
	expire                             time.Time
}

func (d delivered) common() common {
	return common{d.grant.Account, d.grant.IntegrationUID, d.VersionID, d.Material, d.Reason, d.Audience, d.ClientRequestID, d.ExpireTime}
}

// recordDeliveries appends to the trail that leases were opened, and what was delivered: the same credential to however many leases as one record.
func (s *Store) recordDeliveries(ctx context.Context, tx sqldb.Tx, made []delivered) error {
	t, err := s.lockTrail(ctx, tx)
	if err != nil {
		return err
	}
	var opened []audit.Record
	var newest time.Time
	for _, d := range made {
		if d.now.After(newest) {
			newest = d.now
		}
		if !d.opened {
			continue
		}
		l := lease.Lease{UID: d.lease.UID, InstanceID: d.InstanceID}
		r, err := t.next(ctx, []audit.Entry{leaseEvent(d.now, LeaseOpened, d.grant, l, d.Caller).Entry()})
		if err != nil {
			return err
		}
		opened = append(opened, r)
	}
	var kinds []common
	groups := map[common][]delivered{}
	for _, d := range made {
		c := d.common()
		if groups[c] == nil {
			kinds = append(kinds, c)
		}
		groups[c] = append(groups[c], d)
	}
	rows := deliveryRows{tuples: tuples{casts: deliveryCasts}}
	for _, c := range kinds {
		entries := make([]audit.Entry, len(groups[c]))
		for i, d := range groups[c] {
			entries[i] = d.event().Entry()
		}
		r, err := t.next(ctx, entries)
		if err != nil {
			return err
		}
		for i, d := range groups[c] {
			rows.put(r, i, d)
		}
	}
	if err := insertRecords(ctx, tx, opened); err != nil {
		return err
	}
	if err := s.insertEntitled(ctx, tx, &rows, made); err != nil {
		return err
	}
	return t.end(ctx, tx, newest)
}

// deliveryRows are rows of audit_events that are inserted only where they are entitled. What the rows say that entitle is not among their columns.
type deliveryRows struct{ tuples }

// deliveryCasts are the types of their columns, of which the last five are only looked at.
const deliveryCasts = "tiiitttttitttttitti" + "tttit"

func (rows *deliveryRows) put(r audit.Record, place int, d delivered) {
	// What else than ACTIVE the version may be, and what else than a policy that names the material will do.
	orState, orMaterials := "ACTIVE", "none"
	if d.Material == lease.AccessToken || d.Material == lease.FederatedToken {
		orState, orMaterials = "RETIRING", "[]"
	}
	// An audience is looked for in the integration's list as it stands there: quoted.
	audience := ""
	if d.PolicyAudience {
		audience = strconv.Quote(d.Audience)
	}
	e := r.Entries[place]
	hash, mac, keyID := sealOf(r, place)
	rows.add(r.Writer, r.Seq, place, e.Time, e.Kind, e.Actor, e.RequestID, e.GrantUID, e.LeaseUID, e.Generation, e.VersionID, e.Material, e.Reason, e.Audience,
		e.ClientRequestID, e.ExpireTime, hash, mac, keyID,
		orState, `%"`+string(d.Material)+`"%`, orMaterials, sqldb.Micros(d.now.Add(-grant.MaxSilence)), audience)
}

// insertEntitled records the deliveries for which it finds, at this very moment, everything that entitles to them: the grant live, its account not frozen, the lease
// open at this generation, the version usable (for its secret: ACTIVE), integration and project there, the integration one that
// gives the material and the audience, the version one that has it, an attachment or labels that give the access, and a copy of the registry that is fresh and no older than
// the grant. Those without are refused: errAgain.
func (s *Store) insertEntitled(ctx context.Context, tx sqldb.Tx, rows *deliveryRows, made []delivered) error {
	// Adding nothing keeps PostgreSQL from going by the indexes of the grants and leases that are live: it would go through all of them, for each delivery.
	recorded, err := sqldb.Collect(ctx, tx, scanUID, `INSERT INTO audit_events (`+auditColumns+`)
		SELECT v.column1, v.column2, v.column3, v.column4, v.column5, v.column6, v.column7, g.account, g.uid, g.run, l.uid, l.instance_id, l.generation,
			g.integration, g.integration_uid, g.project, g.project_uid, c.id, v.column12, v.column13, v.column14, v.column15, v.column16,
			v.column17, v.column18, v.column19
		FROM (`+rows.values()+`) v, grants g, leases l, credential_versions c, integrations i, projects p, projection r
		WHERE g.uid = v.column8 AND g.revoke_time = 0 AND g.expire_time + 0 > v.column4
			AND l.uid = v.column9 AND l.grant_uid = g.uid AND l.close_time + 0 = 0 AND l.generation = v.column10
			AND c.id = v.column11 AND c.integration_uid = g.integration_uid AND c.state IN ('ACTIVE', v.column20)
			AND i.uid = g.integration_uid AND i.deleting = 0
			AND (i.delivery_materials LIKE v.column21 OR i.delivery_materials = v.column22)
			AND (v.column24 = '' OR REPLACE(i.allowed_audiences, v.column24, '') <> i.allowed_audiences)
			AND (v.column12 = 'ACCESS_TOKEN' OR (v.column12 = 'FEDERATED_TOKEN') = (i.credential_kind = 'FEDERATED'))
			AND (v.column12 = 'ACCESS_TOKEN' OR (v.column12 = 'FEDERATED_TOKEN') = (c.signing_key <> ''))
			AND p.uid = g.project_uid
			AND r.singleton = 1 AND r.bookmark_time > v.column23 AND r.incarnation <> ''
			AND (r.incarnation <> g.incarnation OR r.revision >= g.revision)
			AND NOT `+frozen+` AND `+attached+` RETURNING lease_uid`, rows.args...)
	if err != nil {
		return fmt.Errorf("record %s: %w", CredentialDelivered, err)
	}
	if len(recorded) == len(made) {
		return nil
	}
	for _, d := range made {
		if slices.Contains(recorded, d.lease.UID) {
			continue
		}
		// The lease was written in this transaction, so the version, the material and the audience are all that is left.
		if d.refusal, err = refused(ctx, tx, d.now, d.GrantUID, lease.ErrVersionGone); err != nil {
			return err
		}
	}
	return errAgain
}
