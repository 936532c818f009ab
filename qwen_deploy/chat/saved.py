"""Conversations in files: JSON to go on with, or Markdown to be read. Knows no command."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_deploy.chat import settings
from qwen_deploy.chat.session import Ending, Session, Turn
from qwen_deploy.errors import UsageError

KIND = "qwen-deploy chat"
SCHEMA = 1
MOST_BYTES = 64 << 20


def save(session: Session, text: str, model: str, *, replaces: bool = False) -> str:
    """Writes it whole or not at all, for its owner alone; says what was written."""
    path = Path(text).expanduser()
    is_for_reading = path.suffix == ".md"
    if path.exists():
        _require_file(path)
        if not is_for_reading:
            load(Session(), text)  # another file is not overwritten
        if not replaces:
            raise UsageError(f"{path}: is there already", hint=f":save! {path}")
    content = markdown(session, model) if is_for_reading else dumps(session, model)
    try:
        _replace(path, content)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    return f"saved {_turns(session)} in {path}"


def load(session: Session, text: str) -> tuple[Session, str]:
    """The conversation of the file in place of this one; `:undo` brings the turns back."""
    path = Path(text).expanduser()
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path}: larger than {MOST_BYTES >> 20} MiB")
        _require_file(path)
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or 'unreadable').lower()}") from error
    loaded = loads(content, origin=str(path))
    session = replace(
        session.with_turns(loaded.turns),
        system=loaded.system,
        seed=loaded.seed,
        conf=loaded.conf,
        thinks=loaded.thinks,
    )
    return session, f"loaded {_turns(loaded)} from {path}"


def _require_file(path: Path) -> None:
    """A device would be replaced by what is saved, or never end."""
    if not path.is_file():
        raise UsageError(f"{path}: is no file")


def dumps(session: Session, model: str) -> str:
    turns = [
        {
            "question": turn.question,
            "answer": turn.answer,
            "ending": turn.ending.name.lower(),
            **({"reasoning": turn.reasoning} if turn.reasoning else {}),
        }
        for turn in session.turns
    ]
    document = {
        "kind": KIND,
        "schema": SCHEMA,
        "model": model,
        "system": session.system,
        "seed": session.seed,
        "think": session.thinks,
        "conf": dict(session.conf),
        "turns": turns,
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def loads(content: bytes, *, origin: str) -> Session:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise UsageError(f"{origin}: should be JSON, as `:save` writes it") from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise UsageError(f"{origin}: holds no conversation that `:save` wrote")
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{origin}: schema: should be {SCHEMA}, not {document.get('schema')!r}")
    read = _Fields(origin, document)
    return Session(
        turns=tuple(
            _turn(_Fields(origin, one, f"turns/{number}/"))
            for number, one in enumerate(read.take("turns", list, "a list"))
        ),
        system=read.maybe("system", str, "a text"),
        seed=read.checked("seed", settings.seed_of),
        conf=read.checked("conf", _conf) or {},
        thinks=read.maybe("think", bool, "true, false or null"),
    )


def markdown(session: Session, model: str) -> str:
    parts = [f"# {model}"]
    parts += [f"> {line}" for line in (session.system or "").splitlines()]
    for turn in session.turns:
        mark = "" if turn.ending is Ending.STOP else f"\n\n({turn.ending})"
        parts.append(f"## User\n\n{turn.question}\n\n## Qwen\n\n{turn.answer}{mark}")
    return "\n\n".join(parts) + "\n"


class _Fields:
    """One object of the file, each field asked for with what it should be."""

    def __init__(self, origin: str, value: object, at: str = "") -> None:
        self._origin = origin
        self._at = at
        if not isinstance(value, Mapping):
            raise UsageError(f"{origin}: {at.rstrip('/')}: should be an object")
        self._value = value

    def take(self, name: str, kind: type, should_be: str) -> Any:
        found = self._value.get(name)
        if not isinstance(found, kind):
            raise self.wrong(name, f"should be {should_be}")
        if isinstance(found, str) and not settings.is_sendable(found):
            raise self.wrong(name, "holds half a character")
        return found

    def maybe(self, name: str, kind: type, should_be: str) -> Any:
        return None if self._value.get(name) is None else self.take(name, kind, should_be)

    def checked(self, name: str, check: Any) -> Any:
        try:
            return None if self._value.get(name) is None else check(self._value[name])
        except UsageError as error:
            raise self.wrong(name, error.message) from error

    def wrong(self, name: str, reason: str) -> UsageError:
        return UsageError(f"{self._origin}: {self._at}{name}: {reason}")


def _turn(read: _Fields) -> Turn:
    endings = {ending.name.lower(): ending for ending in Ending}
    ending = read.take("ending", str, "a text")
    if ending not in endings:
        raise read.wrong("ending", f"should be one of {', '.join(endings)}")
    return Turn(
        read.take("question", str, "a text"),
        read.take("answer", str, "a text"),
        endings[ending],
        read.maybe("reasoning", str, "a text") or "",
    )


def _conf(value: object) -> Mapping[str, settings.Value]:
    if not isinstance(value, dict):
        raise UsageError("should be an object")
    return {key: settings.value_of(key, one) for key, one in value.items()}


def _replace(path: Path, content: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _turns(session: Session) -> str:
    return "1 turn" if len(session.turns) == 1 else f"{len(session.turns)} turns"
