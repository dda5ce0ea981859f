package rotation_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
)

func TestWorker_RecordsWhatVersionsCameTo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, time.Second)
		r := s.request(credential.Compromised, false)
		s.untilRotation(r.ID, credential.RotationCompleted, 30*time.Minute)
		var kinds []string
		err := s.db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
			kinds, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (kind string, err error) {
				err = row.Scan(&kind)
				return kind, err
			}, `SELECT kind FROM audit_events WHERE integration_uid = $1 AND account = 'acme' ORDER BY seq`, uid)
			return err
		})
		want := []string{
			"VersionIntended", "VersionStaged", "VersionPropagating", "VersionActive", "RotationRequested",
			"VersionIntended", "VersionPropagating", "VersionRetiring", "VersionActive", "VersionRevoking", "VersionRevoked",
		}
		if err != nil || !slices.Equal(kinds, want) {
			t.Errorf("recorded are %q, %v; want %q", kinds, err, want)
		}
	})
}

// measured are the gauges and counters of the last mastership, by name and labels.
func (s *stage) measured() map[string]float64 {
	s.t.Helper()
	return gathered(s.t, s.metrics.Load())
}

// gathered are a registry's gauges and counters, by name and labels.
func gathered(t *testing.T, metrics prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			out[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

func TestWorker_MeasuresHowItsShardStands(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, time.Minute) // as often as it measures
		s.request(credential.Compromised, false)
		s.refuseOps(directory.Denied, "Authorization_RequestDenied", "add")
		time.Sleep(60 * time.Hour)
		got := s.measured()
		if got["phasekey_vault_rotations_open COMPROMISED 0"] != 1 || got["phasekey_vault_rotations_open SCHEDULED 0"] != 0 {
			t.Errorf("rotations open are %v", got)
		}
		if age := time.Duration(got["phasekey_vault_active_version_age_seconds 0"]) * time.Second; age < 60*time.Hour || age > 61*time.Hour {
			t.Errorf("the oldest is of %s", age)
		}
		if got["phasekey_vault_credential_versions_expiring 0"] != 1 || got["phasekey_vault_schedule_lag_seconds 0"] > 5 {
			t.Errorf("measured are %v", got)
		}
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		for key := range s.measured() {
			if strings.HasSuffix(key, " 0") {
				t.Errorf("%s is still there although the shard was given up", key)
			}
		}
	})
}

// TestWorker_MeasuresWhatIsWrongAlone has things happen that are nobody's to mend, or meant: they are no secret that should have been replaced.
func TestWorker_MeasuresWhatIsWrongAlone(t *testing.T) {
	t.Parallel()
	const (
		expiring = "phasekey_vault_credential_versions_expiring 0"
		age      = "phasekey_vault_active_version_age_seconds 0"
		lost     = "phasekey_vault_applications_without_consent 0"
	)
	for name, test := range map[string]struct {
		begin func(s *stage)
		// left is what the integration is in.
		left string
		lost float64
	}{
		"consent is withdrawn": {func(s *stage) { s.entra.set(func(d *fakeDirectory) { d.consented = false }) }, "ConsentLost", 1},
		"rotation is paused": {func(s *stage) {
			p := credential.Pause{Scope: credential.Everything, CreateTime: time.Now(), ExpireTime: time.Now().Add(credential.LongestPause)}
			if err := s.store.PauseRotation(s.t.Context(), p, grant.Caller{}); err != nil {
				s.t.Fatal(err)
			}
		}, "RotationPaused+", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, first := settled(t, time.Minute)
				test.begin(s)
				time.Sleep(time.Until(first.EndTime.Add(-20 * time.Hour)))
				if _, conditions := s.registry.last(); !strings.HasSuffix(conditions, test.left) {
					t.Errorf("it is %s", conditions)
				}
				for time.Now().Before(first.EndTime.Add(2 * time.Hour)) {
					time.Sleep(10 * time.Minute)
					got := s.measured()
					if got[expiring] != 0 || got[lost] != test.lost || test.lost > 0 && got[age] != 0 {
						t.Fatalf("%s before its end: %g expiring, age %g, %g without consent", time.Until(first.EndTime), got[expiring], got[age], got[lost])
					}
				}
			})
		})
	}
}
