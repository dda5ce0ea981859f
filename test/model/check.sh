#!/usr/bin/env bash
# Has spin look at every state of the models, and find what is wrong with those that are wrong. Argument: a folder to work in.
set -euo pipefail
models=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

# check holds|fails MODEL WHAT [-DNAME=VALUE]: holds when no state breaks an assertion and none is a deadlock; fails when one
# breaks an assertion, and then says in how few steps.
check() {
  local want=$1 model=$2 what=$3
  shift 3
  spin -a "$@" "$models/$model.pml" >spin.log || { cat spin.log; exit 1; }
  local search=-DCOLLAPSE
  if [ "$want" = fails ]; then search=-DBFS; fi
  gcc -O2 -DSAFETY $search -w -o pan pan.c
  ./pan -m1000000 -w24 >pan.log || { cat pan.log; exit 1; }
  local got=unclear
  if grep -q "Search not completed\|max search depth too small" pan.log && ! grep -q "assertion violated" pan.log; then
    got=incomplete
  elif grep -q "errors: 0$" pan.log; then
    got=holds
  elif grep -q "assertion violated" pan.log; then
    got=fails
  fi
  local states steps
  states=$(awk '/states, stored/ {print $1; exit}' pan.log)
  steps=''
  if [ "$got" = fails ]; then steps=" in $(sed -n 's/.*assertion violated.*at depth \([0-9]*\).*/\1/p' pan.log) steps"; fi
  printf '%-6s %-60s %-6s %9s states%s\n' "$model" "$what" "$got" "$states" "$steps"
  if [ "$got" != "$want" ]; then
    echo "this should be: $want" >&2
    cat pan.log >&2
    exit 1
  fi
}

check holds fence 'two replicas, any Redis'
check holds fence 'three replicas, any lock' -DREPLICAS=3 -DWRITES=1 -DANY_LOCK
check fails fence 'no fence' -DNO_FENCE
check fails fence 'WHERE EXISTS (SELECT ... epoch = mine), READ COMMITTED' -DSUBQUERY
check fails fence 'the epoch alone, over a fail-over that lost it' -DEPOCH_ALONE
check fails fence 'that no second master writes while the first believes' -DREACHABLE
check holds lock 'two replicas, a Redis that keeps what it is told'
check fails lock 'counted from the answer' -DFROM_REPLY
check fails lock 'counted by one clock' -DONE_CLOCK
check fails lock 'released by DEL' -DBLIND_DELETE
check fails lock 'one value for all masterships of a replica' -DONE_VALUE
check fails lock 'a Redis that forgets, or remembers too long' -DFORGETS
