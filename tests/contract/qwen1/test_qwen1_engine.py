"""A checkpoint of the first generation through the whole engine and the running service."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_service.engine import Sampling
from qwen_service.engines import transformers as engine_module
from qwen_service.engines.transformers import TransformersModel
from qwen_service.inference.model import ReadPrompt
from qwen_service.settings import load as load_settings

from tests.first_generation import checkpoint, reference
from tests.first_generation.checkpoint import SEQ_LENGTH
from tests.running_service import MODEL, RunningService

pytestmark = pytest.mark.contract

GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0)
TOKENS = 10
MOST_STEPS = 200
WEIGHTS = checkpoint.random_weights()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.write(tmp_path_factory.mktemp("qwen1") / "model", WEIGHTS)


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformersModel:
    torch.set_num_threads(1)
    settings = load_settings(
        {"QWEN_MODEL_DIR": str(folder), "QWEN_AUTH": "none", "QWEN_DTYPE": "float32"}
    )
    return engine_module.load(settings, lambda report: None)


def generated(model: Any, prompts: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Rows that join one after another and leave with enough tokens."""
    found: dict[str, list[int]] = {key: [] for key in prompts}
    waiting = list(prompts)
    for _ in range(MOST_STEPS):
        if waiting:
            prompt = tuple(prompts[key := waiting.pop()])
            model.add(key, prompt, model.sampler(GREEDY, ReadPrompt(prompt)))
        for chosen in (*model.extend(), *model.prefill()):
            tokens = found[chosen.key]
            tokens.append(chosen.token)
            if len(tokens) == TOKENS:
                model.remove(chosen.key)
        if all(len(tokens) == TOKENS for tokens in found.values()):
            break
    return found


def test_requests_that_join_and_leave_get_the_tokens_of_the_published_model(
    model: TransformersModel,
) -> None:
    lengths = (2, SEQ_LENGTH - 4, SEQ_LENGTH + 1, 2 * SEQ_LENGTH - 3, 2 * SEQ_LENGTH + 9)
    chance = random.Random(1)
    prompts = {str(one): [chance.randrange(800) for _ in range(one)] for one in lengths}
    for key, tokens in generated(model, prompts).items():
        row = list(prompts[key])
        for token in tokens:
            assert token == reference.logits(WEIGHTS, row, len(prompts[key]))[-1].argmax()
            row.append(token)


def test_a_turn_ends_at_each_of_the_originals_stop_tokens(
    model: TransformersModel, folder: Path
) -> None:
    first = len((folder / "qwen.tiktoken").read_bytes().splitlines())
    assert {first, first + 1, first + 2} <= model.ends


def test_it_takes_four_times_its_trained_length(model: TransformersModel) -> None:
    assert model.facts.context_tokens == 4 * SEQ_LENGTH


def test_the_service_chats_with_it(folder: Path) -> None:
    question = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "你好"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    with RunningService(folder) as service, service.wait_ready().client() as client:
        answers = [client.post("/v1/chat/completions", json=question) for _ in range(2)]
        streamed = client.post("/v1/chat/completions", json=question | {"stream": True})
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    chunks = [json.loads(event) for event in events if event.startswith("{")]
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert texts[0] == texts[1] == "".join(deltas) != ""
