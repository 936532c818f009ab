"""A checkpoint in sentence-transformers' layout: pooled exactly, alone and among others."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_service.engine import Chat, Embedded, EngineError, Event, Failed, Refused, Text, Tokens
from qwen_service.engines import transformers as engine_module
from transformers import AutoModel

from tests.fixture_model import fixture_model
from tests.running_engine import Asked, Engine, running_engine, settings

pytestmark = pytest.mark.contract

MODULE = "sentence_transformers.models."
POOLINGS = {
    "last": "pooling_mode_lasttoken",
    "mean": "pooling_mode_mean_tokens",
    "first": "pooling_mode_cls_token",
}
END = 759


def checkpoint(path: Path, pooling: str, *modules: str) -> Path:
    folder = Path(shutil.copytree(fixture_model(), path))
    types = [("Transformer", ""), ("Pooling", "1_Pooling"), *((name, name) for name in modules)]
    listed = [{"type": f"{MODULE}{name}", "path": where} for name, where in types]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 128, **dict.fromkeys(POOLINGS.values(), False)}
    (folder / "1_Pooling/config.json").write_text(json.dumps({**config, pooling: True}))
    # As Qwen3-Embedding's: the text ends with a token that stands for it.
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "E", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"E": {"id": "E", "ids": [END], "tokens": ["<|endoftext|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = checkpoint(
        tmp_path_factory.mktemp("embedding") / "model", POOLINGS["last"], "Normalize"
    )
    with running_engine(folder) as running:
        yield running


@contextmanager
def pooled(tmp_path: Path, kind: str) -> Iterator[Engine]:
    with running_engine(checkpoint(tmp_path / "model", POOLINGS[kind])) as running:
        yield running


def vector(asked: Asked) -> list[float]:
    asked.next()
    event: Event = asked.next()
    assert isinstance(event, Embedded), event
    return list(event.vector)


def wanted(ids: list[int], kind: str) -> torch.Tensor:
    model: Any = AutoModel.from_pretrained(fixture_model(), dtype=torch.float32)
    with torch.inference_mode():
        hidden: torch.Tensor = model(torch.tensor([ids])).last_hidden_state[0]
    return {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0)}[kind]


def test_the_facts_tell_that_it_makes_embeddings(engine: Engine) -> None:
    assert engine.loaded.facts.kind == "embedding"


def test_texts_of_any_length_are_embedded_as_each_alone(engine: Engine) -> None:
    source = random.Random(0)
    inputs = [source.choices(range(700), k=length) for length in (1, 3, 17, 200, 900, 5, 64, 40)]
    asked = [engine.embed(Tokens(tuple(ids))) for ids in inputs]
    for ids, one in zip(inputs, asked, strict=True):
        normal = torch.nn.functional.normalize(wanted(ids, "last"), dim=0)
        assert torch.allclose(torch.tensor(vector(one)), normal, atol=1e-4)


def test_a_text_is_read_with_the_token_that_ends_it(engine: Engine) -> None:
    ids = [*engine.inference.encode(Text("Hello 你好")), END]
    same = vector(engine.embed(Tokens(tuple(ids))))
    assert vector(engine.embed(Text("Hello 你好"))) == pytest.approx(same, abs=1e-5)


@pytest.mark.parametrize("kind", ["mean", "first"])
def test_other_poolings_and_no_normalization(tmp_path: Path, kind: str) -> None:
    inputs = [random.Random(0).choices(range(700), k=length) for length in (4, 300)]
    with pooled(tmp_path, kind) as engine:
        asked = [engine.embed(Tokens(tuple(ids))) for ids in inputs]
        for ids, one in zip(inputs, asked, strict=True):
            assert torch.allclose(torch.tensor(vector(one)), wanted(ids, kind), atol=1e-3)


@pytest.mark.parametrize(
    "prompt",
    [Text("\ud800"), Tokens(()), Tokens((768,)), Tokens((1,) * 8193)],
    ids=lambda it: "bad",
)
def test_an_input_that_is_none_is_refused(engine: Engine, prompt: Text | Tokens) -> None:
    assert engine.embed(prompt).answer().refusal.param == "input"


def test_it_does_not_chat(engine: Engine) -> None:
    failed = engine.ask([{"role": "user", "content": "Hello"}]).next()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Refused)
    assert failed.error.code == "not_a_chat_model"
    assert isinstance(engine.inference.encode(Chat(({"role": "user", "content": "a"},))), list)


def test_a_failed_forward_fails_its_texts_and_the_next_is_embedded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "forward", out_of_memory)
        asked = engine.embed(Text("lost"))
        asked.next()
        assert isinstance(asked.next(), Failed)
    assert vector(engine.embed(Text("found")))


@pytest.mark.parametrize(
    ("pooling", "modules"),
    [("pooling_mode_max_tokens", ()), (POOLINGS["mean"], ("Dense",)), ("include_prompt", ())],
)
def test_what_is_not_supported_is_said(
    tmp_path: Path, pooling: str, modules: tuple[str, ...]
) -> None:
    folder = checkpoint(tmp_path / "model", pooling, *modules)
    with pytest.raises(EngineError, match="not supported"):
        engine_module.load(settings(folder), lambda report: None)
