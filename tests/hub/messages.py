"""What is asked of the hub and answered. Knows no protocol above HTTP."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.hub.repository import File
from tests.hub.rules import Protocol

Origin = Literal["hub", "cdn"]


@dataclass(frozen=True)
class Request:
    origin: Origin
    method: str
    target: str
    headers: Message
    body: bytes = b""
    at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def token(self) -> str | None:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            return base64.b64decode(value).decode().partition(":")[2]
        return value or None


@dataclass(frozen=True)
class Served:
    """A file's content, on behalf of one hub."""

    file: File
    hub: Protocol


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes | Served = b""
    headers: dict[str, str] = field(default_factory=dict)


def in_json(document: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(
        status, json.dumps(document).encode(), {"Content-Type": "application/json"} | headers
    )


@dataclass
class Refusal(Exception):
    status: int
    code: str
    message: str
