"""`prune`: removes revisions that no release needs, and what transfers left that no longer run.
Does not know why a release needs what."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_weights import housekeeping as holding
from qwen_weights.errors import Stopped, of_host
from qwen_weights.housekeeping import Transfer
from qwen_weights.store import Store, recorded

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are


@dataclass(frozen=True)
class Removal:
    path: Path
    freed_bytes: int


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("prune", help="remove what no release and no transfer needs")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--releases", type=Path, default=holding.RELEASES_DIR, metavar="DIR")
    parser.add_argument("--run-dir", type=Path, default=holding.RUN_DIR, metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--wheels", action="store_true", help="Python packages too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    root: Path = arguments.root.absolute()
    try:
        store = Store(root)
        found = expendable(
            store, arguments.releases, arguments.run_dir, with_wheels=arguments.wheels
        )
        removals = measured(found)
        if not arguments.dry_run:
            removals = tuple(one for one in removals if _remove(store, one.path))
    except OSError as error:
        raise of_host(error, root, "what was removed before is gone") from error
    print(json.dumps(_answer(removals, is_dry=arguments.dry_run)))


def expendable(
    store: Store, releases: Path, run_dir: Path, *, with_wheels: bool
) -> tuple[Path, ...]:
    transfer = holding.running(run_dir)
    wanted = _wanted_dirs(store, transfer)
    contents = _wanted_contents(store, transfer)
    found = (
        revision.directory
        for revision in holding.revisions(store, holding.needs(store, releases))
        if not revision.used_by and revision.directory not in wanted
        if with_wheels or not revision.is_wheels
    )
    left = (
        path
        for path in holding.unfinished(store)
        if path.with_suffix("") not in wanted and not holding.is_locked(holding.lock_path(path))
    )
    partials = (path for path in _partials(store) if path.stem not in contents)
    return (*found, *left, *partials)


def _wanted_dirs(store: Store, transfer: Transfer | None) -> set[Path]:
    """Of a transfer that runs: no release points yet at what it brings."""
    return {store.final_dir(manifest) for manifest in transfer.manifests} if transfer else set()


def _wanted_contents(store: Store, transfer: Transfer | None) -> set[str]:
    """Of the transfer that is known, and of any that holds the lock of what it prepares."""
    manifests = list(transfer.manifests) if transfer else []
    for path in holding.unfinished(store):
        manifest = recorded(path)
        if manifest and holding.is_locked(holding.lock_path(path)):
            manifests.append(manifest)
    return {artifact.sha256 for manifest in manifests for artifact in manifest.artifacts}


def _partials(store: Store) -> Iterator[Path]:
    if store.partial_dir.is_dir():
        yield from sorted(path for path in store.partial_dir.iterdir() if path.is_file())


def measured(paths: Sequence[Path]) -> tuple[Removal, ...]:
    """What each frees: a file's blocks go with the last of its names."""
    left: dict[tuple[int, int], int] = {}
    removals = []
    for path in paths:
        freed = 0
        for file in holding.files_below(path):
            status = file.lstat()
            key = (status.st_dev, status.st_ino)
            left[key] = left.get(key, status.st_nlink) - 1
            freed += status.st_blocks * _BLOCK_BYTES if not left[key] else 0
        removals.append(Removal(path, freed))
    return tuple(removals)


def _remove(store: Store, path: Path) -> bool:
    """False where a transfer has begun to use it meanwhile."""
    lock = path if path.parent == store.partial_dir else holding.lock_path(path)
    try:
        descriptor = holding.take_lock(lock)
    except Stopped:
        return False
    try:
        if path.parent == store.partial_dir:
            path.unlink()
        else:
            _remove_dir(path)
            lock.unlink()
            with suppress(OSError):  # other revisions of the model
                path.parent.rmdir()
    finally:
        os.close(descriptor)
    return True


def _remove_dir(path: Path) -> None:
    """At once under its name, so that no half of it is ever taken for a whole."""
    gone = path.with_suffix(".pruned")
    if path != gone:
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=path == gone)  # it may have gone with its revision


def _answer(removals: Sequence[Removal], *, is_dry: bool) -> dict[str, Any]:
    return {
        "schema": 1,
        "dry_run": is_dry,
        "removed": [{"path": str(one.path), "bytes": one.freed_bytes} for one in removals],
        "bytes": sum(one.freed_bytes for one in removals),
    }
