#!/usr/bin/env bash
# Runs the benchmarks of the packages given and shows what they measure as one table. A benchmark fails by itself when a
# promise that is a ratio or a bound of memory is broken; times depend on the machine and are only shown.
set -euo pipefail
go test -run '^$' -bench . -timeout 30m "$@" 2>&1 | awk '
  /^(goos|goarch|PASS)/ { next }
  /^pkg: / { printf "\n%s\n", $2; next }
  /^cpu: / { sub(/^cpu: */, "  on "); print; next }
  /^Benchmark[^ ]*$/ { next }
  /^Benchmark/ {
    name = substr($1, 10)
    sub(/-[0-9]+$/, "", name)
    line = sprintf("  %-50s", name)
    own = 0
    for (i = 3; i < NF; i += 2) own += $(i + 1) !~ /^(ns|B|allocs)\/op$/
    for (i = 3; i < NF; i += 2) {
      # What a benchmark measures of its own accord says more than the time of its loop.
      if ((own && $(i + 1) == "ns/op") || $(i + 1) ~ /^(B|allocs)\/op$/) continue
      line = line sprintf("  %11s %-16s", $i, $(i + 1))
    }
    sub(/ +$/, "", line)
    print line
    next
  }
  /^ok / { printf "  measured in %s\n", $3; next }
  { print }
'
