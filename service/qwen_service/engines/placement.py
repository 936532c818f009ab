"""Where the weights go and in which numbers they are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qwen_service.engine import EngineError
from qwen_service.settings import Settings

# Beside the weights a GPU must hold the cache and what is computed on the way.
WEIGHTS_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Placement:
    name: str
    dtype: torch.dtype
    device_map: str | dict[str, str]


def choose_placement(settings: Settings, config: Any) -> Placement:
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return Placement(
            "cpu", choose_dtype(settings, config, has_bfloat16=_cpu_has_bfloat16()), {"": "cpu"}
        )
    if not torch.cuda.is_available():
        raise EngineError(f"QWEN_DEVICE is {device}, but torch sees no GPU")
    dtype = choose_dtype(
        settings, config, has_bfloat16=torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if device == "cuda" and torch.cuda.device_count() > 1 and not _fits_first_gpu(settings):
        # accelerate balances the layers over all GPUs.
        return Placement("cuda", dtype, "auto")
    name = device if ":" in device else "cuda:0"
    return Placement(name, dtype, {"": name})


def choose_dtype(settings: Settings, config: Any, *, has_bfloat16: bool) -> torch.dtype:
    """The checkpoint's own numbers, unless this device computes them slowly or not at all."""
    if settings.dtype != "auto":
        return _dtype(settings.dtype)
    own = config.dtype or torch.float32
    is_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if is_cpu:
        # Without its instructions a CPU converts to float32 and back around every product:
        # several times slower. float16 has no fast path on any CPU.
        return own if own == torch.bfloat16 and has_bfloat16 else torch.float32
    if own == torch.bfloat16 and not has_bfloat16:
        return torch.float16
    return _dtype(str(own).removeprefix("torch."))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _fits_first_gpu(settings: Settings) -> bool:
    weights = sum(path.stat().st_size for path in settings.model_dir.glob("*.safetensors"))
    free, _ = torch.cuda.mem_get_info(0)
    return weights <= WEIGHTS_SHARE * free
