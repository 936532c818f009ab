"""API keys: make and name them, and the lines of the host's keys file. Knows no hosts.

A host stores SHA-256 hashes, which suffice because keys are long and random. The one key that
lies on a host in clear is `operator`, readable by root alone, with which the controller asks for
proof; whoever can read it could as well write another.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from qwen_deploy.errors import UsageError

OPERATOR = "operator"
DEFAULT = "default"
MINIMUM_LENGTH = 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# A line's words: name, hash, and what else is said of the key, like created=2026-11-22T17:00:00Z.
Keys = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class UserKey:
    """The key that clients use. A `made` one is for hosts that know none, unless it replaces."""

    key: str
    is_made: bool = False
    replaces: bool = False

    def is_for(self, keys: Keys) -> bool:
        if self.is_made and not self.replaces:
            return not names(keys) - {OPERATOR}
        return hashed(self.key) not in {digest for _, digest, *_ in keys}


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """What to write on a host: the lines of its keys file, and the operator's key if it is new."""

    keys: Keys
    operator_key: str | None
    adds_user_key: bool


def complete(keys: Keys, user: UserKey, *, has_operator_key: bool) -> KeyFiles | None:
    """What a host with these keys lacks, or None where it lacks nothing."""
    operator_key = None
    adds_user_key = user.is_for(keys)
    if not has_operator_key or OPERATOR not in names(keys):
        operator_key = new_key()
        keys = with_key(keys, OPERATOR, operator_key)
    if adds_user_key:
        keys = with_key(keys, DEFAULT, user.key)
    if operator_key is None and not adds_user_key:
        return None
    return KeyFiles(keys, operator_key, adds_user_key)


def new_key() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def names(keys: Keys) -> set[str]:
    return {name for name, *_ in keys}


def with_key(keys: Keys, name: str, key: str) -> Keys:
    return (*(line for line in keys if line[0] != name), (name, hashed(key)))


def render(keys: Keys) -> bytes:
    return "".join(" ".join(line) + "\n" for line in keys).encode()


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot name a key: should be letters, digits, `.`, `_` and `-`, 64 at most, "
            "beginning with a letter or digit"
        )
    if name == OPERATOR:
        raise UsageError(f"`{OPERATOR}` is the key with which qwen-deploy itself asks the hosts")
    return name


def load(path: Path) -> str:
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"service/api_key_file: {path} cannot be read: {error}") from error
    if len(key) < MINIMUM_LENGTH or len(key.split()) != 1:
        raise UsageError(
            f"service/api_key_file: {path} should hold one key of {MINIMUM_LENGTH} characters or "
            "more, without blanks"
        )
    return key
