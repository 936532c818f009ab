"""A folder with the shape of a model and random weights: nothing that could be loaded."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

INDEX = "model.safetensors.index.json"


def safetensors(size: int, seed: int = 0) -> bytes:
    """One tensor of `size` bytes."""
    tensor = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    header = json.dumps({"__metadata__": {"format": "pt"}} | tensor).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def shard_name(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def make_model(folder: Path, *, shards: int = 2, shard_bytes: int = 1000, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = [shard_name(number, shards) for number in range(1, shards + 1)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(safetensors(shard_bytes, seed * 1000 + number))
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: name for name in names}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder
