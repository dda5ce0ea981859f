package consent

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"time"

	"phasekey.dev/pkg/secret"
)

// Kept is how many attempts are kept. A further one replaces the oldest, used ones first: of its own source, when that has as many
// as it may, so that whoever else has the link does not keep an administrator from coming back.
type Kept struct {
	// PerSource is how many of one session and one source, PerSession how many of one session.
	PerSource, PerSession int
}

// attemptIDSize is the length of an attempt's ID: 80 bits, so that no two meet.
const attemptIDSize = 16

// Attempt is one press of the page's button: a browser on its way through Entra ID.
type Attempt struct {
	// ID is public: it is in the name of the browser's cookie, so that several attempts of one browser have a cookie each.
	ID      string
	Session Name
	// Source is where the browser is, as Key.SourceOf has it.
	Source []byte
	// StateHash and BrowserHash are of the state that goes through Entra ID, and of the secret that stays in the browser.
	StateHash   []byte
	BrowserHash []byte
	CreateTime  time.Time
	ExpireTime  time.Time
	// UseTime is when a browser came back with the state; zero before.
	UseTime time.Time
}

// Begin makes an attempt, with the state and the browser's secret, of which it keeps the hashes alone.
func Begin(now time.Time, session Name, source []byte, life time.Duration) (a Attempt, state, browser secret.Text) {
	state, browser = token(), token()
	return Attempt{
		ID:          strings.ToLower(rand.Text())[:attemptIDSize],
		Session:     session,
		Source:      source,
		StateHash:   Hash(state),
		BrowserHash: Hash(browser),
		CreateTime:  stored(now),
		ExpireTime:  stored(now.Add(life)),
	}, state, browser
}

// token is TokenSize characters that nobody guesses.
func token() secret.Text {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails: crypto/rand crashes the program instead
	return secret.New(base64.RawURLEncoding.EncodeToString(raw))
}
