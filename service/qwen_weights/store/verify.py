"""`verify`: proves a folder against the manifest beside it, offline, and renews the record of when
that was done. Does not know how the folder came to be."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qwen_weights import manifest as manifests
from qwen_weights.disk import write_durably
from qwen_weights.errors import ChecksumMismatch, WeightsError, in_units
from qwen_weights.manifest import Manifest
from qwen_weights.store import damage, inspection, pieces
from qwen_weights.store.inspection import Problem
from qwen_weights.survey.hashing import cores


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prove = commands.add_parser("verify", help="prove a folder against its manifest")
    prove.add_argument("directory", type=Path, metavar="DIR")
    prove.add_argument("--quick", action="store_true", help="names and sizes only")
    prove.add_argument("--jobs", type=int, default=cores(), metavar="N")
    prove.add_argument("--json", action="store_true", help="the findings as one JSON object")
    prove.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory.absolute()
    try:
        manifest = inspection.load(directory)
    except WeightsError as error:
        if arguments.json:
            print(_json(directory, None, (Problem(manifests.NAME, str(error)),)))
        raise
    learned: dict[str, tuple[str, ...]] = {}
    found = inspection.problems(
        directory,
        manifest,
        quick=arguments.quick,
        jobs=max(arguments.jobs, 1),
        learned=learned,
    )
    remember(directory, manifest, found, is_proof=not arguments.quick)
    with suppress(OSError):
        pieces.note(directory, learned)
    if arguments.json:
        print(_json(directory, manifest, found, quick=arguments.quick))
    else:
        _tell(manifest, found, quick=arguments.quick)
    if found:
        raise ChecksumMismatch(
            f"{directory}: {len(found)} of its files are not as proven: {found[0]}"
        )


def remember(
    directory: Path, manifest: Manifest, found: tuple[Problem, ...], *, is_proof: bool
) -> None:
    """What is damaged stays known until it is mended; a file of nobody's damages no other."""
    artifacts = {artifact.path for artifact in manifest.artifacts}
    if damaged := [problem.path for problem in found if problem.path in artifacts]:
        damage.record(directory, damaged)
    elif is_proof:
        damage.forget(directory)
    if is_proof and not found:
        renew(directory, manifest)


def renew(directory: Path, manifest: Manifest) -> None:
    """Every byte was proven now. Who may only read the folder has proven it too."""
    proven = replace(manifest, verified_at=now())
    with suppress(OSError):
        write_durably(directory / manifests.NAME, proven.to_json())


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _json(
    directory: Path, manifest: Manifest | None, found: tuple[Problem, ...], *, quick: bool = False
) -> str:
    """Without its manifest a folder is still known by its name."""
    document = {
        "directory": str(directory),
        "model": manifest.model if manifest else directory.parent.name.replace("--", "/", 1),
        "revision": manifest.revision if manifest else directory.name,
        "ok": not found,
        "quick": quick,
        "proof": manifest.proof if manifest else None,
        "bytes": manifest.total_bytes if manifest else 0,
        "problems": [vars(problem) for problem in found],
    }
    return json.dumps(document)


def _tell(manifest: Manifest, found: tuple[Problem, ...], *, quick: bool) -> None:
    for problem in found:
        print(problem)
    if not found:
        print(
            f"{len(manifest.artifacts)} artifacts, {in_units(manifest.total_bytes)}: "
            f"{'names and sizes' if quick else 'every byte'} as in the manifest"
        )
