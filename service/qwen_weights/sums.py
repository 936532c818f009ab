"""Lists of checksums that come with a model's files: `manifest.json`, `SHA256SUMS`, and the names
that git-lfs and hubs give to content. Does not know how the files are read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qwen_weights import manifest as manifests
from qwen_weights.checkpoint import SUMS_NAME, is_weights, select
from qwen_weights.errors import BadManifest, NotAModel
from qwen_weights.manifest import Artifact, Manifest, Origin


@dataclass(frozen=True)
class Expected:
    sha256: str
    origin: str  # who says so, as messages name it


@dataclass(frozen=True)
class Recorded:
    """What the lists that came along say of each path."""

    expected: Mapping[str, Expected] = field(default_factory=dict)
    manifest: Manifest | None = None

    def check(self, place: str, artifacts: Sequence[Artifact]) -> None:
        found = {artifact.path: artifact.sha256 for artifact in artifacts}
        for path, expected in sorted(self.expected.items()):
            if path not in found:
                raise NotAModel(f"{place} lacks {path}, which {expected.origin} names")
            if found[path] != expected.sha256:
                raise NotAModel(
                    f"{place}/{path} was altered: {expected.origin} says sha256 "
                    f"{expected.sha256}, it has {found[path]}",
                    hint="Copy or download this file again",
                )

    def name(self, model: str, artifacts: Sequence[Artifact], origin: Origin) -> Manifest:
        """The checked artifacts' manifest; a list that knows all of them knows their revision."""
        known = self.manifest
        if known and known.artifacts == tuple(artifacts):
            return manifests.make(
                model,
                artifacts,
                known.revision,
                origin=known.origin or origin,
                proof=known.proof or "sums",
            )
        weights = {artifact.path for artifact in artifacts if is_weights(artifact.path)}
        proof = "sums" if weights <= self.expected.keys() else "none"
        return manifests.make(model, artifacts, origin=origin, proof=proof)


def read(place: str, files: Sequence[str], lists: Mapping[str, bytes]) -> Recorded:
    """`lists` holds those of the two that there are. A list may name files that are not part of
    the model."""
    recorded = _manifest(place, lists[manifests.NAME]) if manifests.NAME in lists else None
    expected: dict[str, Expected] = {}
    if recorded:
        rows = {artifact.path: artifact for artifact in recorded.artifacts}
        for path in select(rows):
            expected[path] = Expected(rows[path].sha256, manifests.NAME)
    for name, sha256 in parse(place, lists.get(SUMS_NAME, b"")).items():
        if name in files or is_weights(name):
            expected[name] = Expected(sha256, SUMS_NAME)
    return Recorded(expected, recorded)


def _manifest(place: str, content: bytes) -> Manifest:
    try:
        return manifests.parse(content.decode())
    except (ValueError, BadManifest) as error:
        path = f"{place}/{manifests.NAME}"
        raise NotAModel(f"{place}: {error}", hint=f"Remove {path} or put it right") from error


def parse(place: str, content: bytes) -> dict[str, str]:
    """As `sha256sum` writes them."""
    sums: dict[str, str] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        sha256, _, name = line.strip().partition(" ")
        name = os.path.normpath(name.lstrip(" *"))
        if len(sha256) != 64 or name == ".":
            raise NotAModel(f"{place}/{SUMS_NAME}: line {number} is not a SHA-256 and a name")
        sums[name] = sha256.lower()
    return sums
