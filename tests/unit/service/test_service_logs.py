"""Lines of logfmt, and transcripts of what was said where they are asked for."""

from __future__ import annotations

import json
import logging
import re

import pytest
from qwen_service.engine import (
    Chat,
    EngineError,
    Generation,
    Text,
    Tokens,
)
from qwen_service.middleware import logs

from tests.fake_engine import FakeEngine


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain-1.2:3/x", "plain-1.2:3/x"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b=c', r'"a\"b=c"'),
        ("你好\n", r'"你好\n"'),
        ("\ud800", r'"\ud800"'),
        ("\x1b[31m\u202e", r'"\u001b[31m\u202e"'),
        ("a\u2028b", r'"a\u2028b"'),
        (7, "7"),
        (0.12345, "0.123"),
        (True, "true"),
    ],
)
def test_a_value_is_quoted_where_it_could_be_misread(value: object, written: str) -> None:
    assert logs.logfmt({"a": value, "left_out": None, "b": 1}) == f"a={written} b=1"


def test_every_line_parses_back() -> None:
    fields = {"path": '/v1/"x" y\n', "id": "r-1", "answer": "a=b \\ 你好"}
    line = logs.logfmt(fields)
    assert "\n" not in line
    pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)
    assert {name: json.loads(value) if value[0] == '"' else value for name, value in pairs} == (
        fields
    )


class Scene:
    def __init__(self, caplog: pytest.LogCaptureFixture, *, holds: bool = False) -> None:
        caplog.set_level(logging.INFO, logger="qwen_service")
        self._caplog = caplog
        self.engine = FakeEngine(holds=holds)
        self.engine.start(lambda report: None)
        self.transcript = logs.Transcript(self.engine)
        logs.request_id.set("r-1")

    def ask(self, text: str, name: str = "g-1") -> None:
        prompt = Chat(({"role": "user", "content": text},))
        self.transcript.submit(Generation(name, prompt), lambda event: None)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]


def test_a_transcript_has_prompt_answer_and_the_id_of_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene(caplog)
    scene.ask("one two")
    (line,) = scene.lines
    said = json.dumps(json.dumps([{"role": "user", "content": "one two"}]))
    assert line == f'transcript=g-1 id=r-1 end=stop prompt={said} answer="one two"'


def test_a_long_prompt_and_answer_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(caplog)
    scene.ask("word " * 2000)
    (line,) = scene.lines
    assert line.count("word") <= 2 * logs.MOST_LOGGED / len("word ")
    assert line.count("…") == 2


@pytest.mark.parametrize(
    ("failure", "end"), [(EngineError("broke"), "failed"), (None, "cancelled")]
)
def test_an_answer_that_did_not_end_is_written_down_too(
    caplog: pytest.LogCaptureFixture, failure: EngineError | None, end: str
) -> None:
    scene = Scene(caplog, holds=True)
    scene.engine.failure, scene.engine.fails_late = failure, True
    scene.ask("one")
    scene.engine.release() if failure else scene.transcript.cancel("g-1")
    scene.transcript.cancel("g-1")
    (line,) = scene.lines
    assert f"end={end} " in line


def test_a_request_that_was_refused_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(caplog)
    scene.engine.drain()
    with pytest.raises(EngineError):
        scene.ask("one")
    scene.transcript.cancel("g-1")
    assert scene.lines == []


def test_prompts_of_other_kinds_are_written_as_what_they_are() -> None:
    assert logs._words(Text("as it is")) == "as it is"
    assert logs._words(Tokens((1, 2, 3))) == "3 token ids"
