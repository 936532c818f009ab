"""The artifacts of one model revision, read strictly from manifest.json. The host's half of a
format whose other half is the controller's. Knows neither folders nor sources."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from .errors import BadManifest

NAME = "manifest.json"
SCHEMA = 1
_MODEL = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}|w-[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_IN_A_NAME = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


@dataclass(frozen=True)
class Artifact:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    model: str
    revision: str
    artifacts: tuple[Artifact, ...]

    @property
    def total_bytes(self) -> int:
        return sum(artifact.size for artifact in self.artifacts)

    def to_json(self, *, verified_at: str | None = None) -> str:
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "model": self.model,
            "revision": self.revision,
            "artifacts": [vars(artifact) for artifact in self.artifacts],
        }
        if verified_at is not None:
            document["verified_at"] = verified_at
        return json.dumps(document, indent=1) + "\n"


def parse(text: str) -> Manifest:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadManifest(f"manifest: not JSON: {error}") from error
    required = {"schema", "model", "revision", "artifacts"}
    fields = _fields(document, required, optional={"verified_at"}, where="manifest")
    if fields["schema"] != SCHEMA or isinstance(fields["schema"], bool):
        _refuse("schema", f"should be {SCHEMA}, is {fields['schema']!r}")
    rows = fields["artifacts"]
    if not isinstance(rows, list) or not rows:
        _refuse("artifacts", "should be a list with at least one artifact")
    artifacts = tuple(_artifact(row, f"artifacts/{at}") for at, row in enumerate(rows))
    _check_paths(tuple(artifact.path for artifact in artifacts))
    return Manifest(
        _matching(fields["model"], _MODEL, "model"),
        _matching(fields["revision"], _REVISION, "revision"),
        artifacts,
    )


def _refuse(where: str, why: str) -> NoReturn:
    raise BadManifest(f"manifest: {where}: {why}")


def _fields(value: Any, required: set[str], optional: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, "should be an object")
    for name in sorted(required - value.keys()):
        _refuse(where, f"{name} is missing")
    for name in sorted(value.keys() - required - optional):
        _refuse(where, f"{name} is unknown")
    return value


def _matching(value: Any, pattern: re.Pattern[str], where: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _refuse(where, f"{value!r} is not allowed")
    return value


def _artifact(row: Any, where: str) -> Artifact:
    fields = _fields(row, {"path", "size", "sha256"}, optional=set(), where=where)
    size = fields["size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        _refuse(f"{where}/size", f"{size!r} should be a count of bytes")
    sha256 = _matching(fields["sha256"], _SHA256, f"{where}/sha256")
    return Artifact(_path(fields["path"], f"{where}/path"), size, sha256)


def _path(value: Any, where: str) -> str:
    """A path that stays inside its folder and cannot pass for anything else."""
    if not isinstance(value, str) or _NOT_IN_A_NAME.search(value):
        _refuse(where, f"{value!r} is not a file name")
    for part in value.split("/"):
        if part in ("", ".", "..") or len(part.encode()) > 255:
            _refuse(where, f"{value!r} leaves the model's folder or is not a file name")
    if value == NAME:
        _refuse(where, f"{NAME} cannot list itself")
    return value


def _check_paths(paths: tuple[str, ...]) -> None:
    if list(paths) != sorted(set(paths)):
        _refuse("artifacts", "should be sorted by path, each path once")
    files = set(paths)
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in files:
                _refuse("artifacts", f"{'/'.join(parts[:depth])} is both a file and a folder")
