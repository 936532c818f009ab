"""Facts to findings: may this release go to this host? Pure; knows not how facts travelled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qwen_deploy.config import Service
from qwen_deploy.facts import Facts
from qwen_deploy.release import ROOT, STATE, Release

MINIMUM_PYTHON = (3, 11)
# The CPU lock holds the hashes of PyTorch's CPU build for this Python alone.
CPU_LOCK_PYTHON = (3, 11)
# Measured: the environment with uv's cache, which shares its blocks by hard links.
RUNTIME_BYTES = {"cpu": 1_700_000_000, "cuda": 9_000_000_000}
RESERVE_BYTES = 200_000_000
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    level: Literal["warning", "refusal"]
    message: str
    hint: str = ""


def inspect(facts: Facts, release: Release, service: Service) -> tuple[Finding, ...]:
    """Everything that speaks against the release, refusals first."""
    findings = [
        *_system(facts),
        *_python(facts, release),
        *_accelerator(facts, release),
        *_port(facts, service),
        *_disks(facts, release),
        *_memory(facts, release),
    ]
    return tuple(sorted(findings, key=lambda finding: finding.level == "warning"))


def _system(facts: Facts) -> Iterator[Finding]:
    if not facts.has_systemd:
        yield Finding("refusal", "the host does not run systemd", "use a host that boots systemd")
    if not facts.has_apt:
        yield Finding(
            "refusal",
            f"{facts.os_name} is not supported: it has no apt",
            "use Debian 12 or newer, or Ubuntu 24.04 or newer",
        )
    if facts.machine != "x86_64":
        yield Finding(
            "refusal", f"{facts.machine} is not supported", "use a host with an x86_64 processor"
        )


def _python(facts: Facts, release: Release) -> Iterator[Finding]:
    version = facts.runtime_python
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    if version is None:
        yield Finding(
            "refusal",
            f"`{release.python}` is not on the host",
            "install it, or set `runtime.python` to another interpreter",
        )
    elif version < MINIMUM_PYTHON:
        yield Finding(
            "refusal",
            f"`{release.python}` is Python {version[0]}.{version[1]}: {wanted} or newer is needed",
            f"install python{wanted} and set `runtime.python: /usr/bin/python{wanted}`",
        )
    elif release.accelerator == "cpu" and version != CPU_LOCK_PYTHON:
        yield Finding(
            "refusal",
            f"the CPU packages are locked for Python 3.11, `{release.python}` is "
            f"{version[0]}.{version[1]}",
            "set `runtime.accelerator: cuda`; that build runs on the CPU too",
        )


def _accelerator(facts: Facts, release: Release) -> Iterator[Finding]:
    if release.accelerator == "cuda" and not facts.gpus:
        yield Finding("warning", "no NVIDIA GPU answers: the model will run on the CPU")


def _port(facts: Facts, service: Service) -> Iterator[Finding]:
    owner = facts.port_owner
    if owner and owner["unit"] != "qwen.service" and not _is_our_socket(facts, owner):
        unit = f" of {owner['unit']}" if owner["unit"] else ""
        yield Finding(
            "refusal",
            f"port {service.port} is taken by `{owner['command']}` (pid {owner['pid']}{unit})",
            "stop it, or set another `service.port`",
        )


def _is_our_socket(facts: Facts, owner: object) -> bool:
    is_systemd = isinstance(owner, dict) and owner.get("pid") == 1
    return is_systemd and facts.units.get("qwen.socket", {}).get("ActiveState") == "active"


def needed_bytes(facts: Facts, release: Release) -> dict[str, int]:
    """Bytes that will be written below each directory of ours, what lies there already deducted."""
    venv_is_there = facts.digests.get(f"{release.venv_dir}/.complete") is not None
    runtime = 0 if venv_is_there else RUNTIME_BYTES[release.accelerator]
    return {ROOT: runtime, STATE: missing_bytes(facts, release)}


def missing_bytes(facts: Facts, release: Release) -> int:
    """Bytes of the model that are not on the host under their final name."""
    return sum(
        artifact.size
        for artifact in release.manifest.artifacts
        if facts.tree.get(artifact.path) != artifact.size
    )


def _disks(facts: Facts, release: Release) -> Iterator[Finding]:
    needed: dict[str, int] = {}
    for path, size in needed_bytes(facts, release).items():
        mount = facts.disks[path].mount
        needed[mount] = needed.get(mount, 0) + size
    for path in (ROOT, STATE):
        disk = facts.disks[path]
        size = needed.pop(disk.mount, 0)
        if size and size + RESERVE_BYTES > disk.free_bytes:
            yield Finding(
                "refusal",
                f"the disk at {disk.mount} is too small for {path}: needs "
                f"{_gib(size + RESERVE_BYTES)}, has {_gib(disk.free_bytes)} free",
                f"free space on {disk.mount}, or mount a larger disk at {path}",
            )


def _memory(facts: Facts, release: Release) -> Iterator[Finding]:
    size = release.manifest.total_bytes
    if release.accelerator == "cpu" and size > facts.memory_bytes:
        yield Finding(
            "warning",
            f"the model has {_gib(size)}, the host {_gib(facts.memory_bytes)} of memory",
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
