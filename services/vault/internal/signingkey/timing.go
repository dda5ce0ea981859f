package signingkey

import (
	"errors"
	"fmt"
	"time"
)

// minPeriod is the least Period in production: each change of keys has every federated integration proven anew.
const minPeriod = 24 * time.Hour

// Validate returns all problems at once. Outside of development Publish and Keep may not be less patient than Production.
func (t Timing) Validate(development bool) error {
	floor := Production()
	floor.Period = minPeriod
	if development {
		floor = Timing{Period: time.Second, Publish: time.Second, Keep: time.Second}
	}
	var problems []error
	for _, d := range []struct {
		name        string
		have, least time.Duration
	}{{"period", t.Period, floor.Period}, {"publish", t.Publish, floor.Publish}, {"keep", t.Keep, floor.Keep}} {
		if d.have < d.least {
			problems = append(problems, fmt.Errorf("%s: must be at least %s", d.name, d.least))
		}
	}
	return errors.Join(problems...)
}
