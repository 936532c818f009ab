"""Where lines come from: a terminal with editing, or a plain stream. Knows no meaning of a line.

A line that ends with a backslash goes on in the next one. Bytes that are not UTF-8 come as lone
surrogates, from all; EOFError is the end of the input. The only user of prompt_toolkit.
"""

from __future__ import annotations

import os
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "User> "
CONTINUED = "\\"
LEAVES = "Ctrl-C again, or Ctrl-D, leaves"


class Reader(Protocol):
    def read(self) -> str: ...

    def muted(self) -> AbstractContextManager[None]:
        """While it lasts, what is typed is kept for the next line and not shown."""
        ...


class PlainReader:
    """For input that is no terminal, and with a `prompt` for terminals that cannot be drawn on."""

    def __init__(self, stdin: TextIO, prompt: Callable[[str], None] | None = None) -> None:
        self._lines = stdin.buffer
        self._prompt = prompt

    def read(self) -> str:
        line = self._line(PROMPT)
        while _goes_on(line):
            try:
                line = line[: -len(CONTINUED)] + "\n" + self._line(" " * len(PROMPT))
            except EOFError:
                return line
        return line

    def muted(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _line(self, prompt: str) -> str:
        is_second = False
        while True:
            if self._prompt:
                self._prompt(prompt)
            try:
                line = self._lines.readline()
            except KeyboardInterrupt:
                if not self._prompt:
                    raise
                if is_second:
                    raise EOFError from None
                is_second = True
                self._prompt(f"\n{LEAVES}\n")
                continue
            if not line:
                raise EOFError
            return line.decode("utf-8", "surrogateescape").rstrip("\r\n")


class TerminalReader:
    """With a `history` file, lines of earlier conversations come back with arrow up."""

    def __init__(
        self,
        stdin: TextIO,
        story: TextIO,
        *,
        complete: Callable[[str], Iterable[str]],
        note: Callable[[str], None],
        history: Path | None = None,
    ) -> None:
        self._stdin = stdin
        self._note = note
        self._session = _prompt_session(stdin, story, _completer(complete), self._history(history))

    def read(self) -> str:
        """Ctrl-C clears the line; after that, on a line still empty, it ends the input."""
        is_second = False
        while True:
            try:
                return self._session.prompt(PROMPT)
            except KeyboardInterrupt:
                if is_second and not self._session.default_buffer.text:
                    raise EOFError from None
                is_second = True
                self._note(LEAVES)

    @contextmanager
    def muted(self) -> Iterator[None]:
        terminal = self._stdin.fileno()
        before = termios.tcgetattr(terminal)
        silent = termios.tcgetattr(terminal)
        silent[3] &= ~termios.ECHO
        try:
            termios.tcsetattr(terminal, termios.TCSANOW, silent)
            yield
        finally:
            termios.tcsetattr(terminal, termios.TCSANOW, before)

    def _history(self, path: Path | None) -> History:
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        if path is None:
            return InMemoryHistory()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Before a word is in it: what people ask is for nobody else's eyes.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fchmod(descriptor, 0o600)
            os.close(descriptor)
        except OSError as error:
            self._note(f"questions are not kept for next time: {path}: {error.strerror}")
            return InMemoryHistory()
        return FileHistory(path)


def _goes_on(line: str) -> bool:
    return line.endswith(CONTINUED) and not line.endswith(CONTINUED * 2)


def _prompt_session(
    stdin: TextIO, story: TextIO, completer: Completer, history: History
) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.input import create_input
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    return PromptSession(
        input=create_input(stdin),
        output=create_output(story),
        completer=completer,
        complete_style=CompleteStyle.READLINE_LIKE,
        complete_while_typing=False,
        history=history,
        key_bindings=_bindings(),
        multiline=True,
        prompt_continuation=lambda width, number, is_wrapped: " " * width,
    )


def _bindings() -> KeyBindings:
    """Enter sends, unless a backslash stands before it; Alt-Enter starts a line."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if _goes_on(buffer.document.current_line_before_cursor):
            buffer.delete_before_cursor(len(CONTINUED))
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _completer(complete: Callable[[str], Iterable[str]]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class LineCompleter(Completer):
        def get_completions(self, document: Document, _: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            return (Completion(line, start_position=-len(text)) for line in complete(text))

    return LineCompleter()
