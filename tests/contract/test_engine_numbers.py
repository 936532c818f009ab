"""Logprobs and seeds of the transformers engine, against plain forwards and in any company."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from qwen_service.engine import Chat, Logprob, Sampling, Tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fixture_model import fixture_model
from tests.fixture_model.dialogues import TURNS, answer_to
from tests.running_engine import GREEDY, Answered, Asked, Engine, knows, running_engine

pytestmark = pytest.mark.contract

# Hot enough that the tiny model, sure of what it learned, says something else at each seed.
HOT = Sampling(temperature=3.0, top_p=1.0, top_k=0, max_tokens=24, seed=1)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine(fixture_model(), QWEN_MAX_BATCH="8") as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(fixture_model())


def wanted_logprobs(tokenizer: Any, messages: Any, answer: str) -> tuple[list[int], torch.Tensor]:
    """The tokens of an answer and, for each, the model's own logprobs in its place."""
    model: Any = AutoModelForCausalLM.from_pretrained(fixture_model(), dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    tokens = tokenizer.encode(answer)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return tokens, logits.log_softmax(-1)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.0, logprobs=3)], ids=str)
@pytest.mark.parametrize("question", ["Hello", "你好"])
def test_logprobs_are_the_models_own(
    engine: Engine, tokenizer: Any, question: str, sampling: Sampling
) -> None:
    messages = [{"role": "user", "content": question}]
    tokens, wanted = wanted_logprobs(tokenizer, messages, answer_to(question))
    others = [engine.ask(TURNS[index].messages) for index in range(5)]
    answered = engine.ask(messages, replace(sampling, logprobs=3)).answer()
    assert all(other.answer().text for other in others)
    assert answered.text == answer_to(question)
    assert b"".join(it.bytes for it in answered.logprobs) == answered.text.encode()
    for told, token, row in zip(answered.logprobs, tokens, wanted, strict=True):
        assert told.logprob == pytest.approx(row[token].item(), abs=1e-3)
        best = row.topk(3)
        assert [it.logprob for it in told.top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert told.text == tokenizer.decode([token])


def test_logprobs_know_nothing_of_bias_and_temperature(engine: Engine, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    star = tokenizer.encode("*")[0]
    _, wanted = wanted_logprobs(tokenizer, messages, "*")
    biased = replace(HOT, logit_bias=((star, 100.0),), max_tokens=1, logprobs=0)
    (told,) = engine.ask(messages, biased).answer().logprobs
    assert told == Logprob("*", b"*", told.logprob)
    assert told.logprob == pytest.approx(wanted[0, star].item(), abs=1e-3)


def test_tokens_cut_away_with_a_stop_string_are_not_told(engine: Engine) -> None:
    messages = [{"role": "user", "content": "Count from 1 to 60, one number a line."}]
    asked = replace(GREEDY, stop=("12\n13",), logprobs=0)
    answered = engine.ask(messages, asked).answer()
    assert answered.text.endswith("\n11\n")
    assert b"".join(it.bytes for it in answered.logprobs).startswith(answered.text.encode())
    assert len(answered.logprobs) <= len(answered.text)
    assert b"13" not in b"".join(it.bytes for it in answered.logprobs)


def texts(answers: list[Answered]) -> list[str]:
    return [answer.text for answer in answers]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seed_says_the_same_alone_and_in_any_company(dtype: str) -> None:
    """In numbers as coarse as bfloat16's, any company that was felt would change most answers."""
    source = random.Random(0)
    questions = ["Hello", "你好", "Count from 1 to 60, one number a line."]
    wishes: list[tuple[Any, Sampling]] = [
        ([{"role": "user", "content": question}], replace(sampling, seed=seed))
        for question in questions
        for seed in range(2)
        for sampling in (HOT, replace(HOT, top_k=50, top_p=0.9, min_p=0.01), FULL)
    ]
    long = Tokens(tuple(source.choices(range(700), k=300)))
    wishes += [(long, replace(HOT, seed=seed)) for seed in range(2)]
    with running_engine(fixture_model(), QWEN_MAX_BATCH="8", QWEN_DTYPE=dtype) as engine:

        def asked(wish: tuple[Any, Sampling]) -> Asked:
            prompt = wish[0] if isinstance(wish[0], Tokens) else Chat(tuple(wish[0]))
            return engine.submit(prompt, wish[1])

        alone = texts([asked(wish).answer() for wish in wishes])
        assert len(set(alone)) > len(wishes) // 2
        others = [engine.submit(long, replace(GREEDY, max_tokens=60)) for _ in range(2)]
        others += [engine.submit(Chat(turn.messages, turn.tools)) for turn in TURNS]
        order = list(range(len(wishes)))
        source.shuffle(order)
        again = {index: asked(wishes[index]) for index in order}
        crowded = texts([again[index].answer() for index in range(len(wishes))])
        said = [other.answer().text for other in others[2:]]
    assert crowded == alone
    assert all(knows(turn, text) for turn, text in zip(TURNS, said, strict=True))


FULL = replace(
    HOT, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5, top_k=0, top_p=0.95
)


def test_without_a_seed_answers_differ(engine: Engine) -> None:
    assert len({engine.say("Hello", replace(HOT, seed=None)) for _ in range(5)}) > 1


def test_rare_tokens_are_cut_by_min_p(engine: Engine) -> None:
    answers = {engine.say("Hello", replace(HOT, seed=seed, min_p=1.0)) for seed in range(5)}
    assert answers == {answer_to("Hello")}
