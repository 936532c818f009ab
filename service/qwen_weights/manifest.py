"""The artifacts of one model revision and their JSON, strictly read: the one format between
controller and host. Knows neither folders, sources nor clocks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from qwen_weights.errors import BadManifest

NAME = "manifest.json"
PIECES_NAME = "manifest.pieces.json"
DAMAGE_NAME = "manifest.damage.json"
# What lies beside the artifacts and is none of them.
OWN_NAMES = (NAME, PIECES_NAME, DAMAGE_NAME)
SCHEMA = 1
PROOFS = ("hub", "sums", "none")
MODEL = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
REVISION = re.compile(r"[0-9a-f]{40}|w-[0-9a-f]{16}")
QUANTIZATION = re.compile(r"[a-z0-9_.-]{1,40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME_OF_ORIGIN = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,500}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_NOT_IN_A_NAME = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


@dataclass(frozen=True)
class Artifact:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Origin:
    """Who named the artifacts, and what was asked of it: a branch, a tag or a commit."""

    source: str
    requested: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Two manifests of the same artifacts are equal, wherever each came from."""

    model: str
    revision: str
    artifacts: tuple[Artifact, ...]
    origin: Origin | None = field(default=None, compare=False)
    proof: str | None = field(default=None, compare=False)
    verified_at: str | None = field(default=None, compare=False)
    # How the weights are quantized, where they are: by config.json, which is an artifact.
    quantization: str | None = field(default=None, compare=False)

    @property
    def total_bytes(self) -> int:
        return sum(artifact.size for artifact in self.artifacts)

    @property
    def directory(self) -> str:
        """Where it lies below the models folder of a host."""
        return f"{self.model.replace('/', '--')}/{self.revision}"

    def to_json(self) -> str:
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "model": self.model,
            "revision": self.revision,
            "artifacts": [vars(artifact) for artifact in self.artifacts],
        }
        optional = {
            "origin": vars(self.origin) if self.origin else None,
            "proof": self.proof,
            "verified_at": self.verified_at,
            "quantization": self.quantization,
        }
        document |= {name: value for name, value in optional.items() if value is not None}
        return json.dumps(document, indent=1) + "\n"


def make(
    model: str,
    artifacts: Iterable[Artifact],
    revision: str | None = None,
    *,
    origin: Origin | None = None,
    proof: str | None = None,
    quantization: str | None = None,
) -> Manifest:
    """Checked like one that was read; the revision is that of the content unless it is known."""
    ordered = tuple(sorted(artifacts, key=lambda artifact: artifact.path))
    named = revision or revision_of(ordered)
    made = Manifest(model, named, ordered, origin, proof, quantization=quantization)
    return parse(made.to_json())


def revision_of(artifacts: Iterable[Artifact]) -> str:
    """The name of a folder that has no commit: the same files give the same name anywhere."""
    ordered = sorted(artifacts, key=lambda artifact: artifact.path)
    listing = "".join(f"{a.sha256} {a.size} {a.path}\n" for a in ordered)
    return f"w-{hashlib.sha256(listing.encode()).hexdigest()[:16]}"


def manifest_id(manifests: Iterable[Manifest]) -> str:
    """What a transfer brings, as one name; where it comes from is no part of it."""
    listing = [
        {
            "model": manifest.model,
            "revision": manifest.revision,
            "artifacts": [vars(artifact) for artifact in manifest.artifacts],
        }
        for manifest in manifests
    ]
    canonical = json.dumps(listing, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse(text: str) -> Manifest:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadManifest(f"{NAME}: not JSON: {error}") from error
    return of_document(document)


def of_document(document: Any) -> Manifest:
    required = {"schema", "model", "revision", "artifacts"}
    optional = {"origin", "proof", "verified_at", "quantization"}
    fields = _fields(document, required, optional=optional, where=NAME)
    if fields["schema"] != SCHEMA or isinstance(fields["schema"], bool):
        _refuse("schema", f"should be {SCHEMA}, is {fields['schema']!r}")
    rows = fields["artifacts"]
    if not isinstance(rows, list) or not rows:
        _refuse("artifacts", "should be a list with at least one artifact")
    artifacts = tuple(_artifact(row, f"artifacts/{at}") for at, row in enumerate(rows))
    _check_paths(tuple(artifact.path for artifact in artifacts))
    return Manifest(
        _matching(fields["model"], MODEL, "model"),
        _matching(fields["revision"], REVISION, "revision"),
        artifacts,
        _origin(fields["origin"]) if "origin" in fields else None,
        _proof(fields["proof"]) if "proof" in fields else None,
        _time(fields["verified_at"]) if "verified_at" in fields else None,
        _quantization(fields["quantization"]) if "quantization" in fields else None,
    )


def _refuse(where: str, why: str) -> NoReturn:
    raise BadManifest(f"{NAME}: {where}: {why}")


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


def _origin(value: Any) -> Origin:
    fields = _fields(value, {"source", "requested", "commit"}, optional=set(), where="origin")
    requested, commit = fields["requested"], fields["commit"]
    return Origin(
        _matching(fields["source"], _NAME_OF_ORIGIN, "origin/source"),
        None if requested is None else _matching(requested, _NAME_OF_ORIGIN, "origin/requested"),
        None if commit is None else _matching(commit, _COMMIT, "origin/commit"),
    )


def _proof(value: Any) -> str:
    if value not in PROOFS:
        _refuse("proof", f"should be one of {', '.join(PROOFS)}, is {value!r}")
    return str(value)


def _time(value: Any) -> str:
    return _matching(value, _TIME, "verified_at")


def _quantization(value: Any) -> str:
    return _matching(value, QUANTIZATION, "quantization")


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
    if value in OWN_NAMES:
        _refuse(where, f"{value} lies beside the artifacts and is none of them")
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
