"""A folder or an archive that was carried by hand: on this machine, or on the hosts. Knows no
hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_weights import manifest as manifests
from qwen_weights.errors import BadManifest
from qwen_weights.manifest import Manifest

from qwen_deploy import archive as archives
from qwen_deploy import folder
from qwen_deploy.checkpoint import CheckpointRefused
from qwen_deploy.hashes import Progress
from qwen_deploy.sources.pinned import UNVERIFIED, Pinned, Upstream
from qwen_deploy.sources.settings import Settings


def pin(settings: Settings, path: Path, progress: Progress | None = None) -> Pinned:
    """Raises CheckpointRefused."""
    path = path.expanduser()
    cache_path = settings.cache_dir / folder.default_cache_path().name
    given: dict[str, Any] = {"cache_path": cache_path, "progress": progress}
    if not path.is_file():
        report = folder.inspect(path, model=settings.name, **given)
        return Pinned(report.manifest, (), report, _notes(report.manifest, str(path)))
    found = archives.inspect(path, model=settings.name, **given)
    notes = _notes(found.manifest, str(path))
    return Pinned(found.manifest, (), found, notes, found.sequence)


def from_index(path: str, document: Mapping[str, Any]) -> Pinned:
    """What `agent index` printed last on a host, which then reads its own copy."""
    try:
        manifest = manifests.of_document(document["manifest"])
        entry = {"kind": document["kind"], "name": f"host:{path}", "path": path}
        if document["kind"] == "archive":
            entry["prefix"] = document["prefix"]
    except (BadManifest, KeyError, TypeError) as error:
        raise CheckpointRefused(f"host:{path} cannot be used: {error}") from error
    return Pinned(manifest, (Upstream(entry),), None, _notes(manifest, f"host:{path}"))


def _notes(manifest: Manifest, place: str) -> tuple[str, ...]:
    if manifest.proof != "none":
        return ()
    return (f"{UNVERIFIED}: no checksums came with {place}",)
