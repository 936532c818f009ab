"""Where weights go: one device, several GPUs with room left on each, or a refusal with numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_service.engine import EngineError
from qwen_service.engines.placement import WEIGHTS_SHARE, Placement, Seen, choose_placement
from qwen_service.settings import Settings
from qwen_service.settings import load as load_settings
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.integrations.accelerate import _get_device_map

pytestmark = pytest.mark.contract

CONFIG = Qwen2Config(dtype="bfloat16")
MIB = 1 << 20
UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-3f1b0a52-0f25-4c5e-8c71-1a5d2c1f0b77"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of 8 MiB in bfloat16."""
    save_file({"w": torch.zeros(4 * MIB, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def settings(folder: Path, **more: str) -> Settings:
    return load_settings({"QWEN_MODEL_DIR": str(folder), "QWEN_AUTH": "none", **more})


def gpus(*mebibytes: float) -> Seen:
    return Seen(tuple(int(one * MIB) for one in mebibytes), has_bfloat16=True)


NO_GPU = Seen((), has_bfloat16=False)


def test_without_a_gpu_everything_is_on_the_cpu(folder: Path) -> None:
    placement = choose_placement(settings(folder), CONFIG, NO_GPU)
    assert (placement.name, placement.device_map) == ("cpu", {"": "cpu"})
    assert placement.dtype == torch.float32


def test_the_first_gpu_with_room_takes_all(folder: Path) -> None:
    assert choose_placement(settings(folder), CONFIG, gpus(100, 100)).name == "cuda:0"
    assert choose_placement(settings(folder), CONFIG, gpus(9, 100)).name == "cuda:1"


def test_several_gpus_share_what_none_has_room_for_and_keep_room_for_the_cache(
    folder: Path,
) -> None:
    placement = choose_placement(settings(folder), CONFIG, gpus(6, 8))
    rooms = {0: int(WEIGHTS_SHARE * 6 * MIB), 1: int(WEIGHTS_SHARE * 8 * MIB)}
    assert placement.arguments == {
        "dtype": torch.bfloat16,
        "device_map": "balanced",
        "max_memory": rooms,
    }


def test_weights_that_fit_nowhere_are_refused_with_numbers(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"need 0\.0 GiB, and 2 GPUs have room for 0\.0 GiB"):
        choose_placement(settings(folder), CONFIG, gpus(4, 4))
    with pytest.raises(EngineError, match=r"and cuda has 0\.0 GiB free"):
        choose_placement(settings(folder), CONFIG, gpus(4))


def test_numbers_that_are_computed_wider_than_stored_need_more(folder: Path) -> None:
    wide = settings(folder, QWEN_DTYPE="float32")
    assert choose_placement(settings(folder), CONFIG, gpus(12)).name == "cuda:0"
    with pytest.raises(EngineError, match="the weights need"):
        choose_placement(wide, CONFIG, gpus(12))


def test_a_configuration_without_a_number_format_takes_the_weights_own(folder: Path) -> None:
    assert choose_placement(settings(folder), Qwen2Config(), gpus(100)).dtype == torch.bfloat16


def test_fp8_is_computed_as_bfloat16_and_counted_so(folder: Path) -> None:
    method = {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(method))
    placement = choose_placement(settings(folder), CONFIG, gpus(100))
    assert placement.arguments["quantization_config"].dequantize
    with pytest.raises(EngineError, match="the weights need"):
        choose_placement(settings(folder), CONFIG, gpus(12))


@pytest.mark.parametrize("seen", [NO_GPU, gpus(100)])
def test_a_named_gpu_that_does_not_answer_is_no_reason_to_use_another_device(
    folder: Path, seen: Seen
) -> None:
    named = settings(folder, CUDA_VISIBLE_DEVICES=UUIDS)
    with pytest.raises(EngineError, match=f"{len(seen.gpus)} of them answer"):
        choose_placement(named, CONFIG, seen)
    assert choose_placement(named, CONFIG, gpus(100, 100)).name == "cuda:0"


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="QWEN_DEVICE is cuda, but torch sees no GPU"):
        choose_placement(settings(folder, QWEN_DEVICE="cuda"), CONFIG, NO_GPU)
    with pytest.raises(EngineError, match="QWEN_DEVICE is cuda:2, but torch sees 1 GPUs"):
        choose_placement(settings(folder, QWEN_DEVICE="cuda:2"), CONFIG, gpus(100))


def layers_of(map_of_modules: dict[str, Any], gpu: int) -> list[int]:
    names = [name for name, place in map_of_modules.items() if place == gpu]
    return [int(name.split(".")[2]) for name in names if name.startswith("model.layers.")]


def test_the_map_gives_each_gpu_about_as_many_layers_in_their_order() -> None:
    config = Qwen2Config(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=4,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    placement = Placement("cuda", torch.bfloat16, "balanced", {0: 16 * MIB, 1: 16 * MIB})
    spread = _get_device_map(model, "balanced", {0: 16 * MIB, 1: 16 * MIB}, None)
    first, second = layers_of(spread, 0), layers_of(spread, 1)
    assert first + second == list(range(12))
    assert 5 <= len(first) <= 8
    model.hf_device_map = spread
    placement.settle(model)
    tight = _get_device_map(model, "balanced", {0: 2 * MIB, 1: 2 * MIB}, None)
    model.hf_device_map = tight
    with pytest.raises(EngineError, match="do not fit on 2 GPUs"):
        placement.settle(model)
