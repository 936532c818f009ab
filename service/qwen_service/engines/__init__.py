"""Which engine runs. The modules of this package are the only ones that import torch."""

from __future__ import annotations

from collections.abc import Callable

from qwen_service.engine import Engine, Loading, Report
from qwen_service.engines import checkpoint
from qwen_service.inference.model import Model
from qwen_service.inference.thread import InferenceEngine
from qwen_service.settings import Settings


def make(settings: Settings) -> Engine:
    """Imports nothing heavy: HTTP must answer while torch is still being imported."""

    def load(report: Callable[[Report], None]) -> Model:
        checkpoint.require_files(settings.model_dir)
        report(Loading("importing torch"))
        from qwen_service.engines import transformers

        return transformers.load(settings, report)

    return InferenceEngine(
        load,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        max_tokens_default=settings.max_tokens_default,
    )
