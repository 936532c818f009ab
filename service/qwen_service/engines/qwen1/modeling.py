"""Qwen2's model with the three things that the first generation does otherwise: a rotary base that
grows with the prompt (dynamic NTK), queries scaled by their position (log-n), rotation in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2ForCausalLM,
    Qwen2Model,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from qwen_service.engines.qwen1.configuration import QWenConfig


class QWenRotation(nn.Module):
    """A row's frequencies follow from the length of its whole prompt, and stay as it grows."""

    # Of each row in the running call; None means none longer than seq_length.
    prompt_lengths: Tensor | None = None

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.config = config
        self.inv_freq = nn.Buffer(frequencies(config), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        own = self.inv_freq[self._lines(position_ids)].float()
        angles = position_ids[..., None].float() * own[:, None]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin(), self._query_scale(position_ids)

    def _lines(self, position_ids: Tensor) -> Tensor:
        lines = position_ids.new_zeros(len(position_ids))
        if self.prompt_lengths is not None:
            lengths = self.prompt_lengths.to(position_ids.device)
            for step in range(_steps(self.config)):
                lines = lines + (lengths > self.config.seq_length << step).long()
        return lines

    def _query_scale(self, position_ids: Tensor) -> Tensor | None:
        if not self.config.use_logn_attn:
            return None
        lengths = (position_ids + 1).float()
        scale: Tensor = (lengths.log() / math.log(self.config.seq_length)).clamp(min=1.0)
        return scale[:, None, :, None]


def frequencies(config: Any) -> Tensor:
    """A line for prompts up to seq_length, one for those up to twice that, and so on."""
    width = config.hidden_size // config.num_attention_heads
    powers = torch.arange(0, width, 2, dtype=torch.float) / width
    theta = config.rope_parameters["rope_theta"]
    alphas = [2 ** (step + 1) - 1 for step in range(_steps(config) + 1)]
    bases = [theta * alpha ** (width / (width - 2)) for alpha in alphas]
    return torch.stack([1.0 / (base**powers) for base in bases])


def _steps(config: Any) -> int:
    """How often the base grows until the longest prompt."""
    if not config.use_dynamic_ntk:
        return 0
    return math.ceil(math.log2(config.max_position_embeddings / config.seq_length))


class QWenAttention(Qwen2Attention):  # type: ignore[misc]
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor, Tensor | None],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = hidden_states.shape[:-1]
        query, key, value = (
            projection(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin, query_scale = position_embeddings
        query, key = apply_rotary_pos_emb(query.float(), key.float(), cos, sin)
        query, key = query.type_as(value), key.type_as(value)
        if query_scale is not None:
            query = query * query_scale.type_as(query)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs
        )
        return self.o_proj(output.reshape(*shape, -1).contiguous()), weights


class _Initialized:
    """transformers fills what is in no file; it would do so with Qwen2's frequencies if it took
    the rotation for Qwen2's by its name."""

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, QWenRotation):
            initialization.copy_(module.inv_freq, frequencies(module.config))
        else:
            super()._init_weights(module)  # type: ignore[misc]


class QWenModel(_Initialized, Qwen2Model):  # type: ignore[misc]
    config_class = QWenConfig

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.self_attn = QWenAttention(config, index)
        self.rotary_emb = QWenRotation(config)
        self.post_init()

    def forward(self, *args: Any, prompt_lengths: Tensor | None = None, **kwargs: Any) -> Any:
        self.rotary_emb.prompt_lengths = prompt_lengths
        return super().forward(*args, **kwargs)


class QWenForCausalLM(_Initialized, Qwen2ForCausalLM):  # type: ignore[misc]
    """`prompt_lengths`, a number a row, must come with every call: with parts of a prompt and with
    each further token."""

    config_class = QWenConfig
    takes_prompt_lengths = True

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.model = QWenModel(config)
        self.post_init()
