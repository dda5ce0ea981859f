package grant

import (
	"errors"
	"time"
)

// ErrAccountFrozen means that nothing is delivered by grants of the account, and none are made. It is final for whoever holds something.
var ErrAccountFrozen = errors.New("account is frozen")

// Account is what the vault knows of an account.
type Account struct {
	// ID is without `accounts/`.
	ID string
	// FreezeReason and FreezeTime are zero unless it is frozen.
	FreezeReason string
	FreezeTime   time.Time
}

// Frozen tells whether nothing is delivered by its grants.
func (a Account) Frozen() bool { return !a.FreezeTime.IsZero() }

// Check is ErrAccountFrozen, or nil.
func (a Account) Check() error {
	if a.Frozen() {
		return ErrAccountFrozen
	}
	return nil
}

// Usage is how much an account has of what costs something.
type Usage struct {
	LiveGrants, OpenLeases, HeldSecrets, Integrations int64
	// DayDeliveries and MonthDeliveries are those of the last 24 and 720 hours that have begun, about.
	DayDeliveries, MonthDeliveries int64
}

// Count is how many deliveries there were by grants of an account in an hour.
type Count struct {
	Account string
	// Hour counts hours since 1970.
	Hour       int64
	Deliveries int64
}

// HourOf is the hour of a time, as Count has it.
func HourOf(now time.Time) int64 { return now.Unix() / int64(time.Hour/time.Second) }

// How many hours a Usage counts, of a day and of thirty; older counts are forgotten.
const (
	HoursOfDay   = 24
	HoursOfMonth = 720
)
