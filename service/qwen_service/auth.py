"""Who may ask: bearer keys against a file of hashes that may change while the service runs.

Knows neither HTTP routes nor how keys are made; no key is ever kept or logged.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("qwen_service")

LINE = re.compile(r"(?P<name>\S+)\s+(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    digest: bytes


class Keys:
    """Lines of `<name> <sha256 of the key in hex>`; lines that begin with # are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def name_of(self, presented: str) -> str | None:
        """The name of the key, or None; takes as long for a wrong key as for a right one."""
        self._refresh()
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.name
        return found

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._keys = parse(self._path.read_text("utf-8"))
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            # A file that cannot be read lets nobody in.
            if self._keys or self._stamp is None:
                log.error("no key is accepted: %s", error)
            self._keys, self._stamp = (), (0, 0, 0)


def parse(text: str) -> tuple[Key, ...]:
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if match := LINE.fullmatch(line.strip()):
            keys.append(Key(match["name"], bytes.fromhex(match["digest"])))
        else:
            log.error("keys file, line %d: should be a name and a sha256 in hex", number)
    return tuple(keys)


def bearer(header: str) -> str | None:
    """The credentials of an Authorization header."""
    scheme, _, credentials = header.partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" and credentials.strip() else None
