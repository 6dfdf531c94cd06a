#!/usr/bin/env python3
"""Has the deployment files read by the programs' own parsers: the compose file by compose-spec's, the Dockerfile by
hadolint's. Both come from the Python package index, pinned in tests/deploy/requirements.txt; scripts/system-tests.sh
makes the environment that this runs in."""

import re
import subprocess
import sys
from pathlib import Path

import compose_spec

ROOT = Path(__file__).resolve().parent.parent


def interpolate(text: str) -> str:
    """`${NAME:-default}` as compose fills it in when nothing is set; one without a default is a fault."""

    def fill(match: re.Match) -> str:
        name, default = match.group(1), match.group(3)
        if default is None:
            sys.exit(f"compose.yaml: {name} has no default")
        return default

    return re.sub(r"\$\{(\w+)(:-([^}]*))?\}", fill, text)


def check_compose() -> None:
    folder = ROOT / "deploy/compose"
    compose = compose_spec.PyCompose.from_yaml(interpolate((folder / "compose.yaml").read_text()))
    compose.validate()
    compose.to_spec()
    services = compose.to_dict()["services"]
    expected = {"nats", "coordinator", "worker", "prometheus", "grafana"}
    if set(services) != expected:
        sys.exit(f"compose.yaml: services are {sorted(services)}")
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = str(volume).split(":")[0]
            if source.startswith(".") and not (folder / source).exists():
                sys.exit(f"compose.yaml: {name} mounts {source}, which is not there")
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                sys.exit(f"compose.yaml: {name} publishes {port} beyond this machine")


def check_dockerfile() -> None:
    # DL3008 asks for pinned versions of Debian's packages, which then vanish from the mirrors.
    program = Path(sys.executable).parent / "hadolint"
    subprocess.run([program, "--ignore", "DL3008", ROOT / "deploy/Dockerfile"], check=True)
    for source in re.findall(r"^COPY (?!--from)(\S+) ", (ROOT / "deploy/Dockerfile").read_text(), re.M):
        if not (ROOT / source).exists():
            sys.exit(f"Dockerfile: {source} is not there")


check_compose()
check_dockerfile()
