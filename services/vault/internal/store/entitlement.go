package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// Entitlement is all that a delivery to one runner instance is decided by and made from, as of one moment. Those who read it together share it: it is not to be changed.
type Entitlement struct {
	grant.Standing
	// Lease is the instance's; the zero value before its first delivery.
	Lease lease.Lease
	// Integration is the grant's; the zero value when the copy of the registry does not have it.
	Integration Integration
	// Versions are the ACTIVE one, if there is one, and after it those that are RETIRING, the newest first.
	Versions []Live
	// ConsentLostTime is since when the customer's tenant does not let the application in any more; zero while it does, or never did.
	ConsentLostTime time.Time
	// Compromised is the number of the newest version that was said to be compromised; 0 when none was.
	Compromised int64
}

// Active returns the ACTIVE version, if there is one.
func (e *Entitlement) Active() (Live, bool) {
	if len(e.Versions) == 0 || e.Versions[0].State != credential.Active {
		return Live{}, false
	}
	return e.Versions[0], true
}

// Check is nil when something may be delivered now, else why not.
func (e *Entitlement) Check(now time.Time) error {
	if err := e.Standing.Check(now); err != nil {
		return err
	}
	if !e.Lease.CloseTime.IsZero() {
		return lease.ErrClosed
	}
	return nil
}

// admits is nil when what a version gives may be delivered: its secret, or something that was made with it. Else it is why the grant does not stand, or lease.ErrVersionGone when only the version is
// no longer usable, or the material or the audience, which the integration's policy must name where it is policyAudience, no longer allowed.
func (e *Entitlement) admits(now time.Time, versionID string, material lease.Material, policyAudience bool, audience string) error {
	if err := e.Standing.Check(now); err != nil {
		return err
	}
	usable := slices.ContainsFunc(e.Versions, func(v Live) bool {
		return v.ID == versionID && (v.State == credential.Active || material != lease.ClientSecret) &&
			(material == lease.AccessToken || v.Federated() == (material == lease.FederatedToken))
	})
	if !usable || !lease.Allowed(e.Integration.DeliveryMaterials, e.Integration.Federated, material) ||
		policyAudience && !slices.Contains(e.Integration.AllowedAudiences, audience) {
		return lease.ErrVersionGone
	}
	return nil
}

// instance is a runner instance's name: it has at most one lease.
type instance struct{ grantUID, instanceID string }

// holder is a runner instance that shows a token.
type holder struct {
	token      grant.Hash
	instanceID string
}

// Entitlement reads what a delivery to the instance by the grant is decided by; grant.ErrNotFound when there is no such grant.
func (s *Store) Entitlement(ctx context.Context, grantUID, instanceID string) (*Entitlement, error) {
	out, err := s.entitlements.get(ctx, instance{grantUID, instanceID})
	if err != nil {
		return nil, fmt.Errorf("read entitlement of grant %s: %w", grantUID, err)
	}
	return out, nil
}

// EntitlementByToken reads what a delivery to the instance by the grant that the token opens is decided by; grant.ErrUnknown when there is none.
func (s *Store) EntitlementByToken(ctx context.Context, token grant.Hash, instanceID string) (*Entitlement, error) {
	out, err := s.holders.get(ctx, holder{token, instanceID})
	if err != nil && !errors.Is(err, grant.ErrUnknown) {
		err = fmt.Errorf("read entitlement: %w", err)
	}
	return out, err
}

// entitlements reads those of the instances whose grants there are.
func entitlements(tx sqldb.Tx, b *sqldb.Batch, of []instance) func() map[instance]*Entitlement {
	asked := sqldb.NewValues("tti")
	for i, k := range of {
		asked.Add(k.grantUID, k.instanceID, i)
	}
	return readEntitlements(tx, b, `uid`, asked, of)
}

// entitlementsByToken reads those of the holders whose tokens open a grant.
func entitlementsByToken(tx sqldb.Tx, b *sqldb.Batch, of []holder) func() map[holder]*Entitlement {
	asked := sqldb.NewValues("bti")
	for i, k := range of {
		asked.Add(k.token[:], k.instanceID, i)
	}
	return readEntitlements(tx, b, `token_hash`, asked, of)
}

// readEntitlements adds to a batch what reads those that are asked for: by the grant's key, the instance, and the place in of.
func readEntitlements[K comparable](tx sqldb.Tx, b *sqldb.Batch, key string, asked *sqldb.Values, of []K) func() map[K]*Entitlement {
	type reading struct {
		grant grant.Grant
		lease lease.Lease
		place int64
	}
	from, args := tx.Values(asked)
	var found []reading
	sqldb.Into(b, &found, func(row sqldb.Row) (r reading, err error) {
		r.grant, err = scanGrant(row, &r.place,
			&r.lease.UID, &r.lease.GrantUID, &r.lease.InstanceID, &r.lease.Generation, at{&r.lease.OpenTime}, at{&r.lease.DeliverTime}, at{&r.lease.CloseTime})
		return r, err
	}, `SELECT `+qualified("g", grantColumns)+`, v.column3, COALESCE(l.uid, ''), COALESCE(l.grant_uid, ''), COALESCE(l.instance_id, ''),
			COALESCE(l.generation, 0), COALESCE(l.open_time, 0), COALESCE(l.deliver_time, 0), COALESCE(l.close_time, 0)
		FROM `+from+` v JOIN grants g ON g.`+key+` = v.column1 LEFT JOIN leases l ON l.grant_uid = g.uid AND l.instance_id = v.column2`, args...)
	rest := readPremises(tx, b, tx.In(key, `SELECT column1 FROM `+from+` v`), args...)
	return func() map[K]*Entitlement {
		known := rest()
		out := make(map[K]*Entitlement, len(found))
		for i := range found {
			e := known.entitlement(&found[i].grant)
			e.Lease = found[i].lease
			out[of[found[i].place]] = &e
		}
		return out
	}
}

// relation is all of a grant that decides how it stands, but for its end and when it was resolved.
type relation struct {
	account, integrationUID, projectUID string
	access                              grant.Access
}

// premises are what entitlements rest on that those of many grants have in common.
type premises struct {
	standings    map[relation]grant.Standing // without the grant
	integrations map[string]Entitlement      // without the standing and the lease, by the integration's UID
}

// readPremises adds to a batch what reads the premises of the grants for which a condition holds.
func readPremises(tx sqldb.Tx, b *sqldb.Batch, grants string, args ...any) func() premises {
	type stands struct {
		relation
		grant.Standing
	}
	var related []stands
	sqldb.Into(b, &related, func(row sqldb.Row) (r stands, err error) {
		s := &r.Standing
		err = row.Scan(&r.account, &r.integrationUID, &r.projectUID, &r.access, &s.Incarnation, &s.Revision, at{&s.BookmarkTime}, &s.IntegrationLives, &s.ProjectLives,
			&s.Attached, &s.Unlabelled, &s.Frozen)
		return r, err
	}, `SELECT `+relationColumns+`, `+standingColumns+` FROM (SELECT DISTINCT `+relationColumns+` FROM grants g WHERE `+grants+`) g`, args...)
	which := `SELECT integration_uid FROM grants WHERE ` + grants
	var integrations []Entitlement
	sqldb.Into(b, &integrations, func(row sqldb.Row) (e Entitlement, err error) {
		e.Integration, err = scanIntegration(row, &e.Compromised, at{&e.ConsentLostTime})
		return e, err
	}, `SELECT `+integrationColumns+`,
			COALESCE((SELECT MAX(r.up_to) FROM rotations r WHERE r.integration_uid = integrations.uid AND r.reason = 'COMPROMISED'), 0),
			COALESCE((SELECT a.consent_time FROM applications a WHERE a.integration_uid = integrations.uid AND a.consented = 0), 0)
		FROM integrations WHERE `+tx.In(`uid`, which), args...)
	versions := liveVersions(tx, b, which, args...)
	return func() premises {
		p := premises{make(map[relation]grant.Standing, len(related)), make(map[string]Entitlement, len(integrations))}
		for _, r := range related {
			p.standings[r.relation] = r.Standing
		}
		of := map[string][]Live{}
		for _, v := range *versions {
			of[v.IntegrationUID] = append(of[v.IntegrationUID], v)
		}
		for _, e := range integrations {
			e.Versions = of[e.Integration.UID]
			p.integrations[e.Integration.UID] = e
		}
		return p
	}
}

// entitlement is a grant's, without a lease.
func (p premises) entitlement(g *grant.Grant) Entitlement {
	e := p.integrations[g.IntegrationUID]
	e.Standing = p.standings[relation{g.Account, g.IntegrationUID, g.ProjectUID, g.Access()}]
	e.Grant = *g
	return e
}

// relationColumns are a relation, of a grant g.
const relationColumns = `g.account, g.integration_uid, g.project_uid, g.access`

// standingColumns are how the grants g of a relation stand.
const standingColumns = `COALESCE((SELECT incarnation FROM projection WHERE singleton = 1), ''),
	COALESCE((SELECT revision FROM projection WHERE singleton = 1), 0),
	COALESCE((SELECT bookmark_time FROM projection WHERE singleton = 1), 0),
	EXISTS (SELECT 1 FROM integrations i WHERE i.uid = g.integration_uid AND i.deleting = 0),
	EXISTS (SELECT 1 FROM projects p WHERE p.uid = g.project_uid), ` + attached + `, ` + unlabelled + `, ` + frozen
