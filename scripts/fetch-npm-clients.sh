#!/usr/bin/env bash
# Puts the npm packages that the tests run (axe-core, openai, playwright-core, Grafana's schema) into target/npm. Without
# npm it says so and does nothing: the tests that need them then say that they are skipped, and in CI they fail.
#
# Versions and SHA-512 of every package are pinned in tests/clients/npm/package-lock.json; npm refuses other content.
set -euo pipefail
cd "$(dirname "$0")/.."

from=tests/clients/npm
mark="target/npm/$(sha256sum $from/package-lock.json | cut -c1-16).done"
[ -f "$mark" ] && exit 0
command -v npm >/dev/null || { echo "fetch-npm-clients: npm is not here; the tests with the openai npm package are skipped" >&2; exit 0; }
echo "fetch-npm-clients: getting the npm packages that the tests use" >&2
rm -rf target/npm
mkdir -p target/npm
cp $from/package.json $from/package-lock.json target/npm/
(cd target/npm && npm ci --ignore-scripts --no-audit --no-fund --silent)
touch "$mark"
