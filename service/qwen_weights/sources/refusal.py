"""What a server's refusal means, in its own words as far as it has any. Does not know how the
answer came."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NoReturn

from qwen_weights.errors import Changed, Missing, TokenRefused
from qwen_weights.sources import Interruption, Stubborn
from qwen_weights.sources.web import Answer

_LONGEST_MESSAGE = 300
# Faults of the request, apart from those of its moment: 408, 425 and 429.
_HARDLY_PASSES = frozenset(range(400, 500)) - {408, 425, 429}
_NAMES_IN_JSON = ("Message", "message", "error", "Msg", "detail")


def refuse(
    answer: Answer,
    *,
    source: str,
    what: str,
    has_token: bool,
    clock: Callable[[], float] = time.time,
) -> NoReturn:
    told = _message(answer)
    status = f"{answer.status} {answer.reason}" + (f": {told}" if told else "")
    if answer.status in (401, 403):
        if not answer.is_home:
            # The address of a storage is signed for a while; asking the hub again renews it.
            raise Stubborn(f"its storage {answer.origin} answered {status}", is_answer=True)
        raise TokenRefused(_no_entry(answer, source, what, status, has_token))
    if answer.status in (404, 410):
        raise Missing(f"{source} has no {what}: {status}")
    if answer.status in (409, 416):
        raise Changed(f"{what} at {source} is no longer the file of the manifest: {status}")
    kind = Stubborn if answer.status in _HARDLY_PASSES else Interruption
    raise kind(f"answered {status}", retry_after=_retry_after(answer, clock), is_answer=True)


def _no_entry(answer: Answer, source: str, what: str, status: str, has_token: bool) -> str:
    if answer.header("X-Error-Code") == "GatedRepo":
        who = "the account of the token" if has_token else "an account, and give its token"
        return f"{what} at {source} is gated: ask for access with {who}: {status}"
    if not has_token:
        return f"{source} wants a token for {what}, and none was given: {status}"
    return f"{source} refused the token for {what}: {status}"


def _message(answer: Answer) -> str:
    """One line: a header made for it, else a field of a JSON body, else the body's first line."""
    told = answer.header("X-Error-Message")
    if not told and "html" not in answer.header("Content-Type"):
        with suppress(Interruption):
            told = _of_body(answer.text())
    line = next(iter(told.strip().splitlines()), "").strip()
    shown = "".join(sign if sign.isprintable() else "?" for sign in line)
    return shown if len(shown) <= _LONGEST_MESSAGE else shown[:_LONGEST_MESSAGE] + "..."


def _of_body(text: str) -> str:
    try:
        document = json.loads(text)
    except ValueError:
        return text
    if isinstance(document, dict):
        for name in _NAMES_IN_JSON:
            if isinstance(document.get(name), str):
                return str(document[name])
    return ""


def _retry_after(answer: Answer, clock: Callable[[], float]) -> float | None:
    """Seconds, or a date, which is compared with the server's own clock where it tells it."""
    value = answer.header("Retry-After").strip()
    if value.isdecimal():
        return float(value)
    until = _seconds_of(value)
    if until is None:
        return None
    now = _seconds_of(answer.header("Date"))
    return max(0.0, until - (clock() if now is None else now))


def _seconds_of(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, IndexError):
        return None
