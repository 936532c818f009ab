from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qwen_deploy import keys
from qwen_deploy.errors import UsageError
from qwen_deploy.keys import KeyFiles, Keys, UserKey

GIVEN = UserKey("sk-given-by-the-operator")
MADE = UserKey("sk-made-just-now", is_made=True)
REPLACING = UserKey("sk-made-just-now", is_made=True, replaces=True)
OPERATORS: Keys = (("operator", "0" * 64),)
COMPLETE: Keys = (*OPERATORS, ("default", "1" * 64))


def test_a_new_key_is_long_random_and_without_blanks() -> None:
    first, second = keys.new_key(), keys.new_key()
    assert first != second
    assert first.startswith("sk-")
    assert len(first) > 40
    assert len(first.split()) == 1


def test_a_host_without_keys_gets_both_and_stores_hashes() -> None:
    written = keys.complete((), MADE, has_operator_key=False)
    assert written is not None
    assert written.adds_user_key
    assert written.operator_key is not None
    assert written.keys == (
        ("operator", hashlib.sha256(written.operator_key.encode()).hexdigest()),
        ("default", hashlib.sha256(MADE.key.encode()).hexdigest()),
    )
    assert written.operator_key not in keys.render(written.keys).decode()


@pytest.mark.parametrize("user", [MADE, UserKey("sk-1", is_made=True)])
def test_a_host_with_keys_keeps_them(user: UserKey) -> None:
    assert keys.complete(COMPLETE, user, has_operator_key=True) is None


def test_a_given_key_that_the_host_knows_changes_nothing() -> None:
    known: Keys = (*OPERATORS, ("anna", keys.hashed(GIVEN.key)))
    assert keys.complete(known, GIVEN, has_operator_key=True) is None


@pytest.mark.parametrize("user", [GIVEN, REPLACING])
def test_a_given_or_replacing_key_takes_the_place_of_the_default(user: UserKey) -> None:
    anna = ("anna", "2" * 64, "created=2026-11-22T17:00:00Z", "rpm=60")
    written = keys.complete((*COMPLETE, anna), user, has_operator_key=True)
    assert written == KeyFiles((*OPERATORS, anna, ("default", keys.hashed(user.key))), None, True)


@pytest.mark.parametrize(
    ("known", "has_operator_key"),
    [(COMPLETE, False), (COMPLETE[1:], True), (COMPLETE[1:], False)],
    ids=["key lost", "hash lost", "both lost"],
)
def test_a_lost_operator_key_is_replaced_without_a_word_about_the_users(
    known: Keys, has_operator_key: bool
) -> None:
    written = keys.complete(known, MADE, has_operator_key=has_operator_key)
    assert written is not None
    assert written.operator_key is not None
    assert not written.adds_user_key
    assert set(written.keys) == {
        ("default", "1" * 64),
        ("operator", keys.hashed(written.operator_key)),
    }


def test_the_keys_file_has_a_line_for_each_key() -> None:
    assert keys.render(COMPLETE) == f"operator {'0' * 64}\ndefault {'1' * 64}\n".encode()
    assert keys.render(()) == b""
    assert keys.render((("anna", "2" * 64, "rpm=6"),)) == f"anna {'2' * 64} rpm=6\n".encode()


@pytest.mark.parametrize("name", ["anna", "team-7", "a.b_c", "A" * 64])
def test_a_name_is_one_plain_word(name: str) -> None:
    assert keys.check_name(name) == name


@pytest.mark.parametrize("name", ["", "-anna", "an na", "anna\n", "安娜", "A" * 65, "#a", "a=b"])
def test_a_name_that_could_be_misread_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        keys.check_name(name)
    assert refused.value.message == (
        f"`{name}` cannot name a key: should be letters, digits, `.`, `_` and `-`, 64 at most, "
        "beginning with a letter or digit"
    )


def test_the_operators_key_is_nobody_elses() -> None:
    with pytest.raises(UsageError, match="qwen-deploy itself"):
        keys.check_name("operator")


def test_a_key_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("  sk-0123456789abcdef\n")
    assert keys.load(path) == "sk-0123456789abcdef"


@pytest.mark.parametrize(
    "content", [b"", b"sk-short\n", b"sk-with blanks inside", b"two\nlines456789abc"]
)
def test_a_file_without_one_long_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        keys.load(path)
    assert refused.value.message == (
        f"service/api_key_file: {path} should hold one key of 16 characters or more, without blanks"
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    for name in ("nowhere", "binary"):
        with pytest.raises(UsageError, match=f"service/api_key_file: .*/{name} cannot be read"):
            keys.load(tmp_path / name)
