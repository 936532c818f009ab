"""A GPTQ checkpoint of the first generation: mapped where gptqmodel is installed, else refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from qwen_service.engine import EngineError
from qwen_service.engines import checkpoint as files
from qwen_service.engines import quantization, qwen1
from transformers import AutoModelForCausalLM

from tests.first_generation import checkpoint, gptq, reference
from tests.first_generation.checkpoint import SEQ_LENGTH

pytestmark = pytest.mark.contract

HAS_KERNELS = all(quantization.is_installed(package) for package in quantization.NEEDS["gptq"])


@pytest.mark.skipif(HAS_KERNELS, reason="gptqmodel and optimum are installed")
def test_without_its_packages_it_is_refused(tmp_path: Path) -> None:
    stored, _ = gptq.quantized(checkpoint.random_weights())
    folder = checkpoint.write(tmp_path / "int4", stored, gptq.INT4)
    with pytest.raises(EngineError, match="quantized by gptq, which needs gptqmodel and optimum"):
        files.require_files(folder)


@pytest.mark.skipif(not HAS_KERNELS, reason="gptqmodel and optimum are not installed")
@pytest.mark.filterwarnings("ignore")
def test_its_fused_projections_become_three_and_keep_their_numbers(tmp_path: Path) -> None:
    stored, plain = gptq.quantized(checkpoint.random_weights())
    folder = checkpoint.write(tmp_path / "int4", stored, gptq.INT4)
    files.require_files(folder)
    qwen1.register()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float16,
        device_map={"": "cpu"},
        trust_remote_code=False,
        output_loading_info=True,
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    chance = random.Random(0)
    ids = [chance.randrange(800) for _ in range(SEQ_LENGTH + 8)]
    with torch.inference_mode():
        outputs = model(input_ids=torch.tensor([ids]), prompt_lengths=torch.tensor([len(ids)]))
    wanted = reference.logits(plain, ids, len(ids))
    torch.testing.assert_close(outputs.logits[0].float(), wanted, atol=0.03, rtol=0.01)
