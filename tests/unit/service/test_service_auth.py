"""Keys against a file of hashes."""

from __future__ import annotations

import base64
import hashlib
import logging
from pathlib import Path

import pytest
from qwen_service.middleware.auth import Keys, credentials, parse


def line(name: str, key: str) -> str:
    return f"{name} {hashlib.sha256(key.encode()).hexdigest()}\n"


def test_a_key_is_known_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# who may ask\n\n" + line("ann", "sk-1") + line("bob", "sk-2"))
    keys = Keys(path)
    assert [keys.name_of(key) for key in ("sk-1", "sk-2", "sk-3", "")] == ["ann", "bob", None, None]


def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("ann", "sk-1"))
    keys = Keys(path)
    assert keys.name_of("sk-1") == "ann"
    path.write_text(line("bob", "sk-2") + line("carl", "sk-3"))
    assert [keys.name_of(key) for key in ("sk-1", "sk-3")] == [None, "carl"]


def test_a_missing_file_lets_nobody_in_until_it_is_there(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    assert keys.name_of("sk-1") is None
    (tmp_path / "keys").write_text(line("ann", "sk-1"))
    assert keys.name_of("sk-1") == "ann"
    (tmp_path / "keys").unlink()
    assert keys.name_of("sk-1") is None


def test_a_broken_line_is_named_without_its_content(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert parse("ann sk-plain-key\n" + line("bob", "sk-2"))[0].name == "bob"
    assert "line 1" in caplog.text
    assert "sk-plain-key" not in caplog.text


def test_a_line_may_say_when_a_key_was_made_and_how_often_it_may_ask() -> None:
    keys = parse(
        line("ann", "sk-1").strip()
        + " created=2026-11-22T17:00:00Z rpm=60\n"
        + line("bob", "sk-2").strip()
        + " rpm=0\n"
        + line("carl", "sk-3")
    )
    assert [(key.name, key.requests_per_minute) for key in keys] == [
        ("ann", 60),
        # Whoever wrote it wanted a limit.
        ("bob", 1),
        ("carl", None),
    ]


def test_a_lent_token_stands_for_its_key_as_long_as_that_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("ann", "sk-1") + line("bob", "sk-2"))
    keys = Keys(path)
    token = keys.lend("ann")
    assert keys.lend("ann") == token
    assert (keys.name_of(token), keys.name_of("sk-1")) == ("ann", "ann")
    assert Keys(path).name_of(token) is None, "it is this process's alone"
    path.write_text(line("bob", "sk-2"))
    assert keys.name_of(token) is None
    with pytest.raises(KeyError):
        keys.lend("ann")
    path.write_text(line("ann", "sk-another-one") + line("bob", "sk-2"))
    assert keys.name_of(token) is None, "another key of the same name"
    assert keys.name_of(keys.lend("ann")) == "ann"


def basic(text: bytes) -> str:
    return f"Basic {base64.b64encode(text).decode()}"


@pytest.mark.parametrize(
    ("header", "bearer", "either"),
    [
        ("Bearer sk-1", "sk-1", "sk-1"),
        ("bearer  sk-1 ", "sk-1", "sk-1"),
        (basic(b"user:sk-1"), None, "sk-1"),
        (basic(b":sk:1"), None, "sk:1"),
        (basic(b"user"), None, None),
        (basic(b"\xff:\xff"), None, None),
        ("Basic %%%", None, None),
        ("Digest x", None, None),
        ("Bearer", None, None),
        ("Bearer ", None, None),
        ("", None, None),
    ],
)
def test_a_password_is_a_key_only_where_that_is_switched_on(
    header: str, bearer: str | None, either: str | None
) -> None:
    assert credentials(header) == bearer
    assert credentials(header, basic=True) == either
