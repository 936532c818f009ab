"""A checkpoint's folder as files: what must lie in it, checked before anything heavy is imported.

transformers would speak of hubs and connections, not say which file is cut short, and make up
an empty tokenizer where there is none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen_service.engine import EngineError

INDEX = "model.safetensors.index.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
HEADER_LENGTH_BYTES = 8


def require_files(directory: Path) -> None:
    try:
        _require_files(directory)
    except EngineError as error:
        raise unusable(directory, str(error)) from error


def unusable(directory: Path, reason: str) -> EngineError:
    return EngineError(f"cannot load the model from {directory}: {reason}")


def _require_files(directory: Path) -> None:
    if not directory.is_dir():
        raise EngineError("there is no such folder")
    weights = _weight_files(directory)
    for name in ("config.json", "tokenizer_config.json", *weights):
        if not (directory / name).is_file():
            raise EngineError(f"{name} is missing")
    if not any(all((directory / name).is_file() for name in names) for names in TOKENIZERS):
        raise EngineError("tokenizer.json is missing")
    for path in sorted(directory.glob("*.json")):
        _parsed(path.read_bytes(), path.name)
    for name in weights:
        _require_whole(directory / name)


def _weight_files(directory: Path) -> tuple[str, ...]:
    index = directory / INDEX
    if not index.is_file():
        return ("model.safetensors",)
    return tuple(sorted(set(_parsed(index.read_bytes(), INDEX)["weight_map"].values())))


def _require_whole(path: Path) -> None:
    """Compares the size with what the file's own header says: that finds a broken download."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if HEADER_LENGTH_BYTES + length > size:
            raise EngineError(f"{path.name} is truncated or no safetensors file")
        header = _parsed(file.read(length), path.name)
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    wanted = HEADER_LENGTH_BYTES + length + max(ends, default=0)
    if size != wanted:
        raise EngineError(f"{path.name} has {size} bytes, its header says {wanted}")


def _parsed(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EngineError(f"{name} is no valid JSON: {error}") from error
