"""Where lines come from: a terminal with editing, or a plain stream. Knows no meaning of a line.

Bytes that are not UTF-8 come as lone surrogates, from both; EOFError is the end of the input.
The only user of prompt_toolkit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer

PROMPT = "User> "


class Reader(Protocol):
    def read(self) -> str: ...


class PlainReader:
    def __init__(self, stdin: TextIO) -> None:
        self._lines = stdin.buffer

    def read(self) -> str:
        line = self._lines.readline()
        if not line:
            raise EOFError
        return line.decode("utf-8", "surrogateescape")


class TerminalReader:
    def __init__(
        self,
        stdin: TextIO,
        story: TextIO,
        *,
        complete: Callable[[str], Iterable[str]],
        note: Callable[[str], None],
    ) -> None:
        self._session = _prompt_session(stdin, story, _completer(complete))
        self._note = note

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
                self._note("Ctrl-C again, or Ctrl-D, leaves")


def _prompt_session(stdin: TextIO, story: TextIO, completer: Completer) -> PromptSession[str]:
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
    )


def _completer(complete: Callable[[str], Iterable[str]]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class LineCompleter(Completer):
        def get_completions(self, document: Document, _: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            return (Completion(line, start_position=-len(text)) for line in complete(text))

    return LineCompleter()
