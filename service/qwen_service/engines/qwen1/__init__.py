"""The first generation, `model_type: qwen`: Qwen2's model and a byte-level tokenizer, read from the
original files. `register` makes transformers know it; the code beside a checkpoint is never run.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from qwen_service.engines.qwen1.configuration import QWenConfig
from qwen_service.engines.qwen1.modeling import QWenForCausalLM
from qwen_service.engines.qwen1.tokenizer import QWenTokenizer
from qwen_service.engines.qwen1.weights import conversions


def register() -> None:
    """From then on the Auto classes load such a checkpoint like any other."""
    AutoConfig.register(QWenConfig.model_type, QWenConfig, exist_ok=True)
    AutoTokenizer.register(QWenConfig, QWenTokenizer, exist_ok=True)
    AutoModelForCausalLM.register(QWenConfig, QWenForCausalLM, exist_ok=True)
    register_checkpoint_conversion_mapping(QWenConfig.model_type, conversions(), overwrite=True)
