#!/usr/bin/env bash
# Draws docs/dashboards/*.svg from a real run: a local fleet of two pods with different prices, Prometheus beside it, three
# batches of which one has bad lines, somebody at the interactive lane, and a worker that is killed on the way.
#
# Takes about five minutes. TERNFLEET names the program, target/release/ternfleet unless given.
set -euo pipefail
cd "$(dirname "$0")/.."

program=${TERNFLEET:-${CARGO_TARGET_DIR:-target}/release/ternfleet}
dir=$(mktemp -d)
trap 'kill -INT "$up" 2>/dev/null; wait "$up" 2>/dev/null; rm -rf "$dir"' EXIT

"$program" up --prometheus --dir "$dir" --nats-port 0 --http-port 0 --price-usd-per-hour 0.34,1.19 --threads 1 &
up=$!
until [ -f "$dir/addresses.json" ]; do
  kill -0 "$up"
  sleep 0.2
done
began=$SECONDS
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$dir/$1" "$2"; }
nats=$(field addresses.json nats) http=$(field addresses.json http) prometheus=$(field addresses.json prometheus)

# prompts COUNT TOKENS: that many tales of that length.
prompts() {
  local n
  for n in $(seq "$1"); do echo "{\"prompt\": \"Tale $n. Once upon a time\", \"max_tokens\": $2, \"seed\": $n}"; done
}
submit() { "$program" submit - --detach --nats "$nats" "$@"; }

sleep 20
prompts 4000 150 | submit --name tales --budget 1 --deadline 20m
sleep 35
{ prompts 800 60; for _ in $(seq 9); do echo '{"promt": "no such field"}'; done; } | submit --name short --budget 0.02 --deadline 4m
for _ in $(seq 15); do
  curl -sS -o "$dir/chat.json" "$http/v1/completions" -H 'Content-Type: application/json' \
    -d '{"prompt": "A fox and a crow", "max_tokens": 40}'
  sleep 2
done
kill -9 "$(field processes.json worker-2)"
sleep 25
prompts 1500 100 | submit --name late --deadline 45s
while [[ "$("$program" batches --json --nats "$nats")" =~ \"(validating|in_progress|finalizing)\" ]] && [ $((SECONDS - began)) -lt 300 ]; do
  sleep 1
done
sleep 15
python3 dashboards/draw.py --prometheus "$prometheus" --minutes "$(python3 -c "print(($SECONDS - $began) / 60)")"
