"""The generation settings a person may change, typed and checked. Knows no request."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from qwen_deploy.errors import UsageError

Value = float | int | tuple[str, ...]

FORMAT = ":conf key=value [key=value ...]"
DEFAULT = "default"
MOST_STOPS = 32
SEEDS = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Setting:
    """What may be written for one key, as the service takes it; a factor cannot be 0."""

    should_be: str
    low: float
    high: float
    is_whole: bool = False
    low_excluded: bool = False

    def parse(self, raw: object) -> Value:
        if not isinstance(raw, str):
            raise ValueError
        value = int(raw) if self.is_whole else float(raw)
        is_low = value <= self.low if self.low_excluded else value < self.low
        if is_low or value > self.high or not math.isfinite(value):
            raise ValueError
        return value


@dataclass(frozen=True, slots=True)
class StopWords:
    should_be: str = f'a text or a JSON list of 1 to {MOST_STOPS} texts, as ["END","\\n\\n"]'

    def parse(self, raw: object) -> Value:
        words = raw if isinstance(raw, list) else [raw]
        if not 1 <= len(words) <= MOST_STOPS:
            raise ValueError
        if not all(isinstance(word, str) and word and is_sendable(word) for word in words):
            raise ValueError
        return tuple(words)


SETTINGS: Mapping[str, Setting | StopWords] = {
    "temperature": Setting("a number from 0 to 2", 0, 2),
    "top_p": Setting("a number from 0 to 1", 0, 1),
    "top_k": Setting("a whole number from -1 (no limit)", -1, 2**31 - 1, is_whole=True),
    "min_p": Setting("a number from 0 to 1", 0, 1),
    "repetition_penalty": Setting("a number above 0, at most 10", 0, 10, low_excluded=True),
    "presence_penalty": Setting("a number from -2 to 2", -2, 2),
    "frequency_penalty": Setting("a number from -2 to 2", -2, 2),
    "max_tokens": Setting("a whole number from 1", 1, 2**31 - 1, is_whole=True),
    "stop": StopWords(),
}


def is_sendable(text: str) -> bool:
    """A lone surrogate is how undecodable bytes look in a str; it has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def changed(conf: Mapping[str, Value], text: str) -> Mapping[str, Value]:
    """`conf` with every assignment of `text`, or an error and none of them."""
    result = dict(conf)
    for key, raw in _assignments(text):
        setting = _setting(key)
        if raw == _Bare(DEFAULT):
            result.pop(key, None)
            continue
        written = raw.text if isinstance(raw, _Bare) else raw
        try:
            result[key] = setting.parse(written)
        except ValueError:
            raise UsageError(f"`{key}={_shown(raw)}`: should be {setting.should_be}") from None
    return result


def value_of(key: str, value: object) -> Value:
    """A value that is no text of a person, as of a file or of an option, checked like theirs."""
    setting = _setting(key)
    try:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return setting.parse(str(value) if is_number else value)
    except ValueError:
        raise UsageError(f"`{key}={_shown(value)}`: should be {setting.should_be}") from None


def _setting(key: str) -> Setting | StopWords:
    if key not in SETTINGS:
        known = ", ".join(SETTINGS)
        raise UsageError(f"`{key}` is not a generation setting", hint=f"known are {known}")
    return SETTINGS[key]


def table(conf: Mapping[str, Value]) -> str:
    width = max(map(len, SETTINGS))
    return "\n".join(f"{key:<{width}}  {_value_shown(conf.get(key))}" for key in SETTINGS)


def parse_seed(text: str) -> int:
    try:
        return seed_of(int(text))
    except ValueError:
        raise _no_seed(text) from None


def seed_of(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in SEEDS:
        raise _no_seed(value)
    return value


def _no_seed(value: object) -> UsageError:
    return UsageError(f"`{value}` is not a seed: should be a whole number of 64 bits")


@dataclass(frozen=True, slots=True)
class _Bare:
    """A word written without quotes; only so does `default` take a setting back."""

    text: str


def _assignments(text: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    rest = text.strip()
    while rest:
        key, equals, rest = rest.partition("=")
        if not equals or not key or any(char.isspace() for char in key):
            raise UsageError(f"`{key}` is not an assignment", hint=f"format: {FORMAT}")
        value, rest = _value(key, rest)
        found.append((key, value))
    return found


def _value(key: str, text: str) -> tuple[object, str]:
    """The value at the start of `text` and what follows: JSON if quoted or a list, else a word."""
    if text.startswith(('"', "[")):
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            raise UsageError(f"`{key}={text}` is not closed as JSON is") from None
        if text[end:] and not text[end].isspace():
            raise UsageError(f"`{key}={text}`: a space should follow the value")
        return value, text[end:].lstrip()
    if not text or text[0].isspace():
        raise UsageError(f"`{key}=` has no value", hint=f"format: {FORMAT}")
    word, *rest = text.split(None, 1)
    return _Bare(word), rest[0] if rest else ""


def _shown(raw: object) -> str:
    return raw.text if isinstance(raw, _Bare) else json.dumps(raw, ensure_ascii=False)


def _value_shown(value: Value | None) -> str:
    if value is None:
        return DEFAULT
    return json.dumps(value, ensure_ascii=False)
