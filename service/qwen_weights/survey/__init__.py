"""What a folder or an archive holds, judged and named as a model. Does not know where it lies, and
who asks."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from qwen_weights import safetensors, sums
from qwen_weights.checkpoint import LISTS, Checkpoint, is_weights, select, some
from qwen_weights.errors import BadManifest, NotAModel
from qwen_weights.manifest import Artifact, Manifest, Origin
from qwen_weights.sums import Expected, Recorded

LONGEST_TEXT_BYTES = 64 << 20
Tell = Callable[[int, int], None]  # bytes read, bytes to read


class Survey(Protocol):
    """`sizes` of all files below the model's folder; `expected` is what their names say; `again` is
    how whole files are to be had."""

    kind: str
    place: str
    prefix: str
    again: str
    sizes: Mapping[str, int]
    expected: Mapping[str, Expected]

    def head(self, path: str, count: int) -> bytes: ...

    def hashes(self, paths: Sequence[str], tell: Tell) -> Mapping[str, str]: ...


def manifest_of(survey: Survey, model: str | None, otherwise: str, tell: Tell) -> Manifest:
    """Judged before anything is hashed, where that can be. Without a name it is that of a manifest
    that came along, else `otherwise`."""
    files = select(survey.sizes)
    checkpoint = Checkpoint(survey.place, files, lambda path: _text(survey, path))
    checkpoint.check()
    _check_weights(survey, files)
    recorded = _recorded(survey, files)
    found = survey.hashes(files, tell)
    artifacts = tuple(Artifact(path, survey.sizes[path], found[path]) for path in files)
    recorded.check(survey.place, artifacts)
    name = model or (recorded.manifest.model if recorded.manifest else otherwise)
    try:
        made = recorded.name(name, artifacts, Origin(survey.kind))
        return replace(made, quantization=checkpoint.quantization())
    except BadManifest as error:
        raise NotAModel(f"{survey.place}: {error}") from error


def _check_weights(survey: Survey, files: Iterable[str]) -> None:
    faults = {path: _fault(survey, path) for path in files if is_weights(path)}
    broken = [f"{path} {why}" for path, why in faults.items() if why]
    if broken:
        raise NotAModel(f"{survey.place}: {some(broken)}", hint=survey.again)


def _fault(survey: Survey, path: str) -> str | None:
    header = safetensors.header_bytes(survey.head(path, safetensors.LENGTH_BYTES))
    size = survey.sizes[path]
    head = survey.head(path, min(header or 0, size))
    return safetensors.fault(size, io.BytesIO(head))


def _recorded(survey: Survey, files: Sequence[str]) -> Recorded:
    lists = {name: _text(survey, name) for name in LISTS if name in survey.sizes}
    read = sums.read(survey.place, files, lists)
    return Recorded({**read.expected, **survey.expected}, read.manifest)


def _text(survey: Survey, path: str) -> bytes:
    size = survey.sizes[path]
    if size > LONGEST_TEXT_BYTES:
        raise NotAModel(f"{survey.place}/{path} is too large: {size} bytes")
    return survey.head(path, size)
