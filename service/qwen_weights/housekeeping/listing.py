"""`list`: which models lie on this host, how large and how proven they are, and who needs them.
Changes nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_weights import housekeeping as holding
from qwen_weights.disk import free_bytes
from qwen_weights.errors import of_host
from qwen_weights.housekeeping import Revision, Transfer
from qwen_weights.manifest import Manifest
from qwen_weights.store import Store, damage, recorded
from qwen_weights.store.inspection import has_all

_OF_TRANSFER = ("phase", "model", "revision", "bytes_done", "bytes_total", "pid")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("list", help="list the models on this host")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--releases", type=Path, default=holding.RELEASES_DIR, metavar="DIR")
    parser.add_argument("--run-dir", type=Path, default=holding.RUN_DIR, metavar="DIR")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    root: Path = arguments.root.absolute()
    try:
        print(json.dumps(listing(root, arguments.releases, arguments.run_dir)))
    except OSError as error:
        raise of_host(error, root, "nothing was changed") from error


def listing(root: Path, releases: Path, run_dir: Path) -> dict[str, Any]:
    store = Store(root)
    needs = holding.needs(store, releases)
    found = tuple(holding.revisions(store, needs))
    models = [*(one for one in found if not one.is_wheels), *holding.missing(store, needs)]
    transfer = holding.running(run_dir)
    return {
        "schema": 1,
        "root": str(root),
        "models": [_fields(revision) for revision in models],
        "wheels_bytes": sum(_bytes_below(one.directory) for one in found if one.is_wheels),
        "unfinished": list(_unfinished(store)),
        "partial_bytes": _partial_bytes(store),
        "free_bytes": free_bytes(root) if root.exists() else 0,
        "transfer": _of(transfer) if transfer else None,
    }


def _fields(revision: Revision) -> dict[str, Any]:
    manifest = revision.manifest
    return {
        "model": revision.model,
        "revision": revision.directory.name,
        "directory": str(revision.directory),
        "bytes": manifest.total_bytes if manifest else _bytes_below(revision.directory),
        "is_there": revision.directory.is_dir(),
        "is_whole": manifest is not None and has_all(revision.directory, manifest),
        "damaged": damage.known(revision.directory),
        "verified_at": manifest.verified_at if manifest else None,
        "origin": vars(manifest.origin) if manifest and manifest.origin else None,
        "proof": manifest.proof if manifest else None,
        "used_by": list(revision.used_by),
    }


def _unfinished(store: Store) -> Iterator[dict[str, Any]]:
    """Transfers that some later one has to end, with what they left here."""
    for path in holding.unfinished(store):
        manifest = recorded(path) if path.suffix == ".tmp" else None
        is_model = manifest is not None and path.parent.name != holding.WHEELS
        if manifest and is_model and not holding.is_locked(holding.lock_path(path)):
            yield {
                "model": manifest.model,
                "revision": manifest.revision,
                "origin": vars(manifest.origin) if manifest.origin else None,
                "bytes_done": _kept_bytes(store, manifest),
                "bytes_total": manifest.total_bytes,
            }


def _kept_bytes(store: Store, manifest: Manifest) -> int:
    return sum(
        artifact.size if store.is_staged(manifest, artifact) else store.kept_bytes(artifact)
        for artifact in manifest.artifacts
    )


def _partial_bytes(store: Store) -> int:
    """Files of unfinished folders that also lie elsewhere take no room of their own."""
    staged = (file for path in holding.unfinished(store) for file in holding.files_below(path))
    own = sum(status.st_size for status in map(Path.lstat, staged) if status.st_nlink == 1)
    return own + _bytes_below(store.partial_dir)


def _bytes_below(path: Path) -> int:
    return sum(file.lstat().st_size for file in holding.files_below(path))


def _of(transfer: Transfer) -> dict[str, Any]:
    return {name: transfer.status.get(name) for name in _OF_TRANSFER}
