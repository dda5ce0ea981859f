package rotation_test

import (
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/store"
)

// The broker's public URL is in the redirect URI of every application: when it changes, so does each.
func TestWorker_AChangedRedirectURIReachesTheApplication(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		at := func() (uri string) {
			s.entra.set(func(d *fakeDirectory) {
				for _, app := range d.apps {
					uri = app.spec.RedirectURI
				}
			})
			return uri
		}
		s.serve()
		s.live()
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		if got := at(); got != s.config.RedirectURI {
			t.Fatalf("the application leads back to %q", got)
		}
		s.config.RedirectURI = "https://consent.example/consent/callback"
		s.serve()
		s.until("the new redirect URI", time.Hour, func(store.Facts) bool { return at() == s.config.RedirectURI })
		s.until("still active", time.Minute, active)
	})
}
