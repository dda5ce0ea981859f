package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/store"
)

// errMastershipShort means that a request was not started because the mastership could end before it.
var errMastershipShort = errors.New("too little mastership is left")

// turn is one integration's turn: it does what is to be done until there is nothing left before some later time.
type turn struct {
	w    *Worker
	m    election.Mastership
	uid  string
	log  *slog.Logger
	spec directory.Spec
	// facts are what the last step left.
	facts store.Facts
	cloud Directory
	// reportFailed is set once the registry did not take a report; it is tried again in the next turn.
	reportFailed bool
	// over is set while what was committed last leaves nothing to do before nextTime.
	over     bool
	nextTime time.Time
	// due is since when a write to Graph has been wanted. held is set while that is kept from it by what is short for all: Graph's budget, or the mastership.
	due  time.Time
	held bool
}

// turn gives one integration its turn, and says when the next will be: zero for never, or where only a look at the shard can tell.
func (w *Worker) turn(ctx context.Context, m election.Mastership, uid string) (next time.Time, err error) {
	t := &turn{w: w, m: m, uid: uid, log: w.config.Log.With(slog.String(keyIntegration, uid))}
	err = t.take(ctx)
	return t.nextTime, err
}

func (t *turn) take(ctx context.Context) error {
	w := t.w
	for range maxSteps {
		var err error
		t.facts, err = w.config.Store.Facts(ctx, t.uid)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil // forgotten meanwhile
		}
		if err != nil {
			return err
		}
		if t.due.IsZero() {
			t.due = sooner(t.facts.DueTime, sooner(t.facts.NextTime, time.Now()))
		}
		t.spec = w.spec(t.facts.Integration)
		t.facts.Wanted.SpecDigest = digest(t.spec)
		if trusts := w.trusts(t.uid); trusts != nil {
			t.facts.Trust.Digest = digest(trusts)
		}
		if t.facts.Wanted.Present {
			t.cloud, err = w.config.Clouds.in(t.facts.Integration.Cloud)
			t.facts.Wanted.NoCloud = err != nil
			if err := t.report(ctx); err != nil {
				return err
			}
		}
		now := time.Now()
		action := credential.Decide(now, t.facts.Facts, w.config.Timing)
		if wait, ok := action.(credential.Wait); ok {
			return t.wait(ctx, now, wait)
		}
		if at := t.permit(ctx, action); !at.IsZero() {
			return t.wait(ctx, time.Now(), credential.Wait{Until: at})
		}
		t.over = false
		if err := t.do(ctx, action); err != nil {
			return fmt.Errorf("%s: %w", action.Op(), err)
		}
		if t.over {
			return nil
		}
	}
	t.nextTime = time.Now()
	return nil
}

// spec is what an integration's application shall look like.
func (w *Worker) spec(i store.Integration) directory.Spec {
	return directory.Spec{
		UniqueName:  "phasekey-" + w.config.DeploymentID + "-" + i.UID,
		DisplayName: fmt.Sprintf("%s %s (%s)", w.config.NamePrefix, i.DisplayName, i.UID[:min(8, len(i.UID))]),
		RedirectURI: w.config.RedirectURI,
	}
}

// wait ends the turn.
func (t *turn) wait(ctx context.Context, now time.Time, wait credential.Wait) error {
	switch {
	case wait.Unlisted:
		t.log.ErrorContext(ctx, "integration is not in the registry's list; nothing is done about it")
	case t.facts.Wanted.NoCloud:
		t.log.ErrorContext(ctx, "integration is in a cloud that is not configured; nothing is done about it", slog.String(keyCloud, t.facts.Integration.Cloud))
	}
	until := wait.Until
	if t.reportFailed {
		until = sooner(until, now.Add(reportRetry))
	}
	t.nextTime = until
	return t.w.config.Store.Commit(ctx, t.m, store.Step{
		IntegrationUID: t.uid, Now: now, NextTime: until, Touches: t.facts.Touches, DueTime: t.dueTime(wait.Again),
		Unlisted: wait.Unlisted,
	})
}

// dueTime is since when a write to Graph waits; zero when none does. wanted says that one is wanted, or may be.
func (t *turn) dueTime(wanted bool) time.Time {
	switch {
	case t.held:
		return t.due
	case wanted:
		return t.facts.DueTime
	}
	return time.Time{}
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// apply commits a change that nothing was asked for.
func (t *turn) apply(ctx context.Context, change credential.Change) error {
	now := time.Now()
	after := t.facts.With(change)
	next, over, wanted := t.next(now, after)
	if err := t.w.config.Store.Commit(ctx, t.m, store.Step{
		IntegrationUID: t.uid, Now: now, Change: change, NextTime: next, Touches: t.facts.Touches, DueTime: t.dueTime(wanted),
	}); err != nil {
		return err
	}
	t.nextTime, t.over = next, over
	t.told(ctx, change)
	t.facts.Facts = after
	return nil
}

// learn commits what a request told, although the mastership's context may have ended meanwhile: the fence says whether it
// may. A database that is away for a moment must not lose it either: a password's text is told only once.
func (t *turn) learn(ctx context.Context, change credential.Change) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	for delay := 100 * time.Millisecond; ; delay *= 2 {
		err := t.apply(ctx, change)
		if !errors.Is(err, sqldb.ErrUnavailable) {
			return err
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}

// next is when there is something to do after a step; over, that it is nothing of this turn's, and wanted, that it may be a write to Graph. A report that is due is
// something to do at once.
func (t *turn) next(now time.Time, after credential.Facts) (next time.Time, over, wanted bool) {
	next, wanted = now, true
	if wait, ok := credential.Decide(now, after, t.w.config.Timing).(credential.Wait); ok {
		next, over, wanted = wait.Until, true, wait.Again
	}
	switch {
	case !after.Wanted.Present || t.reportOf(now, after).digest(t.facts.Incarnation) == after.Application.ReportDigest:
		return next, over, wanted
	case t.reportFailed:
		return sooner(next, now.Add(reportRetry)), over, wanted
	}
	return now, false, wanted
}

// told logs and counts the transitions of a change, and has streams told.
func (t *turn) told(ctx context.Context, change credential.Change) {
	changed := false
	for _, m := range change.Moves {
		i := slices.IndexFunc(t.facts.Versions, func(v credential.Version) bool { return v.ID == m.Version.ID })
		if i >= 0 && m.Version.UnreadableSince(t.facts.Versions[i]) {
			t.w.metrics.unreadable.Inc()
			t.log.ErrorContext(ctx, "client secret cannot be opened; another one is made", slog.String(keyVersion, m.Version.ID), slog.Int64(keyNumber, m.Version.Number))
		}
		if m.From == m.Version.State {
			continue
		}
		changed = true
		t.w.metrics.transitions.WithLabelValues(string(m.Version.State)).Inc()
		if m.Version.State == credential.Active && len(change.Moves) > 1 {
			t.w.metrics.rotations.Inc()
		}
		t.log.InfoContext(ctx, "credential version changed state", slog.String(keyVersion, m.Version.ID), slog.Int64(keyNumber, m.Version.Number),
			slog.String(keyFrom, string(m.From)), slog.String(keyTo, string(m.Version.State)), slog.String(obs.KeyReason, m.Version.Reason))
	}
	if change.Application != nil && change.Application.Consented != t.facts.Application.Consented {
		changed = true
		t.log.InfoContext(ctx, "consent changed", slog.Bool("consented", change.Application.Consented), slog.String(keyCode, change.Application.ConsentCode))
	}
	if changed {
		t.w.config.Notify(t.uid)
	}
}

// do carries out one action.
func (t *turn) do(ctx context.Context, action credential.Action) error {
	switch a := action.(type) {
	case credential.Apply:
		return t.apply(ctx, a.Change)
	case credential.Ensure:
		return t.ensure(ctx)
	case credential.Read:
		return t.read(ctx)
	case credential.Add:
		return t.add(ctx, a)
	case credential.AskHome:
		return t.askHome(ctx, a.Version)
	case credential.Ask:
		return t.ask(ctx, a.Version)
	case credential.Prove:
		return t.prove(ctx, a.Version)
	case credential.EnsureTrust:
		return t.ensureTrust(ctx)
	case credential.Untrust:
		return t.untrust(ctx)
	case credential.Begin:
		return t.begin(ctx)
	case credential.Remove:
		return t.request(ctx, a, func(ctx context.Context) error {
			return t.cloud.RemovePassword(ctx, t.facts.Application.ObjectID, a.Version.KeyID)
		}, func(now time.Time) credential.Change {
			return t.facts.Removed(now, a.Version)
		}, func(now time.Time, f credential.Failure) credential.Change {
			change := t.facts.RemoveFailed(now, t.w.config.Timing, a.Version, f)
			if change.Moves[0].Version.RemoveTime.IsZero() {
				t.log.WarnContext(ctx, "password that is to go could not be removed", slog.String(keyVersion, a.Version.ID), slog.Int64(keyNumber, a.Version.Number),
					slog.String("key_id", a.Version.KeyID), slog.String("name", a.Version.Name), slog.String(keyCode, f.Code))
			}
			return change
		})
	case credential.Sweep:
		return t.request(ctx, a, func(ctx context.Context) error {
			return t.cloud.RemovePassword(ctx, t.facts.Application.ObjectID, a.Stray.KeyID)
		}, func(now time.Time) credential.Change {
			t.log.WarnContext(ctx, "password that nobody can use was removed", slog.String("key_id", a.Stray.KeyID), slog.String("name", a.Stray.Name))
			return t.facts.Swept(now, a.Stray)
		}, func(now time.Time, f credential.Failure) credential.Change {
			t.log.WarnContext(ctx, "password that nobody can use could not be removed", slog.String("key_id", a.Stray.KeyID), slog.String("name", a.Stray.Name), slog.String(keyCode, f.Code))
			return t.facts.SweepFailed(now, t.w.config.Timing, a.Stray, f)
		})
	case credential.EndLeases:
		return t.endLeases(ctx)
	case credential.Delete:
		return t.request(ctx, a, func(ctx context.Context) error {
			return t.cloud.DeleteApplication(ctx, t.facts.Application.ObjectID)
		}, t.facts.Deleted, func(now time.Time, f credential.Failure) credential.Change {
			return t.facts.DeleteFailed(now, t.w.config.Timing, f)
		})
	case credential.Purge:
		return t.request(ctx, a, func(ctx context.Context) error {
			return t.cloud.PurgeApplication(ctx, t.facts.Application.ObjectID)
		}, t.facts.Purged, func(now time.Time, f credential.Failure) credential.Change {
			return t.facts.PurgeFailed(now, t.w.config.Timing, f)
		})
	case credential.Forget:
		return t.forget(ctx)
	}
	return fmt.Errorf("action %T is not known", action)
}

// endLeases has nothing delivered from the integration any more, and what was delivered released.
func (t *turn) endLeases(ctx context.Context) error {
	now := time.Now()
	change := t.facts.LeasesEnded(now)
	next, _, wanted := t.next(now, t.facts.With(change))
	ended, err := t.w.config.Store.EndLeases(ctx, t.m, store.Step{
		IntegrationUID: t.uid, Now: now, Change: change, NextTime: next, Touches: t.facts.Touches, DueTime: t.dueTime(wanted),
	})
	if err != nil {
		return err
	}
	if ended > 0 {
		t.log.InfoContext(ctx, "leases of an integration that is being deleted were ended", slog.Int(keyLeases, ended))
	}
	t.w.config.Notify(t.uid)
	return nil
}

func (t *turn) failed(now time.Time, f credential.Failure) credential.Change {
	return t.facts.ApplicationFailed(now, t.w.config.Timing, f)
}

// call makes one request, with a timeout that the mastership outlives. The error is the request's, or errMastershipShort, or
// ctx's when that ended: then nothing is known.
func (t *turn) call(ctx context.Context, op string, request func(ctx context.Context) error) (refused, err error) {
	if election.Left(ctx) < t.w.config.Timeout {
		return nil, errMastershipShort
	}
	callCtx, cancel := context.WithTimeout(ctx, t.w.config.Timeout)
	defer cancel()
	refused = request(callCtx)
	t.w.metrics.calls.WithLabelValues(op, className(refused)).Inc()
	if refused == nil {
		return nil, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	t.log.DebugContext(ctx, "request refused", slog.String(keyOp, op), slog.String(keyClass, className(refused)), slog.Any(obs.KeyError, refused))
	return refused, nil
}

// request makes one request to Graph and commits what it told.
func (t *turn) request(ctx context.Context, action credential.Action, request func(ctx context.Context) error,
	done func(now time.Time) credential.Change, failed func(now time.Time, f credential.Failure) credential.Change,
) error {
	refused, err := t.graph(ctx, action.Op(), request)
	if err != nil {
		return err
	}
	if refused != nil {
		return t.learn(ctx, failed(time.Now(), failureOf(refused)))
	}
	return t.learn(ctx, done(time.Now()))
}

func (t *turn) ensure(ctx context.Context) error {
	if err := t.apply(ctx, t.facts.Ensuring(time.Now())); err != nil {
		return err
	}
	ensure, failed := t.cloud.EnsureApplication, t.failed
	if t.facts.Application.ObjectID != "" {
		// Never made again in passing: consent would be lost, and what is in the directory's bin could not be restored any more.
		ensure, failed = t.cloud.RepairApplication, t.missed(ctx)
	}
	var made directory.Application
	return t.request(ctx, credential.Ensure{}, func(ctx context.Context) (err error) {
		made, err = ensure(ctx, t.spec)
		return err
	}, func(now time.Time) credential.Change {
		out := application(made)
		out.DisplayName = t.spec.DisplayName
		return t.facts.Ensured(now, out)
	}, failed)
}

// missed takes in that looking at the application failed, which may be because it is not there.
func (t *turn) missed(ctx context.Context) func(now time.Time, f credential.Failure) credential.Change {
	return func(now time.Time, f credential.Failure) credential.Change {
		if f.Kind != credential.Missing {
			return t.failed(now, f)
		}
		level := slog.LevelError
		if now.Before(t.facts.Application.EnsureTime.Add(t.w.config.Timing.PropagationLimit)) {
			// A replica that has not heard of it yet.
			level = slog.LevelDebug
		}
		if t.facts.Application.ObjectID != "" && !t.facts.Wanted.Deleting {
			t.log.Log(ctx, level, "application is not found at Entra")
		}
		return t.facts.ReadMissed(now)
	}
}

func (t *turn) read(ctx context.Context) error {
	var found directory.Application
	return t.request(ctx, credential.Read{}, func(ctx context.Context) (err error) {
		found, err = t.cloud.FindApplication(ctx, t.spec.UniqueName)
		return err
	}, func(now time.Time) credential.Change {
		known := t.facts.Application
		if known.ObjectID != "" && known.ObjectID != found.ObjectID {
			t.log.ErrorContext(ctx, "application was replaced by another of its name")
			return t.facts.Replaced(now, application(found))
		}
		made := application(found)
		for _, trust := range found.Trusts {
			if !slices.Contains(t.w.trusts(t.uid), trust) {
				made.ForeignTrusts++
			}
		}
		change := t.facts.ReadFound(now, t.w.config.DeploymentID, made)
		if a := change.Application; a.ForeignPasswords > known.ForeignPasswords || a.ForeignTrusts > known.ForeignTrusts {
			t.log.WarnContext(ctx, "application has credentials that are not ours", slog.Int(keyPasswords, a.ForeignPasswords), slog.Int(keyTrusts, a.ForeignTrusts))
		}
		return change
	}, t.missed(ctx))
}

func (t *turn) add(ctx context.Context, a credential.Add) error {
	var change credential.Change
	v := a.Version
	if v.ID == "" {
		change, v = t.facts.Intending(time.Now(), t.w.config.DeploymentID, uuid.NewString())
	} else {
		change, v = t.facts.Resending(time.Now(), v)
	}
	if err := t.apply(ctx, change); err != nil {
		return err
	}
	var (
		made directory.Password
		text secret.Text
	)
	refused, err := t.graph(ctx, a.Op(), func(ctx context.Context) (err error) {
		made, text, err = t.cloud.AddPassword(ctx, t.facts.Application.ObjectID, v.Name, a.End)
		return err
	})
	if errors.Is(err, errMastershipShort) {
		// Nothing was sent, and that can still be said.
		refused, err = &directory.Error{Op: a.Op(), Class: directory.Transient, Err: err}, nil
	}
	if err != nil {
		return err
	}
	if refused != nil {
		t.log.WarnContext(ctx, "password could not be made", slog.String(keyVersion, v.ID), slog.String(keyClass, className(refused)), slog.Any(obs.KeyError, refused))
		return t.learn(ctx, t.facts.AddFailed(time.Now(), t.w.config.Timing, v, failureOf(refused)))
	}
	sealed, err := t.w.config.Keyring.Seal(credential.SealedAs(v.ID), text)
	if err != nil {
		v.KeyID = made.KeyID
		return errors.Join(fmt.Errorf("seal %s: %w", v, err), t.learn(ctx, t.facts.AddFailed(time.Now(), t.w.config.Timing, v,
			credential.Failure{Kind: credential.Refused, Code: "SealFailed"})))
	}
	return t.learn(ctx, t.facts.Added(time.Now(), v, password(made), sealed))
}

func application(a directory.Application) credential.MadeApplication {
	out := credential.MadeApplication{ObjectID: a.ObjectID, ClientID: a.ClientID, DisplayName: a.DisplayName}
	for _, p := range a.Passwords {
		out.Passwords = append(out.Passwords, password(p))
	}
	return out
}

func password(p directory.Password) credential.MadePassword {
	return credential.MadePassword{KeyID: p.KeyID, Name: p.DisplayName, StartTime: p.StartTime, EndTime: p.EndTime}
}

// digest stands for a value: equal values, and practically only those, have the same.
func digest(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return "" // not for the plain structs this is used with
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
