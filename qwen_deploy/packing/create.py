"""Writes one bundle: what is missing is brought first, then everything goes into the file in one
pass, proven on the way. Knows neither hubs nor the terminal."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwen_weights.manifest import Manifest

from qwen_deploy import __version__ as VERSION
from qwen_deploy import airgap, bundle, preflight
from qwen_deploy.airgap import index as indexes
from qwen_deploy.airgap.index import Index, Member
from qwen_deploy.config import Pip, Weights
from qwen_deploy.content import Content, FileContent, MemoryContent
from qwen_deploy.errors import QwenDeployError, Refused, UsageError
from qwen_deploy.events import Event, StageFinished, StageStarted, TaskStarted
from qwen_deploy.hashes import Stamp
from qwen_deploy.packing import archive, weights, wheels
from qwen_deploy.release import ENGINE
from qwen_deploy.sources import Pinned

# Measured: 44 wheels for the CPU and Python 3.11, 63 with CUDA for Python 3.12.
WHEELS_BYTES = {"cpu": 250_000_000, "cuda": 2_800_000_000}
RESERVE_BYTES = 200_000_000
_ELF_64, _X86_64 = b"\x7fELF\x02\x01", b"\x3e\x00"  # elf(5): e_ident and e_machine


@dataclass(frozen=True, slots=True)
class Contents:
    """What a bundle is to hold: a model, and the wheels for one Python and one accelerator."""

    pinned: Pinned
    python: str
    accelerator: str
    pip: Pip
    settings: Weights


def create(target: Path, contents: Contents, emit: Callable[[Event], None]) -> airgap.Bundle:
    """Writes `target`, under its name only when it is whole. What was brought for it lies beside it
    until then, and is not brought again."""
    check(target, contents.python, contents.accelerator)
    with _part(target) as file:
        parts = target.with_name(f"{target.name}.parts")
        _require_room(target, contents, parts)
        story = _Story(target.name, emit)
        wheels_made, wheel_files = _wheels(contents, parts, story)
        members = {
            **_program(contents.accelerator),
            **_prefixed(indexes.WHEELS_DIR, wheel_files),
            **_prefixed(indexes.MODEL_DIR, _model(contents, parts, story)),
        }
        index = _index(contents, wheels_made, members)
        with story.stage("pack", f"{len(index.members)} files, {_gib(index.total_bytes)}"):
            archive.write(file, index, members, lambda done: story.tell(f"{done:.0%}"))
        os.replace(file.name, target)
    shutil.rmtree(parts)
    return airgap.read(target)


def check(target: Path, python: str, accelerator: str) -> None:
    """What can be told before anything is read or asked."""
    lowest = ".".join(map(str, preflight.MINIMUM_PYTHON))
    locked = ".".join(map(str, preflight.CPU_LOCK_PYTHON))
    if not indexes.PYTHON_PATTERN.fullmatch(python) or _version(python) < preflight.MINIMUM_PYTHON:
        raise UsageError(f"--python {python}: {lowest} or newer is needed, like {lowest}")
    if accelerator == "cpu" and python != locked:
        raise UsageError(
            f"the CPU packages are locked for Python {locked}, not for {python}",
            hint="--accelerator cuda; that build runs on the CPU too",
        )
    if target.exists():
        hint = f"rm {target}" if target.is_file() else "name a new file"
        raise UsageError(f"{target}: exists already", hint=hint)


def _version(python: str) -> tuple[int, ...]:
    return tuple(map(int, python.split(".")))


@contextmanager
def _part(target: Path) -> Iterator[BinaryIO]:
    """The file that becomes the bundle; only one program at a time writes it."""
    path = target.with_name(f"{target.name}.part")
    try:
        file = path.open("ab")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{path} is being written by another `bundle create`") from error
        file.truncate(0)
        try:
            yield file
        except OSError as error:
            raise _unwritten(target, error) from error
        finally:
            path.unlink(missing_ok=True)


def _unwritten(target: Path, error: OSError) -> QwenDeployError:
    if error.errno != errno.ENOSPC:
        return UsageError(f"{error.filename or target}: {error.strerror or error}")
    return Refused(
        f"the disk at {target.parent} is full before {target.name} is whole",
        hint="free space there; what was brought is kept",
    )


def _require_room(target: Path, contents: Contents, parts: Path) -> None:
    """The file itself, and beside it what has to be brought first."""
    weights_bytes = contents.pinned.manifest.total_bytes
    wheels_bytes = WHEELS_BYTES[contents.accelerator]
    brought = wheels_bytes + (0 if contents.pinned.share else weights_bytes)
    there = sum(path.stat().st_size for path in parts.rglob("*") if path.is_file())
    needed = weights_bytes + wheels_bytes + max(0, brought - there) + RESERVE_BYTES
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise Refused(
            f"the disk at {target.parent} is too small for {target.name}: needs {_gib(needed)}, "
            f"has {_gib(free)} free",
            hint="free space there, or name a file on a larger disk",
        )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


class _Story:
    """Stages and what they are at, as events of the file that is made."""

    def __init__(self, name: str, emit: Callable[[Event], None]) -> None:
        self._name = name
        self._emit = emit
        self._stage, self._said = "", ""

    @contextmanager
    def stage(self, name: str, summary: str) -> Iterator[None]:
        started = time.monotonic()
        self._stage, self._said = name, ""
        self._emit(StageStarted(self._name, name))
        yield
        self._emit(StageFinished(self._name, name, time.monotonic() - started, summary))

    def tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._emit(TaskStarted(self._name, self._stage, text))


Files = Mapping[str, Content]


def _wheels(contents: Contents, parts: Path, story: _Story) -> tuple[Manifest, Files]:
    lock = bundle.lock_path(ENGINE, contents.accelerator).read_text("utf-8")
    folder = parts / f"wheels-{contents.accelerator}-{contents.python}"
    with story.stage("wheels", f"for Python {contents.python}, {contents.accelerator}"):
        made = wheels.download(
            lock,
            folder,
            python=contents.python,
            indexes=wheels.index_arguments(contents.pip, contents.accelerator, wheels.pip_config()),
            tell=story.tell,
        )
    return made, _files_of(made, folder)


def _model(contents: Contents, parts: Path, story: _Story) -> Files:
    pinned = contents.pinned
    if pinned.share is not None:
        return pinned.share.contents()
    root = parts / "weights"
    with story.stage("weights", f"{pinned.manifest.model} {pinned.manifest.revision}"):
        weights.bring(pinned, contents.settings, root, story.tell)
    return _files_of(pinned.manifest, weights.folder_of(root, pinned))


def _files_of(manifest: Manifest, folder: Path) -> Files:
    paths = {artifact.path: folder / artifact.path for artifact in manifest.artifacts}
    return {name: FileContent(path, Stamp.of(path.stat())) for name, path in paths.items()}


def _prefixed(folder: str, files: Files) -> dict[str, Content]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def _program(accelerator: str) -> dict[str, Content]:
    uv = bundle.uv_path().read_bytes()
    if uv[:6] != _ELF_64 or uv[18:20] != _X86_64:
        raise UsageError(
            "this machine's uv is not for x86_64 Linux, so hosts could not run it",
            hint="create the bundle on an x86_64 Linux machine",
        )
    files = {indexes.UV: uv, **airgap.program_files(accelerator)}
    return {name: MemoryContent(data) for name, data in files.items()}


def _index(contents: Contents, wheels_made: Manifest, files: Files) -> Index:
    manifest = contents.pinned.manifest
    ours = [
        Member(name, content.size, hashlib.sha256(content.data).hexdigest())
        for name, content in files.items()
        if isinstance(content, MemoryContent)
    ]
    lock = bundle.lock_path(ENGINE, contents.accelerator).read_bytes()
    return Index(
        version=VERSION,
        python=contents.python,
        accelerator=contents.accelerator,
        lock=hashlib.sha256(lock).hexdigest(),
        model=manifest,
        wheels=wheels_made,
        members=(
            *ours,
            *indexes.members_of(wheels_made, indexes.WHEELS_DIR),
            *indexes.members_of(manifest, indexes.MODEL_DIR),
        ),
    )
