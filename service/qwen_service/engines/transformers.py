"""The model by transformers: loads a checkpoint from a folder and computes its rows.

Knows neither requests nor HTTP. Executes no code of a checkpoint and opens safetensors only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import logging as transformers_logging

from qwen_service.engine import (
    EngineError,
    Loading,
    ModelFacts,
    Prompt,
    Refused,
    Report,
    Sampling,
)
from qwen_service.engines import qwen1
from qwen_service.engines.batch import GrowingBatch
from qwen_service.engines.checkpoint import unusable
from qwen_service.engines.embedding import EmbeddingBatch, Pooling
from qwen_service.engines.grammar import Grammars
from qwen_service.engines.logprobs import Vocabulary
from qwen_service.engines.memory import kv_tokens
from qwen_service.engines.placement import Placement, choose_placement
from qwen_service.engines.prompt import PromptBuilder
from qwen_service.engines.rows import Row
from qwen_service.engines.sampling import Defaults, Sampler
from qwen_service.inference.model import Chosen, ReadPrompt, Vector
from qwen_service.settings import Settings

PERCENT_STEP = 5
# Ends of a turn or text in every generation of Qwen, beside those the checkpoint names.
END_TOKENS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")


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
    qwen1.register()
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    pooling = Pooling.from_folder(directory)
    placement = choose_placement(settings, config)
    report(Loading("weights"))
    kind = AutoModelForCausalLM if pooling is None else AutoModel
    model = _read_weights(kind, directory, placement, report)
    context = int(config.max_position_embeddings)
    template = str(tokenizer.chat_template or "")
    facts = ModelFacts(
        device=placement.name,
        dtype=str(model.dtype).removeprefix("torch."),
        context_tokens=min(settings.max_context or context, context),
        kind="chat" if pooling is None else "embedding",
        tools=_tools(config.model_type, template),
        thinks="<think>" in template,
        kv_tokens=kv_tokens(model, settings.kv_memory),
    )
    return TransformersModel(model, tokenizer, facts, pooling, most_rows=settings.max_batch)


def _tools(model_type: str, template: str) -> Literal["tool_call", "react"] | None:
    if model_type == "qwen":
        return "react"
    return "tool_call" if "<tool_call>" in template else None


def _read_weights(
    kind: Any, directory: Path, placement: Placement, report: Callable[[Report], None]
) -> Any:
    previous = transformers_logging.set_tqdm_hook(_progress_hook(report))
    try:
        loaded: Any = kind.from_pretrained(
            directory,
            **placement.arguments,
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
    placement.settle(model)
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
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        facts: ModelFacts,
        pooling: Pooling | None,
        *,
        most_rows: int,
    ) -> None:
        assert facts.kv_tokens is not None
        self.torch_model = model
        self.facts = facts
        generation_config = getattr(model, "generation_config", None) or GenerationConfig()
        self.ends = _ends(generation_config, tokenizer)
        self._defaults = Defaults.from_config(generation_config)
        self._prompts = PromptBuilder(tokenizer, most_tokens=facts.context_tokens)
        self._backend = tokenizer.backend_tokenizer
        self._vocabulary = len(tokenizer)
        width = model.config.get_text_config().vocab_size
        self._grammars = Grammars(tokenizer, vocabulary=width, ends=self.ends)
        shape: Any = {"device": model.device, "most_rows": most_rows, "kv_tokens": facts.kv_tokens}
        self._batch: GrowingBatch | EmbeddingBatch = (
            GrowingBatch(model, vocabulary=Vocabulary(tokenizer), **shape)
            if pooling is None
            else EmbeddingBatch(model, pooling=pooling, **shape)
        )

    def encode(self, prompt: Prompt) -> ReadPrompt:
        return self._prompts.read(prompt)

    def encode_input(self, prompt: Prompt) -> ReadPrompt:
        return self._prompts.read_input(prompt)

    def sampler(self, sampling: Sampling, prompt: ReadPrompt) -> Sampler:
        for token, _ in sampling.logit_bias:
            if not 0 <= token < self._vocabulary:
                raise Refused(
                    f"there is no token {token}, the vocabulary ends at {self._vocabulary - 1}",
                    param="logit_bias",
                )
        constraint = sampling.constraint
        guide = self._grammars.guide(constraint, prompt.opened) if constraint else None
        return Sampler(sampling, self._defaults, prompt.tokens, guide)

    def decode(self, tokens: Sequence[int], *, with_control: bool = False) -> str:
        if with_control and not all(0 <= token < self._vocabulary for token in tokens):
            raise Refused("there are no such tokens in the vocabulary", param="tokens")
        return str(self._backend.decode(list(tokens), skip_special_tokens=not with_control))

    def has_room(self, length: int) -> bool:
        return self._batch.has_room(length)

    def fits(self) -> bool:
        return self._batch.fits()

    def add(self, key: str, tokens: Sequence[int], sampler: Sampler | None) -> None:
        self._batch.add(Row(key, tuple(tokens), sampler))

    def remove(self, key: str) -> None:
        self._batch.remove(key)

    @torch.inference_mode()
    def extend(self) -> Sequence[Chosen]:
        return self._batch.extend()

    @torch.inference_mode()
    def extend_alone(self) -> Sequence[Chosen]:
        return self._batch.extend_alone()

    @torch.inference_mode()
    def prefill(self) -> Sequence[Chosen | Vector]:
        return self._batch.prefill()

    def kv_tokens(self) -> int:
        return self._batch.held_tokens()

    def memory_bytes(self) -> int | None:
        """Of the GPUs; None where the process's own memory says it all."""
        if not torch.cuda.is_initialized():
            return None
        return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))


def _ends(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    named = generation_config.eos_token_id
    ends = set(named if isinstance(named, list) else [named])
    ends.add(tokenizer.eos_token_id)
    # The first generation's own name for them, each a list of tokens.
    for words in getattr(generation_config, "stop_words_ids", None) or ():
        if len(words) == 1:
            ends.add(words[0])
    vocabulary = tokenizer.get_vocab()
    ends.update(vocabulary.get(token) for token in END_TOKENS)
    return frozenset(token for token in ends if token is not None)
