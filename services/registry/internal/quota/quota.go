// Package quota says how many integrations, projects and attachments an account may have.
//
// It is pure, and counts nothing itself: whoever creates a resource counts under a lock, and asks Check.
package quota

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"phasekey.dev/services/registry/internal/resource"
)

// ErrExceeded means that an account has as many of a kind of resource as it may have.
var ErrExceeded = errors.New("the account has as many of these as it may have")

// Kind is what is counted, as it stands in resource names.
type Kind string

// The kinds there are. An integration counts until it is gone for good, since its application exists until then; an attachment
// counts when somebody made it, those by label do not.
const (
	Integrations Kind = "integrations"
	Projects     Kind = "projects"
	Attachments  Kind = "attachments"
)

// MaxLimit is the most that a limit may be: creating counts that far.
const MaxLimit = 1_000_000

// Limits are how many there may be of each kind.
type Limits struct {
	Integrations int `yaml:"integrations"`
	Projects     int `yaml:"projects"`
	Attachments  int `yaml:"attachments"`
}

func (l Limits) of(kind Kind) int {
	switch kind {
	case Integrations:
		return l.Integrations
	case Projects:
		return l.Projects
	case Attachments:
		return l.Attachments
	default:
		return 0
	}
}

// Config is every account's limits.
type Config struct {
	// Integrations, Projects and Attachments hold for every account that Accounts does not give others; from 1 to MaxLimit. Attachments
	// are counted over all projects.
	Integrations int `yaml:"integrations"`
	Projects     int `yaml:"projects"`
	Attachments  int `yaml:"attachments"`
	// Accounts are other limits of single accounts, by account ID. What is not said, or 0, is as for everybody.
	Accounts map[string]Limits `yaml:"accounts"`
}

// Default is what holds unless it is configured otherwise.
func Default() Config {
	return Config{Integrations: 1_000, Projects: 10_000, Attachments: 20_000}
}

func (c Config) everybody() Limits {
	return Limits{Integrations: c.Integrations, Projects: c.Projects, Attachments: c.Attachments}
}

// Validate returns all problems at once, each naming its key.
func (c Config) Validate() error {
	var problems []error
	check := func(prefix string, least int, limits Limits) {
		for _, kind := range []Kind{Integrations, Projects, Attachments} {
			if limit := limits.of(kind); limit < least || limit > MaxLimit {
				problems = append(problems, fmt.Errorf("%s%s: %d is not from %d to %d", prefix, kind, limit, least, MaxLimit))
			}
		}
	}
	check("", 1, c.everybody())
	for _, account := range slices.Sorted(maps.Keys(c.Accounts)) {
		if !resource.ValidID(account) {
			problems = append(problems, fmt.Errorf("accounts: %q cannot be an account", account))
		}
		check("accounts."+account+".", 0, c.Accounts[account])
	}
	return errors.Join(problems...)
}

// Limit is how many of a kind an account may have.
func (c Config) Limit(account string, kind Kind) int {
	if limit := c.Accounts[account].of(kind); limit > 0 {
		return limit
	}
	return c.everybody().of(kind)
}

// Check refuses one more of a kind in an account that has so many.
func (c Config) Check(account string, kind Kind, have int) error {
	limit := c.Limit(account, kind)
	if have < limit {
		return nil
	}
	return &resource.Error{
		Reason:   ErrExceeded,
		Message:  fmt.Sprintf("accounts/%s may have %d %s, and has them; delete some, or have the operator raise the quota", account, limit, kind),
		Metadata: map[string]string{"name": "accounts/" + account, "quota": string(kind), "limit": strconv.Itoa(limit)},
	}
}
