"""Facts to findings: may this release go to this host? Pure; knows not how facts travelled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from qwen_weights import manifest as manifests
from qwen_weights.manifest import Manifest

from qwen_deploy.airgap import Bundle
from qwen_deploy.config import Service
from qwen_deploy.facts import Facts
from qwen_deploy.release import ROOT, STATE, Release, model_dir, staging_dir
from qwen_deploy.sizes import megabytes

MINIMUM_PYTHON = (3, 11)
# The CPU lock holds the hashes of PyTorch's CPU build for this Python alone.
CPU_LOCK_PYTHON = (3, 11)
# Measured: the environment with uv's cache, which shares its blocks by hard links.
RUNTIME_BYTES = {"cpu": 1_700_000_000, "cuda": 9_000_000_000}
RESERVE_BYTES = 200_000_000
GIB = 1 << 30
# As qwen_service.engines.quantization judges on the host; a test compares the two.
QUANTIZATION_NEEDS: Mapping[str, tuple[str, ...]] = {
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "fp8": (),
    "gptq": ("gptqmodel", "optimum"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    level: Literal["warning", "refusal"]
    message: str
    hint: str = ""


def inspect(
    facts: Facts, release: Release, service: Service, bundle: Bundle | None = None
) -> tuple[Finding, ...]:
    """Everything that speaks against the release, refusals first."""
    findings = [
        *_system(facts, bundle),
        *_python(facts, release),
        *_bundle(facts, bundle),
        *_accelerator(facts, release, service),
        *_quantization(release),
        *_port(facts, service),
        *_disks(facts, release, bundle),
        *_memory(facts, release),
    ]
    return tuple(sorted(findings, key=lambda finding: finding.level == "warning"))


def _system(facts: Facts, bundle: Bundle | None) -> Iterator[Finding]:
    if not facts.has_systemd:
        yield Finding("refusal", "the host does not run systemd", "use a host that boots systemd")
    if not facts.has_apt and bundle is None:
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


def _bundle(facts: Facts, bundle: Bundle | None) -> Iterator[Finding]:
    version = facts.runtime_python
    if bundle is None or version is None or version == bundle.index.runtime_python:
        return
    host, wheels = (".".join(map(str, one)) for one in (version, bundle.index.runtime_python))
    yield Finding(
        "refusal",
        f"its Python is {host}, and the bundle has wheels for {wheels}",
        f"qwen-deploy bundle create --python {host}",
    )


def _accelerator(facts: Facts, release: Release, service: Service) -> Iterator[Finding]:
    if service.gpus:
        yield from _named_gpus(facts, release, service)
    elif release.accelerator == "cuda" and not facts.gpus:
        yield Finding("warning", "no NVIDIA GPU answers: the model will run on the CPU")


def _named_gpus(facts: Facts, release: Release, service: Service) -> Iterator[Finding]:
    there = [uuid for gpu in facts.gpus for uuid in (gpu["uuid"], *_mig_instances(gpu))]
    unknown = [uuid for uuid in service.gpus if uuid not in there]
    listed = ", ".join(there) or "none"
    if unknown:
        yield Finding(
            "refusal",
            f"it has no GPU {' and no '.join(unknown)}; there are: {listed}",
            "name those of this host in `service.gpus`, or none to use all",
        )
    elif release.accelerator == "cpu" or service.device == "cpu":
        yield Finding(
            "refusal",
            "`service.gpus` names GPUs, but the model is to run on the CPU",
            "remove `service.gpus`, or set `runtime.accelerator` and `service.device` to auto",
        )


def _mig_instances(gpu: Mapping[str, str]) -> list[str]:
    return [uuid for uuid in gpu.get("mig", "").split(",") if uuid]


def _quantization(release: Release) -> Iterator[Finding]:
    """By the packages that the host will have."""
    method = release.manifest.quantization
    if method is None:
        return
    hint = "use the model as it is without quantization, or in FP8"
    if method not in QUANTIZATION_NEEDS:
        known = ", ".join(sorted(QUANTIZATION_NEEDS))
        message = f"the model is quantized by {method}, and only {known} can be loaded"
        yield Finding("refusal", message, hint)
        return
    locked = set(re.findall(r"^([\w.-]+)==", release.lock.decode(), re.MULTILINE))
    if missing := [one for one in QUANTIZATION_NEEDS[method] if one not in locked]:
        message = (
            f"the model is quantized by {method}, which needs {' and '.join(missing)}: "
            f"not among the packages for {release.accelerator}"
        )
        yield Finding("refusal", message, hint)


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


def needed_bytes(facts: Facts, release: Release, bundle: Bundle | None) -> dict[str, int]:
    """Bytes that will be written below each directory of ours, what lies there already deducted."""
    runtime = RUNTIME_BYTES[release.accelerator] if needs_environment(facts, release) else 0
    needed = wanting(facts, release, bundle)
    return {ROOT: runtime, STATE: sum(missing_bytes(facts, manifest) for manifest in needed)}


def needs_environment(facts: Facts, release: Release) -> bool:
    return facts.digests.get(f"{release.venv_dir}/.complete") is None


def wanting(facts: Facts, release: Release, bundle: Bundle | None) -> tuple[Manifest, ...]:
    """What has to be brought: the wheels of a bundle first, since the environment is built while
    the weights still travel."""
    wheels = [bundle.wheels] if bundle and needs_environment(facts, release) else []
    needed = (*wheels, release.manifest)
    return tuple(manifest for manifest in needed if not has_weights(facts, manifest))


def missing_bytes(facts: Facts, manifest: Manifest) -> int:
    """Bytes of the model that are on the host in no form: neither under their final name nor in
    another revision of the model nor as the start of an unfinished transfer."""
    others = [one for one in facts.models if one.revision != manifest.revision]
    held = {artifact.sha256 for other in others for artifact in other.artifacts}
    # A transfer that has not ended has some files in a folder beside (qwen_weights.store).
    staged = facts.trees.get(staging_dir(manifest), {})
    there = {**staged, **facts.trees.get(model_dir(manifest), {})}
    missing = {
        artifact.sha256: artifact.size
        for artifact in manifest.artifacts
        if there.get(artifact.path) != artifact.size and artifact.sha256 not in held
    }
    return sum(size - min(facts.partials.get(sha256, 0), size) for sha256, size in missing.items())


def has_weights(facts: Facts, manifest: Manifest) -> bool:
    """The revision lies on the host under its final name, whole by names and sizes, and nobody has
    found it damaged."""
    record = f"{model_dir(manifest)}/{manifests.NAME}"
    there = facts.trees.get(model_dir(manifest), {})
    is_there = facts.digests.get(record) is not None and not is_damaged(facts, manifest)
    return is_there and all(there.get(one.path) == one.size for one in manifest.artifacts)


def is_damaged(facts: Facts, manifest: Manifest) -> bool:
    """So `weights verify` has found."""
    return manifests.DAMAGE_NAME in facts.trees.get(model_dir(manifest), {})


def weights_room(facts: Facts, manifest: Manifest) -> Finding | None:
    """Whether the rest of the weights fits on the disk they will lie on."""
    size, disk = missing_bytes(facts, manifest), facts.disks[STATE]
    if not size or size + RESERVE_BYTES <= disk.free_bytes:
        return None
    return _too_small(disk.mount, STATE, size, disk.free_bytes)


def _disks(facts: Facts, release: Release, bundle: Bundle | None) -> Iterator[Finding]:
    needed: dict[str, int] = {}
    for path, size in needed_bytes(facts, release, bundle).items():
        mount = facts.disks[path].mount
        needed[mount] = needed.get(mount, 0) + size
    for path in (ROOT, STATE):
        disk = facts.disks[path]
        size = needed.pop(disk.mount, 0)
        if size and size + RESERVE_BYTES > disk.free_bytes:
            yield _too_small(disk.mount, path, size, disk.free_bytes)


def _too_small(mount: str, path: str, size: int, free_bytes: int) -> Finding:
    need, reserve, free = (megabytes(one, digits=0) for one in (size, RESERVE_BYTES, free_bytes))
    what = "" if path == mount else f" for {path}"
    return Finding(
        "refusal",
        f"the disk at {mount} is too small{what}: {need} are to be written and "
        f"{reserve} must stay free, {free} are free",
        f"free space on {mount}, or mount a larger disk at {path}",
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
