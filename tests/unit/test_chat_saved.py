from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy.chat import saved
from qwen_deploy.chat.session import Ending, Session, Turn
from qwen_deploy.errors import UsageError

TALKED = Session(
    turns=(Turn("你好", "你好！", reasoning="嗯"), Turn("a\nb", "half", Ending.INTERRUPTED)),
    system="S",
    seed=3,
    conf={"temperature": 0.5, "top_k": 4, "stop": ("x", "y")},
    thinks=False,
)


def test_a_saved_conversation_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    assert saved.save(TALKED, str(path), "m") == f"saved 2 turns in {path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded, said = saved.load(Session(), str(path))
    assert said == f"loaded 2 turns from {path}"
    assert loaded.undone() == Session(
        system="S", seed=3, conf=TALKED.conf, thinks=False, turns=(), past=()
    )
    assert loaded.turns == TALKED.turns
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["chat.json", "chat.md"])
def test_a_file_is_overwritten_by_who_says_so_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    saved.save(Session(), str(path), "m")
    before = path.read_text()
    with pytest.raises(UsageError) as caught:
        saved.save(TALKED, str(path), "m")
    assert caught.value.message == f"{path}: is there already"
    assert caught.value.hint == f":save! {path}"
    assert path.read_text() == before
    saved.save(TALKED, str(path), "m", replaces=True)
    assert path.read_text() != before


def test_what_is_no_conversation_is_overwritten_by_nobody(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"mine": 1}')
    for replaces in (False, True):
        with pytest.raises(UsageError, match="holds no conversation") as caught:
            saved.save(TALKED, str(other), "m", replaces=replaces)
        assert caught.value.hint is None
    assert other.read_text() == '{"mine": 1}'


def test_markdown_is_for_reading(tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    saved.save(TALKED, str(path), "Qwen/Q")
    assert path.read_text() == (
        "# Qwen/Q\n\n> S\n\n## User\n\n你好\n\n## Qwen\n\n你好！\n\n"
        "## User\n\na\nb\n\n## Qwen\n\nhalf\n\n(interrupted)\n"
    )


def document(**changes: Any) -> bytes:
    return json.dumps({**json.loads(saved.dumps(TALKED, "m")), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f: should be JSON, as `:save` writes it"),
        (b"\xff", "f: should be JSON, as `:save` writes it"),
        (b"[" * 100_000, "f: should be JSON, as `:save` writes it"),
        (b"[]", "f: holds no conversation that `:save` wrote"),
        (document(schema=2), "f: schema: should be 1, not 2"),
        (document(turns=None), "f: turns: should be a list"),
        (document(turns=[1]), "f: turns/0: should be an object"),
        (
            document(turns=[{"question": "q", "answer": 1, "ending": "stop"}]),
            "f: turns/0/answer: should be a text",
        ),
        (
            document(turns=[{"question": "\ud800", "answer": "a", "ending": "stop"}]),
            "f: turns/0/question: holds half a character",
        ),
        (
            document(turns=[{"question": "q", "answer": "a", "ending": "?"}]),
            "f: turns/0/ending: should be one of stop, length, interrupted, failed",
        ),
        (document(system=1), "f: system: should be a text"),
        (document(think="on"), "f: think: should be true, false or null"),
        (
            document(seed="x"),
            "f: seed: `x` is not a seed: should be a whole number of 64 bits",
        ),
        (
            document(conf={"top_k": 0.5}),
            "f: conf: `top_k=0.5`: should be a whole number from -1 (no limit)",
        ),
        (
            document(conf={"top_k": True}),
            "f: conf: `top_k=true`: should be a whole number from -1 (no limit)",
        ),
        (document(conf={"__class__": 1}), "f: conf: `__class__` is not a generation setting"),
    ],
)
def test_a_file_that_is_no_conversation_is_told_by_its_place(content: bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        saved.loads(content, origin="f")
    assert caught.value.message == message


def test_files_that_cannot_be_read_or_written_are_errors(tmp_path: Path) -> None:
    for act in (
        lambda: saved.load(Session(), str(tmp_path / "none.json")),
        lambda: saved.load(Session(), str(tmp_path)),
        lambda: saved.save(TALKED, str(tmp_path / "no" / "x.json"), "m"),
    ):
        with pytest.raises(UsageError, match=str(tmp_path)):
            act()


@pytest.mark.parametrize("name", ["pipe", "pipe.md"])
def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path, name: str) -> None:
    pipe = tmp_path / name
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="is no file"):
        saved.save(TALKED, str(pipe), "m")
    with pytest.raises(UsageError, match="is no file"):
        saved.load(Session(), str(pipe))
    assert pipe.is_fifo()
