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
	err := s.deliveries.wait(o)
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
//
// PostgreSQL is asked twice: for the rows that are decided by, and for all that is written. Only client secrets need more, whose versions' rows come before the audit writer's.
func (s *Store) deliverIn(ctx context.Context, tx sqldb.Tx, batch []*ordered) error {
	secrets := slices.ContainsFunc(batch, func(o *ordered) bool { return o.Material == lease.ClientSecret })
	var locking sqldb.Batch
	tx.ByIndex(&locking)
	found := lockForDelivery(tx, &locking, batch)
	ends := new([]trail)
	if !secrets {
		ends = s.lockingTrail(&locking)
	}
	if err := tx.Do(ctx, &locking); err != nil {
		return fmt.Errorf("lock grants: %w", err)
	}
	grants, leases, shown := found()
	made := make([]delivered, 0, len(batch))
	for _, o := range batch {
		if o.refusal != nil {
			continue // in an earlier attempt at this transaction
		}
		g, ok := grants[o.GrantUID]
		if !ok {
			o.refusal = grant.ErrNotFound
			continue
		}
		if o.Token != (grant.Hash{}) && !slices.Contains(shown, o.GrantUID) {
			o.refusal = grant.ErrUnknown // another token has replaced it meanwhile
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
	var writing sqldb.Batch
	useGrants(tx, &writing, made)
	putLeases(tx, &writing, made)
	var t *trail
	var err error
	if secrets {
		if err := tx.Do(ctx, &writing); err != nil {
			return fmt.Errorf("write leases: %w", err)
		}
		if err := holdAll(ctx, tx, made); err != nil {
			return err
		}
		writing = sqldb.Batch{}
		t, err = s.lockTrail(ctx, tx)
	} else {
		t, err = s.trailAt(*ends)
	}
	if err != nil {
		return err
	}
	return recordDeliveries(ctx, tx, &writing, t, made)
}

// delivered is a delivery whose lease is written, in a transaction that has the grant's row.
type delivered struct {
	*ordered
	grant  *grant.Grant
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

// lockForDelivery adds to a batch what locks the grants of the deliveries, and reads them; of each, the leases that lease.Admit decides by; and which of them the tokens open
// that are to be noted as shown.
func lockForDelivery(tx sqldb.Tx, b *sqldb.Batch, batch []*ordered) func() (grants map[string]*grant.Grant, leases map[string][]lease.Lease, shown []string) {
	asked, tokens := sqldb.NewValues("tt"), sqldb.NewValues("tb")
	for _, o := range batch {
		asked.Add(o.GrantUID, o.InstanceID)
		if o.Token != (grant.Hash{}) {
			tokens.Add(o.GrantUID, o.Token[:])
		}
	}
	from, args := tx.Values(asked)
	var found []*grant.Grant
	var have []lease.Lease
	sqldb.Into(b, &found, func(row sqldb.Row) (*grant.Grant, error) {
		g, err := scanGrant(row)
		return &g, err
	}, lockingGrants(tx, tx.In(`uid`, `SELECT column1 FROM `+from+` v`)), args...)
	// Whoever has the grant can open and close leases all day: those that are over must not make the others slow.
	sqldb.Into(b, &have, scanLease, `SELECT `+leaseColumns+` FROM leases WHERE close_time = 0 AND `+tx.In(`grant_uid`, `SELECT column1 FROM `+from+` v`)+`
		UNION ALL SELECT `+leaseColumns+` FROM `+from+` v, leases WHERE grant_uid = v.column1 AND instance_id = v.column2 AND close_time <> 0`, args...)
	var opened []string
	if tokens.Len() > 0 {
		from, args := tx.Values(tokens)
		sqldb.Into(b, &opened, scanUID, `SELECT uid FROM `+from+` v JOIN grants ON uid = v.column1 AND token_hash = v.column2`, args...)
	}
	return func() (map[string]*grant.Grant, map[string][]lease.Lease, []string) {
		grants, leases := make(map[string]*grant.Grant, len(found)), make(map[string][]lease.Lease, len(found))
		for _, g := range found {
			grants[g.UID] = g
		}
		for _, l := range have {
			leases[l.GrantUID] = append(leases[l.GrantUID], l)
		}
		return grants, leases, opened
	}
}

// useGrants adds to a batch what notes that the grants' tokens have been shown, where that has yet to be done.
func useGrants(tx sqldb.Tx, b *sqldb.Batch, made []delivered) {
	first := sqldb.NewValues("ti")
	for _, d := range made {
		if d.Token != (grant.Hash{}) {
			first.Add(d.GrantUID, sqldb.Micros(d.now))
		}
	}
	if first.Len() == 0 {
		return
	}
	from, args := tx.Values(first)
	b.Exec(`UPDATE grants SET use_time = v.column2 FROM `+from+` v WHERE uid = v.column1 AND use_time = 0`, args...)
}

// putLeases adds to a batch what writes the leases as they are after the deliveries.
func putLeases(tx sqldb.Tx, b *sqldb.Batch, made []delivered) {
	rows := sqldb.NewValues("tttiiii")
	for _, d := range made {
		rows.Add(d.lease.UID, d.lease.GrantUID, d.lease.InstanceID, d.lease.Generation, sqldb.Micros(d.lease.OpenTime), sqldb.Micros(d.lease.DeliverTime), 0)
	}
	from, args := tx.Values(rows)
	// Without WHERE, SQLite takes ON for a join's.
	b.Exec(`INSERT INTO leases (`+leaseColumns+`) SELECT * FROM `+from+` v WHERE TRUE
		ON CONFLICT (uid) DO UPDATE SET generation = excluded.generation, deliver_time = excluded.deliver_time`, args...)
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
	e := leaseEvent(d.now, CredentialDelivered, *d.grant, d.lease, d.Caller)
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

// recordDeliveries does what is to be written, and appends to the trail that leases were opened, and what was delivered: the same credential to however many leases as one record.
func recordDeliveries(ctx context.Context, tx sqldb.Tx, b *sqldb.Batch, t *trail, made []delivered) error {
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
		r, err := t.next(ctx, []audit.Entry{leaseEvent(d.now, LeaseOpened, *d.grant, l, d.Caller).Entry()})
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
	rows := deliveryRows{sqldb.NewValues(deliveryKinds)}
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
	insertRecords(tx, b, opened)
	recorded := insertEntitled(tx, b, rows)
	t.end(b, newest)
	if err := tx.Do(ctx, b); err != nil {
		return fmt.Errorf("record %s: %w", CredentialDelivered, err)
	}
	if len(*recorded) == len(made) {
		return nil
	}
	for _, d := range made {
		if slices.Contains(*recorded, d.lease.UID) {
			continue
		}
		// The lease was written in this transaction, so the version, the material and the audience are all that is left.
		var err error
		if d.refusal, err = refused(ctx, tx, d.now, d.GrantUID, lease.ErrVersionGone); err != nil {
			return err
		}
	}
	return errAgain
}

// deliveryRows are rows of audit_events that are inserted only where they are entitled. What the rows say that entitle is not among their columns.
type deliveryRows struct{ *sqldb.Values }

// deliveryKinds are the kinds of their columns, of which the last five are only looked at.
const deliveryKinds = "tiiitttttitttttitti" + "tttit"

func (rows deliveryRows) put(r audit.Record, place int, d delivered) {
	e := r.Entries[place]
	hash, mac, keyID := sealOf(r, place)
	t := terms(d.now, d.Material, d.PolicyAudience, d.Audience)
	rows.Add(r.Writer, r.Seq, place, e.Time, e.Kind, e.Actor, e.RequestID, e.GrantUID, e.LeaseUID, e.Generation, e.VersionID, e.Material, e.Reason, e.Audience,
		e.ClientRequestID, e.ExpireTime, hash, mac, keyID, t[0], t[1], t[2], t[3], t[4])
}

// terms are what entitles looks at in a delivery besides its time, version and material: its columns 20 to 24.
func terms(now time.Time, material lease.Material, policyAudience bool, audience string) []any {
	// What else than ACTIVE the version may be, and what else than a policy that names the material will do.
	orState, orMaterials := "ACTIVE", "none"
	if material == lease.AccessToken || material == lease.FederatedToken {
		orState, orMaterials = "RETIRING", "[]"
	}
	// An audience is looked for in the integration's list as it stands there: quoted.
	quoted := ""
	if policyAudience {
		quoted = strconv.Quote(audience)
	}
	return []any{orState, `%"` + string(material) + `"%`, orMaterials, sqldb.Micros(now.Add(-grant.MaxSilence)), quoted}
}

// entitling are the tables, and entitles the conditions, by which it is decided at this very moment whether a delivery v by a grant g is entitled: the grant live, its
// account not frozen, the version usable (for its secret: ACTIVE), integration and project there, the integration one that gives the material and the audience, the version
// one that has it, an attachment or labels that give the access, and a copy of the registry that is fresh and no older than the grant. A delivery's column4 is when it is
// made, column11 its version, column12 its material, and the others are its terms.
//
// Adding nothing keeps PostgreSQL from going by an index of the grants that are live: it would go through all of them, for each delivery.
const (
	entitling = `grants g, credential_versions c, integrations i, projects p, projection r`
	entitles  = `g.revoke_time + 0 = 0 AND g.expire_time + 0 > v.column4
			AND c.id = v.column11 AND c.integration_uid = g.integration_uid AND c.state IN ('ACTIVE', v.column20)
			AND i.uid = g.integration_uid AND i.deleting = 0
			AND (i.delivery_materials LIKE v.column21 OR i.delivery_materials = v.column22)
			AND (v.column24 = '' OR REPLACE(i.allowed_audiences, v.column24, '') <> i.allowed_audiences)
			AND (v.column12 = 'ACCESS_TOKEN' OR (v.column12 = 'FEDERATED_TOKEN') = (i.credential_kind = 'FEDERATED'))
			AND (v.column12 = 'ACCESS_TOKEN' OR (v.column12 = 'FEDERATED_TOKEN') = (c.signing_key <> ''))
			AND p.uid = g.project_uid
			AND r.singleton = 1 AND r.bookmark_time > v.column23 AND r.incarnation <> ''
			AND (r.incarnation <> g.incarnation OR r.revision >= g.revision)
			AND NOT ` + frozen + ` AND ` + attached
)

// insertEntitled adds to a batch what records the deliveries for which it finds, at this very moment, everything that entitles to them, and the lease open at this
// generation. It returns the leases of those that it recorded.
func insertEntitled(tx sqldb.Tx, b *sqldb.Batch, rows deliveryRows) *[]string {
	recorded := new([]string)
	from, args := tx.Values(rows.Values)
	sqldb.Into(b, recorded, scanUID, `INSERT INTO audit_events (`+auditColumns+`)
		SELECT v.column1, v.column2, v.column3, v.column4, v.column5, v.column6, v.column7, g.account, g.uid, g.run, l.uid, l.instance_id, l.generation,
			g.integration, g.integration_uid, g.project, g.project_uid, c.id, v.column12, v.column13, v.column14, v.column15, v.column16,
			v.column17, v.column18, v.column19
		FROM `+from+` v, leases l, `+entitling+`
		WHERE g.uid = v.column8 AND l.uid = v.column9 AND l.grant_uid = g.uid AND l.close_time + 0 = 0 AND l.generation = v.column10
			AND `+entitles+` RETURNING lease_uid`, args...)
	return recorded
}
