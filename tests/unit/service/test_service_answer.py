"""Tokens to exact text: characters are never split, stop strings are cut out exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from qwen_service.engine import Finished, Logprob, Piece
from qwen_service.inference.answer import Answer, Detokenizer, StopMatcher
from qwen_service.inference.model import Chosen

END = 256


def decode(tokens: Sequence[int]) -> str:
    """A tokenizer of single bytes, the hardest case for whole characters."""
    return bytes(token for token in tokens if token != END).decode("utf-8", "replace")


def pieces(text: bytes) -> Iterator[str]:
    detokenizer = Detokenizer(decode)
    for token in text:
        yield detokenizer.add(token)


@pytest.mark.parametrize("text", ["plain", "你好！", "🚀 👩‍👩‍👧 🎉", "e\u0301", "a\ufffdb", ""])
def test_no_piece_holds_half_a_character(text: str) -> None:
    given = list(pieces(text.encode()))
    assert "".join(given) == text
    assert all(piece in text for piece in given)


def test_bytes_that_are_no_text_come_out_as_they_decode() -> None:
    noise = random.Random(0).randbytes(3000) + b"."
    assert "".join(pieces(noise)) == noise.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("texts", "stops", "wanted"),
    [
        (["one two three"], ["two"], "one "),
        (["one t", "w", "o three"], ["two"], "one "),
        (["one tw", "ice"], ["two"], "one twice"),
        (["aaab"], ["aab"], "a"),
        (["a", "a", "a", "b"], ["aab"], "a"),
        (["x\n", "\ny"], ["\n\n"], "x"),
        (["end tw"], ["two"], "end tw"),
        (["one two"], ["two", "one"], ""),
        (["anything"], [], "anything"),
    ],
)
def test_text_ends_before_the_first_stop(texts: list[str], stops: list[str], wanted: str) -> None:
    matcher = StopMatcher(stops)
    given = ""
    for text in texts:
        certain, stopped = matcher.feed(text)
        given += certain
        if stopped:
            break
    assert given + matcher.rest() == wanted


def test_pieces_never_change_what_a_stop_cuts() -> None:
    source = random.Random(0)
    for _ in range(500):
        text = "".join(source.choices("ab ", k=30))
        stop = "".join(source.choices("ab", k=source.randint(1, 4)))
        cuts = sorted({0, len(text), *source.choices(range(len(text)), k=8)})
        matcher, given = StopMatcher([stop]), ""
        for begin, end in pairwise(cuts):
            certain, stopped = matcher.feed(text[begin:end])
            given += certain
            if stopped:
                break
        assert given + matcher.rest() == text.split(stop)[0]


def events(
    tokens: Sequence[int], *, stops: Sequence[str] = (), limit: int = 100
) -> tuple[str, Finished]:
    answer = Answer(decode, ends={END}, stops=stops, limit=limit)
    text = ""
    for token in tokens:
        for event in answer.accept(Chosen("row", token)):
            if isinstance(event, Piece):
                text += event.text
            if isinstance(event, Finished):
                return text, event
    raise AssertionError("the answer never ended")


def test_an_end_token_ends_an_answer_and_is_no_text() -> None:
    assert events([*b"hi", END]) == ("hi", Finished("stop", 3))


def test_an_answer_may_be_empty() -> None:
    assert events([END]) == ("", Finished("stop", 1))


def test_the_limit_ends_an_answer_with_all_that_was_held_back() -> None:
    assert events(b"hi the", stops=["there"], limit=6) == ("hi the", Finished("length", 6))


@pytest.mark.parametrize("stops", [[], ["好!"]])
def test_a_character_that_is_cut_off_is_no_text(stops: list[str]) -> None:
    for length in (4, 5):
        text = "你好".encode()[:length]
        assert events(text, stops=stops, limit=length) == ("你", Finished("length", length))
        assert events([*text, END], stops=stops) == ("你", Finished("stop", length + 1))


def test_a_stop_string_ends_an_answer_also_at_the_limit() -> None:
    assert events(b"hi you", stops=["you"], limit=6) == ("hi ", Finished("stop", 6))


def test_held_text_comes_when_the_model_ends() -> None:
    assert events([*b"hi th", END], stops=["there"]) == ("hi th", Finished("stop", 6))


def told(text: bytes, *, stops: Sequence[str] = (), ends: bool = True) -> list[Piece]:
    """The pieces of an answer of single bytes, each with a logprob."""
    answer = Answer(decode, ends={END}, stops=stops, limit=100)
    pieces: list[Piece] = []
    for token in [*text, *([END] if ends else [])]:
        logprob = Logprob(chr(token), bytes([token % 256]), -1.0)
        for event in answer.accept(Chosen("row", token, logprob)):
            if isinstance(event, Finished):
                return pieces
            assert isinstance(event, Piece)
            pieces.append(event)
    raise AssertionError("the answer never ended")


def test_each_token_is_told_with_the_piece_that_ends_its_text() -> None:
    assert [(piece.text, len(piece.logprobs)) for piece in told("a你b".encode())] == [
        ("a", 1),
        ("你", 3),
        ("b", 1),
    ]


def test_tokens_held_for_a_stop_string_are_told_when_they_are_no_stop() -> None:
    pieces = told(b"a stone", stops=["stop"])
    assert "".join(piece.text for piece in pieces) == "a stone"
    assert b"".join(it.bytes for piece in pieces for it in piece.logprobs) == b"a stone"


def test_tokens_of_a_stop_string_and_the_end_are_not_told() -> None:
    pieces = told(b"a stop", stops=["stop"])
    assert b"".join(it.bytes for piece in pieces for it in piece.logprobs) == b"a "
    assert [it.text for piece in told(b"ab") for it in piece.logprobs] == ["a", "b"]


def test_tokens_of_a_character_that_never_ended_are_told_at_the_end() -> None:
    pieces = told("好".encode()[:2])
    assert [(piece.text, len(piece.logprobs)) for piece in pieces] == [("", 2)]


def test_an_answer_that_its_constraint_ends_is_stopped() -> None:
    answer = Answer(decode, ends={END}, stops=(), limit=100)
    assert list(answer.accept(Chosen("row", ord("}"), is_last=True))) == [
        Piece("}"),
        Finished("stop", 1),
    ]
