"""A checkpoint's folder as files: what must lie in it, checked before anything heavy is imported.

transformers would speak of hubs and connections, not say which file is cut short, and make up
an empty tokenizer where there is none.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from qwen_service.engine import EngineError
from qwen_service.engines import quantization

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("qwen.tiktoken",))
HEADER_LENGTH_BYTES = 8
# Numbers that a model is computed in, by their names in safetensors files.
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def require_files(directory: Path) -> None:
    try:
        _require_files(directory)
    except EngineError as error:
        raise unusable(directory, str(error)) from error


def quantization_method(directory: Path) -> str | None:
    return quantization.method_of(_parsed((directory / CONFIG).read_bytes(), CONFIG))


def weights_dtype(directory: Path) -> str | None:
    """Of most of the weights, where they are plain numbers: not every config.json says it."""
    bytes_of: Counter[str] = Counter()
    for name in _weight_files(directory):
        for tensor in _header(directory / name)[1].values():
            first, end = tensor["data_offsets"]
            bytes_of[tensor["dtype"]] += end - first
    ((most, _),) = bytes_of.most_common(1) or [("", 0)]
    return FLOATS.get(most)


def unusable(directory: Path, reason: str) -> EngineError:
    return EngineError(f"cannot load the model from {directory}: {reason}")


def _require_files(directory: Path) -> None:
    if not directory.is_dir():
        raise EngineError("there is no such folder")
    weights = _weight_files(directory)
    for name in (CONFIG, "tokenizer_config.json", *weights):
        if not (directory / name).is_file():
            raise EngineError(f"{name} is missing")
    if not any(all((directory / name).is_file() for name in names) for names in TOKENIZERS):
        raise EngineError("tokenizer.json is missing")
    for path in sorted(directory.glob("*.json")):
        _parsed(path.read_bytes(), path.name)
    quantization.require(_parsed((directory / CONFIG).read_bytes(), CONFIG))
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
    length, header = _header(path)
    wanted = (
        HEADER_LENGTH_BYTES
        + length
        + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    )
    if size != wanted:
        raise EngineError(f"{path.name} has {size} bytes, its header says {wanted}")


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Its length, and the tensors by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if HEADER_LENGTH_BYTES + length > path.stat().st_size:
            raise EngineError(f"{path.name} is truncated or no safetensors file")
        header = _parsed(file.read(length), path.name)
    return length, {name: one for name, one in header.items() if name != "__metadata__"}


def _parsed(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EngineError(f"{name} is no valid JSON: {error}") from error
