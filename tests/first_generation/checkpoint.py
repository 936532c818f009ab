"""A random checkpoint with the original's names, shapes and files, in two shards with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.first_generation import vocabulary

HIDDEN, LAYERS, HEADS, INNER, SEQ_LENGTH = 64, 3, 4, 96, 32
PADDED_VOCABULARY = 1152
FLAGS = {"use_dynamic_ntk": True, "use_logn_attn": True}
CODE = {
    "AutoConfig": "configuration_qwen.QWenConfig",
    "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
}
LATER: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": CODE,
    "attn_dropout_prob": 0.0,
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": False,
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": 2 * INNER,
    "kv_channels": HIDDEN // HEADS,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 4 * SEQ_LENGTH,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": SEQ_LENGTH,
    "softmax_in_fp32": False,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_cache_kernel": False,
    "use_cache_quantization": False,
    "use_flash_attn": "auto",
    "vocab_size": PADDED_VOCABULARY,
    **FLAGS,
}
# The spelling of August 2023.
EARLY: dict[str, Any] = {
    "activation": "swiglu",
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["QWenLMHeadModel"],
    "auto_map": CODE,
    "ffn_hidden_size": 2 * INNER,
    "kv_channels": HIDDEN // HEADS,
    "layer_norm_epsilon": 1e-06,
    "model_type": "qwen",
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_positions": 3 * SEQ_LENGTH,
    "no_bias": True,
    "padded_vocab_size": PADDED_VOCABULARY,
    "params_dtype": "torch.float32",
    "pos_emb": "rotary",
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": SEQ_LENGTH,
    "tie_word_embeddings": False,
    "tokenizer_type": "QWenTokenizer",
    "vocab_size": PADDED_VOCABULARY - 21,
    **FLAGS,
}


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.15, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale + mean

    weights = {"transformer.wte.weight": normal(PADDED_VOCABULARY, HIDDEN, scale=1.0)}
    for layer in range(LAYERS):
        name = f"transformer.h.{layer}"
        weights |= {
            f"{name}.ln_1.weight": normal(HIDDEN, mean=1.0),
            f"{name}.attn.c_attn.weight": normal(3 * HIDDEN, HIDDEN, scale=0.12),
            f"{name}.attn.c_attn.bias": normal(3 * HIDDEN, scale=0.12),
            f"{name}.attn.c_proj.weight": normal(HIDDEN, HIDDEN),
            f"{name}.ln_2.weight": normal(HIDDEN, mean=1.0),
            f"{name}.mlp.w1.weight": normal(INNER, HIDDEN),
            f"{name}.mlp.w2.weight": normal(INNER, HIDDEN),
            f"{name}.mlp.c_proj.weight": normal(HIDDEN, INNER),
        }
    return weights | {
        "transformer.ln_f.weight": normal(HIDDEN, mean=1.0),
        "lm_head.weight": normal(PADDED_VOCABULARY, HIDDEN),
    }


def write(folder: Path, weights: dict[str, Tensor], config: dict[str, Any] = LATER) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    ranks = vocabulary.learned_ranks()
    end = len(ranks)
    generation = {
        "chat_format": "chatml",
        "do_sample": True,
        "eos_token_id": end,
        "max_new_tokens": 512,
        "max_window_size": 6144,
        "pad_token_id": end,
        "top_k": 0,
        "top_p": 0.8,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = {
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        "model_max_length": 8192,
        "tokenizer_class": "QWenTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in ("configuration_qwen.py", "modeling_qwen.py", "tokenization_qwen.py"):
        (folder / name).write_text("raise SystemExit('code of a checkpoint was run')\n")
    vocabulary.write(folder / "qwen.tiktoken", ranks)
    _write_shards(folder, weights)
    return folder


def _write_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    names = sorted(weights)
    shards = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for shard, held in shards.items():
        tensors = {name: weights[name].contiguous() for name in held}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    places = {name: shard for shard, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
