"""The same checkpoint with 4-bit weights in GPTQ's format, as Qwen-7B-Chat-Int4 names them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.first_generation.checkpoint import LATER

GROUP, BITS = 32, 4
PER_WORD = 32 // BITS
QUANTIZED = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
INT4: dict[str, Any] = LATER | {
    "fp16": True,
    "quantization_config": {
        "bits": BITS,
        "damp_percent": 0.01,
        "desc_act": False,
        "group_size": GROUP,
        "model_file_base_name": "model",
        "quant_method": "gptq",
        "static_groups": False,
        "sym": True,
        "true_sequential": True,
    },
}


def quantized(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What lies in the files, and the same weights as plain numbers again."""
    stored: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer.endswith(QUANTIZED):
            parts, plain[name] = _rounded(weight)
            stored |= {f"{layer}.{part}": one for part, one in parts.items()}
        else:
            stored[name] = weight.half()
            plain[name] = weight.half().float()
    return stored, plain


def _rounded(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    outputs, inputs = weight.shape
    groups = weight.T.reshape(inputs // GROUP, GROUP, outputs)
    scales = (groups.abs().amax(1) / 7).half()
    wide = scales.float()[:, None]
    numbers = (groups / wide).round().clamp(-8, 7)
    plain = (numbers * wide).reshape(inputs, outputs).T.contiguous()
    words = (numbers + 8).int().reshape(inputs, outputs)
    # The format stores the zero point less one.
    zeros = torch.full((inputs // GROUP, outputs), 7, dtype=torch.int32)
    parts = {
        "qweight": _packed(words),
        "qzeros": _packed(zeros.T).T.contiguous(),
        "scales": scales,
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }
    return parts, plain


def _packed(numbers: Tensor) -> Tensor:
    """Eight numbers down a column in one word, the first in the lowest bits."""
    columns = numbers.long().reshape(-1, PER_WORD, numbers.shape[1])
    shifts = BITS * torch.arange(PER_WORD)[:, None]
    words = (columns << shifts).sum(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
