#!/usr/bin/env python3
"""Has the deployment files read by the programs' own parsers: the compose file by compose-spec's, the Dockerfile by
hadolint's, the Kubernetes manifests by the schemas of its API. All come from the Python package index, pinned in tests/deploy/requirements.txt; scripts/system-tests.sh
makes the environment that this runs in."""

import re
import subprocess
import sys
from pathlib import Path

import compose_spec
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
# The release of Kubernetes whose API the manifests are held against.
KUBERNETES = "1.37"


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


def check_kubernetes() -> None:
    file = ROOT / "deploy/kubernetes/ternfleet.yaml"
    release = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    made, wanted = set(), set()
    for resource in yaml.safe_load_all(file.read_text()):
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        spec = resource["spec"].get("template", {}).get("spec", {})
        made.update(volume["name"] for volume in spec.get("volumes", []))
        for container in spec.get("containers", []):
            wanted.update(mount["name"] for mount in container.get("volumeMounts", []))
            if not container["image"].endswith(f":{release}"):
                sys.exit(f"{file.name}: {container['image']} is not of release {release}")
    if made != wanted:
        sys.exit(f"{file.name}: volumes {sorted(made)} are made and {sorted(wanted)} mounted")


check_compose()
check_dockerfile()
check_kubernetes()
