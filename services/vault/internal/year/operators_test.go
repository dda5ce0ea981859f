package year_test

import (
	"context"
	"errors"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
)

// operators have integrations rotated out of turn, now and then because a secret is in other hands, and pause rotation for some days.
func (w *world) operators(ctx context.Context) {
	dice := w.luck.dice("operators")
	who := grant.Caller{Identity: "operator"}
	for ctx.Err() == nil {
		sleep(ctx, time.Duration(dice.Int64N(int64(12*time.Hour))))
		all := w.registry.living()
		i := all[dice.IntN(len(all))]
		scope := []string{i.Name, "accounts/" + account, credential.Everything}[min(2, dice.IntN(20))]
		now := time.Now().Truncate(time.Microsecond)
		var err error
		switch n := dice.IntN(20); {
		case n < 8:
			err = w.rotate(ctx, now, i, credential.Scheduled, false)
		case n < 11:
			err = w.rotate(ctx, now, i, credential.Compromised, false)
		case n < 14:
			err = w.rotate(ctx, now, i, credential.Compromised, true)
		case n < 16:
			w.judge.count("pauses")
			end := now.Add(time.Hour + time.Duration(dice.Int64N(int64(credential.LongestPause-time.Hour))))
			err = w.store.PauseRotation(ctx, credential.Pause{Scope: scope, Reason: "why", CreateTime: now, ExpireTime: end}, who)
		case n < 19:
			err = w.store.ResumeRotation(ctx, now, scope, who)
		default:
			w.judge.count("batches")
			_, err = w.store.RequestBatch(ctx, now, credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, who)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, credential.ErrPaused) && w.judge.leftAt(i.UID).IsZero() {
			w.fail("operator: %v", err)
		}
	}
}

func (w *world) rotate(ctx context.Context, now time.Time, i *integration, reason credential.RotationReason, immediately bool) error {
	r, err := w.store.RequestRotation(ctx, now, credential.RotationRequest{Integration: i.Name, Reason: reason, Immediately: immediately}, grant.Caller{Identity: "operator"})
	if err != nil {
		return err
	}
	w.judge.count("rotations asked for, " + string(r.Reason))
	if r.Reason == credential.Compromised {
		w.judge.compromise(i.UID, compromise{id: r.ID, at: now, upTo: r.UpTo, immediately: r.Immediately})
	}
	return nil
}

// compromise is that somebody said that an integration's secrets are in other hands.
type compromise struct {
	id          string
	at          time.Time
	upTo        int64
	immediately bool
	// gone is set once it was seen to be over; activate is then when the next version became ACTIVE.
	gone     bool
	activate time.Time
}

func (j *judge) compromise(uid string, c compromise) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.compromises[uid] = append(j.compromises[uid], c)
}

// excused tells whether a version may be taken away from those who hold it. The lock is held.
func (j *judge) excused(uid string, number int64, at time.Time) bool {
	return slices.ContainsFunc(j.compromises[uid], func(c compromise) bool { return number <= c.upTo && !at.Before(c.at) })
}

// gaps are the spans in which somebody accepted that an integration has no version that works: until the next one is ACTIVE, and has reached all of
// Entra.
func (j *judge) gaps(ctx context.Context, uid string, now time.Time) (out []span) {
	j.mu.Lock()
	all := slices.Clone(j.compromises[uid])
	j.mu.Unlock()
	for _, c := range all {
		if !c.immediately {
			continue
		}
		gap := span{c.at, now}
		activate := c.activate
		if !c.gone {
			if r, err := j.asked(ctx, c.id); err == nil {
				activate = r.activate
			}
		}
		if !activate.IsZero() {
			gap.to = earlier(now, activate.Add(grace))
		}
		out = append(out, gap)
	}
	return append(out, j.dropGaps(j.rows(ctx, `integration_uid = $1 AND signing_key <> ''`, uid), now)...)
}

// gapped tells whether somebody accepted at some time in the span that nothing works.
func (j *judge) gapped(ctx context.Context, uid string, in span) bool {
	return slices.ContainsFunc(j.gaps(ctx, uid, in.to), func(gap span) bool { return gap.from.Before(in.to) && in.from.Before(gap.to) })
}

// askedRow is a rotation that was asked for, as the vault has it.
type askedRow struct {
	state         string
	activate, end time.Time
}

func (j *judge) asked(ctx context.Context, id string) (askedRow, error) {
	var r askedRow
	err := j.w.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		var activate, end int64
		err := tx.QueryRow(ctx, `SELECT state, activate_time, end_time FROM rotations WHERE id = $1`, id).Scan(&r.state, &activate, &end)
		r.activate, r.end = sqldb.Time(activate), sqldb.Time(end)
		return err
	})
	return r, err
}

// without is what is left of a span outside of others.
func without(s span, others []span) []span {
	left := []span{s}
	for _, o := range others {
		var next []span
		for _, s := range left {
			if before := (span{s.from, earlier(s.to, o.from)}); before.from.Before(before.to) {
				next = append(next, before)
			}
			if after := (span{later(s.from, o.to), s.to}); after.from.Before(after.to) {
				next = append(next, after)
			}
		}
		left = next
	}
	return left
}

// compromised judges that what is in other hands is gone soon, and that what is said to be gone is.
func (j *judge) compromised(ctx context.Context, i *integration, rows []row, now time.Time) {
	j.mu.Lock()
	all := slices.Clone(j.compromises[i.UID])
	j.mu.Unlock()
	for k, c := range all {
		if c.gone {
			continue
		}
		r, err := j.asked(ctx, c.id)
		if err != nil {
			if ctx.Err() == nil && j.leftAt(i.UID).IsZero() {
				j.w.fail("rotation %s of %s: %v", c.id, i.Name, err)
			}
			continue
		}
		if r.state == "COMPLETED" {
			j.mu.Lock()
			j.compromises[i.UID][k].gone, j.compromises[i.UID][k].activate = true, r.activate
			for _, v := range rows {
				if s := j.secrets[v.keyID]; v.number <= c.upTo && s != nil && (s.removed.IsZero() || s.removed.Truncate(time.Microsecond).After(r.end)) {
					j.w.fail("rotation %+v of %s is completed, and its secret %s was removed at %s", r, i.Name, v.keyID, s.removed.UTC())
				}
			}
			j.counts["compromised secrets replaced"]++
			j.mu.Unlock()
			continue
		}
		window := span{c.at, now}
		allowed := 6*time.Hour + j.w.weather.overlap(window, noSQL, noEntra, noGraph, throttled, lossy, noRedis, noSecrets)
		if now.Sub(c.at) > allowed && j.consented(i.UID, window) {
			j.w.fail("rotation %+v of %s was asked for %s ago\n%s", r, i.Name, now.Sub(c.at), j.table(rows))
			return
		}
	}
}

// told judges that a reader who has something of what is in other hands hears why it is given something else.
func (j *judge) told(b *job, d delivery.Delivery, at time.Time) {
	if b.held == nil || d.Reason == delivery.Initial || d.Version == b.held.Version {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	lost := slices.ContainsFunc(j.compromises[b.integration.UID], func(c compromise) bool { return b.held.Version <= c.upTo && d.Version > c.upTo })
	dropped, sure := j.inOtherHands(b, at)
	if !sure {
		return
	}
	lost = lost || dropped
	if lost != (d.Reason == delivery.Compromised) {
		j.w.fail("%s was given version %d after %d of %s, because: %s; in other hands: %t", b.name, d.Version, b.held.Version, b.integration.Name, d.Reason, lost)
	}
	if lost {
		j.counts["readers told of a compromise"]++
	}
	if dropped {
		j.counts["readers told of a dropped key"]++
	}
}
