package daemon_test

import (
	"errors"
	"slices"
	"testing"

	"phasekey.dev/pkg/daemon"
)

func TestHeld_ReleasesTheLastFirstAndTellsAll(t *testing.T) {
	var held daemon.Held
	var released []string
	broken := errors.New("broken")
	for _, name := range []string{"database", "tls", "server"} {
		held.Own(name, func() error {
			released = append(released, name)
			if name == "tls" {
				return broken
			}
			return nil
		})
	}
	if err := held.Close(); !errors.Is(err, broken) {
		t.Errorf("closing gave %v", err)
	}
	if want := []string{"server", "tls", "database"}; !slices.Equal(released, want) {
		t.Errorf("released %v, want %v", released, want)
	}
	if err := held.Close(); err != nil || len(released) != 3 {
		t.Errorf("closing again gave %v and released %v", err, released)
	}
}

func TestHeld_ListenerClosedElsewhereIsNoError(t *testing.T) {
	var held daemon.Held
	ln, err := held.Listen(t.Context(), "listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := held.Listen(t.Context(), "metrics_listen", ln.Addr().String()); err == nil {
		t.Error("an address in use was bound")
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
}
