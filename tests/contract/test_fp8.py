"""A checkpoint in FP8, computed as bfloat16 without kernels for FP8."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from qwen_service.engine import Sampling
from qwen_service.engines import transformers as engine_module
from qwen_service.engines.transformers import TransformersModel
from qwen_service.inference.model import Chosen, ReadPrompt
from qwen_service.settings import load as load_settings
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fixture_model import fixture_model

pytestmark = pytest.mark.contract

BLOCK = 128
GREATEST = torch.finfo(torch.float8_e4m3fn).max


def in_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in FP8 with one factor a block, and the factors."""
    rows, columns = weight.shape
    padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
    padded[:rows, :columns] = weight
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    factors = blocks.abs().amax((1, 3)) / GREATEST
    small = (blocks / factors[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
    return small.to(torch.float8_e4m3fn).contiguous(), factors


def quantize(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    weights: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if ".layers." in name and name.endswith("proj.weight"):
            weights[name], weights[f"{name}_scale_inv"] = in_blocks(weight.float())
        else:
            weights[name] = weight.to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path, dtype: str) -> TransformersModel:
    torch.set_num_threads(1)
    environment = {"QWEN_MODEL_DIR": str(folder), "QWEN_AUTH": "none", "QWEN_DTYPE": dtype}
    return engine_module.load(load_settings(environment), lambda report: None)


def test_fp8_weights_are_read_as_plain_numbers_close_to_the_originals(tmp_path: Path) -> None:
    original = load(fixture_model(), "bfloat16").torch_model
    model = load(quantize(fixture_model(), tmp_path / "fp8"), "auto")
    found = dict(model.torch_model.named_parameters())
    assert {one.dtype for one in found.values()} <= {torch.bfloat16, torch.float32}
    for name, weight in original.named_parameters():
        wanted = weight.float()
        assert (found[name].float() - wanted).abs().max() <= 0.07 * wanted.abs().max(), name
    prompt = (1, 2, 3, 4, 5)
    model.add("a", prompt, model.sampler(Sampling(temperature=0.0), ReadPrompt(prompt)))
    (chosen,) = model.prefill()
    assert isinstance(chosen, Chosen) and chosen.token is not None
