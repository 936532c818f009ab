"""Keys against a file of hashes."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from qwen_service.auth import Keys, bearer, parse


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


@pytest.mark.parametrize(
    ("header", "credentials"),
    [
        ("Bearer sk-1", "sk-1"),
        ("bearer  sk-1 ", "sk-1"),
        ("Basic c2stMQ==", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
    ],
)
def test_only_bearer_credentials_are_read(header: str, credentials: str | None) -> None:
    assert bearer(header) == credentials
