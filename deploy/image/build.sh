#!/usr/bin/env bash
# The release build: one static binary, the same bytes on every machine with this toolchain. Used by `make release`, by
# the container image, and by the tests.
#
#   deploy/image/build.sh OUT      writes OUT/ternfleet, OUT/ternfleet.sha256 and OUT/ternfleet.cdx.json (the SBOM)
#
# Static: glibc is linked in, so the file runs in an empty image. Host names are still found: since 2.34 glibc's own
# resolver (files and DNS) needs no plugin. Paths of this machine are mapped away, and the commit is stamped in.
# PROFILE=dev builds without optimisation: the tests check the way, not the speed.
set -euo pipefail
out="$(mkdir -p "${1:?usage: build.sh OUT}" && cd "$1" && pwd)"
cd "$(dirname "$0")/../.."

target="$(rustc -vV | sed -n 's/^host: //p')"
profile="${PROFILE:-release}"
folder="$profile"
[ "$profile" = dev ] && folder=debug

export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
commit="${TERNFLEET_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)}"
[ -z "$(git status --porcelain 2>/dev/null)" ] || commit="$commit-dirty"
version="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)"
export TERNFLEET_VERSION="$version (commit $commit)"

cargo_home="${CARGO_HOME:-$HOME/.cargo}"
sysroot="$(rustc --print sysroot)"
# Rust and C alike write source paths into their output.
maps=("$PWD=/ternfleet" "$cargo_home=/cargo" "$sysroot=/rust")
rust_flags="-C target-feature=+crt-static"
c_flags=""
for map in "${maps[@]}"; do
  rust_flags+=" --remap-path-prefix=$map"
  c_flags+=" -ffile-prefix-map=$map"
done
# With --target the flags hold for the program alone, not for build scripts and macros.
RUSTFLAGS="$rust_flags" CFLAGS="$c_flags" CXXFLAGS="$c_flags" \
  cargo build --locked --profile "$profile" --target "$target" -p ternfleet

# Cut in a fixed way: symbols and debug sections would triple the size.
cp "${CARGO_TARGET_DIR:-target}/$target/$folder/ternfleet" "$out/ternfleet"
strip --strip-all "$out/ternfleet"
python3 scripts/sbom.py > "$out/ternfleet.cdx.json"
(cd "$out" && sha256sum ternfleet > ternfleet.sha256)
ls -l "$out/ternfleet"
cat "$out/ternfleet.sha256"
