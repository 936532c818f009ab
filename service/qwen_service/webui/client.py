"""One answer of the service's own API, as it streams in.

Knows neither gradio nor how answers are shown.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
CONNECT_SECONDS = 10.0


class Refusal(Exception):
    """The service's own words, why there is no answer; status 0: it could not be reached."""

    def __init__(self, status: int, message: str = "", code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True, slots=True)
class Part:
    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""


def open_client(server: tuple[str, int | None]) -> httpx.AsyncClient:
    """To the socket that a request came in by: a port of this host, or a path."""
    host, port = server
    # How long an answer may take is the service's business.
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
    socket = host if port is None else None
    transport = httpx.AsyncHTTPTransport(uds=socket, limits=httpx.Limits(max_connections=None))
    name = "localhost" if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return httpx.AsyncClient(
        transport=transport, base_url=f"http://{name}", timeout=timeout, trust_env=False
    )


async def answer(
    client: httpx.AsyncClient, body: dict[str, Any], token: str | None
) -> AsyncIterator[Part]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        async with client.stream("POST", CHAT, json=body, headers=headers) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield _part(json.loads(line.removeprefix("data: ")))
    except httpx.TransportError as error:
        raise Refusal(0) from error


def _part(chunk: dict[str, Any]) -> Part:
    if "error" in chunk:
        raise _refusal(500, json.dumps(chunk).encode())
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return Part(
        content=delta.get("content") or "",
        reasoning=delta.get("reasoning_content") or "",
        finish_reason=choices[0].get("finish_reason") or "",
    )


def _refusal(status: int, body: bytes) -> Refusal:
    try:
        error = json.loads(body)["error"]
        return Refusal(status, str(error["message"]), str(error.get("code") or ""))
    except (ValueError, KeyError, TypeError):
        return Refusal(status)
