"""The sink of everything printed: answers to stdout, the story to stderr, in three modes.

Knows how to print, not what the events mean (see render.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from qwen_deploy.errors import QwenDeployError

if TYPE_CHECKING:
    from qwen_deploy.events import Event

SCHEMA = 1


class Mode(Enum):
    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


class Output:
    _current: ClassVar[Output | None] = None
    typed: ClassVar[tuple[str, ...]] = ()  # the arguments of this invocation, for hints

    def __init__(self, mode: Mode, *, verbose: bool = False) -> None:
        self.mode = mode
        self.verbose = verbose
        self._status: Any = None
        self._now: dict[str, str] = {}

    @classmethod
    def use(cls, mode: Mode, *, verbose: bool) -> Output:
        cls._current = cls(mode, verbose=verbose)
        return cls._current

    @classmethod
    def current(cls) -> Output:
        return cls._current or cls.use(Mode.HUMAN, verbose=False)

    def event(self, event: Event) -> None:
        from qwen_deploy.cli import render
        from qwen_deploy.events import KeyCreated

        if self.mode is Mode.JSON:
            self._json({"event": render.name(event), **asdict(event)})
        elif self.mode is Mode.QUIET and isinstance(event, KeyCreated):
            # Not part of the story: whoever does not see it now never will.
            sys.stdout.write(f"{event.key}\n")
        elif self.mode is Mode.HUMAN:
            line = render.line(event, verbose=self.verbose)
            if line is not None:
                self.note(line)
            self._show_now(event.host, render.now(event), ends=render.ends(event))

    def note(self, text: str) -> None:
        """A line of the story."""
        if self.mode is Mode.HUMAN:
            self._clear_now()
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def reading(self, done: int, total: int) -> None:
        """How much of what lies on this machine was read, before any host is asked."""
        from qwen_deploy.cli import render

        is_over = done >= total
        if self.mode is Mode.HUMAN:
            self._show_now("", None if is_over else render.reading(done, total), ends=is_over)
        if is_over:
            self._clear_now()

    def now(self, text: str | None) -> None:
        """The live line of a command that works on no host; None ends it."""
        if self.mode is Mode.HUMAN:
            self._show_now("", text, ends=text is None)
        if text is None:
            self._clear_now()

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The answer as aligned columns; JSON callers print values instead."""
        self._clear_now()
        if self.mode is not Mode.HUMAN:
            return
        widths = [
            max(_width(cell) for cell in column) for column in zip(header, *rows, strict=True)
        ]
        for row in (header, *rows):
            cells = [
                cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
            ]
            sys.stdout.write("  ".join(cells).rstrip() + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """A line of the answer; JSON callers print values instead."""
        if self.mode is not Mode.JSON:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def value(self, value: Mapping[str, Any]) -> None:
        """The answer as one JSON object on one line; other modes print something else."""
        if self.mode is Mode.JSON:
            self._json(value)

    def error(self, error: QwenDeployError) -> None:
        self._clear_now()
        if self.mode is Mode.JSON:
            fields = ("message", "host", "state", "hint", "evidence", "origin", "exit_code")
            self._json({"event": "error", **{name: getattr(error, name) for name in fields}})
        sys.stderr.write(_error_text(error, self._style))
        sys.stderr.flush()

    def confirm(self, question: str) -> bool:
        """Asks once; without a terminal nobody can answer, and that is a no."""
        self._clear_now()
        if self.mode is not Mode.HUMAN or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def close(self) -> None:
        self._clear_now()

    def _json(self, value: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps({"schema": SCHEMA, **value}, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def _show_now(self, host: str, text: str | None, *, ends: bool) -> None:
        """The live lines: what is going on at this moment, one a host. Only on a terminal."""
        if ends:
            self._now.pop(host, None)
        if text is None or self.verbose or not sys.stderr.isatty():
            return
        self._now[host] = text
        if self._status is None:
            from rich.console import Console

            console = Console(stderr=True, highlight=False)
            self._status = console.status("", spinner="line")
        from rich.text import Text  # a text of ours would be read as markup

        self._status.update(Text("\n  ".join(self._now.values())))
        self._status.start()

    def _clear_now(self) -> None:
        if self._status is not None:
            self._status.stop()

    @property
    def _style(self) -> bool:
        import os

        return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _error_text(error: QwenDeployError, style: bool) -> str:
    red, cyan, plain = ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") if style else ("", "", "")
    parts = [f"{red}error:{plain} {error.message}"]
    if error.evidence:
        lines = [f"    {line}" for line in error.evidence]
        parts.append("\n".join([*lines, *([f"    ({error.origin})"] if error.origin else [])]))
    if error.state:
        parts.append(error.state)
    if error.hint:
        parts.append(f"{cyan}hint:{plain} {error.hint}")
    return "\n\n".join(parts) + "\n"


def _width(text: str) -> int:
    """Columns of a terminal; Chinese characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
