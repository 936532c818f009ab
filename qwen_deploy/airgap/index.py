"""bundle.json, the first member of a bundle: what is in it and for whom, strictly read.

Knows no files; the members' places follow from the archive itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from qwen_weights import manifest as manifests
from qwen_weights.errors import BadManifest
from qwen_weights.manifest import Artifact, Manifest

from qwen_deploy import __version__ as VERSION
from qwen_deploy.errors import UsageError

NAME = "bundle.json"
SCHEMA = 1
PROGRAM = "qwen-deploy"
PLATFORM = "linux-x86_64"
WHEELS_MODEL = "qwen-deploy/wheels"
MODEL_DIR, WHEELS_DIR, UV = "model", "wheels", "uv"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[\w.+!-]+", re.ASCII)
PYTHON_PATTERN = re.compile(r"3\.[1-9][0-9]?", re.ASCII)


class BundleRefused(UsageError):
    """The file is not a bundle that this program can use; no host was asked anything."""


class BadIndex(ValueError):
    """Says what no version of the program would have written."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive by its name there."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Index:
    """`lock` is the SHA-256 of the requirements file that the wheels belong to."""

    version: str
    python: str
    accelerator: str
    lock: str
    model: Manifest
    wheels: Manifest
    members: tuple[Member, ...]

    @property
    def total_bytes(self) -> int:
        return sum(member.size for member in self.members)

    @property
    def runtime_python(self) -> tuple[int, int]:
        major, minor = self.python.split(".")
        return int(major), int(minor)

    def to_json(self) -> bytes:
        content = {
            "program": PROGRAM,
            "schema": SCHEMA,
            "version": self.version,
            "python": self.python,
            "platform": PLATFORM,
            "accelerator": self.accelerator,
            "lock": self.lock,
            "model": json.loads(self.model.to_json()),
            "wheels": json.loads(self.wheels.to_json()),
            "members": [asdict(member) for member in self.members],
        }
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def members_of(manifest: Manifest, folder: str) -> tuple[Member, ...]:
    """A manifest's artifacts as they are named in the archive."""
    artifacts = manifest.artifacts
    return tuple(Member(f"{folder}/{one.path}", one.size, one.sha256) for one in artifacts)


def parse(data: bytes, origin: str) -> Index:
    """`origin` names the file. Raises BundleRefused."""
    try:
        return _parse(_object(data), origin)
    except BadIndex as error:
        raise BundleRefused(
            f"{origin} is not a bundle as qwen-deploy writes it: {error}",
            hint="Copy it again, or create it again: qwen-deploy bundle create",
        ) from error


def _parse(document: dict[str, Any], origin: str) -> Index:
    schema, version = document.get("schema"), document.get("version")
    if document.get("program") != PROGRAM or type(schema) is not int or schema < 1:
        raise BadIndex(f"{NAME} is another program's")
    if schema > SCHEMA:
        raise BundleRefused(
            f"{origin} was made by a newer qwen-deploy, {version}, in a form that {VERSION} cannot "
            f"read",
            hint=f"Install qwen-deploy {version} here",
        )
    if document.get("platform") != PLATFORM:
        raise BadIndex(f"platform should be {PLATFORM}")
    made = Index(
        version=_text(document, "version", _VERSION),
        python=_text(document, "python", PYTHON_PATTERN),
        accelerator=_text(document, "accelerator", re.compile("cpu|cuda")),
        lock=_text(document, "lock", _SHA256),
        model=_manifest(document, "model"),
        wheels=_manifest(document, "wheels"),
        members=_members(document.get("members")),
    )
    _check_artifacts(made)
    return made


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise BadIndex(f"{NAME} is not JSON") from error
    if not isinstance(document, dict):
        raise BadIndex(f"{NAME} is not an object")
    return document


def _text(document: dict[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadIndex(f"{key} {value!r} is not allowed")
    return value


def _manifest(document: dict[str, Any], key: str) -> Manifest:
    try:
        return manifests.parse(json.dumps(document.get(key)))
    except BadManifest as error:
        raise BadIndex(f"{key}: {error}") from error


def _members(rows: Any) -> tuple[Member, ...]:
    """Checked as the artifacts of a manifest are: names that stay inside, sizes, hashes."""
    try:
        found = tuple(Member(**row) for row in rows)
        made = manifests.make("members", (Artifact(m.path, m.size, m.sha256) for m in found))
    except (TypeError, BadManifest) as error:
        raise BadIndex(f"members: {error}") from error
    if len(made.artifacts) != len(found) or NAME in {member.path for member in found}:
        raise BadIndex("members: should name each file once")
    return found


def _check_artifacts(made: Index) -> None:
    """What the manifests promise is in the archive, and a path means one thing in both."""
    expected = {*members_of(made.model, MODEL_DIR), *members_of(made.wheels, WHEELS_DIR)}
    if missing := expected - set(made.members):
        raise BadIndex(f"members lack {min(one.path for one in missing)}")
    if made.wheels.model != WHEELS_MODEL:
        raise BadIndex(f"wheels should be of {WHEELS_MODEL}")
    if both := _paths(made.model.artifacts) & _paths(made.wheels.artifacts):
        raise BadIndex(f"{min(both)} is both a model's file and a wheel")


def _paths(artifacts: Iterable[Artifact]) -> set[str]:
    return {one.path for one in artifacts}
