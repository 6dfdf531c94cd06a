#!/usr/bin/env bash
# Compiles the kernels for GPUs to PTX, with Debian's clang 14 and no CUDA toolkit; --check compares instead of writing.
#
# The version is pinned: another compiler may put registers and instructions in another order, and then the file that was
# tested is not the file that ships.
set -euo pipefail
cd "$(dirname "$0")/../engine/src/gpu"

compile() {
  clang-14 -x cuda -std=c++17 -nocudainc -nocudalib --cuda-device-only --cuda-gpu-arch=sm_80 \
    -Xclang -target-feature -Xclang +ptx70 -O3 -ffp-contract=off -Wall -Werror -S kernels.cu -o "$1"
}

if [ "${1:-}" = --check ]; then
  found="$(mktemp)"
  trap 'rm -f "$found"' EXIT
  compile "$found"
  if ! cmp -s "$found" kernels.ptx; then
    echo "engine/src/gpu/kernels.ptx is not what clang-14 makes of kernels.cu: run \`make ptx\`" >&2
    exit 1
  fi
else
  compile kernels.ptx
fi
