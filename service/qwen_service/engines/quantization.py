"""Quantized checkpoints: whether this environment can load one, judged by its configuration before
anything heavy is imported. Does not know what a host has: the controller judges by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qwen_service.engine import EngineError

# What each method needs beside the packages of every release.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    # Computed as bfloat16: the kernels for FP8 itself would be fetched from a hub while serving.
    "fp8": (),
    "gptq": ("gptqmodel", "optimum"),
}


def method_of(config: Any) -> str | None:
    """How the weights of a config.json are quantized, in transformers' words."""
    found = config.get("quantization_config") if isinstance(config, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    return str(found.get("quant_method", "an unnamed method"))


def is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def require(config: Any, has: Callable[[str], bool] = is_installed) -> None:
    """Raises EngineError for weights that cannot be read here."""
    method = method_of(config)
    if method is None:
        return
    if method not in NEEDS:
        known = ", ".join(sorted(NEEDS))
        raise EngineError(f"it is quantized by {method}, and only {known} can be loaded")
    if missing := [package for package in NEEDS[method] if not has(package)]:
        raise EngineError(
            f"it is quantized by {method}, which needs {' and '.join(missing)} in the "
            "environment; use the model as it is without quantization, or in FP8"
        )
