"""Who may ask: keys against a file of hashes that may change while the service runs.

Knows neither HTTP routes nor how keys are made; no key is ever kept or logged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("qwen_service")

LINE = re.compile(r"(?P<name>\S+)\s+(?P<digest>[0-9a-f]{64})(?P<more>(?:\s+[a-z]+=\S+)*)")


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    digest: bytes
    # Requests that it may make a minute; None is no limit.
    requests_per_minute: int | None = None


class Keys:
    """Lines of `<name> <sha256 of the key in hex> [created=<time>] [rpm=<requests a minute>]`;
    lines that begin with # are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        # The token lent for a key, by the key: it lasts as long as that very key is listed.
        self._lent: dict[Key, str] = {}
        self._accepted: tuple[tuple[bytes, Key], ...] = ()

    def name_of(self, presented: str) -> str | None:
        """The name of the key, or None."""
        key = self.find(presented)
        return key.name if key else None

    def find(self, presented: str) -> Key | None:
        """Takes as long for a wrong key as for a right one."""
        self._refresh()
        digest = _digest(presented)
        found = None
        for accepted, key in self._accepted:
            if hmac.compare_digest(accepted, digest):
                found = key
        return found

    def lend(self, name: str) -> str:
        """A token of this process that stands for a listed key, for those who keep no keys."""
        self._refresh()
        key = next((one for one in self._keys if one.name == name), None)
        if key is None:
            raise KeyError(name)
        token = self._lent.setdefault(key, f"lent-{secrets.token_urlsafe(32)}")
        self._accept(self._keys)
        return token

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._accept(parse(self._path.read_text("utf-8")))
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            # A file that cannot be read lets nobody in.
            if self._keys or self._stamp is None:
                log.error("no key is accepted: %s", error)
            self._accept(())
            self._stamp = (0, 0, 0)

    def _accept(self, keys: tuple[Key, ...]) -> None:
        self._keys = keys
        self._lent = {key: token for key, token in self._lent.items() if key in keys}
        own = ((key.digest, key) for key in keys)
        lent = ((_digest(token), key) for key, token in self._lent.items())
        self._accepted = (*own, *lent)


def _digest(presented: str) -> bytes:
    return hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()


def parse(text: str) -> tuple[Key, ...]:
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if match := LINE.fullmatch(line.strip()):
            more = dict(part.split("=", 1) for part in match["more"].split())
            digest = bytes.fromhex(match["digest"])
            keys.append(Key(match["name"], digest, _limit(more.get("rpm"), number)))
        else:
            log.error("keys file, line %d: should be a name and a sha256 in hex", number)
    return tuple(keys)


def _limit(text: str | None, number: int) -> int | None:
    if text is None:
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    log.error("keys file, line %d: rpm should be a whole number from 1 up", number)
    # Whoever wrote it wanted a limit.
    return 1


def credentials(header: str, *, basic: bool = False) -> str | None:
    """The key of an Authorization header; with `basic` also where it is a password."""
    scheme, _, rest = header.partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest or None
    if basic and scheme.lower() == "basic":
        return _password(rest)
    return None


def _password(encoded: str) -> str | None:
    try:
        _, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return password or None
