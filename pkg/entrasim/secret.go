package entrasim

import (
	"time"

	"phasekey.dev/pkg/entrasim/internal/chance"
)

// secretLife is how long a secret lives when nobody says.
const secretLife = 2 * 365 * 24 * time.Hour

// newSecret makes a secret of the usual look: 40 characters, of which the first
// three are its hint. Only its salted hash is kept.
func newSecret(dice *chance.Dice, appID string, start, end time.Time) (string, *secret) {
	text := dice.Text(3, letters) + "8Q~" + dice.Text(34, letters+"._~-")
	salt := make([]byte, 16)
	_, _ = dice.Read(salt) // never fails
	return text, &secret{KeyID: dice.UUID(), AppID: appID, Salt: salt, Hash: hashSecret(salt, text), Start: start, End: end}
}
