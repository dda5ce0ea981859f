package store

import (
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// lessees are those to whom a batch of deliveries goes, in statements: rows of the grants' keys, which are a column of theirs, and of the instances.
type lessees struct {
	key, rows string
	args      []any
	n         int
}

func lesseesOf(tx sqldb.Tx, batch []*ordered) lessees {
	if batch[0].choose != nil {
		asked := sqldb.NewValues("bt")
		for _, o := range batch {
			asked.Add(o.holder.token[:], o.holder.instanceID)
		}
		rows, args := tx.Values(asked)
		return lessees{`token_hash`, rows, args, len(batch)}
	}
	asked := sqldb.NewValues("tt")
	for _, o := range batch {
		asked.Add(o.GrantUID, o.InstanceID)
	}
	rows, args := tx.Values(asked)
	return lessees{`uid`, rows, args, len(batch)}
}

// grants is true of their grants.
func (l lessees) grants(tx sqldb.Tx) string { return tx.In(l.key, `SELECT column1 FROM `+l.rows+` v`) }

// lock adds to a batch what locks the grants, and reads the leases.
func (l lessees) lock(tx sqldb.Tx, b *sqldb.Batch) func() locked {
	type opened struct {
		grant.Grant
		token []byte
	}
	grants, leases := make([]*opened, 0, l.n), make([]lease.Lease, 0, l.n)
	sqldb.Into(b, &grants, func(row sqldb.Row) (*opened, error) {
		var o opened
		var err error
		o.Grant, err = scanGrant(row, &o.token)
		return &o, err
	}, `SELECT `+grantColumns+`, token_hash FROM grants WHERE `+l.grants(tx)+` ORDER BY uid`+tx.ForUpdate(), l.args...)
	// Whoever has the grant can open and close leases all day: those that are over must not make the others slow.
	sqldb.Into(b, &leases, scanLease, `SELECT `+leaseColumns+` FROM leases WHERE close_time = 0 AND `+tx.In(`grant_uid`, `SELECT uid FROM grants WHERE `+l.grants(tx))+`
		UNION ALL SELECT `+qualified("l", leaseColumns)+` FROM `+l.rows+` v JOIN grants g ON g.`+l.key+` = v.column1
			JOIN leases l ON l.grant_uid = g.uid AND l.instance_id = v.column2 AND l.close_time <> 0`, l.args...)
	return func() locked {
		all := locked{make(map[string]*grant.Grant, len(grants)), make(map[string]*grant.Grant, len(grants)), make(map[string][]lease.Lease, len(grants))}
		for _, o := range grants {
			all.grants[o.UID], all.byHash[string(o.token)] = &o.Grant, &o.Grant
		}
		for _, one := range leases {
			all.leases[one.GrantUID] = append(all.leases[one.GrantUID], one)
		}
		return all
	}
}

// premises adds to a batch what reads those of the grants.
func (l lessees) premises(tx sqldb.Tx, b *sqldb.Batch) func() premises {
	return readPremises(tx, b, l.grants(tx), l.args...)
}

// locked are grants that a transaction has the rows of, and of each the leases that lease.Admit decides by.
type locked struct {
	grants map[string]*grant.Grant
	byHash map[string]*grant.Grant // of the token
	leases map[string][]lease.Lease
}

// grantOf finds the grant that a delivery is by.
func (l locked) grantOf(o *ordered) (*grant.Grant, error) {
	if o.choose != nil {
		if g := l.byHash[string(o.holder.token[:])]; g != nil {
			return g, nil
		}
		return nil, grant.ErrUnknown
	}
	g := l.grants[o.GrantUID]
	switch {
	case g == nil:
		return nil, grant.ErrNotFound
	case o.Token != (grant.Hash{}) && l.byHash[string(o.Token[:])] != g:
		return nil, grant.ErrUnknown // another token has replaced it meanwhile
	default:
		return g, nil
	}
}
