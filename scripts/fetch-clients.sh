#!/usr/bin/env bash
# Puts the Python clients that the tests run (openai, nats-py, msgpack) into a virtual environment at target/clients.
#
# Every wheel has its SHA-256 pinned in tests/clients/requirements.txt; pip refuses any other content.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/clients
mark="$venv/$(sha256sum tests/clients/requirements.txt | cut -c1-16).done"
[ -f "$mark" ] && exit 0
command -v python3 >/dev/null || { echo "fetch-clients: python3 is needed to run the client tests; install it" >&2; exit 1; }
echo "fetch-clients: getting the clients that the tests use" >&2
rm -rf "$venv"
python3 -m venv "$venv" || { echo "fetch-clients: python3 has no venv module (Debian package python3-venv)" >&2; exit 1; }
"$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --require-hashes -r tests/clients/requirements.txt
touch "$mark"
