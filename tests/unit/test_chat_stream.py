from __future__ import annotations

import io
import subprocess
import sys

import pytest

from qwen_deploy.chat.answer import Answer
from qwen_deploy.chat.client import AnswerFailed, Endpoint, Piece, events, pieces
from qwen_deploy.chat.screen import Screen
from qwen_deploy.chat.session import Ending
from qwen_deploy.errors import UsageError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_importing_the_chat_loads_neither_httpx_nor_prompt_toolkit() -> None:
    code = (
        "import sys, qwen_deploy.chat.repl;"
        "print({'httpx', 'prompt_toolkit', 'difflib', 'rich'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.strip() == b"set()"


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_do_not_depend_on_how_the_bytes_were_cut(size: int) -> None:
    wire = (
        ": keep-alive\n\ndata: 你\u2028好\x85\n\r\n\nevent: x\r\ndata:b\r\ndata: c\r\n\r\n".encode()
    )
    chunks = [wire[at : at + size] for at in range(0, len(wire), size)]
    assert list(events(chunks)) == ["你\u2028好\x85", "b\nc"]


def test_pieces_bring_text_reason_and_the_count_of_tokens() -> None:
    data = [
        '{"choices":[{"index":0,"delta":{"role":"assistant","content":null}}],"usage":null}',
        '{"choices":[{"index":0,"delta":{"reasoning_content":"嗯"},"finish_reason":null}]}',
        '{"choices":[{"index":0,"delta":{"reasoning":"…"},"finish_reason":null}]}',
        '{"choices":[{"index":0,"delta":{"content":"你"},"finish_reason":null}]}',
        '{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}',
        '{"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":20}}',
        "[DONE]",
        "never read",
    ]
    assert list(pieces(data)) == [
        Piece(),
        Piece(reasoning="嗯"),
        Piece(reasoning="…"),
        Piece("你"),
        Piece("", "length"),
        Piece("", None, 3, 20),
    ]


def test_lone_surrogates_of_an_answer_become_replacement_characters() -> None:
    data = ['{"choices":[{"delta":{"content":"a\\ud83d"},"finish_reason":"stop"}]}']
    assert [piece.text for piece in pieces(data)] == ["a\ufffd"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the connection was lost in the middle of the answer"),
        (
            ['{"error":{"message":"out of\\nmemory","code":500}}'],
            "the answer broke off: out of memory",
        ),
        (['{"error":"gone"}'], "the answer broke off: gone"),
        (["<html>"], "the service sent what is no part of an answer: <html>"),
        (["[]"], "the service sent what is no part of an answer: []"),
        (['{"choices":3}'], 'the service sent what is no part of an answer: {"choices":3}'),
        (
            ['{"choices":[{"delta":{"content":9}}]}'],
            'the service sent what is no part of an answer: {"choices":[{"delta":{"content":9}}]}',
        ),
    ],
)
def test_a_broken_stream_is_one_line_of_error(data: list[str], message: str) -> None:
    with pytest.raises(AnswerFailed) as caught:
        list(pieces(data))
    assert caught.value.message == message


def test_the_speed_counts_the_tokens_of_the_service_and_not_the_pieces() -> None:
    answer = Answer(asked_at=10.0)
    assert answer.speed() == ""
    answer.add(Piece(), 10.25)
    answer.add(Piece("你"), 10.5)
    assert answer.speed() == "0.50 s to the first token"
    answer.add(Piece("好"), 12.5)
    answer.add(Piece("", "length", 11), 13.0)
    assert answer.speed() == "0.50 s to the first token, 5.0 tokens/s, 11 tokens"
    assert (answer.text, answer.ending) == ("你好", Ending.LENGTH)


@pytest.mark.parametrize("seconds", [0.0, 0.0006, 0.49])
def test_no_speed_is_told_of_an_answer_too_short_to_measure_it(seconds: float) -> None:
    answer = Answer(asked_at=10.0)
    answer.add(Piece("a"), 10.5)
    answer.add(Piece("b", "stop", 3), 10.5 + seconds)
    assert answer.tokens_per_second() is None
    assert answer.speed() == "0.50 s to the first token, 3 tokens"


def test_an_api_key_is_never_shown() -> None:
    assert "sk-1" not in repr(Endpoint("http://h/v1", "m", "sk-1"))
    with pytest.raises(UsageError) as caught:
        Endpoint("http://h/v1", "m", "sk-1\n")
    assert "sk-1" not in caught.value.message


def test_escape_sequences_of_a_model_do_not_reach_a_terminal_but_do_reach_a_pipe() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stdout in (terminal, pipe):
        screen = Screen(stdout, io.StringIO(), is_interactive=False, environ={})
        display = screen.display(renders=True)
        display.show(Piece("a\x1b[2J\x9b\r\n\tb"))
        display.end()
    assert terminal.getvalue() == "a^[[2J\ufffd\n\tb\n"
    assert pipe.getvalue() == "a\x1b[2J\x9b\r\n\tb\n"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm"}, "\x1b[2mfast\x1b[0m\n"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "fast\n"),
        ({"TERM": "dumb"}, "fast\n"),
    ],
)
def test_dim_needs_a_terminal_that_can_and_may(environ: dict[str, str], expected: str) -> None:
    terminal = Terminal()
    Screen(terminal, terminal, is_interactive=True, environ=environ).dim("fast")
    assert terminal.getvalue() == expected


def test_what_an_encoding_cannot_hold_is_replaced_and_ends_nothing() -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding="ascii")
    Screen(stdout, io.StringIO(), is_interactive=False, environ={}).display(renders=True).show(
        Piece("a你")
    )
    assert written.getvalue() == b"a?"
