"""A model folder on the operator's machine: is it whole, and what is in it. Does not know hosts,
hubs or how the files travel."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qwen_deploy import hashes, safetensors
from qwen_deploy import manifest as manifests
from qwen_deploy.errors import UsageError
from qwen_deploy.hashes import Progress, Stamp
from qwen_deploy.manifest import Artifact, Manifest

SUMS_NAME = "SHA256SUMS"
_PICKLES = (".bin", ".pt", ".pth")
_TOKENIZERS = (("tokenizer.json",), ("qwen.tiktoken",), ("vocab.json", "merges.txt"))
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_POINTER_BYTES = 1024
_MOST_NAMED = 5
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


class FolderRefused(UsageError):
    """The folder holds no model that could be deployed; nothing was sent anywhere."""


@dataclass(frozen=True, slots=True)
class FolderReport:
    """`stamps` go with the manifest's artifacts, so that a later change can be noticed."""

    folder: Path
    manifest: Manifest
    stamps: tuple[Stamp, ...]


def default_cache_path() -> Path:
    """A cache and no state: without it the folder is only read once more."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qwen-deploy" / "hashes.json"


def inspect(
    folder: Path, *, model: str, cache_path: Path, progress: Progress | None = None
) -> FolderReport:
    """Everything that can be known without a GPU; raises FolderRefused at the first thing wrong.

    `progress` gets (bytes read, bytes to read), from several threads but one at a time."""
    folder = Path(os.path.abspath(folder.expanduser()))
    files = _files(folder)
    try:
        _check_model(folder, files)
        stamps = {path: Stamp.of((folder / path).stat()) for path in files}
        full = {folder / path: stamp for path, stamp in stamps.items()}
        found = hashes.sha256_of_all(full, cache_path=cache_path, progress=progress)
    except OSError as error:
        raise FolderRefused(f"{error.filename}: cannot be read: {error.strerror}") from error
    except hashes.FileChanged as error:
        raise FolderRefused(str(error), hint="Wait until nothing writes into it") from error
    artifacts = tuple(Artifact(path, stamps[path].size, found[folder / path]) for path in files)
    revision = _check_sums(folder, artifacts)
    try:
        made = manifests.make(model, artifacts, revision)
    except manifests.ManifestError as error:
        raise FolderRefused(f"{folder}: {error}") from error
    return FolderReport(folder, made, tuple(stamps[a.path] for a in made.artifacts))


def _files(folder: Path) -> tuple[str, ...]:
    """What a model consists of, sorted. Links to files are followed: a hub's cache is made so."""
    if not folder.exists():
        raise FolderRefused(f"{folder} does not exist")
    if not folder.is_dir():
        raise FolderRefused(f"{folder} is not a folder", hint="Unpack it and name the folder")
    paths: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=_cannot_list):
        place = Path(parent).relative_to(folder)
        folders[:] = [name for name in folders if _is_wanted(place / name)]
        paths += [str(place / name) for name in (*names, *folders) if _is_wanted(place / name)]
    files = [path for path in paths if _is_file(folder / path)]
    for path in files:
        _refuse_strangers(folder, folder / path)
    if any(path.endswith(".safetensors") for path in files):
        files = [path for path in files if not path.endswith(_PICKLES)]
    return tuple(sorted(files))


def _cannot_list(error: OSError) -> NoReturn:
    raise FolderRefused(f"{error.filename}: cannot be read: {error.strerror}") from error


def _is_wanted(path: Path) -> bool:
    """Not what describes the folder, nor the publisher's own format (`original/`)."""
    described = (manifests.NAME, SUMS_NAME, "original")
    return not path.name.startswith(".") and str(path) not in described


def _is_file(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FolderRefused(f"{path} leads to a file that cannot be read") from error
    if stat.S_ISREG(mode):
        return True
    if stat.S_ISDIR(mode) and not path.is_symlink():
        return False
    raise FolderRefused(f"{path} is neither a file nor a folder of this model")


def _refuse_strangers(folder: Path, path: Path) -> None:
    """A link may lead to another file of the model, or into the `blobs` of a hub's cache."""
    if not path.is_symlink():
        return
    target = path.resolve()
    blobs = folder.resolve().parent.parent / "blobs"
    if not target.is_relative_to(folder.resolve()) and target.parent != blobs:
        raise FolderRefused(
            f"{path} is a link to {target}, outside the folder", hint="Copy the file, or remove it"
        )


def _check_model(folder: Path, files: tuple[str, ...]) -> None:
    _refuse_pointers(folder, files)
    _check_config(folder, files)
    _check_weights(folder, files)
    if not any(set(names) <= set(files) for names in _TOKENIZERS):
        raise FolderRefused(
            f"{folder} has no tokenizer",
            hint="It needs tokenizer.json, or vocab.json and merges.txt, or qwen.tiktoken",
        )
    if not _has_chat_template(folder, files):
        raise FolderRefused(
            f"{folder} has no chat template: it is no chat model",
            hint="Use the -Instruct or -Chat model of the family",
        )


def _has_chat_template(folder: Path, files: tuple[str, ...]) -> bool:
    # The first generation has its template in no file; the service knows it.
    if {"chat_template.jinja", "chat_template.json", "qwen.tiktoken"} & set(files):
        return True
    name = "tokenizer_config.json"
    return name in files and b'"chat_template"' in (folder / name).read_bytes()


def _refuse_pointers(folder: Path, files: tuple[str, ...]) -> None:
    pointers = [path for path in files if _is_pointer(folder / path)]
    if pointers:
        raise FolderRefused(
            f"{folder} holds git-lfs pointers instead of {_some(pointers)}",
            hint=f"git -C {folder} lfs pull",
        )


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > _LFS_POINTER_BYTES:
        return False
    with open(path, "rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _check_config(folder: Path, files: tuple[str, ...]) -> None:
    if "config.json" not in files:
        raise FolderRefused(f"{folder} has no config.json, so it is not a model")
    config = _json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise FolderRefused(f"{folder / 'config.json'} names no model_type")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise FolderRefused(f"{path} is not JSON: {error}") from error


def _check_weights(folder: Path, files: tuple[str, ...]) -> None:
    shards = [path for path in files if path.endswith(".safetensors")]
    pickles = [path for path in files if path.endswith(_PICKLES)]
    if not shards and pickles:
        raise FolderRefused(
            f"{folder} has only {_some(pickles)}: only safetensors is loaded, because the other "
            f"formats can run code",
            hint="Get the model's safetensors files, or convert it",
        )
    if not shards:
        raise FolderRefused(f"{folder} has no weights: no file ends in .safetensors")
    if safetensors.INDEX not in files and any(_SHARD.search(path) for path in shards):
        raise FolderRefused(f"{folder} lacks {safetensors.INDEX}, without which no shard is found")
    missing = sorted(_shards_of_index(folder, files) - set(shards))
    if missing:
        raise FolderRefused(f"{folder} lacks {_some(missing)}, which {safetensors.INDEX} names")
    broken = [f"{path} {why}" for path in shards if (why := safetensors.fault(folder / path))]
    if broken:
        raise FolderRefused(f"{folder}: {_some(broken)}", hint="Copy or download these files again")


def _shards_of_index(folder: Path, files: tuple[str, ...]) -> set[str]:
    if safetensors.INDEX not in files:
        return set()
    index = _json(folder / safetensors.INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise FolderRefused(f"{folder / safetensors.INDEX} has no weight_map")
    return set(shards.values())


def _check_sums(folder: Path, artifacts: tuple[Artifact, ...]) -> str | None:
    """Against every list that came with the folder; the revision where one knows it."""
    found = {artifact.path: artifact.sha256 for artifact in artifacts}
    recorded = _recorded(folder)
    expected = {a.path: (a.sha256, manifests.NAME) for a in recorded.artifacts} if recorded else {}
    expected |= {path: (sha256, SUMS_NAME) for path, sha256 in _sums(folder, found).items()}
    expected |= {path: (sha256, "its cache") for path, sha256 in _blob_names(folder, found).items()}
    for path, (sha256, origin) in sorted(expected.items()):
        if path not in found:
            raise FolderRefused(f"{folder} lacks {path}, which {origin} names")
        if found[path] != sha256:
            raise FolderRefused(
                f"{folder / path} was altered: {origin} says sha256 {sha256}, it has {found[path]}",
                hint="Copy or download this file again",
            )
    return recorded.revision if recorded and recorded.artifacts == artifacts else None


def _recorded(folder: Path) -> Manifest | None:
    path = folder / manifests.NAME
    if not path.exists():
        return None
    try:
        return manifests.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderRefused(f"{folder}: {error}", hint=f"Remove {path} or put it right") from error


def _sums(folder: Path, found: dict[str, str]) -> dict[str, str]:
    """As `sha256sum` writes them. Files that are not sent need not be there."""
    path = folder / SUMS_NAME
    sums: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        sha256, _, name = line.strip().partition(" ")
        name = os.path.normpath(name.lstrip(" *"))
        if len(sha256) != 64 or not name:
            raise FolderRefused(f"{path}: line {number} is not a SHA-256 and a name")
        if name in found or name.endswith(".safetensors"):
            sums[name] = sha256.lower()
    return sums


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()]


def _blob_names(folder: Path, found: dict[str, str]) -> dict[str, str]:
    """A hub's cache names large files by their SHA-256, which its client never checks."""
    names = {path: (folder / path).resolve() for path in found if (folder / path).is_symlink()}
    return {
        path: target.name
        for path, target in names.items()
        if target.parent.name == "blobs" and len(target.name) == 64
    }


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
