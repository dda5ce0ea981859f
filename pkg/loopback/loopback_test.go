package loopback_test

import (
	"testing"

	"phasekey.dev/pkg/loopback"
)

func TestAddress(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:6379":          true,
		"127.8.9.10:1":            true,
		"[::1]:5432":              true,
		"[::ffff:127.0.0.1]:5432": true,
		"localhost:5432":          true,
		"/run/redis.sock":         true,
		"@abstract":               true,
		"127.0.0.1":               true,
		"":                        false,
		":6379":                   false,
		"0.0.0.0:6379":            false,
		"[::]:6379":               false,
		"10.0.0.1:6379":           false,
		"localhost.example.com:1": false,
		"127.0.0.1.example.com:1": false,
		"2130706433:1":            false,
		"redis:6379":              false,
	} {
		if got := loopback.Address(address); got != want {
			t.Errorf("%q: %t", address, got)
		}
	}
}
