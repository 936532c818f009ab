"""Tokens whose keys and values the memory holds: what one takes, and how much memory may be taken.

Knows the model's shape and this machine's memory, not the rows that fill it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch

from qwen_service.engine import EngineError

# Of what is free once the weights are loaded. On a CPU the weights may still lie on the disk, and
# other programs live there too.
GPU_SHARE = 0.9
CPU_SHARE = 0.5
LEAST_TOKENS = 16
CGROUP_ROOT = Path("/sys/fs/cgroup")


def kv_tokens(model: Any, wish: float | int | None) -> int:
    """`wish` is a share of the free memory or a number of bytes; None: the device's usual share."""
    per_layer = layer_bytes_per_token(model.config.get_text_config(), model.dtype.itemsize)
    layers = _layers_by_device(model)
    copies = _copied_layers(model.config.get_text_config())
    if isinstance(wish, int):
        tokens = wish // (per_layer * (layers.total() + copies))
    else:
        tokens = min(
            int(free_bytes(device) * (_share(device) if wish is None else wish))
            // (per_layer * (count + copies))
            for device, count in layers.items()
        )
    if tokens < LEAST_TOKENS:
        raise EngineError(f"the memory for keys and values has room for {tokens} tokens only")
    return tokens


def layer_bytes_per_token(config: Any, item_bytes: int) -> int:
    """Of one layer's keys and values together."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(heads) * int(width) * item_bytes


def _copied_layers(config: Any) -> int:
    """Beside the cache lie the copy of one layer while rows are gathered, and its keys and values
    repeated for every head that shares them while a prompt is read."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 1 + int(config.num_attention_heads) // int(heads)


def _layers_by_device(model: Any) -> Counter[torch.device]:
    devices = [next(layer.parameters()).device for layer in model.base_model.layers]
    # Layers that accelerate keeps elsewhere are computed where the model is.
    return Counter(model.device if device.type == "meta" else device for device in devices)


def _share(device: torch.device) -> float:
    return GPU_SHARE if device.type == "cuda" else CPU_SHARE


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = psutil.virtual_memory().available
    return min(available, *cgroup_bytes_left(CGROUP_ROOT, Path("/proc/self/cgroup").read_text()))


def cgroup_bytes_left(root: Path, membership: str) -> list[int]:
    """What the limits of this process's groups leave, from its own up to the root."""
    left = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            base = root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base) and (bytes_left := _left(folder, *names)) is not None:
                left.append(bytes_left)
    return left


def _left(folder: Path, limit_name: str, usage_name: str, reclaimable: str) -> int | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        usage = int((folder / usage_name).read_text())
        statistics = (folder / "memory.stat").read_text()
    except OSError:
        return None
    if limit == "max":
        return None
    # Files that were read lately count as used and are given up before anything else.
    fields = dict(line.split() for line in statistics.splitlines())
    return max(0, int(limit) - usage + int(fields.get(reclaimable, 0)))
