"""The small model that hubs of the tests offer."""

from __future__ import annotations

from tests.model_folder import shard_name

REPO = "Qwen/Tiny"
SHARDS, SHARD_BYTES = 2, 1_000_000
FIRST = shard_name(1, SHARDS)
LARGE = "*.safetensors"
HUBS = ("huggingface", "modelscope", "git-lfs")
