package static_test

import (
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/election/electiontest"
	"phasekey.dev/services/vault/internal/election/static"
)

func elector(t *testing.T, replica string, shards int, backoff time.Duration, fence election.Fence) election.Elector {
	t.Helper()
	e, err := static.New(static.Config{Replica: replica, Master: "a", Shards: shards, Backoff: backoff, Fence: fence, Log: electiontest.Log()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// place is where one static master is.
type place struct{}

// Join starts it. See electiontest.Place.
func (place) Join(t *testing.T, _ string, shards int, fence election.Fence) *electiontest.Replica {
	t.Helper()
	one := &electiontest.Replica{Service: electiontest.NewService()}
	one.Stop = electiontest.Start(t, elector(t, "a", shards, backoff, fence), one.Service)
	return one
}

const backoff = 15 * time.Second

func TestElector(t *testing.T) {
	electiontest.Run(t, electiontest.Backend{TTL: backoff, In: func(t *testing.T, test func(*testing.T, electiontest.Place)) {
		synctest.Test(t, func(t *testing.T) { test(t, place{}) })
	}})
}

func TestElector_OthersOnlyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fence, service := electiontest.NewFence(), electiontest.NewService()
		electiontest.Start(t, elector(t, "b", 2, time.Minute, fence), service)
		service.Quiet(t, 24*time.Hour)
	})
}

func TestNew_RefusesHalfAConfiguration(t *testing.T) {
	if _, err := static.New(static.Config{Replica: "a", Master: "a"}); err == nil {
		t.Error("no error")
	}
}
