"""Revisions on a host as the store makes them, for tests: proven, with pieces recorded."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

from qwen_weights import manifest as manifests
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.store import Store, pieces
from qwen_weights.store.pieces import Pieces, RunningHashes

PIECE_BYTES = 1000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest_of(
    contents: Mapping[str, bytes], *, model: str = "Qwen/Tiny", revision: str | None = None
) -> Manifest:
    artifacts = [
        Artifact(path, len(content), sha256(content)) for path, content in contents.items()
    ]
    return manifests.make(model, artifacts, revision)


def digests(content: bytes, piece_bytes: int = pieces.PIECE_BYTES) -> tuple[str, ...]:
    hashes = RunningHashes(piece_bytes)
    hashes.update(content)
    return hashes.all


def record(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Pieces small enough that a test can damage some of them."""
    rows = {sha256(content): digests(content, PIECE_BYTES) for content in contents.values()}
    (directory / pieces.NAME).unlink(missing_ok=True)
    (directory / pieces.NAME).write_text(Pieces(rows, PIECE_BYTES).to_json())


def hold(store: Store, manifest: Manifest, contents: Mapping[str, bytes]) -> Path:
    """Brings the revision as a transfer does, linking what is there already."""
    with store.lock(manifest, threading.Event()):
        store.stage(manifest)
        for artifact in manifest.artifacts:
            if any(_adopt(store, copy, manifest, artifact) for copy in store.copies(artifact)):
                continue
            content = contents[artifact.path]
            store.partial_path(artifact).write_bytes(content)
            store.place(store.partial_path(artifact), manifest, artifact, digests(content))
        store.activate(manifest)
    return store.final_dir(manifest)


def _adopt(store: Store, copy: Path, manifest: Manifest, artifact: Artifact) -> bool:
    return store.adopt(copy, manifest, artifact, lambda: None)
