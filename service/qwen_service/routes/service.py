"""What every route needs: the service's settings, engine and state, and the answers they share.

Knows no route.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import JSONResponse, Response

from qwen_service.engine import Embedding, Engine, Finished, Generation, ModelFacts, Piece
from qwen_service.errors import ApiError
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.reply import Reply
from qwen_service.settings import Settings
from qwen_service.streams import Chunks, EventStream, unless_client_leaves
from qwen_service.wire.head import Head, Usage

# One event of a stream; its data is JSON, but for the last of some streams.
EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
EVENTS = {"text/event-stream": {"schema": EVENT}}
NOT_SUCH = {"chat": "not_a_chat_model", "embedding": "not_an_embedding_model"}


class Choice(Protocol):
    def add(self, arrival: Piece | Finished) -> object: ...


@dataclass(frozen=True, slots=True)
class Form:
    """How a route puts its answers on the wire: as they come, or all at once.

    Made of what the prompts' ends have opened.
    """

    is_streamed: bool
    headers: Mapping[str, str]
    chunks: Callable[[Sequence[str]], Chunks]
    choices: Callable[[Sequence[str]], Sequence[Choice]]
    render: Callable[[Sequence[Any], Usage], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Service:
    settings: Settings
    engine: Engine
    readiness: Readiness

    @property
    def facts(self) -> ModelFacts:
        facts = self.readiness.facts
        if facts is None:
            raise ApiError(503, "the model is not loaded", code="not_ready", retry_after_seconds=5)
        return facts

    def require_model(self, name: str) -> None:
        if name not in self.settings.model_names:
            known = ", ".join(self.settings.model_names)
            reason = f"The model `{name}` does not exist; this service has {known}"
            raise ApiError(404, reason, param="model", code="model_not_found")

    def require(self, name: str, kind: str) -> None:
        """The model by this name, and it is one of those that can do this."""
        self.require_model(name)
        if self.facts.kind != kind:
            reason = f"The model `{name}` is for {self.facts.kind} and not for {kind}"
            raise ApiError(404, reason, param="model", code=NOT_SUCH[kind])

    def head(self, prefix: str, model: str) -> Head:
        identity = f"{prefix}-{uuid.uuid4().hex}"
        return Head(identity, int(time.time()), model, self.settings.release)

    def reply(
        self, request: Request, asked: Sequence[Generation | Embedding], choices: int = 1
    ) -> Reply:
        meter = getattr(request.state, "meter", None)
        return Reply(self.engine, asked, meter, choices=choices)

    async def answer(
        self, request: Request, asked: Sequence[Generation], form: Form, choices: int = 1
    ) -> Response:
        """Begins once every prompt was accepted, so that a refusal has its status."""
        reply = self.reply(request, asked, choices)
        try:
            if not form.is_streamed:
                answer = await unless_client_leaves(request, _whole(reply, form))
                reply.close()
                return JSONResponse(answer, headers=dict(form.headers))
            await unless_client_leaves(request, reply.started())
            chunks, seconds = form.chunks(reply.opened), self.settings.keep_alive_seconds
            return EventStream(reply, chunks, keep_alive_seconds=seconds, headers=form.headers)
        except BaseException:
            reply.close()
            raise


async def _whole(reply: Reply, form: Form) -> Mapping[str, Any]:
    await reply.started()
    choices = form.choices(reply.opened)
    async for arrivals in reply.arrivals():
        for index, arrival in arrivals:
            if isinstance(arrival, Piece | Finished):
                choices[index].add(arrival)
    return form.render(choices, Usage(reply.prompt_tokens, reply.completion_tokens))
