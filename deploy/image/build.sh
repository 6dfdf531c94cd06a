#!/usr/bin/env bash
# The release build: one static binary, the same bytes on every machine with this toolchain. Used by `make release`, by
# the container image, and by the tests.
#
#   deploy/image/build.sh OUT      writes OUT/ternfleet, OUT/ternfleet.sha256 and OUT/ternfleet.cdx.json (the SBOM)
#   deploy/image/build.sh OUT gpu  writes OUT/ternfleet-gpu and its two files: a program that can open NVIDIA's driver. It is
#                                  not static, and runs on systems whose glibc is at least that of the build
#
# Static: glibc is linked in, so the file runs in an empty image. Host names are still found: since 2.34 glibc's own
# resolver (files and DNS) needs no plugin. Paths of this machine are mapped away, and the commit is stamped in.
# PROFILE=dev builds without optimisation: the tests check the way, not the speed.
set -euo pipefail
out="$(mkdir -p "${1:?usage: build.sh OUT [gpu]}" && cd "$1" && pwd)"
case "${2:-}" in
  "") name=ternfleet link="-C target-feature=+crt-static" features=() ;;
  gpu) name=ternfleet-gpu link="-C target-feature=-crt-static" features=(--features cuda) ;;
  *) echo "build.sh: unknown variant $2: give gpu, or nothing" >&2; exit 2 ;;
esac
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
rust_flags="$link"
c_flags=""
for map in "${maps[@]}"; do
  rust_flags+=" --remap-path-prefix=$map"
  c_flags+=" -ffile-prefix-map=$map"
done
# With --target the flags hold for the program alone, not for build scripts and macros.
RUSTFLAGS="$rust_flags" CFLAGS="$c_flags" CXXFLAGS="$c_flags" \
  cargo build --locked --profile "$profile" --target "$target" -p ternfleet "${features[@]}"

# Cut in a fixed way: symbols and debug sections would triple the size.
cp "${CARGO_TARGET_DIR:-target}/$target/$folder/ternfleet" "$out/$name"
strip --strip-all "$out/$name"
python3 scripts/sbom.py > "$out/$name.cdx.json"
(cd "$out" && sha256sum "$name" > "$name.sha256")
ls -l "$out/$name"
cat "$out/$name.sha256"
