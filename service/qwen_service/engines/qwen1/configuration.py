"""The original's config.json, in both of its spellings, as Qwen2's configuration.

Refuses what the published models do not use and this model does not compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Config

# Qwen2's name, the original's later name and the one of August 2023, which wins where both stand:
# there `vocab_size` may be the tokenizer's instead of the table's.
_NAMES = (
    ("vocab_size", "vocab_size", "padded_vocab_size"),
    ("hidden_size", "hidden_size", "n_embd"),
    ("num_hidden_layers", "num_hidden_layers", "n_layer"),
    ("num_attention_heads", "num_attention_heads", "n_head"),
    ("intermediate_size", "intermediate_size", "ffn_hidden_size"),
    ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_epsilon"),
    ("seq_length", "seq_length", "seq_length"),
)
_ALIKE = (
    *("architectures", "bos_token_id", "dtype", "eos_token_id", "initializer_range"),
    *("model_type", "name_or_path", "quantization_config", "torch_dtype", "transformers_version"),
    *("use_dynamic_ntk", "use_logn_attn"),
)
# What the published models have in common; missing means the same.
_FIXED: Mapping[str, Any] = {
    "apply_residual_connection_post_layernorm": False,
    "no_bias": True,
    "pos_emb": "rotary",
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
}
# Perplexity stays flat up to here by dynamic NTK and log-n attention, as published for 2,048; the
# later models have 8,192 and were published for 32,768.
_STRETCH = 4


class QWenConfig(Qwen2Config):  # type: ignore[misc]
    """`max_position_embeddings` is what may be asked, `seq_length` what was trained."""

    model_type = "qwen"
    seq_length: int = 2048
    use_dynamic_ntk: bool = False
    use_logn_attn: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return super().from_dict(translated(config_dict), **kwargs)


def translated(original: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in _FIXED.items():
        if original.get(name, value) != value:
            raise ValueError(f"config.json: {name} is {original[name]!r}, only {value!r} is known")
    values = {name: original[name] for name in _ALIKE if name in original}
    values |= {own: _either(original, later, early) for own, later, early in _NAMES}
    heads = values["num_attention_heads"]
    width = original.get("kv_channels", values["hidden_size"] // heads)
    if width * heads != values["hidden_size"]:
        raise ValueError(f"config.json: {heads} heads of {width} are not the hidden size")
    stretch = _STRETCH if values.get("use_dynamic_ntk") else 1
    if "params_dtype" in original:
        values["dtype"] = original["params_dtype"].removeprefix("torch.")
    return values | {
        # The original counts both of its first layers.
        "intermediate_size": values["intermediate_size"] // 2,
        "num_key_value_heads": heads,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(original.get("rotary_emb_base", 10000)),
        },
        "max_position_embeddings": values["seq_length"] * stretch,
        "tie_word_embeddings": False,
    }


def _either(original: Mapping[str, Any], later: str, early: str) -> Any:
    for name in (early, later):
        if name in original:
            return original[name]
    raise ValueError(f"config.json names no {later}")
