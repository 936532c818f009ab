"""Who is logged in: a random cookie for each browser, standing for a token that the keys lent.

Keeps no key; a key that is revoked ends its sessions. Knows neither pages nor routes.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

LASTS_SECONDS = 7 * 24 * 3600.0
MOST = 10_000


class KeyRing(Protocol):
    def name_of(self, presented: str) -> str | None: ...

    def lend(self, name: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Session:
    """Of whom, and what stands for the key in requests of this browser."""

    name: str
    token: str
    until: float


class Sessions:
    def __init__(self, keys: KeyRing, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, key: str) -> str | None:
        """The value of a new cookie, or None where the key is not listed."""
        name = self._keys.name_of(key)
        if name is None:
            return None
        cookie = secrets.token_urlsafe(32)
        until = self._clock() + LASTS_SECONDS
        self._sessions[cookie] = Session(name, self._keys.lend(name), until)
        while len(self._sessions) > MOST:
            self._sessions.popitem(last=False)
        return cookie

    def find(self, cookie: str) -> Session | None:
        session = self._sessions.get(cookie)
        if session is None:
            return None
        if session.until < self._clock() or self._keys.name_of(session.token) is None:
            self.close(cookie)
            return None
        return session

    def close(self, cookie: str) -> None:
        self._sessions.pop(cookie, None)
