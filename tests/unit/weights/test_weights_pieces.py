from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from qwen_weights.store import pieces
from qwen_weights.store.pieces import PIECE_BYTES, Pieces, RunningHashes

CONTENT = random.Random(1).randbytes(2_500)
SHA = hashlib.sha256(CONTENT).hexdigest()


def blake(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


EXPECTED = (blake(CONTENT[:1000]), blake(CONTENT[1000:2000]), blake(CONTENT[2000:]))


@pytest.mark.parametrize("step", [1, 7, 999, 1000, 1001, 2500])
def test_the_hashes_do_not_depend_on_how_the_bytes_came(step: int) -> None:
    hashes = RunningHashes(1000)
    for at in range(0, len(CONTENT), step):
        hashes.update(CONTENT[at : at + step])
    assert (hashes.sha256, hashes.size) == (SHA, len(CONTENT))
    assert hashes.complete == EXPECTED[:2]
    assert hashes.all == EXPECTED


@pytest.mark.parametrize(("size", "start"), [(0, 0), (999, 0), (1000, 1000), (2100, 2000)])
def test_going_back_leads_to_the_start_of_a_piece(size: int, start: int) -> None:
    hashes = RunningHashes(1000)
    hashes.update(CONTENT[:2300])
    assert hashes.truncate(size) == start == hashes.size
    assert hashes.complete == EXPECTED[: start // 1000]
    hashes.update(CONTENT[start:])
    assert (hashes.sha256, hashes.all) == (SHA, EXPECTED)


def test_beyond_the_end_there_is_nothing_to_go_back_to() -> None:
    hashes = RunningHashes(1000)
    hashes.update(CONTENT[:2000])
    assert hashes.truncate(9999) == 2000
    assert hashes.all == EXPECTED[:2]


def test_an_empty_file_has_no_pieces() -> None:
    assert RunningHashes().all == ()
    assert Pieces({SHA: ()}).of(SHA, 0) == ()


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    recorded = Pieces({SHA: EXPECTED}, 1000)
    (tmp_path / pieces.NAME).write_text(recorded.to_json())
    read = pieces.load(tmp_path)
    assert read == recorded
    assert read.of(SHA, 2500) == EXPECTED
    assert list(read.ranges(EXPECTED, 2500)) == [
        ((0, 1000), EXPECTED[0]),
        ((1000, 2000), EXPECTED[1]),
        ((2000, 2500), EXPECTED[2]),
    ]
    document = json.loads(recorded.to_json())
    assert document["hash"] == "blake2b-256"
    assert json.loads(Pieces().to_json())["piece_bytes"] == PIECE_BYTES == 16 << 20


def test_what_cannot_belong_to_the_file_is_not_used() -> None:
    recorded = Pieces({SHA: EXPECTED}, 1000)
    assert recorded.of(SHA, 3001) is None
    assert recorded.of("0" * 64, 2500) is None


BAD = [
    "",
    "[]",
    '{"schema":1}',
    Pieces({SHA: ("x",)}).to_json(),
    Pieces({SHA: EXPECTED}).to_json().replace("blake2b-256", "md5"),
    Pieces({SHA: EXPECTED}).to_json().replace('"schema": 1', '"schema": 2'),
    Pieces({SHA: EXPECTED}, 0).to_json(),
    '{"schema":1,"hash":"blake2b-256","piece_bytes":1,"pieces":{"x":[1]}}',
    '{"schema":1,"hash":"blake2b-256","piece_bytes":1,"pieces":{"x":"abc"}}',
    '{"schema":1,"hash":"blake2b-256","piece_bytes":true,"pieces":{}}',
]


@pytest.mark.parametrize("text", BAD)
def test_a_record_of_another_form_is_as_good_as_none(text: str) -> None:
    assert pieces.parse(text) == Pieces()


def test_a_record_that_is_no_text_is_as_good_as_none(tmp_path: Path) -> None:
    assert pieces.load(tmp_path) == Pieces()
    (tmp_path / pieces.NAME).write_bytes(b"\xff\xfe")
    assert pieces.load(tmp_path) == Pieces()
