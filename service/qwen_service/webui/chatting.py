"""What happens on the page's events: an answer streams in, ends, or gives way to words why not.

State lives in the browser: each event brings the conversation, and each result takes it back.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from html import unescape
from typing import Any

import gradio as gr
import httpx

from qwen_service.webui import display
from qwen_service.webui.client import Part, Refusal, answer, open_client
from qwen_service.webui.conversation import Conversation, Turn, parse
from qwen_service.webui.site import TOKEN
from qwen_service.webui.texts import Texts

# As often as eyes need: each refresh of the page costs more than a token does.
REFRESH_SECONDS = 0.06
# Gradio notices at a refresh that nobody listens: about a second, where nothing comes.
IDLE_TICKS = 16


Outputs = tuple[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Controls:
    """What the page's settings say, as it was typed; nothing typed is the model's own."""

    system: str | None
    temperature: str | None
    top_p: str | None
    max_tokens: str | None
    seed: str | None
    thinking: bool | None = None

    def body(self, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        thinking = None if self.thinking is None else {"enable_thinking": self.thinking}
        fields = {
            "temperature": _number(self.temperature),
            "top_p": _number(self.top_p),
            "max_tokens": _number(self.max_tokens),
            "seed": _number(self.seed),
            "chat_template_kwargs": thinking,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return {"model": model, "messages": messages, "stream": True, **given}


def _number(typed: str | None) -> int | float | str | None:
    """What is none goes to the service as it is, which says best what it should be."""
    if not typed or not typed.strip():
        return None
    for kind in (int, float):
        with suppress(ValueError):
            number: int | float = kind(typed)
            return number if math.isfinite(number) else typed
    return typed.strip()


class Chatting:
    def __init__(self, model: str, texts: Texts, *, thinks: bool) -> None:
        self._model = model
        self._texts = texts
        self._thinks = thinks
        self._clients: dict[tuple[str, int | None], httpx.AsyncClient] = {}
        self._running: dict[str, asyncio.Event] = {}

    @property
    def is_answering(self) -> bool:
        return bool(self._running)

    async def show(self, value: Any) -> tuple[Any, str]:
        conversation = parse(value)
        return display.messages(conversation, self._texts), conversation.system

    async def ask(
        self, request: gr.Request, question: str, value: Any, *settings: Any
    ) -> AsyncIterator[Outputs]:
        conversation = parse(value)
        if question.strip():
            controls = self._controls(settings)
            conversation = replace(conversation.asked(question), system=controls.system or "")
            async for outputs in self._answer(conversation, controls, request, question=""):
                yield outputs

    async def retry(
        self, request: gr.Request, value: Any, *settings: Any
    ) -> AsyncIterator[Outputs]:
        controls = self._controls(settings)
        conversation = replace(parse(value).unanswered(), system=controls.system or "")
        async for outputs in self._answer(conversation, controls, request):
            yield outputs

    async def edit(
        self, event: gr.EditData, request: gr.Request, value: Any, *settings: Any
    ) -> AsyncIterator[Outputs]:
        conversation = parse(value)
        shown = event.index if isinstance(event.index, int) else event.index[0]
        turn = display.turn_of(conversation, shown, self._texts)
        controls = self._controls(settings)
        # The browser sent it so that gradio shows no HTML of it.
        question = unescape(str(event.value))
        edited = replace(conversation.edited(turn, question), system=controls.system or "")
        async for outputs in self._answer(edited, controls, request):
            yield outputs

    async def undo(self, value: Any) -> Outputs:
        conversation, question = parse(value).undone()
        return question, display.messages(conversation, self._texts), conversation.written()

    async def stop(self, request: gr.Request) -> None:
        """Also when the tab closes: what is asked for then has nobody who reads it."""
        if stopped := self._running.get(request.session_hash or ""):
            stopped.set()

    def _controls(self, settings: tuple[Any, ...]) -> Controls:
        return Controls(*settings[: 6 if self._thinks else 5])

    async def _answer(
        self,
        conversation: Conversation,
        controls: Controls,
        request: gr.Request,
        *,
        question: Any = None,
    ) -> AsyncIterator[Outputs]:
        kept = gr.skip()
        cleared = kept if question is None else question
        pending = display.messages(conversation, self._texts, is_pending=True)
        yield cleared, pending, conversation.written()
        turn = Turn("assistant", "")
        body = controls.body(self._model, conversation.messages())
        async for turn in self._turns(body, request):
            has_begun = turn.content or turn.reasoning
            so_far = conversation.answered(turn) if has_begun else conversation
            yield kept, display.messages(so_far, self._texts, is_pending=True), kept
        whole = conversation.answered(turn)
        yield kept, display.messages(whole, self._texts), whole.written()

    async def _turns(self, body: dict[str, Any], request: gr.Request) -> AsyncIterator[Turn]:
        """The answer as far as it came, again and again; the last one is all that comes."""
        answer_so_far = _Growing()
        stopped = self._running[request.session_hash or ""] = asyncio.Event()
        parts = answer(self._client(request), body, _scope(request).get(TOKEN))
        reading = asyncio.ensure_future(answer_so_far.read(parts))
        stopping = asyncio.ensure_future(stopped.wait())
        both = {reading, stopping}
        try:
            for tick in itertools.count(1):
                done, _ = await asyncio.wait(
                    both, timeout=REFRESH_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    break
                if answer_so_far.has_grown() or tick % IDLE_TICKS == 0:
                    yield answer_so_far.turn
        finally:
            if self._running.get(request.session_hash or "") is stopped:
                del self._running[request.session_hash or ""]
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        yield replace(answer_so_far.turn, note=self._note(reading, answer_so_far))

    def _note(self, reading: asyncio.Future[None], growing: _Growing) -> str:
        if reading.cancelled():
            return self._texts.stopped
        error = reading.exception()
        if error is None:
            is_cut = growing.finish_reason == "length"
            return self._texts.too_long_answer if is_cut else ""
        if not isinstance(error, Refusal):
            raise error
        return self._words(error, has_begun=growing.has_begun)

    def _words(self, refusal: Refusal, *, has_begun: bool) -> str:
        texts = self._texts
        if refusal.code == "context_length_exceeded":
            return texts.too_long
        if has_begun:
            return texts.broken
        known = {
            0: texts.unreachable,
            401: texts.login_again,
            429: texts.busy,
            503: texts.not_ready,
        }
        return known.get(refusal.status) or f"{texts.refused}: {refusal.message}"

    def _client(self, request: gr.Request) -> httpx.AsyncClient:
        host, port = _scope(request)["server"]
        if (host, port) not in self._clients:
            self._clients[host, port] = open_client((host, port))
        return self._clients[host, port]


class _Growing:
    """An answer while it comes in."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._seen = 0
        self.finish_reason = ""

    @property
    def has_begun(self) -> bool:
        return bool(self._content or self._reasoning)

    @property
    def turn(self) -> Turn:
        return Turn("assistant", "".join(self._content), "".join(self._reasoning))

    def has_grown(self) -> bool:
        size = len(self._content) + len(self._reasoning)
        seen, self._seen = self._seen, size
        return size > seen

    async def read(self, parts: AsyncIterator[Part]) -> None:
        async for part in parts:
            if part.content:
                self._content.append(part.content)
            if part.reasoning:
                self._reasoning.append(part.reasoning)
            self.finish_reason = part.finish_reason or self.finish_reason


def _scope(request: gr.Request) -> MutableMapping[str, Any]:
    assert request.request is not None
    return request.request.scope
