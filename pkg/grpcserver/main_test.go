package grpcserver_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if files := os.Getenv(asServer); files != "" {
		os.Exit(serveWithFew(files))
	}
	goleak.VerifyTestMain(m)
}
