package main

const vault = "services/vault/internal/"

// keys is a part of it in which half of the integrations have no secret.
func keys(more ...string) []string {
	return year(append([]string{"-year.days=8", "-year.federated=2"}, more...)...)
}

// year is a short part of the simulated year that meets most of what goes wrong in a whole one: as its scheduler is not seeded, in one of three goes.
func year(more ...string) []string {
	return append([]string{"./services/vault/internal/year", "-count=3", "-run=TestYear", "-year.days=4", "-year.integrations=6", "-year.leases=8"}, more...)
}

// mistakes are what somebody could get wrong.
var mistakes = []mistake{
	{
		name: "the fence reads the shard's row instead of writing it",
		file: vault + "fence/fence.go",
		from: `	kept, err := tx.Exec(ctx, ` + "`UPDATE shards SET writes = writes + 1 WHERE shard = $1 AND epoch = $2 AND holder = $3`" + `, m.Shard, m.Epoch, m.Holder)
`,
		to: `	var kept int64
	err := tx.QueryRow(ctx, ` + "`SELECT COUNT(*) FROM shards WHERE shard = $1 AND epoch = $2 AND holder = $3`" + `, m.Shard, m.Epoch, m.Holder).Scan(&kept)
`,
		test: []string{"./services/vault/internal/fence"},
	},
	{
		name: "a former master's write lands",
		file: vault + "fence/fence.go",
		from: `	if kept == 0 {
`,
		to: `	if kept < 0 {
`,
		test: year("-year.pauses=10"), says: "I5:",
	},
	{
		name: "a version is promoted after one proof",
		file: vault + "credential/decide.go",
		from: `	case v.Proofs >= p.t.Proofs:
		if !p.due`,
		to: `	case v.Proofs >= 1:
		if !p.due`,
		test: year(), says: "I2:",
	},
	{
		name: "a refusal does not begin the proofs anew",
		file: vault + "credential/proof.go",
		from: `	v.Refusals++
	v.Proofs = 0
`,
		to: `	v.Refusals++
`,
		test: year(), says: "I2:",
	},
	{
		name: "proofs follow each other at once",
		file: vault + "credential/decide.go",
		from: `	spacing := p.t.ProofSpacing
	if v.Refusals > 0 {
		spacing = p.patience(v.PropagateTime, v.ProbeTime)`,
		to: `	spacing := time.Duration(0)
	if v.Refusals > 0 {
		spacing = p.patience(v.PropagateTime, v.ProbeTime)`,
		test: year(), says: "I2:",
	},
	{
		name: "requests for a token share a connection",
		file: vault + "entra/directory.go",
		from: `DisableKeepAlives:     fresh,`,
		to:   `DisableKeepAlives:     false,`,
		test: []string{"./services/vault/internal/entra", "-run=TestNetwork"},
	},
	{
		name: "a tenant that refuses a token is asked in its turn",
		file: vault + "credential/decide.go",
		from: `	case !f.Probe.WantTime.Equal(a.SeenWantTime), v.State == Active`,
		to:   `	case v.State == Active`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "consent that is lost is told with what is due next",
		file: vault + "rotation/turn.go",
		from: `		return sooner(next, now.Add(reportRetry)), over, wanted
	}
	return now, false, wanted
`,
		to: `		return sooner(next, now.Add(reportRetry)), over, wanted
	}
	return next, over, wanted
`,
		test: year(), says: "and nobody says so",
	},
	{
		name: "a version is promoted before all of Entra knows it",
		file: vault + "credential/decide.go",
		from: `		return v.AddTime.Add(p.t.Settling)
`,
		to: `		return v.AddTime
`,
		test: year(), says: "I2:",
	},
	{
		name: "a replaced version is removed at once",
		file: vault + "credential/decide.go",
		from: `	if !p.due(v.RetireTime.Add(p.t.Retiring)) {
		return false
	}
`,
		to:   ``,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "who holds a secret is not asked before it is revoked",
		file: vault + "credential/decide.go",
		from: `	if v.Holders > 0 {
		// Whoever lets go of it makes the integration due.
		return false
	}
`,
		to:   ``,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "who lets go of a secret tells nobody",
		file: vault + "store/holdings.go",
		from: `	if err := touch(ctx, tx, g.IntegrationUID, now); err != nil {
		return err
	}
`,
		to:   ``,
		test: []string{"./services/vault/internal/rotation", "-run=KeepsWhatIsHeld"},
	},
	{
		name: "a secret that is held is revoked",
		file: vault + "store/versions.go",
		from: `AND ($24 = 0 OR holders = 0)`,
		to:   `AND ($24 = 0 OR holders >= 0)`,
		test: []string{"./services/vault/internal/store", "-run=Hold|Master"},
	},
	{
		name: "a password is asked for before the intent is stored",
		file: vault + "rotation/turn.go",
		from: `	if err := t.apply(ctx, change); err != nil {
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
`,
		to: `	var (
		made directory.Password
		text secret.Text
	)
	refused, err := t.graph(ctx, a.Op(), func(ctx context.Context) (err error) {
		made, text, err = t.cloud.AddPassword(ctx, t.facts.Application.ObjectID, v.Name, a.End)
		return err
	})
	if err := t.learn(ctx, change); err != nil {
		return err
	}
`,
		test: []string{"./services/vault/internal/rotation"},
	},
	{
		name: "no intent is stored before a password is asked for",
		file: vault + "rotation/turn.go",
		from: `	if err := t.apply(ctx, change); err != nil {
		return err
	}
	var (
		made directory.Password`,
		to: `	_ = change
	var (
		made directory.Password`,
		test: []string{"./services/vault/internal/rotation"},
	},
	{
		name: "what was learnt is not written once the mastership is over",
		file: vault + "rotation/turn.go",
		from: `context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)`,
		to:   `context.WithTimeout(ctx, recordTimeout)`,
		test: []string{"./services/vault/internal/rotation"},
	},
	{
		name: "a request is sent with less mastership left than it may take",
		file: vault + "rotation/turn.go",
		from: `	if election.Left(ctx) < t.w.config.Timeout {
		return nil, errMastershipShort
	}
`,
		to:   ``,
		test: []string{"./services/vault/internal/rotation"},
	},
	{
		name: "one read is enough to remove a password that nobody knows",
		file: vault + "credential/decide.go",
		from: `s.LastTime.Sub(s.FirstTime) >= p.t.ReconcileInterval &&`,
		to:   `s.LastTime.Sub(s.FirstTime) >= 0 &&`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "a password that nobody knows is removed without a version that works",
		file: vault + "credential/decide.go",
		from: `	active, ok := p.facts.ByState(Active)
	return ok && active.Works(p.now, p.t) && active.ProveTime.After(p.facts.Application.ReadTime)
`,
		to: `	return true
`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "a delivery leaves although its record failed",
		file: vault + "delivery/offer.go",
		from: `		h.config.Issuer.Drop(o.versionID)
	}
	if err != nil {
		return nil, err
	}
`,
		to: `		h.config.Issuer.Drop(o.versionID)
	}
`,
		test: []string{"./services/vault/internal/delivery"},
	},
	{
		name: "what is renewed leaves while it is being recorded",
		file: vault + "delivery/offer.go",
		from: `	l, err := h.config.Store.Deliver(ctx, now, d)
`,
		to: `	record := h.config.Store.Deliver
	if e.Lease.UID != "" {
		record = func(ctx context.Context, now time.Time, d store.Delivery) (lease.Lease, error) {
			go func() { _, _ = h.config.Store.Deliver(context.WithoutCancel(ctx), now, d) }()
			l := e.Lease
			l.Generation++
			return l, nil
		}
	}
	l, err := record(ctx, now, d)
`,
		test: year(), says: "I6:",
	},
	{
		name: "nobody looks for another token before the one that is held has ended",
		file: vault + "delivery/stream.go",
		from: `	at := held.renewTime
`,
		to: `	at := held.end
`,
		test: year(), says: "had no token",
	},
	{
		name: "who is given a secret does not count",
		file: vault + "store/holdings.go",
		from: `SET holders = holders + $3 WHERE`,
		to:   `SET holders = holders + 0 * $3 WHERE`,
		test: year("-year.leases=24"), says: "I3:",
	},
	{
		name: "a password that nobody knows is never removed",
		file: vault + "credential/decide.go",
		from: `	for _, s := range p.facts.Strays {
		if p.nobodys(s)`,
		to: `	for _, s := range p.facts.Strays[:0] {
		if p.nobodys(s)`,
		test: year("-year.days=12", "-year.integrations=12"), says: "I4:",
	},
	{
		name: "the SDK repeats what it is not told about",
		file: vault + "entra/directory.go",
		from: `MaxRetries: -1`,
		to:   `MaxRetries: 0`,
		test: []string{"./services/vault/internal/entra"},
	},
	{
		name: "a refused token is not asked for with the version before",
		file: vault + "issuer/issuer.go",
		from: `		if !refused(err) {
			break // another version would be told the same
		}
`,
		to: `		break
`,
		test: []string{"./services/vault/internal/issuer"},
	},
	{
		name: "what is compromised goes before there is another one",
		file: vault + "credential/order.go",
		from: `			if atOnce {
				next.State`,
		to: `			if ok {
				next.State`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "what is compromised stays while the tenant lets nobody in",
		file: vault + "credential/order.go",
		from: `atOnce := !f.Application.Consented || v.ended(p.now) || v.Number`,
		to:   `atOnce := v.ended(p.now) || v.Number`,
		test: []string{"./services/vault/internal/rotation", "-run=TakesBack"},
	},
	{
		name: "an integration whose end the registry knows is called missing",
		file: vault + "credential/decide.go",
		from: `	case !facts.Wanted.Present && p.dismantled():`,
		to:   `	case !facts.Wanted.Present && p.dismantled() && p.now.IsZero():`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "what waits for Graph is due anew at each try",
		file: vault + "rotation/graph.go",
		from: `	t.held = t.held || kind == budget.Write && !at.IsZero()
`,
		to: `	t.held = t.held && kind == budget.Write && !at.IsZero()
`,
		test: []string{"./services/vault/internal/rotation", "-run=MeasuresWhatWaits"},
	},
	{
		name: "what is compromised is forgotten with a rotation that is abandoned",
		file: vault + "credential/order.go",
		from: `	if r.State == RotationAbandoned {
		if gone {
			r.EndTime = now
		}
`,
		to: `	if r.State == RotationAbandoned {
		r.EndTime = now
`,
		test: []string{"./services/vault/internal/rotation", "-run=TakesBack"},
	},
	{
		name: "what is compromised stays while somebody holds it",
		file: vault + "credential/order.go",
		from: `				c.Moves[0].DespiteHolders = true
`,
		to:   ``,
		test: []string{"./services/vault/internal/rotation", "-run=Compromised"},
	},
	{
		name: "a rotation is said to be over while an old password is there",
		file: vault + "credential/order.go",
		from: `return v.Number <= r.UpTo })
	if gone`,
		to: `return v.Number <= r.UpTo && v.State == Active })
	if gone`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "a pause outlasts the last secret",
		file: vault + "credential/order.go",
		from: `at = latest(at, earliest(f.PauseEndTime, last))`,
		to:   `at = latest(at, f.PauseEndTime)`,
		test: []string{"./services/vault/internal/rotation", "-run=Pauses"},
	},
	{
		name: "a batch begins with everything at once",
		file: vault + "store/batches.go",
		from: `batchWindow-waiting)`,
		to:   `1000*batchWindow-waiting)`,
		test: []string{"./services/vault/internal/store", "-run=Batches"},
	},
	{
		name: "a batch waits for consent that never comes",
		file: vault + "store/batches.go",
		from: `
			AND ($2 = 'COMPROMISED' OR state_reason <> 'AwaitingConsent'))`,
		to:   ` AND $2 <> '')`,
		test: []string{"./services/vault/internal/rotation", "-run=Batch"},
	},
	{
		name: "a compromise of everything misses what was just being made",
		file: vault + "store/batches.go",
		from: `('INTENDED', 'STAGED',`,
		to:   `('STAGED',`,
		test: []string{"./services/vault/internal/store", "-run=Batches"},
	},
	{
		name: "a batch begins with those again that others have rotated meanwhile",
		file: vault + "store/batches.go",
		from: ` AND v.number <= q.up_to AND`,
		to:   ` AND`,
		test: []string{"./services/vault/internal/store", "-run=Batches"},
	},
	{
		name: "what a batch has yet to begin with is of no shard after another division",
		file: vault + "fence/reshard.go",
		from: `, {"rotation_queue", "integration_uid"}`,
		to:   ``,
		test: []string{"./services/vault/internal/fence", "-run=Reshard"},
	},
	{
		name: "a secret is given away that was refused",
		file: vault + "store/holdings.go",
		from: `AND state = 'ACTIVE' AND refusals = 0`,
		to:   `AND state = 'ACTIVE'`,
		test: []string{"./services/vault/internal/store", "-run=Holdings"},
	},
	{
		name: "a secret is held for as long as it lives",
		file: vault + "delivery/offer.go",
		from: `longest.Before(limit) {`,
		to:   `limit.IsZero() {`,
		test: []string{"./services/vault/internal/rpc", "-run=ForADay"},
	},
	{
		name: "who has what is in other hands is not told why it is replaced",
		file: vault + "delivery/stream.go",
		from: `held.versionID && compromised:`,
		to:   `held.versionID && compromised && due && extended:`,
		test: []string{"./services/vault/internal/delivery"},
	},
	{
		name: "the newest key signs for everybody",
		file: "services/vault/internal/signer/signer.go",
		from: `	key := k.private[keyID]
	if`,
		to: `	if newest, ok := signingkey.Current(k.keys); ok {
		keyID = newest.ID
	}
	key := k.private[keyID]
	if`,
		test: []string{"./services/vault/internal/signer"},
	},
	{
		name: "a key that still signs for some is not published any more",
		file: "services/vault/internal/signer/keys.go",
		from: `			if k.State != state {`,
		to:   `			if k.State != state || state == signingkey.Signing && len(set.Keys) > 0 {`,
		test: keys(), says: "I1:",
	},
	{
		name: "an application is not trusted any more while a version stands on that",
		file: "services/vault/internal/credential/federated.go",
		from: `		if v.Federated() {
			return nil`,
		to: `		if v.Federated() && v.State == Propagating {
			return nil`,
		test: keys(), says: "had no ", // version that works, or, where a runner finds out first, token
	},
	{
		name: "who has something under a key that is in other hands is not told",
		file: "services/vault/internal/delivery/stream.go",
		from: `return h.config.Store.SigningKeyCompromised(ctx, held.signingKey)`,
		to:   `return false, nil`,
		test: keys("-year.seed=4", "-year.leases=16"), says: "in other hands: true",
	},
	{
		name: "a secret is in the log",
		file: vault + "rotation/turn.go",
		from: `	sealed, err := t.w.config.Keyring.Seal(`,
		to: `	t.log.InfoContext(ctx, "password made", slog.String("text", text.Expose()))
	sealed, err := t.w.config.Keyring.Seal(`,
		test: year("-year.days=1"), says: "I7:",
	},
	{
		name: "only the newest signing key is followed",
		file: vault + "rotation/federated.go",
		from: `slices.Equal(trust.Usable, s.signingKeys)`,
		to:   `len(trust.Usable) > 0 && slices.Equal(trust.Usable[:1], s.signingKeys[:min(1, len(s.signingKeys))])`,
		test: []string{"./services/vault/internal/rotation", "-run=ADroppedKey"},
	},
	{
		name: "an application that somebody deleted is made anew",
		file: vault + "rotation/turn.go",
		from: `	if t.facts.Application.ObjectID != "" {
		// Never`,
		to: `	if t.facts.Wanted.Deleting {
		// Never`,
		test: []string{"./services/vault/internal/rotation", "-run=MakesNoDeletedApplicationAnew"},
	},
	{
		name: "that a policy forbids secrets is not told",
		file: vault + "credential/condition.go",
		from: `	case a.AddRefusal != "" && !f.Wanted.Federated:`,
		to:   `	case a.AddRefusal != "" && f.Wanted.Federated:`,
		test: []string{"./services/vault/internal/rotation", "-run=SaysThatNoPasswordMayBeMade"},
	},
	{
		name: "what is always refused in words that are known is proven for ever",
		file: vault + "rotation/proof.go",
		from: `code != "" && !away(refused):`,
		to:   `code != "" && !away(refused) && directory.ClassOf(refused) == directory.Unclassified:`,
		test: []string{"./services/vault/internal/rotation", "-run=GivesUpWhatIsAlwaysRefused"},
	},
	{
		name: "the delay before a removal counts from its decision",
		file: vault + "credential/outcome.go",
		from: `v.NextTime = now.Add(t.RemoveDelay)`,
		to:   `v.NextTime = v.RevokeTime.Add(t.RemoveDelay)`,
		test: []string{"./services/vault/internal/rotation", "-run=RemovesTenSeconds"},
	},
	{
		name: "a secret that cannot be opened any more is asked with for ever",
		file: vault + "keyring/keyring.go",
		from: `return errors.Is(err, ErrUnknownKey) || errors.Is(err, ErrCorrupt)`,
		to:   `return err != nil && err == nil`,
		test: []string{"./services/vault/internal/rotation", "-run=ReplacesWhatItCannotOpen"},
	},
	{
		name: "masters go on across a database's fail-over",
		file: vault + "store/timeline.go",
		from: `if err := endMasterships(ctx, tx, now); err != nil {`,
		to:   `if err := ctx.Err(); err != nil {`,
		test: []string{"./services/vault/internal/store", "-run=FollowTimeline"},
	},
	{
		name: "what may have been lost with a database is removed at once",
		file: vault + "credential/recovery.go",
		from: `return !at.IsZero() && !made.After`,
		to:   `return at.IsZero() && !made.After`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "nobody looks at an application of which a repair fails for good",
		file: vault + "credential/decide.go",
		from: `p.progress, p.lookFirst, p.ensure,`,
		to:   `p.progress, p.ensure,`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "properties that are always refused keep federated credentials from being made",
		file: vault + "credential/decide.go",
		from: `act != nil || a.Failures%2 == 0`,
		to:   `act != nil || a.Failures > 0`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "a password that cannot be removed keeps others from being removed",
		file: vault + "credential/decide.go",
		from: `p.nobodys(s) && p.retry(s.NextTime)`,
		to:   `p.nobodys(s) && p.retry(p.facts.Strays[0].NextTime)`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "a back-off goes on while the last secret ends",
		file: vault + "credential/backoff.go",
		from: `max(min(t.backoff(failures, 0), f.longestWait(now, t)), t.backoff(1, asked))`,
		to:   `max(min(t.backoff(failures, 0), f.longestWait(now, t)), t.backoff(failures, asked))`,
		test: []string{"./services/vault/internal/credential"},
	},
	{
		name: "a static master works by a clock that is wrong",
		file: vault + "election/static/static.go",
		from: `		case err == nil && resign == nil:`,
		to:   `		case resign == nil:`,
		test: []string{"./services/vault/internal/election/static"},
	},
	{
		name: "a replica claims by its own clock",
		file: vault + "rotation/prober.go",
		from: `now, err := p.config.Store.Now(ctx, began)`,
		to:   `now, err := began, error(nil)`,
		test: []string{"./services/vault/internal/rotation", "-run=ClaimsByTheDatabasesClock"},
	},
	{
		name: "a registry that was restored is believed to know what the former one was told",
		file: vault + "rotation/report.go",
		from: `digest([]any{incarnation, r})`,
		to:   `digest([]any{len(incarnation) * 0, r})`,
		test: []string{"./services/vault/internal/rotation", "-run=ReportsAnew"},
	},
	{
		name: "who asks of a replica that is ahead lifts a back-off time and again",
		file: vault + "credential/decide.go",
		from: `again = earliest(again, asked)`,
		to:   `again = time.Time{}`,
		test: []string{"./services/vault/internal/rotation", "-run=IsAhead"},
	},
	{
		name: "what waits for its cloud to be configured goes on waiting",
		file: vault + "store/applications.go",
		from: `) = (applications.next_time = $3)`,
		to:   `) < (applications.next_time = $3)`,
		test: []string{"./services/vault/internal/rotation", "-run=ACloudThatIsNotConfigured"},
	},
}
