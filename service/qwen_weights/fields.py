"""The fields of a JSON document, read strictly: an error names the file and the key. Does not know
what they are for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from qwen_weights.errors import BadManifest


class Fields:
    """One object of a document, with its place in it for error messages."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise BadManifest(f"{where}: should be an object")
        self._values: Mapping[str, Any] = value

    def allow(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        for name in sorted(set(required) - self._values.keys()):
            self.refuse(name, "is missing")
        for name in sorted(self._values.keys() - set(required) - set(optional)):
            self.refuse(name, "is unknown")

    def refuse(self, name: str, why: str) -> NoReturn:
        raise BadManifest(f"{self.where}: {name}: {why}")

    def any(self, name: str) -> Any:
        return self._values.get(name)

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def require(self, name: str, value: int) -> None:
        got = self._values[name]
        if got != value or isinstance(got, bool):
            self.refuse(name, f"should be {value}, is {got!r}")

    def text(self, name: str) -> str:
        """What could be a header, a path or a name: no control characters, and not empty."""
        value = self._values[name]
        if not isinstance(value, str) or not value or not value.isprintable():
            self.refuse(name, "should be a text")
        return value

    def number(self, name: str, *, least: float = 0) -> float:
        value = self._values[name]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= least:
            self.refuse(name, f"should be a number of {least:g} or more")
        return float(value)

    def count(self, name: str, *, least: int = 0) -> int:
        value = self._values[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.refuse(name, f"should be a whole number of {least} or more")
        return value

    def flag(self, name: str) -> bool:
        value = self._values[name]
        if not isinstance(value, bool):
            self.refuse(name, "should be true or false")
        return value

    def rows(self, name: str) -> list[Any]:
        value = self._values[name]
        if not isinstance(value, list):
            self.refuse(name, "should be a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.rows(name)
        if not all(isinstance(value, str) and value.isprintable() for value in values):
            self.refuse(name, "should be a list of texts")
        return tuple(values)

    def table(self, name: str) -> tuple[tuple[str, str], ...]:
        """An object of texts, as pairs that can be compared and hashed."""
        inner = Fields(self._values[name], f"{self.where}: {name}")
        return tuple((key, inner.text(key)) for key in inner._values)


def load(path: Path) -> Fields:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadManifest(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # also where it is not UTF-8
        raise BadManifest(f"{path}: not JSON: {error}") from error
    return Fields(document, path.name)
