"""Connections, bounded in number and in the time until a request's head is there.

uvicorn's own protocol, with what it leaves open (no limit of the time a head may take, and one of
connections that would refuse /health too). Knows neither routes nor keys.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen_service.errors import ApiError

# Of a request's line and headers together.
MOST_HEAD_BYTES = 64 * 1024
REFUSALS = {431: ApiError(431, "the headers are too long", code="headers_too_long")}


class Connection(H11Protocol):
    """Beyond `most` connections the one that is idle longest is closed; where none is idle, the
    new one is served on its own: its request may look at the state of the service, no more."""

    head_seconds: ClassVar[float] = 20.0
    most: ClassVar[int] = 4096

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport.get_extra_info("socket"))
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since = self.loop.time()
        if len(self.connections) > self.most and not self._make_room():
            self.app_state = {**self.app_state, "is_crowded": True}
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_idle:
            self._stop_waiting()
        elif self._head_timer is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self._is_idle and self._head_timer is None and self.conn.trailing_data[0]:
            # The next head has begun already.
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """In the words of the API, like every other error."""
        # Called where uvicorn handles h11's error, which knows better than `msg` what is wrong.
        status = getattr(sys.exception(), "error_status_hint", 400)
        error = REFUSALS.get(status) or ApiError(status, "this is no HTTP request", code="bad_http")
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = json.dumps(error.envelope()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=error.status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self._is_idle and not self.transport.is_closing():
            self.transport.close()

    def _make_room(self) -> bool:
        idle = [
            one
            for one in self.connections
            if isinstance(one, Connection) and one is not self and one._is_idle
        ]
        if not idle:
            return False
        min(idle, key=lambda one: one._idle_since).transport.abort()
        return True


def _send_at_once(connection: Any) -> None:
    """asyncio does so for sockets that name their protocol, which those of a plain bind do not;
    without it every answer in two parts waits 40 ms for an acknowledgement (tcp(7))."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def protocol(*, head_seconds: float, most: int) -> type[Connection]:
    """The protocol with these limits; uvicorn makes one a connection."""
    limits: dict[str, Any] = {"head_seconds": head_seconds, "most": most}
    return type("LimitedConnection", (Connection,), limits)
