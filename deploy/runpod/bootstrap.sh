#!/usr/bin/env bash
# Start of a rented pod: have the model, make sure that it is the right one, then become the worker.
#
# The model is mounted or fetched, and nothing starts before its digest is right:
#   MODEL_SHA256    the file's SHA-256; required
#   MODEL_PATH      where it lies or shall lie; /models/model.gguf unless given
#   MODEL_URL       where to fetch it from when it is not there; an interrupted download goes on where it stopped
#   MANIFEST_URL    its manifest.toml (tokenizer, chat template), put beside it
#
# Everything else is the worker's own configuration, as TERNFLEET_*: TERNFLEET_NATS, TERNFLEET_NATS_JOIN_TOKEN,
# TERNFLEET_NATS_ROOT_CERTIFICATES (or NATS_CA_PEM, the certificate itself), TERNFLEET_PRICE_USD_PER_HOUR and
# TERNFLEET_POD_CLASS. Arguments are passed on to `ternfleet worker`.
set -euo pipefail

say() { echo "bootstrap: $*" >&2; }
fail() { say "$*"; exit 1; }

path="${MODEL_PATH:-/models/model.gguf}"
sha256="${MODEL_SHA256:-}"
[[ "$sha256" =~ ^[0-9a-f]{64}$ ]] || fail "MODEL_SHA256 must be the model's SHA-256, 64 small hexadecimal digits"
ternfleet="${TERNFLEET:-ternfleet}"
command -v "$ternfleet" >/dev/null || fail "there is no $ternfleet on PATH"

is_right() { echo "$sha256  $1" | sha256sum --check --quiet --status -; }

# fetch URL FILE: goes on with what is there, and tries again on a shaky line.
fetch() {
  curl --fail --location --silent --show-error --retry 5 --retry-delay 2 --retry-connrefused \
    --connect-timeout 20 --continue-at - --output "$2" "$1"
}

mkdir -p "$(dirname "$path")"
if [ -f "$path" ]; then
  is_right "$path" || fail "$path is not the model that MODEL_SHA256 names; remove it or mend MODEL_SHA256"
else
  [ -n "${MODEL_URL:-}" ] || fail "there is no $path: mount the model there, or set MODEL_URL"
  say "fetching the model"
  fetch "$MODEL_URL" "$path.part" || fail "MODEL_URL cannot be fetched"
  if ! is_right "$path.part"; then
    rm -f "$path.part"
    fail "what MODEL_URL gave is not the model that MODEL_SHA256 names; it was deleted"
  fi
  mv "$path.part" "$path"
fi
manifest="$(dirname "$path")/manifest.toml"
if [ -n "${MANIFEST_URL:-}" ] && [ ! -f "$manifest" ]; then
  # A file of its own each time: a manifest is small, and half of one is worse than none.
  rm -f "$manifest.part"
  fetch "$MANIFEST_URL" "$manifest.part" || fail "MANIFEST_URL cannot be fetched"
  mv "$manifest.part" "$manifest"
fi
if [ -n "${NATS_CA_PEM:-}" ]; then
  ca="$(dirname "$path")/nats-ca.crt"
  printf '%s\n' "$NATS_CA_PEM" > "$ca"
  export TERNFLEET_NATS_ROOT_CERTIFICATES="$ca"
fi
say "the model is right; starting the worker"
exec "$ternfleet" worker --engines auto --model "$path" "$@"
