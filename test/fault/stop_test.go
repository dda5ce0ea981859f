package fault

import (
	"testing"

	"phasekey.dev/pkg/sqldbtest"
)

// What a service leans on may be gone before it: that is no reason not to stop in order.
func TestStop_AfterPostgreSQLAndRedisDied(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker, _ := w.startBroker(t)
	w.master(t)
	w.postgres.Stop(t, sqldbtest.Crash)
	w.redis.Kill(t)
	for _, v := range w.vaults {
		v.Stop(t)
	}
	broker.Stop(t)
	w.registryd.Stop(t)
}
