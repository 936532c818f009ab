"""What sources.json says: which sources there are, the best first, and whether that has changed.
Does not know how any of them is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwen_weights.errors import BadManifest
from qwen_weights.fields import Fields, load

NAME = "sources.json"
SCHEMA = 1
_WEB = ("token", "headers", "ca", "proxy", "wan", "paths")
# Of each kind: what it must say, and what it may.
_KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "http": (("url",), _WEB),
    "git-lfs": (("url",), _WEB),
    "peer": (("url", "token"), ("paths",)),
    "folder": (("path",), ("paths",)),
    "archive": (("path",), ("prefix", "paths")),
}


@dataclass(frozen=True)
class Entry:
    """One source; two that are equal are the same source. Its secrets are not shown."""

    kind: str
    name: str
    url: str = field(default="", repr=False)
    token: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca: str | None = field(default=None, repr=False)
    proxy: str | None = field(default=None, repr=False)
    wan: bool = False
    path: str = ""
    prefix: str = ""
    paths: frozenset[str] | None = None


@dataclass(frozen=True)
class Entries:
    sources: tuple[Entry, ...] = ()
    authority: str | None = None


class EntriesFile:
    """The file as it is now; whoever changes it replaces it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> Entries:
        self._seen = self._stamp()
        return parse(load(self._path))

    def has_changed(self) -> bool:
        return self._stamp() not in (None, self._seen)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def parse(fields: Fields) -> Entries:
    fields.allow(("schema", "sources"), ("authority",))
    fields.require("schema", SCHEMA)
    sources = tuple(
        _entry(Fields(row, f"{fields.where}: sources/{at}"))
        for at, row in enumerate(fields.rows("sources"))
    )
    names = [entry.name for entry in sources]
    if len(set(names)) < len(names):
        fields.refuse("sources", "each name should be there once")
    return Entries(sources, _optional(fields, "authority"))


def _entry(fields: Fields) -> Entry:
    kind = fields.any("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        fields.refuse("kind", f"should be one of {', '.join(_KINDS)}")
    required, optional = _KINDS[kind]
    fields.allow(("kind", "name", *required), optional)
    name = fields.text("name")
    try:
        return _of_kind(kind, name, fields)
    except BadManifest as error:
        raise BadManifest(f"{error} (the source {name})") from None


def _of_kind(kind: str, name: str, fields: Fields) -> Entry:
    return Entry(
        kind,
        name,
        url=_optional(fields, "url") or "",
        token=_optional(fields, "token"),
        headers=fields.table("headers") if fields.has("headers") else (),
        ca=_pem(fields),
        proxy=_optional(fields, "proxy"),
        wan=fields.flag("wan") if fields.has("wan") else kind in ("http", "git-lfs"),
        path=_absolute(fields) if fields.has("path") else "",
        prefix=_optional(fields, "prefix") or "",
        paths=frozenset(fields.texts("paths")) if fields.has("paths") else None,
    )


def _optional(fields: Fields, name: str) -> str | None:
    return fields.text(name) if fields.has(name) and fields.any(name) != "" else None


def _pem(fields: Fields) -> str | None:
    """Its lines make it no printable text."""
    value = fields.any("ca")
    if value is not None and not isinstance(value, str):
        fields.refuse("ca", "should be certificates in PEM")
    return value or None


def _absolute(fields: Fields) -> str:
    path = fields.text("path")
    if not path.startswith("/"):
        fields.refuse("path", "should be an absolute path")
    return path
