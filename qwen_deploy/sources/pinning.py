"""From a list to a manifest: reads what must be read of a few small files, proves it, and judges
whether the files are a model. What was pinned once is remembered by the list's content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qwen_weights import checkpoint
from qwen_weights import manifest as manifests
from qwen_weights.errors import BadManifest
from qwen_weights.manifest import Artifact, Manifest

from qwen_deploy.checkpoint import refusals
from qwen_deploy.sources.listing import Listed, Listing
from qwen_deploy.sources.pinned import Pinned
from qwen_deploy.sources.refusals import ListRefused
from qwen_deploy.sources.settings import Settings

SCHEMA = 1
_MOST_SMALL_BYTES = 64 << 20
_MOST_REMEMBERED = 200
_READERS = 4
_READINGS = 2


def pin(listing: Listing, settings: Settings) -> Pinned:
    memory = _Memory(settings.cache_dir / "pins.json")
    key = _key(listing)
    sha256s = memory.get(key)
    if sha256s is None or sha256s.keys() != {row.path for row in listing.files}:
        sha256s = _prove(listing)
        memory.put(key, sha256s)
    artifacts = [
        Artifact(row.path, row.size, row.sha256 or sha256s[row.path]) for row in listing.files
    ]
    return Pinned(_manifest(listing, settings.name, artifacts), listing.upstreams, None)


def _manifest(listing: Listing, name: str, artifacts: Sequence[Artifact]) -> Manifest:
    try:
        return manifests.make(
            name, artifacts, listing.revision, origin=listing.origin, proof=listing.proof
        )
    except BadManifest as error:
        raise ListRefused(f"the list of {listing.place} makes no sense: {error}") from error


def _prove(listing: Listing) -> dict[str, str]:
    """The SHA-256 of every file, once they are known to be a model."""
    rows = {row.path: row for row in listing.files}
    needed = [row for row in listing.files if row.sha256 is None or row.path in checkpoint.READ]
    with ThreadPoolExecutor(_READERS) as pool:
        contents = dict(zip(needed, pool.map(lambda row: _read(listing, row), needed), strict=True))
    with refusals():
        checkpoint.Checkpoint(listing.place, tuple(rows), lambda path: contents[rows[path]]).check()
    return {
        row.path: row.sha256 or hashlib.sha256(contents[row]).hexdigest() for row in listing.files
    }


def _read(listing: Listing, row: Listed) -> bytes:
    if row.size > _MOST_SMALL_BYTES:
        what = f"{row.path} has {row.size} bytes and no SHA-256"
        raise ListRefused(f"the list of {listing.place} makes no sense: {what}")
    for _ in range(_READINGS):
        content = listing.read(row)
        if row.fits(content):
            return content
    raise ListRefused(
        f"{listing.place}/{row.path}: other bytes come than are listed",
        hint="Try again later, or name another source: --weights",
    )


def _key(listing: Listing) -> str:
    rows = [[row.path, row.size, row.sha256, row.git] for row in listing.files]
    return hashlib.sha256(json.dumps([SCHEMA, rows]).encode()).hexdigest()


class _Memory:
    """A cache and no state: a damaged or lost file costs a few requests."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> dict[str, str] | None:
        return self._load().get(key)

    def put(self, key: str, sha256s: Mapping[str, str]) -> None:
        pins = {**self._load(), key: dict(sha256s)}
        kept = dict(list(pins.items())[-_MOST_REMEMBERED:])
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"schema": SCHEMA, "pins": kept}), encoding="utf-8")
            os.replace(beside, self._path)

    def _load(self) -> dict[str, dict[str, str]]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                return {}
            return {
                str(key): {str(path): str(sha256) for path, sha256 in one.items()}
                for key, one in document["pins"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}
