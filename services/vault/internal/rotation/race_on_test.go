//go:build race

package rotation_test

// crowd is how many integrations are many. The race detector makes each ten times as slow.
const crowd = 20
