from __future__ import annotations

from collections.abc import Sequence

import pytest

from qwen_deploy.chain import FanOut, Member, ancestors, ordered
from qwen_deploy.inventory import Host
from tests.fakes import MANIFEST, FakeHost, FakeSession, wanted_of

NAMES = ("a", "b", "c", "d", "e", "f", "g")


@pytest.mark.parametrize(
    ("fan_out", "of", "expected"),
    [
        ("auto", "a", ()),
        ("auto", "b", ("a",)),
        ("auto", "d", ("c", "b", "a")),
        # The nearest four and the first: fifty hosts do not watch each other all.
        ("auto", "g", ("f", "e", "d", "c", "a")),
        ("tree", "b", ("a",)),
        ("tree", "g", ("c", "a")),
        ("none", "b", ()),
        ("none", "g", ()),
    ],
)
def test_a_host_reads_from_those_before_it(
    fan_out: FanOut, of: str, expected: Sequence[str]
) -> None:
    assert ancestors(NAMES, fan_out)[of] == expected


@pytest.mark.parametrize("fan_out", ["auto", "tree", "none"])
def test_a_host_alone_reads_the_hub(fan_out: FanOut) -> None:
    assert ancestors(["a"], fan_out) == {"a": ()}


def member(name: str, *, holds: bool = False, reaches: bool = True, local: bool = False) -> Member:
    session = FakeSession(FakeHost(wanted_of(), Host(name, name)))
    entries = ({"kind": "folder", "name": "host:/a", "path": "/a"},) if local else ()
    return Member(session, name, (MANIFEST,), holds=holds, reaches=reaches, entries=entries)


def test_who_has_everything_comes_first_and_who_reaches_nothing_last() -> None:
    members = [
        member("blind", reaches=False),
        member("reader"),
        member("carrier", local=True),
        member("seed", holds=True),
    ]
    assert [one.name for one in ordered(members)] == ["seed", "carrier", "reader", "blind"]


def test_a_few_seeds_are_enough() -> None:
    members = [member(f"s{number}", holds=True) for number in range(9)]
    assert [one.name for one in ordered(members)] == ["s0", "s1", "s2", "s3"]
