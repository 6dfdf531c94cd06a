#!/usr/bin/env python3
"""Has the deployment files read by the programs' own parsers: the compose file by compose-spec's, the Dockerfile by
hadolint's, the Kubernetes manifests by kubectl's kustomize and the schemas of its API. All come from the Python package index, pinned in tests/deploy/requirements.txt; scripts/system-tests.sh
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


def check_kubernetes(folder: str, expected: set[str]) -> None:
    """Renders a folder as `kubectl apply -k` does, and holds every resource against the API's schemas."""
    program = Path(sys.executable).parent / "kubectl"
    rendered = subprocess.run([program, "kustomize", ROOT / folder], check=True, capture_output=True, text=True).stdout
    nats = re.search(r"image: (nats:\S+)", (ROOT / "deploy/compose/compose.yaml").read_text()).group(1)
    release = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    resources = list(yaml.safe_load_all(rendered))
    names = {f"{resource['kind']}/{resource['metadata']['name']}" for resource in resources}
    for resource in resources:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        spec = resource.get("spec", {}).get("template", {}).get("spec", {})
        claims = resource.get("spec", {}).get("volumeClaimTemplates", [])
        made = {volume["name"] for volume in spec.get("volumes", [])} | {claim["metadata"]["name"] for claim in claims}
        wanted = set()
        for container in spec.get("containers", []):
            wanted.update(mount["name"] for mount in container.get("volumeMounts", []))
            if container["image"] != nats and not container["image"].endswith(f":{release}"):
                sys.exit(f"{folder}: {container['image']} is neither of release {release} nor {nats}")
        for volume in spec.get("volumes", []):
            if "configMap" in volume and f"ConfigMap/{volume['configMap']['name']}" not in names:
                sys.exit(f"{folder}: {volume['configMap']['name']} is mounted and not made")
        if made != wanted:
            sys.exit(f"{folder}: volumes {sorted(made)} are made and {sorted(wanted)} mounted")
    # A generated ConfigMap has a digest of its content at its end.
    found = {re.sub(r"(ConfigMap/nats-server)-\w+$", r"\1", name) for name in names}
    if found != expected:
        sys.exit(f"{folder}: {sorted(found)} are made, not {sorted(expected)}")


check_compose()
check_dockerfile()
ours = {"Deployment/ternfleet-coordinator", "Service/ternfleet", "Deployment/ternfleet-worker"}
with_nats = ours | {"StatefulSet/nats", "Service/nats", "Service/nats-headless", "ConfigMap/nats-server"}
check_kubernetes("deploy/kubernetes/base", ours)
check_kubernetes("deploy/kubernetes/overlays/single-nats", with_nats)
check_kubernetes("deploy/kubernetes/overlays/three-nats", with_nats)
monitored = {"ConfigMap/ternfleet-dashboards", "ConfigMap/ternfleet-rules"}
check_kubernetes("deploy/kubernetes/overlays/monitoring", with_nats | monitored)
