package consent_test

import (
	"bytes"
	"regexp"
	"testing"
	"time"

	"phasekey.dev/services/broker/internal/consent"
)

func TestBegin_KeepsHashesOfWhatNobodyGuesses(t *testing.T) {
	now := created.Add(999 * time.Nanosecond)
	a, state, browser := consent.Begin(now, session(nil).Name, []byte("here"), time.Minute)
	other, otherState, otherBrowser := consent.Begin(now, session(nil).Name, []byte("here"), time.Minute)
	if a.ID == other.ID || state.Equal(otherState) || browser.Equal(otherBrowser) || state.Equal(browser) {
		t.Error("two attempts share something")
	}
	if !regexp.MustCompile(`^[a-z2-7]{16}$`).MatchString(a.ID) || len(state.Expose()) != consent.TokenSize || len(browser.Expose()) != consent.TokenSize {
		t.Errorf("ID %q, state of %d characters, secret of %d", a.ID, len(state.Expose()), len(browser.Expose()))
	}
	if !bytes.Equal(a.StateHash, consent.Hash(state)) || !bytes.Equal(a.BrowserHash, consent.Hash(browser)) {
		t.Error("the hashes are of something else")
	}
	if !a.CreateTime.Equal(created) || !a.ExpireTime.Equal(created.Add(time.Minute)) || !a.UseTime.IsZero() {
		t.Errorf("times %v, %v, %v", a.CreateTime, a.ExpireTime, a.UseTime)
	}
}
