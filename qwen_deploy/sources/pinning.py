"""From a list to a manifest: reads what must be read of a few small files, proves it, and judges
whether the files are a model. What was pinned once is remembered by the list's content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
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

SCHEMA = 2
_MOST_SMALL_BYTES = 64 << 20
_MOST_REMEMBERED = 200
_READERS = 4
_READINGS = 2


def pin(listing: Listing, settings: Settings) -> Pinned:
    memory = _Memory(settings.cache_dir / "pins.json")
    key = _key(listing)
    proven = memory.get(key)
    if proven is None or proven.sha256s.keys() != {row.path for row in listing.files}:
        proven = _prove(listing)
        memory.put(key, proven)
    return Pinned(_manifest(listing, settings.name, proven), listing.upstreams, None)


def _manifest(listing: Listing, name: str, proven: _Proven) -> Manifest:
    artifacts = [
        Artifact(row.path, row.size, row.sha256 or proven.sha256s[row.path])
        for row in listing.files
    ]
    try:
        return manifests.make(
            name,
            artifacts,
            listing.revision,
            origin=listing.origin,
            proof=listing.proof,
            quantization=proven.quantization,
        )
    except BadManifest as error:
        raise ListRefused(f"the list of {listing.place} makes no sense: {error}") from error


@dataclass(frozen=True, slots=True)
class _Proven:
    """The SHA-256 of every file, once they are known to be a model, and how that is quantized."""

    sha256s: Mapping[str, str]
    quantization: str | None


def _prove(listing: Listing) -> _Proven:
    rows = {row.path: row for row in listing.files}
    needed = [row for row in listing.files if row.sha256 is None or row.path in checkpoint.READ]
    with ThreadPoolExecutor(_READERS) as pool:
        contents = dict(zip(needed, pool.map(lambda row: _read(listing, row), needed), strict=True))
    model = checkpoint.Checkpoint(listing.place, tuple(rows), lambda path: contents[rows[path]])
    with refusals():
        model.check()
    sha256s = {
        row.path: row.sha256 or hashlib.sha256(contents[row]).hexdigest() for row in listing.files
    }
    return _Proven(sha256s, model.quantization())


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

    def get(self, key: str) -> _Proven | None:
        return self._load().get(key)

    def put(self, key: str, proven: _Proven) -> None:
        pins = {**self._load(), key: proven}
        kept = {key: asdict(one) for key, one in list(pins.items())[-_MOST_REMEMBERED:]}
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"schema": SCHEMA, "pins": kept}), encoding="utf-8")
            os.replace(beside, self._path)

    def _load(self) -> dict[str, _Proven]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                return {}
            return {
                str(key): _Proven(
                    {str(path): str(sha256) for path, sha256 in one["sha256s"].items()},
                    str(one["quantization"]) if one["quantization"] else None,
                )
                for key, one in document["pins"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}
