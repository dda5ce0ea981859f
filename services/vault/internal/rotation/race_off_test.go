//go:build !race

package rotation_test

// crowd is how many integrations are many.
const crowd = 5000
