// Package loopbacktest gives tests addresses of their own on this machine.
package loopbacktest

import (
	"fmt"
	"math/rand/v2"
)

// Host is a loopback address by chance, which hardly anybody else listens at or connects from: on Linux all of 127.0.0.0/8 is this machine. Unless somebody
// listens at all addresses, a port of it is free, and is still free when whoever gave it up takes it again.
func Host() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(255), 1+rand.N(254))
}
