package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/store"
)

func TestStore_SettleForgetsWhatABrowserSaidOfAnotherApplication(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		session, now := awaiting(t, s, "uid-1"), start.Add(time.Minute)
		if v, err := begun(t, s, now, session, limit).back(t.Context(), s, now, ""); err != nil || v.Outcome != consent.OutcomeApproved {
			t.Fatalf("verdict %v, error %v", v, err)
		}
		var want consent.Session
		if err := s.Settle(t.Context(), claimed(t, s, now, "uid-1"), func(target consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
			want, _ = consent.Decide(now, open[0], consent.Observation{Finding: consent.Ready, ClientID: "other"})
			return target, []consent.Session{want}
		}); err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(t.Context(), session.Name)
		if diff := cmp.Diff(want, got); err != nil || diff != "" || got.LastCallback != "" {
			t.Errorf("callback %q, error %v (-want +got):\n%s", got.LastCallback, err, diff)
		}
	})
}
