package fault

import (
	"cmp"
	"flag"
	"path/filepath"
	"testing"

	"phasekey.dev/test/internal/rigtest"
)

// from is where another release is, to be upgraded from. Without it a release takes the place of itself.
var from = flag.String("from", "", "folder with the registryd and the vaultd of the release to upgrade from")

// TestUpgrade does what docs/operations.md says of upgrades, and of going back, while runners work: each replica is stopped, and started as the other release. Everybody keeps what
// they hold, and their leases.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	newer := filepath.Dir(rigtest.Binary(t, "vaultd"))
	older := cmp.Or(*from, newer)
	w := newWorldOf(t, older)
	w.onboard(t)
	stop := w.work(t)
	w.follow(t)
	exchange := func(p *rigtest.Process, release string) {
		p.Stop(t)
		p.Command[0] = filepath.Join(release, filepath.Base(p.Command[0]))
		p.Start(t)
		w.rotated(t, again)
	}
	t.Run("the registry, then the vaults", func(t *testing.T) {
		exchange(w.registryd, newer)
		for _, v := range w.vaults {
			exchange(&v.Process, newer)
		}
		w.judge.pronounce(t)
	})
	t.Run("and back", func(t *testing.T) {
		for _, v := range w.vaults {
			exchange(&v.Process, older)
		}
		exchange(w.registryd, older)
		w.judge.pronounce(t)
	})
	stop()
	w.tidy(t)
	w.covered(t)
	t.Logf("%v uses of %d versions", w.judge.uses, len(w.judge.versions))
}
