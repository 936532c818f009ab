"""The published architecture in plain PyTorch: one row, no cache, no padding, a loop a head.

Written from its description, so that it shares nothing with what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.first_generation.checkpoint import HEADS, HIDDEN, LAYERS, SEQ_LENGTH

WIDTH = HIDDEN // HEADS


def logits(weights: Mapping[str, Tensor], ids: Sequence[int], prompt_length: int) -> Tensor:
    """Of every token of a prompt and what was generated after it."""
    angles = _angles(len(ids), _alpha(prompt_length))
    states = weights["transformer.wte.weight"][torch.tensor(ids)]
    for layer in range(LAYERS):
        own = {
            name.removeprefix(f"transformer.h.{layer}."): weight
            for name, weight in weights.items()
            if name.startswith(f"transformer.h.{layer}.")
        }
        states = states + _attention(own, _norm(states, own["ln_1.weight"]), angles)
        states = states + _mlp(own, _norm(states, own["ln_2.weight"]))
    return _norm(states, weights["transformer.ln_f.weight"]) @ weights["lm_head.weight"].T


def _alpha(prompt_length: int) -> int:
    power = math.ceil(math.log(prompt_length / SEQ_LENGTH, 2) + 1)
    return int(max(2**power - 1, 1))


def _angles(length: int, alpha: int) -> Tensor:
    base = 10000 * alpha ** (WIDTH / (WIDTH - 2))
    frequencies = [base ** -(pair / WIDTH) for pair in range(0, WIDTH, 2)]
    rows = [[position * one for one in frequencies * 2] for position in range(length)]
    return torch.tensor(rows, dtype=torch.float64)


def _norm(states: Tensor, weight: Tensor) -> Tensor:
    return weight * states / (states.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def _attention(own: Mapping[str, Tensor], states: Tensor, angles: Tensor) -> Tensor:
    fused = states @ own["attn.c_attn.weight"].T + own["attn.c_attn.bias"]
    queries, keys, values = fused.split(HIDDEN, dim=-1)
    length = len(states)
    scale = [max(1.0, math.log(at + 1) / math.log(SEQ_LENGTH)) for at in range(length)]
    future = torch.ones(length, length).triu(1).bool()
    outputs = []
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        query = _rotated(queries[:, part], angles) * torch.tensor(scale)[:, None]
        key = _rotated(keys[:, part], angles)
        scores = (query @ key.T / math.sqrt(WIDTH)).masked_fill(future, -math.inf)
        outputs.append(scores.softmax(-1) @ values[:, part])
    return torch.cat(outputs, dim=-1) @ own["attn.c_proj.weight"].T


def _rotated(states: Tensor, angles: Tensor) -> Tensor:
    first, second = states.split(WIDTH // 2, dim=-1)
    cos, sin = angles.cos().float(), angles.sin().float()
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def _mlp(own: Mapping[str, Tensor], states: Tensor) -> Tensor:
    gate = states @ own["mlp.w2.weight"].T
    return (states @ own["mlp.w1.weight"].T * gate * gate.sigmoid()) @ own["mlp.c_proj.weight"].T
