#!/usr/bin/env bash
# Runs every fuzz test whose name a pattern finds, one after another, each for a time: tools/fuzz.sh PATTERN TIME. What one finds goes to its package's
# testdata/fuzz, from when on the ordinary tests try it too; the others are run all the same. To make inputs smaller that reach new code gets little time:
# where there are servers, code is new by chance.
set -euo pipefail
failed=()
while IFS=: read -r file target; do
  name=${target#func }
  echo "$name in $(dirname "$file")"
  go test -run '^$' -fuzz "^$name\$" -fuzztime "$2" -fuzzminimizetime 10x "./$(dirname "$file")" </dev/null | grep -vE '^(fuzz: elapsed: 0s|PASS)' || failed+=("$name")
done < <(grep -rHoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' pkg services | grep -E "func $1" | sort)
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}"
  exit 1
fi
