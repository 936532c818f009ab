"""The first generation's model, read from its original files, against the published formulas."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_service.engines import qwen1
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from tests.first_generation import checkpoint, reference
from tests.first_generation.checkpoint import EARLY, LATER, SEQ_LENGTH

pytestmark = pytest.mark.contract

CLOSE = 1e-5
WEIGHTS = checkpoint.random_weights()


def load(folder: Path) -> Any:
    torch.set_num_threads(1)
    qwen1.register()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(checkpoint.write(tmp_path_factory.mktemp("qwen1") / "later", WEIGHTS))


def some_ids(length: int) -> list[int]:
    chance = random.Random(length)
    return [chance.randrange(800) for _ in range(length)]


@torch.inference_mode()
def batched(
    model: Any, rows: Sequence[Sequence[int]], prompts: Sequence[int], part: int
) -> list[Tensor]:
    """Logits of every token of rows read together: padded on the left, prompts in parts, then a
    token at a time, as the engine does it."""
    longest, after = max(prompts), len(rows[0]) - prompts[0]
    pads = [longest - prompt for prompt in prompts]
    ids = torch.tensor([[0] * pad + list(row) for pad, row in zip(pads, rows, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, found, at = DynamicCache(), [], 0
    while at < longest + after:
        end = min(at + part, longest) if at < longest else at + 1
        outputs = model(
            input_ids=ids[:, at:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, at:end],
            past_key_values=cache,
            use_cache=True,
            prompt_lengths=torch.tensor(prompts),
        )
        found.append(outputs.logits)
        at = end
    together = torch.cat(found, dim=1)
    return [together[index, pad:] for index, pad in enumerate(pads)]


LENGTHS = (1, 7, SEQ_LENGTH - 1, SEQ_LENGTH, SEQ_LENGTH + 1, 2 * SEQ_LENGTH)
LONGER = (2 * SEQ_LENGTH + 1, 3 * SEQ_LENGTH, 4 * SEQ_LENGTH)


@pytest.mark.parametrize("length", LENGTHS + LONGER)
def test_a_prompt_of_any_length_has_the_published_logits(model: Any, length: int) -> None:
    ids = some_ids(length)
    (found,) = batched(model, [ids], [length], part=1000)
    torch.testing.assert_close(
        found, reference.logits(WEIGHTS, ids, length), atol=CLOSE, rtol=CLOSE
    )


@pytest.mark.parametrize("part", [5, SEQ_LENGTH, 1000])
def test_rows_of_all_lengths_share_a_batch_and_generate_across_the_border(
    model: Any, part: int
) -> None:
    prompts = [3, SEQ_LENGTH - 2, SEQ_LENGTH, SEQ_LENGTH + 3, 2 * SEQ_LENGTH + 5]
    rows = [some_ids(length + 12) for length in prompts]
    for row, prompt, found in zip(rows, prompts, batched(model, rows, prompts, part), strict=True):
        wanted = reference.logits(WEIGHTS, row, prompt)
        torch.testing.assert_close(found, wanted, atol=CLOSE, rtol=CLOSE)


def test_both_spellings_of_the_configuration_mean_the_same_model(
    model: Any, tmp_path: Path
) -> None:
    early = load(checkpoint.write(tmp_path / "early", WEIGHTS, EARLY))
    ids = some_ids(SEQ_LENGTH + 9)
    assert torch.equal(*(batched(one, [ids], [len(ids)], 1000)[0] for one in (model, early)))


def test_without_its_switches_the_model_takes_no_more_than_it_was_trained_on(
    tmp_path: Path,
) -> None:
    off = LATER | {"use_dynamic_ntk": False, "use_logn_attn": False}
    folder = checkpoint.write(tmp_path / "plain", WEIGHTS, off)
    plain = load(folder)
    assert plain.config.max_position_embeddings == SEQ_LENGTH
    ids = some_ids(SEQ_LENGTH)
    (found,) = batched(plain, [ids], [len(ids)], 1000)
    wanted = reference.logits(WEIGHTS, ids, len(ids))
    torch.testing.assert_close(found, wanted, atol=CLOSE, rtol=CLOSE)


def test_rotation_stays_in_float32_whatever_the_weights_are(model: Any, tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path / "model", WEIGHTS)
    small = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert small.lm_head.weight.dtype == torch.bfloat16
    frequencies = small.model.rotary_emb.inv_freq
    assert torch.equal(frequencies, model.model.rotary_emb.inv_freq)


def test_a_prompt_may_be_four_times_as_long_as_the_trained_length(model: Any) -> None:
    assert model.config.max_position_embeddings == 4 * SEQ_LENGTH


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"no_bias": False}, "no_bias is False"),
        ({"rotary_pct": 0.5}, "rotary_pct is 0.5"),
        ({"kv_channels": 8}, "4 heads of 8 are not the hidden size"),
        ({"seq_length": None}, "seq_length"),
    ],
)
def test_what_the_published_models_do_not_use_is_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    qwen1.register()
    config = {name: one for name, one in (LATER | change).items() if one is not None}
    folder = checkpoint.write(tmp_path / "model", {"w": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=told):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
