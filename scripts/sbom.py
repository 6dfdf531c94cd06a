#!/usr/bin/env python3
"""Prints a software bill of materials of the binary (CycloneDX 1.5, JSON), made from `cargo metadata`.

    scripts/sbom.py            prints it
    scripts/sbom.py --check    holds what is in it against deny.toml instead: licences, sources, wildcards

`--check` reads the same rules as `cargo deny check bans licenses sources`, for whoever has no cargo-deny at hand: it
takes minutes to compile, and this takes a second."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


def metadata(rules: dict) -> dict:
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    command += [f"--filter-platform={target}" for target in rules["graph"]["targets"]]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def reachable(data: dict, root_name: str, kinds: tuple) -> list[dict]:
    """The packages that end up in `root_name`, by the resolved graph; `kinds` are the kinds of dependency to follow."""
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    start = next(p["id"] for p in data["packages"] if p["name"] == root_name and p["source"] is None)
    seen, waiting = set(), [start]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for dependency in nodes[current]["deps"]:
            if any(kind["kind"] in kinds for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    return sorted((packages[one] for one in seen), key=lambda p: (p["name"], p["version"]))


def bill(data: dict) -> dict:
    entry = r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]+)"'
    checksums = {(name, version): checksum for name, version, checksum in re.findall(entry, lock())}
    components = []
    for package in reachable(data, "ternfleet", (None, "build")):
        if package["name"] == "ternfleet":
            main = package
            continue
        component = {
            "type": "library",
            "name": package["name"],
            "version": package["version"],
            "purl": f"pkg:cargo/{package['name']}@{package['version']}",
            "bom-ref": f"pkg:cargo/{package['name']}@{package['version']}",
        }
        if package["license"]:
            component["licenses"] = [{"expression": spdx(package["license"])}]
        checksum = checksums.get((package["name"], package["version"]))
        if checksum:
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(component)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": "ternfleet",
                "version": main["version"],
                "bom-ref": f"pkg:cargo/ternfleet@{main['version']}",
                "purl": f"pkg:cargo/ternfleet@{main['version']}",
                "licenses": [{"expression": spdx(main["license"])}],
            }
        },
        "components": components,
    }


def lock() -> str:
    return (ROOT / "Cargo.lock").read_text()


def spdx(expression: str) -> str:
    """Old manifests write `MIT/Apache-2.0` for a choice."""
    return expression.replace("/", " OR ")


def allowed(expression: str, licences: set) -> bool:
    """An SPDX expression of names, AND, OR, WITH and parentheses."""
    tokens = re.findall(r"\(|\)|[^\s()]+", spdx(expression))

    def choice() -> bool:
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            other = both()
            value = value or other
        return value

    def both() -> bool:
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            other = one()
            value = value and other
        return value

    def one() -> bool:
        token = tokens.pop(0)
        if token == "(":
            value = choice()
            tokens.pop(0)
            return value
        if tokens and tokens[0] == "WITH":
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in licences

    return choice()


def check(data: dict, rules: dict) -> list[str]:
    licences = set(rules["licenses"]["allow"])
    banned = {ban["crate"] if isinstance(ban, dict) else ban for ban in rules.get("bans", {}).get("deny", [])}
    faults = []
    for package in data["packages"]:
        name = f"{package['name']} {package['version']}"
        ours = package["source"] is None
        if not ours and package["source"] != REGISTRY:
            faults.append(f"{name} comes from {package['source']}")
        if not package["license"]:
            faults.append(f"{name} names no licence")
        elif not allowed(package["license"], licences):
            faults.append(f"{name} is under {package['license']}, which deny.toml does not allow")
        if package["name"] in banned:
            faults.append(f"{name} is banned")
        if ours:
            for dependency in package["dependencies"]:
                if dependency["req"] == "*" and dependency["source"] is not None:
                    faults.append(f"{name} takes any version of {dependency['name']}")
    return faults


if __name__ == "__main__":
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    found = metadata(rules)
    if "--check" in sys.argv[1:]:
        faults = check(found, rules)
        print("\n".join(faults) or f"{len(found['packages'])} packages are as deny.toml asks")
        sys.exit(1 if faults else 0)
    print(json.dumps(bill(found), indent=1, sort_keys=True))
