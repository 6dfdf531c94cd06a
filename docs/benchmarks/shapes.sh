#!/usr/bin/env bash
# The speed column of docs/models.md: makes each named shape with random weights, runs a small batch of it through a fleet of
# one worker on this machine, then measures one stream, a prompt and a batch. One shape after the other, and the file of each
# is deleted before the next. It fails if a line of a batch is not answered.
#
#     BIN=target/release/ternfleet docs/benchmarks/shapes.sh
#
# BIN      the program, target/release/ternfleet unless given
# SHAPES   the shapes, all unless given
# THREADS  of the worker and of the benchmark, 2 unless given
# BENCH    how the benchmark measures; without value nothing is measured after the batch
# OUT      a folder for the JSON of each benchmark; nothing is kept unless given
set -euo pipefail
cd "$(dirname "$0")/../.."

bin=$(realpath "${BIN:-${CARGO_TARGET_DIR:-target}/release/ternfleet}")
shapes=${SHAPES:-bonsai-1.7b bonsai-4b bonsai-8b falcon-e-3b falcon3-7b llama3-8b}
threads=${THREADS:-2}
bench=${BENCH---prompt 512 --gen 32 --batch 32 --context 64 --repeat 3}
dir=$(mktemp -d)
out=${OUT:-$dir}
mkdir -p "$out"
up=
end_fleet() {
  [ -z "$up" ] || { kill -INT "$up" 2>/dev/null; wait "$up" || true; }
  up=
}
trap 'end_fleet; rm -rf "$dir"' EXIT

# json FILE EXPRESSION: what the expression makes of the file's content, `it`.
json() { python3 -c 'import json, sys; it = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$1" "$2"; }

# fleet SHAPE: a batch of four prompts through one worker.
fleet() {
  local fleet=$dir/fleet nats began took
  rm -rf "$fleet"
  "$bin" up --workers 1 --threads "$threads" --model "$dir/$1.gguf" --dir "$fleet" --nats-port 0 --http-port 0 >"$dir/up.log" 2>&1 &
  up=$!
  # A worker joins when it has loaded its model and measured itself.
  until [ -f "$fleet/addresses.json" ] && nats=$(json "$fleet/addresses.json" 'it["nats"]') &&
    "$bin" pods --json --nats "$nats" >"$dir/pods.json" 2>/dev/null && [ "$(json "$dir/pods.json" 'len(it)')" = 1 ]; do
    kill -0 "$up" || { cat "$dir/up.log" >&2; exit 1; }
    sleep 0.5
  done
  for n in 1 2 3 4; do echo "{\"prompt\": \"Tale $n. Once upon a time\", \"max_tokens\": 8, \"seed\": $n}"; done >"$dir/prompts.jsonl"
  began=$(date +%s.%N)
  "$bin" submit "$dir/prompts.jsonl" --out "$dir/answers.jsonl" --force --nats "$nats" >"$dir/submit.log" 2>&1 || { cat "$dir/submit.log" >&2; exit 1; }
  took=$(python3 -c "import time; print(time.time() - $began)")
  end_fleet
  python3 - "$1" "$took" "$dir/answers.jsonl" <<'PYTHON'
import json, sys

shape, took, path = sys.argv[1], float(sys.argv[2]), sys.argv[3]
answers = [json.loads(line) for line in open(path)]
tokens = 0
for answer in answers:
    assert answer.get("error") is None and answer["response"]["status_code"] == 200, answer
    tokens += answer["response"]["body"]["usage"]["completion_tokens"]
assert len(answers) == 4 and tokens > 0, answers
print(f"{shape}: 4 of 4 lines answered through the fleet, {tokens} tokens in {took:.1f} s, {tokens / took:.1f} tok/s", flush=True)
PYTHON
}

# measure SHAPE: prints a row for docs/models.md.
measure() {
  # shellcheck disable=SC2086 # words are wanted
  "$bin" bench --model "$dir/$1.gguf" --threads "$threads" $bench --json >"$out/$1.json"
  python3 - "$1" "$out/$1.json" <<'PYTHON'
import json, sys

report = json.load(open(sys.argv[2]))
stream, batch, machine = report["threads"][0], report["batch"][0], report["machine"]


def figure(it):
    return f"{it['median']:.1f} ({it['ceiling']['percent']:.0f} %)"


print(f"| `{sys.argv[1]}` | {figure(stream['decode'])} | {figure(stream['prompt'])} | {figure(batch['decode'])} |", flush=True)
print(
    f"  {machine['cpu']}, {machine['isa']}, {machine['kernel']}, {stream['threads']} threads, {machine['read_gb_s']:.1f} GB/s, "
    f"{machine['mac_per_s'] / 1e9:.0f} G multiply-adds/s; {report['memory']['anonymous_bytes'] / 1e6:.0f} MB anonymous",
    flush=True,
)
PYTHON
}

for shape in $shapes; do
  "$bin" model synth --shape "$shape" --seed 1 --out "$dir/$shape.gguf" >/dev/null
  fleet "$shape"
  [ -z "$bench" ] || measure "$shape"
  rm -f "$dir/$shape.gguf"
done
