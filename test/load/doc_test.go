// Package load measures how fast the vault is, beside a bare gRPC server (the floor) that sends the same bytes over the same TLS to the same clients, each
// in a process of its own: on any machine the two differ by what the vault does more. What it promises are ratios, of one run, in rounds that
// take turns; see docs/performance.md.
//
// Without flags it is small, and only a test that measuring works. It needs what `make build` and `make setup` put into .bin.
package load
