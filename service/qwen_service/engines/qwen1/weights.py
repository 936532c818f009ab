"""The original's names of weights, and its three projections in one matrix, as Qwen2 has them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.core_model_loading import (
    Chunk,
    ConversionOps,
    WeightConverter,
    WeightRenaming,
)

_NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.norm",
    "transformer.h": "model.layers",
    "attn.c_proj": "self_attn.o_proj",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    # The original multiplies w1 with the activated w2.
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Copies(ConversionOps):  # type: ignore[misc]
    """The same tensor for every target."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        return {name: tensor.clone() for name in target_patterns}

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError("checkpoints are not written")


def conversions() -> list[WeightConverter | WeightRenaming]:
    # GPTQ lies with outputs in the second dimension, and `g_idx` speaks of inputs alone.
    split = {
        **dict.fromkeys(("weight", "bias"), Chunk(dim=0)),
        **dict.fromkeys(("qweight", "qzeros", "scales"), Chunk(dim=1)),
        "g_idx": Copies(),
    }
    return [
        *(WeightRenaming(original, own) for original, own in _NAMES.items()),
        *(
            WeightConverter(
                f"attn.c_attn.{part}",
                [f"self_attn.{projection}.{part}" for projection in _PROJECTIONS],
                operations=[operation],
            )
            for part, operation in split.items()
        ),
    ]
