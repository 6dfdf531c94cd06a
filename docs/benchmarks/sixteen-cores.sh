#!/usr/bin/env bash
# What a machine with many cores makes of the 2B-4T shape, in at most eight minutes: the machine itself, one stream and a prompt
# by threads, batches at two lengths with sampling, keys and values in int8, and a workload as users have it.
#
#     BIN=target/release/ternfleet OUT=docs/benchmarks/NAME docs/benchmarks/sixteen-cores.sh
#
# BIN      the program, target/release/ternfleet unless given
# OUT      a folder for the outputs; it is made
# MODEL    a model file; one of the 2B-4T shape with random weights is made and deleted again unless given
# THREADS  the thread counts to compare, 1,2,4,8,16 unless given
# LIMIT_S  seconds for each command, after which it is ended and the next one begins: 100 unless given
set -euo pipefail
cd "$(dirname "$0")/../.."

bin=$(realpath "${BIN:-${CARGO_TARGET_DIR:-target}/release/ternfleet}")
out=${OUT:?name a folder for the outputs}
threads=${THREADS:-1,2,4,8,16}
limit=${LIMIT_S:-100}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$out"

model=${MODEL:-}
if [ -z "$model" ]; then
  model=$dir/2b4t.gguf
  "$bin" model synth --shape 2b4t --seed 1 --out "$model" >/dev/null
fi

"$bin" topology --json >"$out/topology.json"
{
  "$bin" --version
  date -u +%FT%TZ
  uname -srm
} >"$out/machine.txt"

# measure NAME ARGUMENTS: one benchmark, its tables and its JSON. One that takes too long is named, and the others go on.
measure() {
  local name=$1 began=$SECONDS
  shift
  echo "$name: bench $*" >>"$out/commands.txt"
  if timeout "$limit" "$bin" bench --model "$model" --allow-throttled --json "$@" >"$out/$name.json" 2>"$dir/said"; then
    echo "$name: $((SECONDS - began)) s"
  else
    tail -n 3 "$dir/said" >&2
    rm -f "$out/$name.json"
    echo "$name: not measured, ended after $((SECONDS - began)) s" | tee -a "$out/commands.txt"
  fi
}

: >"$out/commands.txt"
most=${threads##*,}
measure threads -t "$threads" --prompt 256 --gen 32 --batch 1 --context 16 --sampled top-p --repeat 1
measure batches -t "$most" --prompt 128 --gen 32 --batch 1,8,16,32,64 --sampled temperature,top-p,logprobs --repeat 1
measure long -t "$most" --prompt 16 --gen 16 --batch 8 --context 4000 --repeat 1
measure long-int8 -t "$most" --prompt 16 --gen 16 --batch 8 --context 4000 --repeat 1 --kv int8
measure extract -t "$most" --workload extract
