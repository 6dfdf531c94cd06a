#!/usr/bin/env bash
# The first quarter of an hour on a card: bits first, then rates; at most five minutes once everything is built. Without
# equal bits it ends, since no speed matters then.
#
#     cargo build --release --package ternfleet --features cuda
#     OUT=docs/benchmarks/gpu/NAME docs/benchmarks/gpu/first.sh
#
# BIN      the program, target/release/ternfleet unless given
# OUT      a folder for the outputs; it is made
# MODEL    a model file; one of the 2B-4T shape with random weights is made and deleted again unless given
# DEVICE   cuda unless given; `interpreter` tries the script itself without a card, with MODEL a tiny one
# PROMPT, GEN, BATCH, LARGE, CONTEXT   sizes, for a trial
# GATE     a command that compares float operations, exp on all 2³² inputs among them, and runs the determinism gate on the
#          card; by default the tests that cargo builds. Empty leaves it out
set -euo pipefail
cd "$(dirname "$0")/../../.."

bin=$(realpath "${BIN:-${CARGO_TARGET_DIR:-target}/release/ternfleet}")
out=${OUT:?name a folder for the outputs}
device=${DEVICE:-cuda}
gate=${GATE-cargo test --package ternfleet-engine --features cuda --lib --test determinism -- --nocapture
  float_operations the_kernels_for_gpus}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$out"

model=${MODEL:-}
if [ -z "$model" ]; then
  model=$dir/2b4t.gguf
  "$bin" model synth --shape 2b4t --seed 1 --out "$model" >/dev/null
fi
{
  "$bin" --version
  date -u +%FT%TZ
  "$bin" doctor | grep -w gpu || true
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv 2>/dev/null || echo "no nvidia-smi"
} >"$out/machine.txt"

# 1. Bits: each float operation, the gate, and the same tokens on both devices, where loading runs the self-test.
if [ -n "$gate" ]; then
  # shellcheck disable=SC2086 # Several words.
  TERNFLEET_TEST_DEVICE=$device timeout 180 $gate >"$out/gate.txt" 2>&1 || { tail -n 20 "$out/gate.txt" >&2; exit 1; }
fi
# More than a page, and in the vocabulary of the tiny shape.
ids=$(seq -s, 3 2 500)
for on in cpu "$device"; do
  for sampling in "--temp 0" "--temp 0.8 --top-p 0.9 --top-k 0 --seed 5" "--temp 1 --top-k 40 --seed 6"; do
    # shellcheck disable=SC2086 # Several flags.
    "$bin" generate --model "$model" --ids "$ids" -n 24 --ignore-eos $sampling --device "$on" --json |
      python3 -c 'import json, sys; print(json.load(sys.stdin)["generated_ids"])'
  done >"$dir/$on.ids"
done
cmp "$dir/cpu.ids" "$dir/$device.ids" || { echo "the card's tokens differ from the CPU's: stop here" >&2; exit 1; }
cp "$dir/$device.ids" "$out/tokens.txt"
echo "bits: equal"

# 2. Rates: one stream and batches, a short and a long context.
measure() {
  local name=$1
  shift
  echo "$name: bench $*" >>"$out/commands.txt"
  timeout 60 "$bin" bench --model "$model" --device "$device" --allow-throttled --json "$@" >"$out/$name.json" 2>"$dir/said" ||
    { tail -n 3 "$dir/said" >&2; rm -f "$out/$name.json"; }
}
: >"$out/commands.txt"
measure batches -t 4 --prompt "${PROMPT:-256}" --gen "${GEN:-32}" --batch "${BATCH:-1,8,16,32,64}" --repeat 1
# More than a CPU takes. Draws from a nucleus would measure the CPU here.
measure large -t 4 --prompt "${PROMPT:-64}" --gen "${GEN:-32}" --batch "${LARGE:-128,256,512,1024}" --repeat 1 --sampled temperature
measure long -t 4 --prompt 16 --gen "${GEN:-32}" --batch 8 --context "${CONTEXT:-3000}" --repeat 1
echo "written: $out"
