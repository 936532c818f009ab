"""The model by transformers: loads a checkpoint from a folder and computes its rows.

Knows neither requests nor HTTP. Executes no code of a checkpoint and opens safetensors only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from qwen_service.engine import Chat, EngineError, Loading, ModelFacts, Report, Sampling
from qwen_service.engines.batch import GrowingBatch, Row
from qwen_service.engines.checkpoint import unusable
from qwen_service.engines.placement import Placement, choose_placement
from qwen_service.engines.prompt import PromptBuilder
from qwen_service.engines.sampling import Defaults, Sampler
from qwen_service.inference import Chosen
from qwen_service.settings import Settings

PERCENT_STEP = 5
# Ends of a turn or text in every generation of Qwen, beside those the checkpoint names.
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


def load(settings: Settings, report: Callable[[Report], None]) -> TransformersModel:
    try:
        return _load(settings, report)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise unusable(settings.model_dir, reason) from error


def _load(settings: Settings, report: Callable[[Report], None]) -> TransformersModel:
    directory = settings.model_dir
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # cuDNN's attention plans anew for every length of the cache, some 80 ms a step on an H100.
    torch.backends.cuda.enable_cudnn_sdp(False)
    report(Loading("reading the tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    placement = choose_placement(settings, config)
    report(Loading("weights"))
    model = _read_weights(directory, placement, report)
    context = int(config.max_position_embeddings)
    facts = ModelFacts(
        device=placement.name,
        dtype=str(model.dtype).removeprefix("torch."),
        context_tokens=min(settings.max_context or context, context),
    )
    batch = GrowingBatch(model, device=model.device, most_rows=settings.max_batch)
    return TransformersModel(model, tokenizer, batch, facts)


def _read_weights(directory: Path, placement: Placement, report: Callable[[Report], None]) -> Any:
    previous = transformers_logging.set_tqdm_hook(_progress_hook(report))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=placement.dtype,
            device_map=placement.device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_tqdm_hook(previous)
    model, info = loaded
    # transformers fills what is missing with random numbers and goes on.
    if missing := sorted(info["missing_keys"]):
        raise EngineError(f"the checkpoint lacks {len(missing)} weights, {missing[0]} among them")
    return model.eval()


def _progress_hook(report: Callable[[Report], None]) -> Callable[..., Any]:
    def hook(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and hasattr(args[0], "__len__"):
            return _Progress(args[0], report)
        return factory(*args, **{**kwargs, "disable": True})

    return hook


@dataclass(frozen=True, slots=True)
class _Progress:
    """Stands in for a progress bar over the weights of a checkpoint."""

    items: Any
    report: Callable[[Report], None]

    def __iter__(self) -> Iterator[Any]:
        told = -PERCENT_STEP
        for index, item in enumerate(self.items):
            percent = 100 * index // len(self.items)
            if percent >= told + PERCENT_STEP:
                told = percent
                self.report(Loading(f"weights {percent}%"))
            yield item


class TransformersModel:
    def __init__(self, model: Any, tokenizer: Any, batch: GrowingBatch, facts: ModelFacts) -> None:
        self.torch_model = model
        self.facts = facts
        self.ends = _ends(model.generation_config, tokenizer)
        self._defaults = Defaults.from_config(model.generation_config)
        self._prompts = PromptBuilder(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self._batch = batch

    def encode(self, prompt: Chat) -> list[int]:
        return self._prompts.ids(prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))

    def has_room(self) -> bool:
        return self._batch.has_room()

    def add(self, key: str, prompt: Sequence[int], sampling: Sampling) -> None:
        self._batch.add(Row(key, prompt, Sampler(sampling, self._defaults, prompt)))

    def remove(self, key: str) -> None:
        self._batch.remove(key)

    @torch.inference_mode()
    def extend(self) -> list[Chosen]:
        return self._batch.extend()

    @torch.inference_mode()
    def prefill(self) -> list[Chosen]:
        return self._batch.prefill()

    def memory_bytes(self) -> int | None:
        """Of the GPUs; None where the process's own memory says it all."""
        if not torch.cuda.is_initialized():
            return None
        return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))


def _ends(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    named = generation_config.eos_token_id
    ends = set(named if isinstance(named, list) else [named])
    ends.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    ends.update(vocabulary.get(token) for token in END_TOKENS)
    return frozenset(token for token in ends if token is not None)
