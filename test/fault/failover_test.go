package fault

import (
	"context"
	"net/url"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/test/internal/rigtest"
)

// loseCommits has a standby take over that has not heard of the newest version of an integration, nor of the job that was given its secret, while others work on
// with what they were given before. It comes last: the audit of what was lost is lost too.
func (w *world) loseCommits(t *testing.T) {
	began := time.Now()
	before := w.judge.users()
	stop := w.workOn(t, func(ctx context.Context, conn *grpc.ClientConn, i *integration) {
		w.job(ctx, conn, i, "before", 3*again, 3*again)
	})
	rigtest.Await(t, again, func(context.Context) error {
		now := w.judge.users()
		for _, i := range w.integrations {
			other := "secret"
			if i.federated {
				other = "assertion"
			}
			for _, material := range []string{"token", other} {
				if u := (use{material: material, integration: i.name}); now[u] == before[u] {
					return notYet("the %s of %s is not used", material, i.name)
				}
			}
		}
		return nil
	})
	// Whoever has an assertion needs its key: one that is made from now on signs in two periods' time at the earliest, and no commit is lost from then.
	rigtest.Await(t, again, func(ctx context.Context) error {
		var made int64
		err := w.shards.QueryRowContext(ctx, `SELECT publish_time FROM signing_keys WHERE state = 'PUBLISHED'`).Scan(&made)
		if err == nil && time.Since(time.UnixMicro(made)) > keyPeriod/4 {
			err = notYet("the next signing key is not new")
		}
		return err
	})
	takeOver := w.postgres.Standby(t)
	copied := time.Now()
	i, version := w.newest(t, copied)
	var given runner.Credential
	w.run(t.Context(), w.runners(t), i, typev1.Material_MATERIAL_CLIENT_SECRET, "lost", 3*again, func(ctx context.Context, i *integration, r *runner.Runner) {
		var err error
		given, err = held(ctx, r, true)
		rigtest.Must(t, err)
	})
	t.Logf("version %d of %s was given to a job %s after the standby was made", given.Version, i.name, time.Since(copied).Round(time.Millisecond))
	takeOver()
	taken := time.Now()

	w.rotated(t, again)
	rotated := time.Since(taken)
	// What nobody knows of was found by two reads that were an interval apart, and would be removed now.
	rigtest.Await(t, again, func(ctx context.Context) error {
		var found int
		err := w.shards.QueryRowContext(ctx, `SELECT COUNT(*) FROM stray_passwords WHERE key_id = $1 AND last_time - first_time >= $2`,
			version.GetKeyId(), reconcileInterval.Microseconds()).Scan(&found)
		if err == nil && found == 0 {
			err = notYet("the vault has not found the password %s, or removed it", version.GetKeyId())
		}
		return err
	})
	for range 10 {
		if !rest(t.Context()) || !w.exchange(t.Context(), i, "secret", given, url.Values{"client_secret": {given.ClientSecret.Expose()}}) {
			break
		}
	}
	if !slices.ContainsFunc(w.standing(t, i), func(p password) bool { return p.KeyID == version.GetKeyId() }) {
		t.Errorf("%s: the password %s, which a job holds, was removed", i.name, version.GetKeyId())
	}
	t.Logf("every integration has rotated %s after the standby took over; %s in all", rotated.Round(time.Millisecond), time.Since(began).Round(time.Second))
	stop()
	w.judge.pronounce(t)
	events, err := w.vaults[0].audit.ListAuditEvents(t.Context(), &vaultv1.ListAuditEventsRequest{Parent: "accounts/-", Filter: "kind = DatabaseFailedOver"})
	rigtest.Must(t, err)
	if n := len(events.GetAuditEvents()); n != 1 {
		t.Errorf("the audit has %d fail-overs: %v", n, events)
	}
}

// newest waits until an integration has an ACTIVE secret that was made after some time, and tells which.
func (w *world) newest(t *testing.T, after time.Time) (of *integration, version *vaultv1.CredentialVersion) {
	t.Helper()
	rigtest.Await(t, again, func(ctx context.Context) error {
		for _, i := range w.integrations {
			versions, err := w.versions(ctx, i)
			if err != nil {
				return err
			}
			at := slices.IndexFunc(versions, func(v *vaultv1.CredentialVersion) bool {
				return v.GetState() == vaultv1.CredentialVersion_STATE_ACTIVE && v.GetCreateTime().AsTime().After(after)
			})
			if at >= 0 && !i.federated {
				of, version = i, versions[at]
				return nil
			}
		}
		return notYet("no integration has a secret that was made since %s", after)
	})
	return of, version
}
