"""Where words go: answers to stdout, everything else to the story, each as the terminal can take
it. Knows no conversation."""

from __future__ import annotations

import codecs
import shutil
from collections.abc import Mapping
from typing import TextIO

from qwen_deploy.chat.display import Display, PlainDisplay, Thoughts, write
from qwen_deploy.errors import QwenDeployError


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


def _is_utf8(stream: TextIO) -> bool:
    return codecs.lookup(stream.encoding or "ascii").name == "utf-8"
