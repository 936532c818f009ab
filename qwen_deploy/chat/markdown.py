"""An answer drawn as Markdown while it comes: finished blocks are printed once, and only the last
one is drawn again as it grows. The only user of rich and markdown-it in the chat.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import CodeBlock, Heading, Markdown
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from qwen_deploy.chat.client import Piece
from qwen_deploy.chat.display import Thoughts, visible

REFRESHES_PER_SECOND = 12
# HTML would be swallowed; a backslash belongs to LaTeX more often than to Markdown.
_PARSER = (
    MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("escape")
)


class MarkdownDisplay:
    def __init__(self, stdout: TextIO, thoughts: Thoughts | None) -> None:
        self._thoughts = thoughts
        self._console = Console(file=stdout, markup=False, emoji=False, highlight=False)
        self._live: Live | None = None
        self._rest = ""
        self._has_printed = False

    def show(self, piece: Piece) -> None:
        if self._thoughts:
            self._thoughts.show(piece.reasoning)
        if not piece.text:
            return
        if self._thoughts:
            self._thoughts.end()
        self._rest += visible(piece.text)
        live = self._started()
        if "\n" in piece.text:
            finished, self._rest = split(self._rest)
            if finished:
                # Empty first: what is printed above must not stand below as well.
                live.update(_Growing("", False))
                self._print(finished)
        live.update(_Growing(self._rest, self._has_printed))

    def end(self) -> None:
        if self._thoughts:
            self._thoughts.end()
        if self._live:
            self._live.update(_Growing("", False))
            self._live.stop()
            self._live = None
        if self._rest.strip():
            self._print(self._rest)

    def _started(self) -> Live:
        if self._live is None:
            self._live = Live(
                console=self._console,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self._live

    def _print(self, text: str) -> None:
        if self._has_printed:
            self._console.print()
        self._console.print(_Lines(text))
        self._has_printed = True


def split(text: str) -> tuple[str, str]:
    """The blocks that nothing more can change, and the rest: the last block and an open line."""
    whole = text[: text.rfind("\n") + 1]
    begins = [token.map[0] for token in _PARSER.parse(whole) if token.level == 0 and token.map]
    if len(set(begins)) < 2:
        return "", text
    lines = text.split("\n")
    return "\n".join(lines[: begins[-1]]), "\n".join(lines[begins[-1] :])


class _Lines:
    """An answer without the blanks that rich fills lines up with: they would be copied along."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines(console, options):
            yield from line
            yield Segment.line()

    def lines(self, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
        options = options.update(height=None)
        return [
            _trimmed(line) for line in console.render_lines(_Answer(self._text), options, pad=False)
        ]


def _trimmed(line: list[Segment]) -> list[Segment]:
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


class _Growing:
    """As much of the end as the terminal has lines for."""

    def __init__(self, text: str, is_apart: bool) -> None:
        self._text = text
        self._is_apart = is_apart

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._text.strip():
            return
        lines = _Lines(self._text).lines(console, options)
        lines = [*([[]] if self._is_apart else []), *lines]
        for number, line in enumerate(lines[-max(1, options.size.height - 1) :]):
            if number:
                yield Segment.line()
            yield from line


class _LeftHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Code(CodeBlock):
    """Between its fences and without a background, so that it can be read and copied anywhere."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip("\n")
        syntax = Syntax(code, self.lexer_name, theme="ansi_dark", background_color="default")
        name = "" if self.lexer_name == "text" else self.lexer_name
        yield Text(f"```{name}", style="dim")
        if code:
            highlighted = syntax.highlight(code)
            highlighted.rstrip()
            highlighted.overflow = "fold"
            yield highlighted
        yield Text("```", style="dim")


class _Answer(Markdown):
    """Line breaks are kept: models write them on purpose, in verse and in lists of facts."""

    elements = Markdown.elements | {
        "heading_open": _LeftHeading,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text, hyperlinks=False)
        self.parsed = _PARSER.parse(text)
        _keep_breaks(self.parsed)


def _keep_breaks(tokens: Iterable[Token]) -> None:
    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
        _keep_breaks(token.children or ())
