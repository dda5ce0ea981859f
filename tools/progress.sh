#!/usr/bin/env bash
# Runs a `go build -v` or `go install -v` and shows how far it is: the first build compiles much, and for minutes.
set -euo pipefail
start=$SECONDS
"$@" 2>&1 | awk -v tty="$([ -t 2 ] && echo 1 || echo 0)" '
  # A package path, as -v prints them; everything else is a message.
  /^[A-Za-z0-9._~\/-]+$/ {
    n++
    if (tty) printf "\r\033[K  compiled %d packages, now %s", n, substr($0, 1, 60) > "/dev/stderr"
    else if (n % 100 == 0) printf "  compiled %d packages\n", n > "/dev/stderr"
    next
  }
  { print > "/dev/stderr" }
  END { if (n && tty) printf "\r\033[K" > "/dev/stderr" }
'
elapsed=$((SECONDS - start))
[ "$elapsed" -lt 5 ] || echo "  built in ${elapsed} s" >&2
