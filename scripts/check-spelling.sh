#!/usr/bin/env bash
# Finds misspelled words in documents, source files and scripts with codespell, which it installs to target/codespell.
#
# The wheel's SHA-256 is pinned in tests/spelling/requirements.txt. If codespell cannot be installed, the check is skipped;
# in CI (CI=true) that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/codespell
mark="$venv/$(sha256sum tests/spelling/requirements.txt | cut -c1-16).done"

install() {
  rm -rf "$venv"
  python3 -m venv "$venv" &&
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --require-hashes \
      -r tests/spelling/requirements.txt &&
    touch "$mark"
}

if [ ! -f "$mark" ] && ! install; then
  [ "${CI:-}" = true ] && { echo "check-spelling: codespell could not be installed" >&2; exit 1; }
  echo "check-spelling: skipped, codespell could not be installed" >&2
  exit 0
fi

# Names of crates and identifiers, and words that tests misspell on purpose.
ignored=ratatui,unstalled,inout,disjointness,nd,ot,ser,abd,pres,caf,promt,temprature,wroker
exec "$venv/bin/codespell" --ignore-words-list "$ignored" \
  --skip '*.gguf,*.json,*.jsonl,*.svg,*.png,*.lock,*.f32,*.bin,*.xz,*.safetensors,*.npz,*/corpus/*,*/golden/*,*/tests/data/*,*/node_modules/*,*/__pycache__/*' \
  README.md ARCHITECTURE.md CHANGELOG.md Makefile Cargo.toml docs dashboards deploy models scripts \
  text engine proto cloud worker coordinator cli python tests
