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
			w.count("pauses")
			end := now.Add(time.Hour + time.Duration(dice.Int64N(int64(credential.LongestPause-time.Hour))))
			err = w.store.PauseRotation(ctx, credential.Pause{Scope: scope, Reason: "why", CreateTime: now, ExpireTime: end}, who)
		case n < 19:
			err = w.store.ResumeRotation(ctx, now, scope, who)
		default:
			w.count("batches")
			_, err = w.store.RequestBatch(ctx, now, credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, who)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, credential.ErrPaused) && !w.leaving(i.UID) {
			w.fail("operator: %v", err)
		}
	}
}

func (w *world) rotate(ctx context.Context, now time.Time, i *integration, reason credential.RotationReason, immediately bool) error {
	r, err := w.store.RequestRotation(ctx, now, credential.RotationRequest{Integration: i.Name, Reason: reason, Immediately: immediately}, grant.Caller{Identity: "operator"})
	if err != nil {
		return err
	}
	w.count("rotations asked for, " + string(r.Reason))
	if r.Reason == credential.Compromised {
		w.journal.tell(compromised{Integration: i.UID, Rotation: r.ID, At: now, UpTo: r.UpTo, Immediately: r.Immediately})
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

func (e compromised) happen(j *judge) {
	j.compromises[e.Integration] = append(j.compromises[e.Integration], compromise{id: e.Rotation, at: e.At, upTo: e.UpTo, immediately: e.Immediately})
}

// excused tells whether a version may be taken away from those who hold it.
func (j *judge) excused(uid string, number int64, at time.Time) bool {
	return slices.ContainsFunc(j.compromises[uid], func(c compromise) bool { return number <= c.upTo && !at.Before(c.at) })
}

// gaps are the spans in which somebody accepted that an integration has no version that works: until the next one is ACTIVE, and has reached all of
// Entra.
func (j *judge) gaps(uid string) (out []span) {
	for _, c := range j.compromises[uid] {
		if !c.immediately {
			continue
		}
		gap := span{c.at, j.now}
		activate := c.activate
		if !c.gone {
			activate = sqldb.Time(j.rotations[c.id].Activate)
		}
		if !activate.IsZero() {
			gap.to = earlier(j.now, activate.Add(grace))
		}
		out = append(out, gap)
	}
	return append(out, j.dropGaps(j.versions[uid])...)
}

// gapped tells whether somebody accepted at some time in the span that nothing works.
func (j *judge) gapped(uid string, in span) bool {
	return slices.ContainsFunc(j.gaps(uid), func(gap span) bool { return gap.from.Before(in.to) && in.from.Before(gap.to) })
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

// replaced judges that what is in other hands is gone soon, and that what is said to be gone is.
func (j *judge) replaced(uid string, i *integrationKnown, rows []row) {
	for k, c := range j.compromises[uid] {
		if c.gone {
			continue
		}
		r, known := j.rotations[c.id]
		if !known {
			if j.left[uid].IsZero() {
				j.fail("rotation %s of %s is not there", c.id, i.name)
			}
			continue
		}
		if r.State == "COMPLETED" {
			j.compromises[uid][k].gone, j.compromises[uid][k].activate = true, sqldb.Time(r.Activate)
			for _, v := range rows {
				if s := j.secrets[v.keyID]; v.number <= c.upTo && s != nil && (s.removed.IsZero() || s.removed.Truncate(time.Microsecond).After(sqldb.Time(r.End))) {
					j.fail("rotation %s of %s is completed since %s, and its secret %s was removed at %s", c.id, i.name, sqldb.Time(r.End).UTC(), v.keyID, s.removed.UTC())
				}
			}
			j.counts["compromised secrets replaced"]++
			continue
		}
		window := span{c.at, j.now}
		allowed := 6*time.Hour + j.weather.overlap(window, noSQL, noEntra, noGraph, throttled, lossy, noRedis, noSecrets)
		if j.now.Sub(c.at) > allowed && j.consented(uid, window) {
			j.fail("rotation %s of %s was asked for %s ago, and is %s\n%s", c.id, i.name, j.now.Sub(c.at), r.State, j.table(rows))
			return
		}
	}
}

// told judges that a reader who has something of what is in other hands hears why it is given something else.
func (j *judge) told(b *run, e receipt, at time.Time) {
	if b.held == nil || e.Reason == delivery.Initial || e.Version == b.held.Version {
		return
	}
	lost := slices.ContainsFunc(j.compromises[e.Integration], func(c compromise) bool { return b.held.Version <= c.upTo && e.Version > c.upTo })
	dropped, sure := j.inOtherHands(b, at)
	if !sure {
		return
	}
	lost = lost || dropped
	if lost != (e.Reason == delivery.Compromised) {
		j.fail("%s was given version %d after %d of %s, because: %s; in other hands: %t", e.Job, e.Version, b.held.Version, j.integrations[e.Integration].name, e.Reason, lost)
	}
	if lost {
		j.counts["readers told of a compromise"]++
	}
	if dropped {
		j.counts["readers told of a dropped key"]++
	}
}
