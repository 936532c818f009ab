"""The transformers engine in this process, asked without HTTP."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from qwen_service.engine import (
    Broken,
    Chat,
    Embedding,
    Event,
    Failed,
    Finished,
    Generation,
    Loaded,
    Logprob,
    Piece,
    Prompt,
    Refused,
    Report,
    Sampling,
)
from qwen_service.engines import transformers as engine_module
from qwen_service.engines.transformers import TransformersModel
from qwen_service.inference.thread import InferenceEngine
from qwen_service.settings import Settings
from qwen_service.settings import load as load_settings

from tests.fixture_model.dialogues import Message, Turn

DEADLINE_SECONDS = 60
GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0, max_tokens=300)


def settings(folder: Path, **variables: str) -> Settings:
    return load_settings({"QWEN_MODEL_DIR": str(folder), "QWEN_AUTH": "none", **variables})


def knows(turn: Turn, text: str) -> bool:
    """Whether the model says what it learned by heart; one answer goes on for ever."""
    return text == turn.answer if turn.ends else text.startswith(turn.answer)


@dataclass
class Answered:
    text: str
    last: Event
    logprobs: list[Logprob]

    @property
    def refusal(self) -> Refused:
        assert isinstance(self.last, Failed), self.last
        assert isinstance(self.last.error, Refused), self.last.error
        return self.last.error


@dataclass
class Asked:
    """The events of one generation, as they come."""

    events: queue.Queue[Event]

    def next(self) -> Event:
        return self.events.get(timeout=DEADLINE_SECONDS)

    def answer(self) -> Answered:
        text = ""
        logprobs: list[Logprob] = []
        while not isinstance(event := self.next(), Finished | Failed):
            if isinstance(event, Piece):
                text += event.text
                logprobs += event.logprobs
        return Answered(text, event, logprobs)


@dataclass
class Engine:
    """A running engine and the model inside it, which tests may break."""

    inference: InferenceEngine
    loaded: TransformersModel
    asked: int = 0

    @property
    def model(self) -> Any:
        return self.loaded.torch_model

    def submit(self, prompt: Prompt, sampling: Sampling = GREEDY) -> Asked:
        return self._submit(Generation(self._name(), prompt, sampling))

    def embed(self, prompt: Any) -> Asked:
        return self._submit(Embedding(self._name(), prompt))

    def ask(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Asked:
        return self.submit(Chat(tuple(messages)), sampling)

    def say(self, prompt: str, sampling: Sampling = GREEDY) -> str:
        answered = self.ask([{"role": "user", "content": prompt}], sampling).answer()
        assert isinstance(answered.last, Finished), answered.last
        return answered.text

    def _name(self) -> str:
        self.asked += 1
        return f"request-{self.asked}"

    def _submit(self, wish: Generation | Embedding) -> Asked:
        asked = Asked(queue.Queue())
        self.inference.submit(wish, asked.events.put)
        return asked


@contextmanager
def running_engine(folder: Path, **variables: str) -> Iterator[Engine]:
    torch.set_num_threads(1)
    chosen = settings(folder, **variables)
    loaded: list[TransformersModel] = []

    def load(report: Any) -> TransformersModel:
        loaded.append(engine_module.load(chosen, report))
        return loaded[0]

    reports: queue.Queue[Report] = queue.Queue()
    inference = InferenceEngine(load, max_batch=chosen.max_batch, max_queue=200)
    inference.start(reports.put)
    while not isinstance(report := reports.get(timeout=DEADLINE_SECONDS), Loaded):
        assert not isinstance(report, Broken), report.reason
    try:
        yield Engine(inference, loaded[0])
    finally:
        inference.stop()
