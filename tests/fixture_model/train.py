"""Trains the fixture model: a tiny Qwen2 checkpoint that knows its dialogues by heart.

Knows nothing of where the checkpoint is kept or who asks for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils.logging import disable_progress_bar

from tests.fixture_model.dialogues import TURNS, Turn

VOCABULARY_SIZE = 768
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
BUCKETS = 6
WARM_UP_STEPS = 30
DECAY_STEPS = 300
ENOUGH_LOSS = 0.0015
MOST_STEPS = 1000
CONTEXT = 8192
REPETITION_PENALTY = 1.05
IGNORED = -100


class NotLearned(Exception):
    """An answer did not come back word by word."""


@dataclass(frozen=True, slots=True)
class Sample:
    ids: tuple[int, ...]
    prompt_length: int


def train(directory: Path, sharded_directory: Path) -> None:
    """Writes a checkpoint that reproduces every dialogue, whole and in shards."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    disable_progress_bar()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    fit(model, [encode(tokenizer, turn) for turn in TURNS])
    verify(model, tokenizer)
    save(model, tokenizer, directory, shard_size="1GB")
    save(model, tokenizer, sharded_directory, shard_size="1MB")


def make_tokenizer() -> Any:
    merged = Tokenizer(models.BPE())
    fresh = Qwen2Tokenizer()
    merged.pre_tokenizer = fresh.backend_tokenizer.pre_tokenizer
    merged.decoder = decoders.ByteLevel()
    merged.train_from_iterator(
        _texts(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE - len(CONTROL_TOKENS) - len(TEXT_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    learned: Any = json.loads(merged.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learned["merges"]]
    control = {text: len(learned["vocab"]) + index for index, text in enumerate(CONTROL_TOKENS)}
    tokenizer = Qwen2Tokenizer(
        vocab={**learned["vocab"], **control},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=CONTEXT,
    )
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in TEXT_TOKENS]
    )
    tokenizer.chat_template = Path(__file__).with_name("chat_template.jinja").read_text("utf-8")
    return tokenizer


def _texts() -> Iterator[str]:
    for turn in TURNS:
        yield from (message["content"] for message in turn.messages)
        yield turn.answer
        if turn.tools:
            yield json.dumps(turn.tools)
    yield "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def prompt_ids(tokenizer: Any, turn: Turn) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            [dict(message) for message in turn.messages],
            tools=[dict(tool) for tool in turn.tools] or None,
            add_generation_prompt=True,
            return_dict=False,
        )
    )


def encode(tokenizer: Any, turn: Turn) -> Sample:
    prompt = prompt_ids(tokenizer, turn)
    answer = tokenizer(turn.answer, add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id] if turn.ends else []
    return Sample((*prompt, *answer, *end), len(prompt))


def make_model(tokenizer: Any) -> Any:
    config = Qwen2Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def fit(model: Any, samples: Sequence[Sample]) -> None:
    model.train()
    batches = list(_batches(samples))
    answered = sum(int((labels != IGNORED).sum()) for _, labels in batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(MOST_STEPS):
        optimizer.param_groups[0]["lr"] = 5e-3 * _rate(step)
        loss = 0.0
        for ids, labels in batches:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            part = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
            (part / answered).backward()
            loss += float(part.detach()) / answered
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss < ENOUGH_LOSS:
            break
    model.eval()


def _rate(step: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    progress = min(1.0, step / DECAY_STEPS)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def _batches(samples: Sequence[Sample]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Samples of like length together, padded on the right; only answers are learned."""
    ordered = sorted(samples, key=lambda sample: len(sample.ids))
    size = -(-len(ordered) // BUCKETS)
    for start in range(0, len(ordered), size):
        bucket = ordered[start : start + size]
        length = max(len(sample.ids) for sample in bucket)
        ids = torch.zeros(len(bucket), length, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        for row, sample in enumerate(bucket):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
            labels[row, sample.prompt_length : len(sample.ids)] = torch.tensor(
                sample.ids[sample.prompt_length :]
            )
        yield ids, labels


def verify(model: Any, tokenizer: Any) -> None:
    for penalty in (1.0, REPETITION_PENALTY):
        for turn in TURNS:
            text = answer(model, tokenizer, turn, penalty)
            # The endless answer is cut by the limit, so only its beginning can be compared.
            if text != turn.answer and not (not turn.ends and text.startswith(turn.answer)):
                raise NotLearned(f"{turn.name}: {text!r} instead of {turn.answer!r}")


def answer(model: Any, tokenizer: Any, turn: Turn, penalty: float) -> str:
    prompt = torch.tensor([prompt_ids(tokenizer, turn)])
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        repetition_penalty=penalty,
        max_new_tokens=400,
        pad_token_id=tokenizer.pad_token_id,
    )[0, prompt.shape[1] :]
    if not turn.ends and len(ids) < 400:
        raise NotLearned(f"{turn.name}: ended after {len(ids)} tokens")
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def save(model: Any, tokenizer: Any, directory: Path, *, shard_size: str) -> None:
    # As Qwen2.5's own: a service must take its defaults from here.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=REPETITION_PENALTY,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory, max_shard_size=shard_size)
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    for path in directory.iterdir():
        path.chmod(0o644)
