#!/usr/bin/env bash
# Puts the clients of tests/clients/matrix (LiteLLM, LangChain, instructor, llm, lm-evaluation-harness) into a virtual
# environment at target/matrix. They live on an older openai package than the newest, so not in target/clients.
#
# Every package has its SHA-256 pinned in tests/clients/matrix/matrix.txt, dependencies included; pip refuses any other content.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/matrix
list=tests/clients/matrix/matrix.txt
mark="$venv/$(sha256sum $list | cut -c1-16).done"
[ -f "$mark" ] && exit 0
command -v python3 >/dev/null || { echo "fetch-matrix: python3 is needed to run the client tests; install it" >&2; exit 1; }
echo "fetch-matrix: getting the clients that the tests use" >&2
rm -rf "$venv"
python3 -m venv "$venv" || { echo "fetch-matrix: python3 has no venv module (Debian package python3-venv)" >&2; exit 1; }
# Three of them are published as sources alone; all are plain Python.
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: \
  --no-binary=sqlitedict,rouge-score,word2number --require-hashes -r "$list"
touch "$mark"
