"""A budget for keys and values that is too small for all: rows give way and lose nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from qwen_service.engine import Chat, Constraint, EngineError, Tokens
from qwen_service.engines import memory
from qwen_service.engines import transformers as engine_module

from tests.fixture_model import fixture_model
from tests.fixture_model.dialogues import TURNS
from tests.running_engine import GREEDY, Engine, knows, running_engine, settings

pytestmark = pytest.mark.contract

# Two layers of two heads of 32 numbers of four bytes, keys and values; then three layers' copies.
TOKEN_BYTES = 2 * 2 * 32 * 4 * (2 + 3)
KV_TOKENS = 800


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    budget = str(TOKEN_BYTES * KV_TOKENS)
    with running_engine(fixture_model(), QWEN_MAX_BATCH="8", QWEN_KV_MEMORY=budget) as running:
        yield running


def test_the_budget_is_told_in_tokens(engine: Engine) -> None:
    assert engine.loaded.facts.kv_tokens == KV_TOKENS
    assert engine.loaded.facts.context_tokens == 8192


def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the cache took at every step, and -1 for each row that gave way."""
    held: list[int] = []
    step, put_back = engine.loaded.extend, engine.inference._desk.put_back

    def extend() -> object:
        result = step()
        held.append(engine.inference.stats().kv_tokens)
        return result

    def gave_way(request: object) -> None:
        held.append(-1)
        put_back(request)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.loaded, "extend", extend)
    monkeypatch.setattr(engine.inference._desk, "put_back", gave_way)
    return held


def test_rows_that_give_way_say_what_they_say_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = counted(engine, monkeypatch)
    turns = [*TURNS, *TURNS]
    asked = [engine.submit(Chat(turn.messages, turn.tools)) for turn in turns]
    said = [it.answer().text for it in asked]
    assert [
        turn.name for turn, text in zip(turns, said, strict=True) if not knows(turn, text)
    ] == []
    assert held.count(-1) > 0
    assert 0 < max(held) <= KV_TOKENS


@pytest.fixture(scope="module")
def tiny_engine() -> Iterator[Engine]:
    """Two of these answers begin together and cannot end together. In float64: what is read again
    differs from what was written in its last digits, which chance at float32 meets now and then.
    """
    budget = str(TOKEN_BYTES * 2 * (62 + 64))
    with running_engine(fixture_model(), QWEN_MAX_BATCH="8", QWEN_KV_MEMORY=budget) as running:
        running.model.double()
        yield running


def test_a_row_that_gives_way_keeps_its_chance_penalties_and_constraint(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine
    schema = '{"type": "array", "items": {"type": "integer"}, "minItems": 60}'
    wishes = [
        replace(
            GREEDY,
            temperature=2.0,
            repetition_penalty=1.1,
            frequency_penalty=0.1,
            seed=seed,
            max_tokens=80,
            logprobs=1,
            constraint=Constraint("json_schema", schema) if seed % 2 else None,
        )
        for seed in range(4)
    ]
    messages = [{"role": "user", "content": "Count from 1 to 60, one number a line."}]
    alone = [engine.ask(messages, wish).answer() for wish in wishes]
    held = counted(engine, monkeypatch)
    together = [asked.answer() for asked in [engine.ask(messages, wish) for wish in wishes]]
    assert held.count(-1) > 0
    assert [it.text for it in together] == [it.text for it in alone]
    assert [it.last for it in together] == [it.last for it in alone]
    assert [len(it.logprobs) for it in together] == [len(it.logprobs) for it in alone]


def test_nothing_is_held_once_all_are_answered(engine: Engine) -> None:
    assert engine.say("Hello")
    # The last row's place is given up by the next turn.
    assert engine.say("Hello")
    assert engine.inference.stats().kv_tokens <= KV_TOKENS


def test_what_can_never_fit_is_refused_and_what_just_fits_is_answered(engine: Engine) -> None:
    long = Tokens((7,) * 700)
    refusal = engine.submit(long, replace(GREEDY, max_tokens=101)).answer().refusal
    assert refusal.code == "context_length_exceeded"
    assert f"room for {KV_TOKENS}" in str(refusal)
    others = [engine.submit(Chat(TURNS[index].messages, TURNS[index].tools)) for index in range(8)]
    answered = engine.submit(long, replace(GREEDY, max_tokens=100, logprobs=0)).answer()
    assert answered.logprobs
    said = [other.answer().text for other in others]
    assert all(knows(turn, text) for turn, text in zip(TURNS, said, strict=False))


def test_a_budget_for_nothing_is_refused() -> None:
    chosen = settings(fixture_model(), QWEN_KV_MEMORY="1000")
    with pytest.raises(EngineError, match="room for 0 tokens only"):
        engine_module.load(chosen, lambda report: None)


def test_the_limits_of_control_groups_are_known(tmp_path: Path) -> None:
    groups = {"": ("max", 5, 0), "a": ("1000", 600, 100), "a/b": ("900", 850, 50)}
    for name, (limit, usage, inactive) in groups.items():
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")
    assert memory.cgroup_bytes_left(tmp_path, "0::/a/b\n") == [100, 500]
    assert memory.cgroup_bytes_left(tmp_path, "0::/elsewhere\n4:cpu:/a\n") == []
