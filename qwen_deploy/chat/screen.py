"""Where words go: answers to stdout, everything else to the story. Knows no conversation."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TextIO

from qwen_deploy.errors import QwenDeployError

# A model may write escape sequences, which would drive the terminal. Carets show them instead.
_CARETS = {code: f"^{chr(code + 64)}" for code in range(32) if chr(code) not in "\n\t\r"}
_VISIBLE = _CARETS | {ord("\r"): None, 127: "^?"} | dict.fromkeys(range(128, 160), "\ufffd")


class Screen:
    def __init__(
        self, stdout: TextIO, stderr: TextIO, *, is_interactive: bool, environ: Mapping[str, str]
    ) -> None:
        self.is_interactive = is_interactive
        # With stderr in a file and a person at the terminal, prompts belong where they look.
        self.story = stdout if is_interactive and not stderr.isatty() else stderr
        self._stdout = stdout
        self._can_move = self.story.isatty() and environ.get("TERM") != "dumb"
        self._can_dim = self._can_move and not environ.get("NO_COLOR")
        self._is_line_open = False

    @property
    def columns(self) -> int:
        return shutil.get_terminal_size().columns

    def piece(self, text: str) -> None:
        if text:
            # First: Ctrl-C may strike behind the write, and the line would seem closed.
            self._is_line_open = not text.endswith("\n")
            _write(self._stdout, text)

    def end_answer(self) -> None:
        if self._is_line_open:
            self.piece("\n")

    def note(self, text: str) -> None:
        _write(self.story, f"{text}\n")

    def dim(self, text: str) -> None:
        _write(self.story, text, dim=self._can_dim)
        _write(self.story, "\n")

    def error(self, error: QwenDeployError) -> None:
        self.note(f"error: {error.message}")
        if error.hint:
            self.note(f"hint: {error.hint}")

    def clear(self) -> None:
        if self._can_move:
            self.story.write("\x1b[H\x1b[2J")


def _write(stream: TextIO, text: str, *, dim: bool = False) -> None:
    shown = text.translate(_VISIBLE) if stream.isatty() else text
    encoding = stream.encoding or "utf-8"
    shown = shown.encode(encoding, "replace").decode(encoding)
    stream.write(f"\x1b[2m{shown}\x1b[0m" if dim else shown)
    stream.flush()
