package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// Delivery is one credential, about to leave.
type Delivery struct {
	GrantUID   string
	InstanceID string
	// Token is noted as shown, as by UseGrant; zero when that was done.
	Token grant.Hash
	// VersionID is the credential version that it was made from.
	VersionID string
	// Material is its form. With a client secret the lease holds the version from then on.
	Material lease.Material
	// HoldLimit is when the grant must have ended that holds the version's secret; without meaning for a token.
	HoldLimit time.Time
	// LeaseUID is what the lease must have for UID, or is given if it is opened by this; empty for any. An assertion names its lease.
	LeaseUID string
	// Reason is why it is sent; of a token, Audience is what it opens and ClientRequestID what the request for it carried, or an assertion's own ID.
	Reason          string
	Audience        string
	ClientRequestID string
	// PolicyAudience says that the integration must allow the audience; all give the others.
	PolicyAudience bool
	// ExpireTime is when it stops working.
	ExpireTime time.Time
	Caller     grant.Caller
}

// ordered is a delivery under way.
type ordered struct {
	order
	// Delivery is chosen by what entitles the holder, where there is a choice.
	Delivery
	holder holder
	choose Choice

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
	if err := s.ordered(o); err != nil {
		return lease.Lease{}, fmt.Errorf("deliver by grant %s: %w", d.GrantUID, err)
	}
	return o.lease, nil
}

// Choice chooses what is delivered by what entitles to it, or refuses; the grant, the instance, and that the token was shown are noted by the store. It is called within a transaction that others wait
// for, by another goroutine, and again if that has to be repeated: it must not wait for anything. After the caller's context has ended it may still run.
type Choice func(*Entitlement) (Delivery, error)

// DeliverByToken is EntitlementByToken and Deliver in one transaction, of which the holder waits for one and not for two. A client secret cannot be chosen, whose version's row would have to come before the audit writer's.
// Errors: grant.ErrUnknown when the token opens no grant, choose's, and Deliver's.
func (s *Store) DeliverByToken(ctx context.Context, now time.Time, token grant.Hash, instanceID string, choose Choice) (lease.Lease, error) {
	o := &ordered{order: newOrder(ctx), holder: holder{token, instanceID}, choose: choose, now: now, uid: uuid.NewString()}
	if err := s.ordered(o); err != nil {
		if !errors.Is(err, grant.ErrUnknown) {
			err = fmt.Errorf("deliver by token: %w", err)
		}
		return lease.Lease{}, err
	}
	return o.lease, nil
}

// ordered has a delivery made in its turn.
func (s *Store) ordered(o *ordered) error {
	if err := s.deliveries.wait(o); err != nil {
		return err
	}
	return o.err
}

// takeDeliveries takes what can be delivered together: one delivery a lease, and so either by grants or by tokens; and client secrets of one version alone, so that no batch locks the rows of several.
func takeDeliveries(waiting []*ordered) (batch, rest []*ordered) {
	type lessee struct {
		instance
		holder
	}
	taken := map[lessee]bool{}
	held := ""
	for _, o := range waiting {
		k := lessee{instance{o.GrantUID, o.InstanceID}, o.holder}
		secret := o.Material == lease.ClientSecret
		switch {
		case o.ctx.Err() != nil: // its caller is gone
		case len(batch) == maxBatch, taken[k], secret && held != "" && held != o.VersionID,
			len(batch) > 0 && (o.choose == nil) != (batch[0].choose == nil):
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
// PostgreSQL is asked twice: for the rows that are decided by, and for all that is written, with the commit. Only client secrets need more, whose versions' rows come before the audit writer's. What entitles is
// read after the last wait for anybody.
func (s *Store) deliverIn(ctx context.Context, tx sqldb.Tx, batch []*ordered) error {
	secrets := slices.ContainsFunc(batch, func(o *ordered) bool { return o.choose == nil && o.Material == lease.ClientSecret })
	lessees := lesseesOf(tx, batch)
	var locking sqldb.Batch
	tx.ByIndex(&locking)
	found := lessees.lock(tx, &locking)
	ends := new([]trail)
	if !secrets {
		ends = s.lockingTrail(&locking)
	}
	given := lessees.premises(tx, &locking)
	if err := tx.Do(ctx, &locking); err != nil {
		return fmt.Errorf("lock grants: %w", err)
	}
	made := admitAll(batch, found(), given())
	if len(made) == 0 {
		return errAgain // of which nothing is left, and nothing to commit
	}
	var writing sqldb.Batch
	useGrants(tx, &writing, made)
	putLeases(tx, &writing, made)
	if secrets {
		if err := tx.Do(ctx, &writing); err != nil {
			return fmt.Errorf("write leases: %w", err)
		}
		writing = sqldb.Batch{}
		if err := holdAll(ctx, tx, made); err != nil {
			return err
		}
		var last sqldb.Batch
		ends = s.lockingTrail(&last)
		given = lessees.premises(tx, &last)
		if err := tx.Do(ctx, &last); err != nil {
			return fmt.Errorf("find the end of the audit trail: %w", err)
		}
		if !entitledStill(made, given()) {
			return errAgain
		}
	}
	t, err := s.trailAt(*ends)
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

// admitAll finds out which of the deliveries are to be made, and the leases as they are then; it says in the others why not.
func admitAll(batch []*ordered, found locked, given premises) []delivered {
	made := make([]delivered, 0, len(batch))
	for _, o := range batch {
		var g *grant.Grant
		if g, o.refusal = found.grantOf(o); o.refusal != nil {
			continue
		}
		e := given.entitlement(g)
		if o.choose != nil {
			if o.refusal = o.chosen(&e, found.leases[g.UID]); o.refusal != nil {
				continue
			}
		}
		if o.refusal = o.entitled(&e); o.refusal != nil {
			continue
		}
		admitted, opened, refusal := lease.Admit(o.now, found.leases[o.GrantUID], o.uid, o.GrantUID, o.InstanceID)
		if refusal == nil && o.LeaseUID != "" && admitted.UID != o.LeaseUID {
			refusal = lease.ErrVersionGone // another delivery opened it meanwhile
		}
		if refusal == nil && o.Material == lease.ClientSecret {
			refusal = lease.CheckHold(g.ExpireTime, o.HoldLimit)
		}
		if o.refusal = refusal; refusal != nil {
			continue
		}
		if opened {
			found.leases[o.GrantUID] = append(found.leases[o.GrantUID], admitted)
		}
		o.lease = admitted
		made = append(made, delivered{ordered: o, grant: g, opened: opened})
	}
	return made
}

// errSecretChosen is a Choice's mistake: nothing would hold the version.
var errSecretChosen = errors.New("client secret is delivered by its grant")

// chosen has it chosen what is delivered.
func (o *ordered) chosen(e *Entitlement, leases []lease.Lease) error {
	for _, l := range leases {
		if l.InstanceID == o.holder.instanceID {
			e.Lease = l
		}
	}
	var d Delivery
	err := caught.Panic(func() (err error) {
		d, err = o.choose(e)
		return err
	})
	if err != nil {
		return err
	}
	if d.Material == lease.ClientSecret {
		return errSecretChosen
	}
	d.GrantUID, d.InstanceID = e.Grant.UID, o.holder.instanceID
	if e.Grant.UseTime.IsZero() {
		d.Token = o.holder.token
	}
	o.Delivery = d
	return nil
}

// entitledStill reports whether all are, and says in those that are not why.
func entitledStill(made []delivered, given premises) bool {
	all := true
	for _, d := range made {
		e := given.entitlement(d.grant)
		if d.refusal = d.entitled(&e); d.refusal != nil {
			all = false
		}
	}
	return all
}

// entitled is nil when everything entitles to the delivery, lease.ErrVersionGone when only the version, the material or the audience does not.
func (o *ordered) entitled(e *Entitlement) error {
	return e.admits(o.now, o.VersionID, o.Material, o.PolicyAudience, o.Audience)
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
		d.refusal = lease.ErrVersionGone
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
	records := make([]audit.Record, 0, len(opened)+len(kinds))
	records = append(records, opened...)
	for _, c := range kinds {
		entries := make([]audit.Entry, len(groups[c]))
		for i, d := range groups[c] {
			entries[i] = d.event().Entry()
		}
		r, err := t.next(ctx, entries)
		if err != nil {
			return err
		}
		records = append(records, r)
	}
	insertRecords(tx, b, records)
	t.end(b, newest)
	tx.Last(b)
	return nil
}
