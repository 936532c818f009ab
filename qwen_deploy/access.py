"""Who may ask a host: list, create and revoke API keys, under the host's lock, without a restart.

One host at a time; whether all of them are asked at once is the caller's matter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_deploy import commands, keys, release, steps
from qwen_deploy.errors import NeedsAttention, QwenDeployError, Refused
from qwen_deploy.prospect import EVIDENCE_LINES, untouched
from qwen_deploy.remote import Session


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A line of the keys file; `usage` since the service started, None where it does not tell."""

    name: str
    created: str | None
    requests_per_minute: int | None
    usage: Mapping[str, int] | None

    @property
    def is_operators(self) -> bool:
        return self.name == keys.OPERATOR


@dataclass(frozen=True, slots=True)
class NewKey:
    name: str
    key: str
    requests_per_minute: int | None
    created: str

    @property
    def line(self) -> str:
        limit = f" rpm={self.requests_per_minute}" if self.requests_per_minute else ""
        return f"{self.name} {keys.hashed(self.key)} created={self.created}{limit}"


def make(name: str, requests_per_minute: int | None) -> NewKey:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return NewKey(keys.check_name(name), keys.new_key(), requests_per_minute, created)


def listed(session: Session, *, usage: bool = True) -> tuple[ListedKey, ...]:
    told = _told(session, {"action": "list", "usage": usage})
    counts = told["usage"]
    return tuple(
        _listed(words, counts.get(words[0], dict.fromkeys(_NONE, 0)) if counts else None)
        for words in told["keys"]
    )


_NONE = ("requests", "prompt_tokens", "completion_tokens")


def _listed(words: list[str], usage: Mapping[str, int] | None) -> ListedKey:
    more = dict(word.split("=", 1) for word in words[2:] if "=" in word)
    limit = more.get("rpm", "")
    return ListedKey(
        words[0], more.get("created"), int(limit) if limit.isdecimal() else None, usage
    )


def require_new(session: Session, name: str) -> None:
    if name in {key.name for key in listed(session, usage=False)}:
        raise _exists(session, name)


def _exists(session: Session, name: str) -> QwenDeployError:
    return untouched(
        Refused,
        f"`{session.host}` has a key `{name}` already",
        session,
        hint=f"choose another name, or: qwen-deploy keys revoke {name} --host {session.host.text}",
    )


def create(session: Session, new: NewKey, operator: str) -> None:
    action = f"keys create {new.name}"
    with steps.locked(session, operator, action):
        told = _told(session, {"action": "create", "name": new.name, "line": new.line})
        if told["outcome"] == "exists":
            raise _exists(session, new.name)
        _record(session, operator, action)


def revoke(session: Session, names: Sequence[str], operator: str) -> tuple[str, ...]:
    """Those of them that the host knew."""
    with steps.locked(session, operator, _revoking(names)):
        told = _told(session, {"action": "revoke", "names": list(names)})
        if told["revoked"]:
            _record(session, operator, _revoking(told["revoked"]))
    return tuple(told["revoked"])


def _revoking(names: Sequence[str]) -> str:
    return f"keys revoke {' '.join(names)}"


def _record(session: Session, operator: str, action: str) -> None:
    line = {"who": operator, "action": action, "outcome": "changed", "proven": False}
    session.run(commands.record(line), root=True)


def _told(session: Session, order: Mapping[str, Any]) -> Mapping[str, Any]:
    done = session.run(commands.keys(order), root=True)
    if not done.ok:
        raise NeedsAttention(
            f"the keys of `{session.host}` cannot be {_DOING[order['action']]}",
            host=session.host.name,
            state=f"{session.host.name} accepts the keys that it accepted before",
            evidence=tuple(done.stderr.strip().splitlines()[-EVIDENCE_LINES:]),
            origin="standard error of the keys program",
        )
    told: Mapping[str, Any] = json.loads(done.stdout)
    if told["outcome"] == "none":
        raise untouched(
            Refused,
            f"`{session.host}` has no API keys: {release.ETC}/keys is not there",
            session,
            hint=f"qwen-deploy up --host {session.host.text}, with service/auth on",
        )
    return told


_DOING = {"list": "read", "create": "changed", "revoke": "changed"}
