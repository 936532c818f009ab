"""How an answer is cut into blocks and drawn; what a terminal shows of it is in test_chat.py."""

from __future__ import annotations

import io
import re

import pytest

from qwen_deploy.chat.client import Piece
from qwen_deploy.chat.markdown import MarkdownDisplay, split


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "30", "LINES": "8"}.items():
        monkeypatch.setenv(name, value)


def final(*pieces: str) -> list[str]:
    """The lines that remain: what stands after the last time a drawn part was taken back."""
    terminal = Terminal()
    display = MarkdownDisplay(terminal, None)
    for piece in pieces:
        display.show(Piece(piece))
    display.end()
    lasting = terminal.getvalue().split("\x1b[?25h")[-1].lstrip("\r")
    return re.sub(r"\x1b\[[\d;]*m", "", lasting).splitlines()


@pytest.mark.parametrize(
    ("text", "finished", "rest"),
    [
        ("one", "", "one"),
        ("one\n\n", "", "one\n\n"),
        ("one\n\ntwo", "", "one\n\ntwo"),
        ("one\n\ntwo\n", "one\n", "two\n"),
        ("- a\n- b\n\n- c\n", "", "- a\n- b\n\n- c\n"),
        ("```py\nx\n\ny\n", "", "```py\nx\n\ny\n"),
        ("```py\nx\n```\nafter\n", "```py\nx\n```", "after\n"),
        ("a\n\n| b |\n| - |\n| c |\n", "a\n", "| b |\n| - |\n| c |\n"),
        ("", "", ""),
    ],
)
def test_a_block_is_finished_when_another_has_begun(text: str, finished: str, rest: str) -> None:
    assert split(text) == (finished, rest)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("床前明月光，\n疑是地上霜。", ["床前明月光，", "疑是地上霜。"]),
        ("# Title", ["Title"]),
        ("<b>kept</b> <think>", ["<b>kept</b> <think>"]),
        (r"\(a_1 \cdot b\)", [r"\(a_1 \cdot b\)"]),
        ("```\nif x:\n    y\n```", ["```", "if x:", "    y", "```"]),
        ("```c\nint", ["```c", "int", "```"]),
        ("see [here](http://x/)", ["see here (http://x/)"]),
        ("[red]plain[/red] :smile:", ["[red]plain[/red] :smile:"]),
        ("a\x1b[2J\x07b", ["a^[[2J^Gb"]),
    ],
)
def test_what_a_model_writes_is_shown_and_nothing_of_it_lost(text: str, shown: list[str]) -> None:
    assert final(text) == shown


def test_a_long_line_is_folded_and_no_line_ends_in_blanks() -> None:
    shown = final("- " + "word " * 12)
    assert all(len(line) <= 30 for line in shown)
    assert " ".join(shown).split().count("word") == 12
    assert not [line for line in shown if line != line.rstrip()]


def test_while_it_grows_no_more_is_drawn_than_the_terminal_has_lines() -> None:
    terminal = Terminal()
    display = MarkdownDisplay(terminal, None)
    display.show(Piece("```\n" + "".join(f"line {n}\n" for n in range(50))))
    live = display._live
    assert live is not None
    before = len(terminal.getvalue())
    live.refresh()
    drawn = terminal.getvalue()[before:]
    assert "line 49" in drawn and "line 40" not in drawn
    display.end()
    assert terminal.getvalue().count("line 0\n") == 1


def test_an_answer_of_blank_lines_draws_nothing() -> None:
    assert final("\n\n") == []
