"""Which quantized checkpoints are accepted, by their configuration and what is installed."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from qwen_service.engine import EngineError
from qwen_service.engines import checkpoint, quantization

from tests.model_folder import make_model

INT4 = {"quantization_config": {"quant_method": "gptq", "bits": 4}}


def nothing(package: str) -> bool:
    return False


def everything(package: str) -> bool:
    return True


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, [], "text"])
def test_a_checkpoint_without_quantization_needs_nothing(config: Any) -> None:
    quantization.require(config, nothing)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, which needs gptqmodel and optimum"),
        ({"quant_method": "awq", "bits": 4}, "awq, which needs gptqmodel"),
        ({"quant_method": "compressed-tensors"}, "which needs compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "which needs bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes, which needs bitsandbytes"),
    ],
)
def test_a_method_is_accepted_where_its_packages_are_installed_and_refused_elsewhere(
    settings: dict[str, Any], missing: str
) -> None:
    config = {"quantization_config": settings}
    quantization.require(config, everything)
    with pytest.raises(EngineError, match=missing):
        quantization.require(config, nothing)


def test_only_what_is_missing_is_named() -> None:
    with pytest.raises(EngineError, match="which needs optimum in the environment"):
        quantization.require(INT4, lambda package: package == "gptqmodel")


def test_fp8_needs_no_further_package() -> None:
    quantization.require({"quantization_config": {"quant_method": "fp8"}}, nothing)


@pytest.mark.parametrize("method", ["hqq", "mxfp4", None])
def test_a_method_that_nobody_tried_is_refused_by_name(method: str | None) -> None:
    settings = {"quant_method": method} if method else {"bits": 4}
    with pytest.raises(EngineError, match=method or "an unnamed method"):
        quantization.require({"quantization_config": settings}, everything)


def test_a_folder_is_refused_before_anything_heavy_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "model")
    checkpoint.require_files(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", **INT4}))
    monkeypatch.setattr(quantization, "version", lambda package: missing(package))
    with pytest.raises(EngineError, match="needs gptqmodel and optimum"):
        checkpoint.require_files(folder)


def missing(package: str) -> str:
    raise PackageNotFoundError(package)
