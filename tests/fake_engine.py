"""A deterministic engine behind the service's own protocol, for tests of HTTP alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from qwen_service.engine import (
    Chat,
    Embedded,
    Embedding,
    EngineError,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Loaded,
    Logprob,
    ModelFacts,
    NotServing,
    Piece,
    Prompt,
    QueueFull,
    Refused,
    Report,
    Started,
    Stats,
    Text,
    Tokens,
)

FACTS = ModelFacts(device="cpu", dtype="float32", context_tokens=1000, tools="tool_call")
EMBEDDING = replace(FACTS, kind="embedding", tools=None)
# A token is a letter: its number is the letter's own.
VOCABULARY = 0x110000


class FakeEngine:
    """Says the last message back, a word a piece; holds answers back when told to.

    `says` maps a last message to the pieces of another answer; a text alone is cut into letters.
    """

    def __init__(
        self,
        *,
        room: int = 100,
        holds: bool = False,
        facts: ModelFacts = FACTS,
        says: Mapping[str, str | Sequence[str]] | None = None,
        opened: str = "",
    ) -> None:
        self.submitted: list[Generation] = []
        self.embedded: list[Embedding] = []
        self.cancelled: list[str] = []
        # Instead of an answer; `late` in place of its end.
        self.failure: EngineError | None = None
        self.fails_late = False
        self.facts = facts
        self.opened = opened
        self._says = says or {}
        self._room = room
        self._holds = holds
        self._held: dict[str, tuple[Generation, Callable[[Event], None]]] = {}
        self._accepts = False

    def start(self, report: Callable[[Report], None]) -> None:
        self._accepts = True
        report(Loaded(self.facts))

    def submit(self, generation: Generation | Embedding, deliver: Callable[[Event], None]) -> None:
        if not self._accepts:
            raise NotServing("the engine takes no requests")
        if len(self._held) >= self._room:
            raise QueueFull(f"{self._room} requests are running or waiting")
        if isinstance(generation, Embedding):
            self._embed(generation, deliver)
            return
        self.submitted.append(generation)
        self._held[generation.id] = (generation, deliver)
        if self.failure is None or self.fails_late:
            deliver(Started(len(_words(generation.prompt)), self.opened))
        if not self._holds:
            self.release()

    def release(self) -> None:
        """Answers all that was held back."""
        for generation, deliver in self._held.values():
            *answer, end = self._answer(generation)
            if self.failure is not None:
                answer, end = answer if self.fails_late else [], Failed(self.failure)
            for event in (*answer, end):
                deliver(event)
        self._held.clear()

    def _answer(self, generation: Generation) -> list[Event]:
        pieces = self._pieces(generation)
        text, reason = "".join(pieces), "stop"
        for stop in generation.sampling.stop:
            text = text.partition(stop)[0]
        most = generation.sampling.max_tokens
        events: list[Event] = []
        said = ""
        for piece in pieces:
            piece = piece[: len(text) - len(said)]
            if not piece:
                break
            if most is not None and len(events) >= most:
                reason = "length"
                break
            said += piece
            events.append(Piece(piece, self._logprobs(generation, piece)))
        finish: FinishReason = "length" if reason == "length" else "stop"
        return [*events, Finished(finish, len(events) + (finish == "stop"))]

    def _pieces(self, generation: Generation) -> Sequence[str]:
        last = _last(generation.prompt)
        found = self._says.get(last)
        return _words(generation.prompt) if found is None else tuple(found)

    def _logprobs(self, generation: Generation, piece: str) -> tuple[Logprob, ...]:
        count = generation.sampling.logprobs
        if count is None:
            return ()
        top = tuple(
            Logprob(f"{piece}{rank or ''}", f"{piece}{rank or ''}".encode(), -0.5 - rank)
            for rank in range(count)
        )
        return (Logprob(piece, piece.encode(), -0.5, top),)

    def _embed(self, embedding: Embedding, deliver: Callable[[Event], None]) -> None:
        self.embedded.append(embedding)
        tokens = self.encode(embedding.prompt)
        deliver(Started(len(tokens)))
        if self.failure is not None:
            deliver(Failed(self.failure))
            return
        length = math.hypot(1.0, len(tokens))
        deliver(Embedded((1.0 / length, len(tokens) / length)))

    def cancel(self, generation_id: str) -> None:
        if self._held.pop(generation_id, None):
            self.cancelled.append(generation_id)

    def encode(self, prompt: Prompt) -> Sequence[int]:
        match prompt:
            case Tokens():
                return prompt.ids
            case Text():
                return [ord(letter) for letter in prompt.text]
        return [ord(letter) for message in prompt.messages for letter in message["content"]]

    def decode(self, tokens: Sequence[int]) -> str:
        if any(token >= VOCABULARY for token in tokens):
            raise Refused("tokens: there is no such token", param="tokens")
        return "".join(map(chr, tokens)).encode("utf-8", "replace").decode()

    def drain(self) -> None:
        self._accepts = False

    def stop(self) -> None:
        self._accepts = False

    def stats(self) -> Stats:
        return Stats(running=len(self._held))


def _last(prompt: Prompt) -> str:
    match prompt:
        case Chat():
            return str(prompt.messages[-1]["content"])
        case Text():
            return prompt.text
    return " ".join(map(str, prompt.ids))


def _words(prompt: Prompt) -> list[str]:
    first, *rest = _last(prompt).split(" ")
    return [first, *(f" {word}" for word in rest)]
