#!/usr/bin/env bash
# Fuzzes one function after another whose name matches $1, each for $2, in the folders that follow. What breaks one is kept in its testdata, by
# go test itself, and the others have their turn all the same.
set -euo pipefail
pattern=$1 time=$2
shift 2
failed=() count=0
while IFS=: read -r file name; do
  [[ $name =~ $pattern ]] || continue
  count=$((count + 1))
  echo "$name in $(dirname "${file#"$PWD"/}"), for $time"
  go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$(dirname "$file")" || failed+=("$name")
done < <(grep -rHoP --include='*_test.go' '^func \KFuzz\w+(?=\(\w+ \*testing\.F\))' "$@" | sort)
if ((count == 0)); then
  echo "no such function to fuzz: $pattern" >&2
  exit 1
fi
if ((${#failed[@]} > 0)); then
  echo "broken: ${failed[*]}" >&2
  exit 1
fi
