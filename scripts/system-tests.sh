#!/usr/bin/env bash
# Checks that need programs of the system: promtool, compose and the like. Each is listed as passed, failed or skipped.
# With `install` it only installs the programs, which can be done while something else is compiled.
#
# A missing program is installed where that is possible (root on Debian). Elsewhere its check is skipped and listed; in
# CI (CI=true) a check that cannot run has failed: a skipped proof is no proof.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

passed=0 failed=0 skipped=0
install_only=$([ "${1:-}" = install ] && echo yes)

in_ci() { [ "${CI:-}" = true ]; }

# have PROGRAM PACKAGE: tries to have PROGRAM, if need be by installing PACKAGE.
have() {
  command -v "$1" >/dev/null && return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  [ -n "${updated:-}" ] || { apt-get update -qq >/dev/null 2>&1; updated=1; }
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null 2>&1
  command -v "$1" >/dev/null
}

# check NAME PROGRAM PACKAGE COMMAND…
check() {
  local name=$1 program=$2 package=$3
  shift 3
  if [ -n "$install_only" ]; then
    have "$program" "$package"
    return
  fi
  if ! have "$program" "$package"; then
    if in_ci; then
      echo "FAILED   $name: $program is not here and $package could not be installed"
      failed=$((failed + 1))
    else
      echo "skipped  $name: needs $program (Debian package $package)"
      skipped=$((skipped + 1))
    fi
    return
  fi
  local output
  if output="$("$@" 2>&1)"; then
    echo "passed   $name"
    passed=$((passed + 1))
  else
    echo "FAILED   $name: $*"
    printf '%s\n' "$output" | sed 's/^/         /'
    failed=$((failed + 1))
  fi
}

# The parsers of deployment files come from the Python package index, pinned; no program of the system is needed but
# Python itself.
deploy_tools=target/deploy-tools
fetch_deploy_tools() {
  local mark
  mark="$deploy_tools/$(sha256sum tests/deploy/requirements.txt | cut -c1-16).done"
  [ -f "$mark" ] && return
  rm -rf "$deploy_tools"
  python3 -m venv "$deploy_tools" &&
    "$deploy_tools/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --require-hashes \
      -r tests/deploy/requirements.txt && touch "$mark"
}
check_deploy() { fetch_deploy_tools && "$deploy_tools/bin/python" scripts/check-deploy.py; }
# The binary of a unit is not installed here; everything else in the unit is what systemd itself makes of it.
check_units() {
  local folder
  folder="$(mktemp -d)"
  for unit in deploy/systemd/*.service; do
    sed 's|^ExecStart=/usr/local/bin/ternfleet|ExecStart=/bin/true|' "$unit" > "$folder/$(basename "$unit")"
  done
  systemd-analyze verify --man=no "$folder"/*.service
  local status=$?
  rm -rf "$folder"
  return $status
}
# Prometheus looks for the rules where the image has them.
check_prometheus() {
  local folder status
  folder="$(mktemp -d)"
  sed "s|/etc/prometheus/rules|$PWD/dashboards/rules|" deploy/prometheus/prometheus.yml > "$folder/prometheus.yml"
  promtool check config "$folder/prometheus.yml"
  status=$?
  rm -rf "$folder"
  return $status
}

shopt -s nullglob
rules=(dashboards/rules/*.yml)
rule_tests=(dashboards/rules/tests/*.yml)
[ ${#rules[@]} -gt 0 ] && check "alert and recording rules parse" promtool prometheus promtool check rules "${rules[@]}"
[ ${#rule_tests[@]} -gt 0 ] && check "alerts fire when they should" promtool prometheus promtool test rules "${rule_tests[@]}"
check "prometheus reads its configuration" promtool prometheus check_prometheus
check "systemd reads its units" systemd-analyze systemd check_units
check "compose file, Dockerfile and Kubernetes manifests parse" python3 python3-venv check_deploy
check "shell scripts are clean" shellcheck shellcheck shellcheck --severity=warning \
  .ci/run scripts/*.sh deploy/*/*.sh docs/*/*.sh tests/fetch/*.sh
check "kernels for GPUs are what clang makes of their source" clang-14 clang-14 scripts/ptx.sh --check
check "licences and sources are as deny.toml asks" python3 python3 python3 scripts/sbom.py --check
# Among the other tests it would run without Prometheus, too; so it is ignored there and asked for here. The whole workspace
# is named because cargo would build with other features for one package alone.
check "dashboards and rules on a real fleet and Prometheus" prometheus prometheus \
  "${CARGO:-cargo}" test --quiet --workspace --test e2e_up -- --ignored every_panel_and_every_rule

check "a fleet under a wall clock that is stepped" faketime faketime \
  "${CARGO:-cargo}" test --quiet --workspace --test e2e_clock -- --ignored

# The page in a real browser, on a fleet of its own. Both programs that it needs besides chromium come from other steps
# of `make test`; where npm is missing there is no driver for the browser.
program="${CARGO_TARGET_DIR:-target}/debug/ternfleet"
if [ -d target/npm/node_modules/playwright-core ] || in_ci; then
  check "the page in a real browser" chromium chromium node tests/clients/npm/page.mjs "$program" "$PWD/target/npm"
else
  echo "skipped  the page in a real browser: needs npm (scripts/fetch-npm-clients.sh)"
  skipped=$((skipped + 1))
fi

[ -n "$install_only" ] && exit 0

# No package brings instructions, so this is a failure nowhere: the kernels are compiled, and proved where they can run.
for isa in avx2:avx2 avxvnni:avx_vnni avx512:avx512_vnni; do
  grep -qw "${isa#*:}" /proc/cpuinfo 2>/dev/null ||
    echo "not here  kernels and determinism gate on ${isa%:*}: this CPU lacks it"
done

echo "system tests: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
