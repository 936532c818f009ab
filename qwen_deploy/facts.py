"""What was read from a host in one round trip: the question, and the answer as a value.

Knows neither how it travelled nor what follows from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from qwen_weights import manifest as manifests
from qwen_weights.errors import BadManifest
from qwen_weights.manifest import Manifest

from qwen_deploy import commands
from qwen_deploy.config import Service
from qwen_deploy.release import ROOT, STATE, Release

Probe = Literal["none", "ready", "completion"]
PACKAGES = ("ca-certificates", "git", "git-lfs")


@dataclass(frozen=True, slots=True)
class Disk:
    mount: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said: `/ready`'s status and body, and how a completion went."""

    status: int
    release: str | None
    reason: str
    completion_ok: bool | None
    completion_error: str

    @property
    def is_ready(self) -> bool:
        return self.status == 200 and self.completion_ok is not False


@dataclass(frozen=True, slots=True)
class Facts:
    """`digests` maps a path to its SHA-256, `-> target` of a link, or None where nothing is;
    `trees` are sizes by path below each folder,
    `models` the revisions of the wanted model, `partials` bytes by the SHA-256 they will have,
    `address` the one at which this host answered SSH."""

    sudo: bool
    address: str
    machine: str
    os_id: str
    os_name: str
    has_systemd: bool
    has_apt: bool
    python: tuple[int, int, int]
    runtime_python: tuple[int, int] | None
    memory_bytes: int
    time: float
    boot_id: str
    disks: Mapping[str, Disk]
    packages: Mapping[str, bool]
    gpus: tuple[Mapping[str, str], ...]
    port_owner: Mapping[str, Any] | None
    current: str | None
    releases: tuple[Mapping[str, Any], ...]
    audit: tuple[Mapping[str, Any], ...]
    digests: Mapping[str, str | None]
    trees: Mapping[str, Mapping[str, int]]
    models: tuple[Manifest, ...]
    partials: Mapping[str, int]
    keys: tuple[tuple[str, ...], ...]
    units: Mapping[str, Mapping[str, str]]
    process: Mapping[str, float] | None
    answer: Answer | None

    @property
    def unit(self) -> Mapping[str, str]:
        return self.units.get("qwen.service", {})

    @property
    def unit_state(self) -> str:
        return self.unit.get("ActiveState", "unknown")

    @property
    def current_release(self) -> Mapping[str, Any] | None:
        """The release.json of what `current` points to, with its id."""
        return next((one for one in self.releases if one["id"] == self.current), None)

    @property
    def proven(self) -> tuple[str, ...]:
        """Releases that were once proven here and still lie here, the latest proof last."""
        there = {release["id"] for release in self.releases}
        proven: list[str] = []
        for line in self.audit:
            release = line.get("release")
            if line.get("proven") and release in there:
                proven = [*(other for other in proven if other != release), str(release)]
        return tuple(proven)


def question(
    releases: Sequence[Release],
    *,
    service: Service | None,
    python: str = "python3",
    host_paths: Sequence[str] = (),
    model: str = "",
    trees: Sequence[str] = (),
    packages: Sequence[str] = (),
    probe: Probe = "completion",
) -> Mapping[str, Any]:
    """The argument of host_side/facts.py. Without a release it asks only what the host serves."""
    paths = sorted({path for release in releases for path in release.managed} | set(host_paths))
    return {
        "paths": paths,
        "trees": list(trees),
        "disks": [ROOT, STATE],
        "port": service.port if service and releases else 0,
        "python": python,
        "units": list(commands.UNITS),
        "packages": list(packages),
        "model": model.replace("/", "--"),
        "probe": probe,
    }


def parse(text: str) -> Facts:
    raw = json.loads(text)
    return Facts(
        sudo=raw["sudo"],
        address=raw["address"],
        machine=raw["machine"],
        os_id=raw["os"].get("ID", ""),
        os_name=raw["os"].get("PRETTY_NAME", raw["os"].get("ID", "unknown")),
        has_systemd=raw["has_systemd"],
        has_apt=raw["has_apt"],
        python=tuple(raw["python"]),
        runtime_python=tuple(raw["runtime_python"]) if raw["runtime_python"] else None,
        memory_bytes=raw["memory_bytes"],
        time=raw["time"],
        boot_id=raw["boot_id"],
        disks={
            path: Disk(disk["mount"], disk["free_bytes"]) for path, disk in raw["disks"].items()
        },
        packages=raw["packages"],
        gpus=tuple(raw["gpus"]),
        port_owner=raw["port_owner"],
        current=raw["current"],
        releases=tuple(raw["releases"]),
        audit=tuple(raw["audit"]),
        digests=raw["digests"],
        trees=raw["trees"],
        models=tuple(_models(raw["models"])),
        partials=raw["partials"],
        keys=tuple(tuple(line) for line in raw["keys"]),
        units=raw["units"],
        process=raw["process"],
        answer=_answer(raw["service"]) if raw["service"] else None,
    )


def _models(raw: Sequence[Any]) -> Iterator[Manifest]:
    """What another version wrote, or a person, is none of ours."""
    for document in raw:
        with suppress(BadManifest):
            yield manifests.parse(json.dumps(document))


def _answer(raw: Mapping[str, Any]) -> Answer:
    ready = raw["ready"] if isinstance(raw["ready"], dict) else {"reason": str(raw["ready"])}
    completion = raw.get("completion")
    return Answer(
        status=raw["status"],
        release=ready.get("release"),
        reason=str(ready.get("reason") or ready.get("status") or ""),
        completion_ok=completion["ok"] if completion else None,
        completion_error=_said(completion["error"]) if completion else "",
    )


def _said(error: Any) -> str:
    """The message of an error in OpenAI's envelope, or whatever came instead of one."""
    inner = error.get("error") if isinstance(error, dict) else None
    return str((inner.get("message") if isinstance(inner, dict) else error) or "")
