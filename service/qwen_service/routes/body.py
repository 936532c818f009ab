"""How a body becomes a request: bounded, parsed and judged, a large one beside the event loop.

Knows no field.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from qwen_service.errors import ApiError
from qwen_service.protocol.invalid import invalid
from qwen_service.streams import ClientLeft

Result = TypeVar("Result")
JSON = re.compile(r"application/([\w.-]+\+)?json")
# A smaller one takes less time than the way to another thread and back is worth.
LARGE_BYTES = 32 * 1024
# Values and names of fields. The parser lets nobody else run before its end: some 50 ms.
MOST_VALUES = 2**18
# One thread for the process, as there is one interpreter lock: large bodies wait for one another.
BESIDE = ThreadPoolExecutor(1, "qwen-bodies")


async def beside(request: Request, work: Callable[[], Result]) -> Result:
    """Does work that grows with the body, out of the others' way where that is large."""
    if request.state.has_large_body:
        return await asyncio.get_running_loop().run_in_executor(BESIDE, work)
    return work()


class JudgedRoute(APIRoute):
    """Judges the body itself: FastAPI would do so in the event loop, whatever its size."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer
        model = self.body_field.field_info.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)

        async def judge(request: Request) -> Response:
            judged = _Judged(request.scope, request.receive)
            await judged.judge(model)
            return await answer(judged)

        return judge


class _Judged(Request):
    """FastAPI asks it for a body and gets what that was made into."""

    async def judge(self, model: type[BaseModel]) -> None:
        try:
            # Also where it is refused: who is not heard to the end may miss the answer.
            raw = b"".join([part async for part in self.stream()])
        except ClientDisconnect as error:
            raise ClientLeft from error
        type = self.headers.get("content-type", "")
        if not JSON.fullmatch(type.partition(";")[0].strip().lower()):
            reason = f"the body should be sent as content-type: application/json, not {type!r}"
            raise ApiError(400, reason, code="invalid_json")
        self.state.has_large_body = len(raw) > LARGE_BYTES
        self._request = await beside(self, lambda: read(raw, model))

    async def body(self) -> bytes:
        return b"judged"

    async def json(self) -> BaseModel:
        return self._request


def read(raw: bytes, model: type[BaseModel]) -> BaseModel:
    value = parse(raw)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        refusal = invalid(error.errors(include_url=False, include_input=False))
    # Outside, so that the refusal does not hold on to all that was sent.
    raise refusal


def parse(raw: bytes) -> Any:
    if _count(raw) > MOST_VALUES:
        reason = f"the body should hold at most {MOST_VALUES} values and names of fields"
        raise ApiError(400, reason, code="too_many_values")
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno}, column {error.colno}"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:
        reason = "it has a number with thousands of digits"
    raise ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")


def _count(raw: bytes) -> int:
    """How many values and names there are, or more: each begins behind one of these signs."""
    count = _signs(raw)
    if count <= MOST_VALUES:
        return count
    # Texts may be full of them.
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    texts = plain.count(b'"') // 2
    if texts > MOST_VALUES:
        return texts
    return _signs(b"".join(plain.split(b'"')[::2]))


def _signs(raw: bytes) -> int:
    return sum(map(raw.count, (b",", b":", b"[", b"{")))
