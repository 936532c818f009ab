"""Where the weights go and in which numbers they are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qwen_service.engine import EngineError
from qwen_service.engines import checkpoint
from qwen_service.settings import Settings

# Beside the weights a GPU must hold the cache and what is computed on the way.
WEIGHTS_SHARE = 0.85
GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to compute with: free bytes of each GPU, in torch's order."""

    gpus: tuple[int, ...]
    has_bfloat16: bool


@dataclass(frozen=True, slots=True)
class Placement:
    name: str
    dtype: torch.dtype
    device_map: str | dict[str, str]
    # Bytes of weights that each of several GPUs may take.
    max_memory: Mapping[int, int] | None = None
    method: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """For from_pretrained."""
        arguments: dict[str, Any] = {"dtype": self.dtype, "device_map": self.device_map}
        if self.max_memory is not None:
            arguments["max_memory"] = dict(self.max_memory)
        if self.method == "fp8":
            from transformers import FineGrainedFP8Config

            arguments["quantization_config"] = FineGrainedFP8Config(dequantize=True)
        return arguments

    def settle(self, model: Any) -> None:
        """Raises EngineError where not all weights of a loaded model are on the GPUs: these take
        whole layers, so that what fits in sum may not fit in fact."""
        if self.method == "fp8":
            # transformers gives them the format of their scales.
            for parameter in model.parameters():
                parameter.data = parameter.data.to(self.dtype)
        places = set(getattr(model, "hf_device_map", {}).values())
        if self.max_memory is not None and places & {"cpu", "disk"}:
            raise EngineError(f"the weights do not fit on {len(self.max_memory)} GPUs")


def see() -> Seen:
    if not torch.cuda.is_available():
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return Seen((), bool(has_bfloat16))
    free = (torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    return Seen(tuple(free), torch.cuda.is_bf16_supported(including_emulation=False))


def choose_placement(settings: Settings, config: Any, seen: Seen | None = None) -> Placement:
    """Raises EngineError where the weights cannot be put as asked."""
    seen = seen or see()
    device = settings.device
    # CUDA hides whatever follows the first name that it does not know.
    if len(seen.gpus) < len(settings.gpus) and device != "cpu" and settings.gpus != ("-1",):
        named = ", ".join(settings.gpus)
        raise EngineError(f"CUDA_VISIBLE_DEVICES is {named}, but {len(seen.gpus)} of them answer")
    if device == "auto":
        device = "cuda" if seen.gpus else "cpu"
    method = checkpoint.quantization_method(settings.model_dir)
    if device == "cpu":
        dtype = choose_dtype(settings, config, seen, is_cpu=True)
        return Placement("cpu", dtype, {"": "cpu"}, method=method)
    if not seen.gpus:
        raise EngineError(f"QWEN_DEVICE is {device}, but torch sees no GPU")
    dtype = choose_dtype(settings, config, seen, is_cpu=False)
    needed = weight_bytes(settings, dtype, method)
    return _on_gpus(device, dtype, method, needed, seen.gpus)


def _on_gpus(
    device: str, dtype: torch.dtype, method: str | None, needed: int, free: tuple[int, ...]
) -> Placement:
    rooms = {index: int(WEIGHTS_SHARE * one) for index, one in enumerate(free)}
    if ":" in device or len(free) == 1:
        index = int(device.partition(":")[2] or 0)
        if index >= len(free):
            raise EngineError(f"QWEN_DEVICE is {device}, but torch sees {len(free)} GPUs")
        # One GPU is filled as far as it goes: the memory for the cache is judged after loading.
        if needed > free[index]:
            raise _too_large(needed, f"{device} has {_gib(free[index])} free")
        return Placement(f"cuda:{index}", dtype, {"": f"cuda:{index}"}, method=method)
    roomy = [index for index, room in rooms.items() if needed <= room]
    if roomy:
        return Placement(f"cuda:{roomy[0]}", dtype, {"": f"cuda:{roomy[0]}"}, method=method)
    if needed > sum(rooms.values()):
        raise _too_large(needed, f"{len(free)} GPUs have room for {_gib(sum(rooms.values()))}")
    # accelerate gives each about as many layers, one after the other.
    return Placement("cuda", dtype, "balanced", rooms, method)


def _too_large(needed: int, there: str) -> EngineError:
    return EngineError(f"the weights need {_gib(needed)}, and {there}")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def weight_bytes(settings: Settings, dtype: torch.dtype, method: str | None) -> int:
    """In memory: what lies on disk, in the numbers that it is computed in."""
    stored = sum(path.stat().st_size for path in settings.model_dir.glob("*.safetensors"))
    if method == "fp8":
        return stored * BYTES["bfloat16"]
    own = checkpoint.weights_dtype(settings.model_dir)
    if method or own is None:
        return stored
    return stored * dtype.itemsize // BYTES[own]


def choose_dtype(settings: Settings, config: Any, seen: Seen, *, is_cpu: bool) -> torch.dtype:
    """The checkpoint's own numbers, unless this device computes them slowly or not at all."""
    if settings.dtype != "auto":
        return _dtype(settings.dtype)
    own = config.dtype or _dtype(checkpoint.weights_dtype(settings.model_dir) or "float32")
    if is_cpu:
        # Without its instructions a CPU converts to float32 and back around every product:
        # several times slower. float16 has no fast path on any CPU.
        return own if own == torch.bfloat16 and seen.has_bfloat16 else torch.float32
    if own == torch.bfloat16 and not seen.has_bfloat16:
        return torch.float16
    return _dtype(str(own).removeprefix("torch."))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
