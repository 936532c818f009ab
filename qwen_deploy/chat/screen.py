"""Where words go: answers to stdout, everything else to the story. Knows no conversation."""

from __future__ import annotations

import codecs
import shutil
from collections.abc import Mapping
from typing import Protocol, TextIO

from qwen_deploy.chat.client import Piece
from qwen_deploy.errors import QwenDeployError

# A model may write escape sequences, which would drive the terminal. Carets show them instead.
_CARETS = {code: f"^{chr(code + 64)}" for code in range(32) if chr(code) not in "\n\t\r"}
_VISIBLE = _CARETS | {ord("\r"): None, 127: "^?"} | dict.fromkeys(range(128, 160), "\ufffd")


class Display(Protocol):
    """Shows one answer as it comes, until its end."""

    def show(self, piece: Piece) -> None: ...

    def end(self) -> None: ...


class Screen:
    def __init__(
        self, stdout: TextIO, stderr: TextIO, *, is_interactive: bool, environ: Mapping[str, str]
    ) -> None:
        self.is_interactive = is_interactive
        # With stderr in a file and a person at the terminal, prompts belong where they look.
        self.story = stdout if is_interactive and not stderr.isatty() else stderr
        self._stdout = stdout
        is_capable = environ.get("TERM", "dumb") != "dumb"
        self.can_edit = is_interactive and is_capable
        self._can_move = self.story.isatty() and is_capable
        self._can_dim = self._can_move and not environ.get("NO_COLOR")
        self._can_draw = self.can_edit and stdout.isatty() and _is_utf8(stdout)

    @property
    def columns(self) -> int:
        return shutil.get_terminal_size().columns

    def display(self, *, renders: bool) -> Display:
        shows_thoughts = self.is_interactive and self._stdout.isatty()
        thoughts = Thoughts(self._stdout, self._can_dim) if shows_thoughts else None
        if renders and self._can_draw:
            from qwen_deploy.chat.markdown import MarkdownDisplay

            return MarkdownDisplay(self._stdout, thoughts)
        return PlainDisplay(self._stdout, thoughts)

    def note(self, text: str) -> None:
        write(self.story, f"{text}\n")

    def dim(self, text: str) -> None:
        write(self.story, text, dim=self._can_dim)
        write(self.story, "\n")

    def error(self, error: QwenDeployError) -> None:
        self.note(f"error: {error.message}")
        if error.hint:
            self.note(f"hint: {error.hint}")

    def clear(self) -> None:
        if self._can_move:
            self.story.write("\x1b[H\x1b[2J")


class Thoughts:
    """What a model thinks before it answers: marked in words, and dim where that can be seen."""

    def __init__(self, stdout: TextIO, can_dim: bool) -> None:
        self._stdout = stdout
        self._can_dim = can_dim
        self._last = ""

    def show(self, text: str) -> None:
        if text and not self._last:
            text = f"(thinking)\n{text.lstrip()}"
        if text:
            self._last = text[-1]
            write(self._stdout, text, dim=self._can_dim)

    def end(self) -> None:
        if self._last:
            lines = "" if self._last == "\n" else "\n"
            write(self._stdout, f"{lines}(end of thinking)", dim=self._can_dim)
            write(self._stdout, "\n\n")
            self._last = ""


class PlainDisplay:
    """Every piece as it comes; thoughts only where somebody watches."""

    def __init__(self, stdout: TextIO, thoughts: Thoughts | None) -> None:
        self._stdout = stdout
        self._thoughts = thoughts
        self._is_line_open = False

    def show(self, piece: Piece) -> None:
        if self._thoughts:
            self._thoughts.show(piece.reasoning)
        if piece.text:
            if self._thoughts:
                self._thoughts.end()
            # First: Ctrl-C may strike behind the write, and the line would seem closed.
            self._is_line_open = not piece.text.endswith("\n")
            write(self._stdout, piece.text)

    def end(self) -> None:
        if self._thoughts:
            self._thoughts.end()
        if self._is_line_open:
            write(self._stdout, "\n")


def visible(text: str) -> str:
    return text.translate(_VISIBLE)


def write(stream: TextIO, text: str, *, dim: bool = False) -> None:
    shown = visible(text) if stream.isatty() else text
    encoding = stream.encoding or "utf-8"
    shown = shown.encode(encoding, "replace").decode(encoding)
    stream.write(f"\x1b[2m{shown}\x1b[0m" if dim else shown)
    stream.flush()


def _is_utf8(stream: TextIO) -> bool:
    return codecs.lookup(stream.encoding or "ascii").name == "utf-8"
