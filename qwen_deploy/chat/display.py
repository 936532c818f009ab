"""One answer shown as it comes, as plain text: its thoughts, its words, and nothing that would
drive the terminal. Knows no Markdown and no conversation.
"""

from __future__ import annotations

from typing import Protocol, TextIO

from qwen_deploy.chat.client import Piece

# A model may write escape sequences, which would drive the terminal. Carets show them instead.
_CARETS = {code: f"^{chr(code + 64)}" for code in range(32) if chr(code) not in "\n\t\r"}
_VISIBLE = _CARETS | {ord("\r"): None, 127: "^?"} | dict.fromkeys(range(128, 160), "\ufffd")


class Display(Protocol):
    """Shows one answer as it comes, until its end."""

    def show(self, piece: Piece) -> None: ...

    def end(self) -> None: ...


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
