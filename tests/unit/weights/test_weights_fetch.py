"""One artifact from sources that fail on purpose."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.errors import (
    ChecksumMismatch,
    DiskFull,
    Missing,
    SourceGone,
    Stopped,
    TokenRefused,
    WrongPiece,
)
from qwen_weights.manifest import Artifact
from qwen_weights.pull.fetch import Fetcher, Judge
from qwen_weights.pull.pool import Pool
from qwen_weights.pull.progress import Progress
from qwen_weights.pull.rate import Limiter, Rates
from qwen_weights.pull.reading import Reader
from qwen_weights.relay.shelf import Shelf
from qwen_weights.sources import ByteStream, Interruption, Source
from qwen_weights.sources.entries import Entry
from qwen_weights.store.partial import Partial

from tests.unit.weights.scripts import (
    ARTIFACT,
    CONTENT,
    MANIFEST,
    Script,
    from_the_start,
    raising,
    rest,
    shorter,
    some,
    some_then_reset,
    some_wrong,
    wrong,
)

PIECE_BYTES = 1 << 10
BUSY = raising(Interruption("answered 503", retry_after=0.01))
ABSENT = raising(Missing("a has no model.safetensors: 404 Not Found"))


class Recorder(Shelf):
    """What peers could read, and whether it was ever more than they may."""

    def __init__(self) -> None:
        super().__init__([ARTIFACT])
        self.sizes: list[int] = []

    def reached(self, sha256: str, size: int) -> None:
        super().reached(sha256, size)
        self.sizes.append(size)

    def rewound(self, sha256: str, size: int) -> None:
        super().rewound(sha256, size)
        self.sizes.append(size)


class Bench:
    def __init__(
        self,
        path: Path,
        *sources: Source,
        later: tuple[Source, ...] = (),
        judge: Judge | None = None,
        rate: float = 1e9,
    ) -> None:
        self.path = path
        self.stop = threading.Event()
        self.shelf = Recorder()
        self.progress = Progress([MANIFEST], "id")
        by_name = {source.name: source for source in (*sources, *later)}
        self.pool = Pool(
            lambda entry: by_name[entry.name], self.progress, self.stop, retry_seconds=0.3
        )
        self.pool.replace([Entry("http", source.name) for source in sources])
        limiter = Limiter(Rates(day=rate, night=rate), self.stop)
        reader = Reader(self.pool, self.progress, limiter, self.stop)
        self.fetcher = Fetcher(self.pool, reader, self.shelf, self.progress, judge=judge)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)

    def fetch(self, *, reserve_bytes: int = 0) -> bytes:
        partial = Partial(self.descriptor, reserve_bytes=reserve_bytes, piece_bytes=PIECE_BYTES)
        self.fetcher.complete(ARTIFACT, partial)
        return self.path.read_bytes()

    def status(self) -> dict[str, Any]:
        return self.progress.snapshot()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "x.part"


def fetched(path: Path, *sources: Source) -> bytes:
    return Bench(path, *sources).fetch()


def test_what_lies_on_disk_is_not_asked_for_again(path: Path) -> None:
    path.write_bytes(CONTENT[:5000])
    source = Script("a", rest)
    bench = Bench(path, source)
    assert bench.fetch() == CONTENT
    assert source.asked == [5000]
    status = bench.status()
    assert (status["bytes_done"], status["bytes_fetched"]) == (len(CONTENT), len(CONTENT) - 5000)


def test_a_connection_that_breaks_is_continued(path: Path) -> None:
    source = Script("a", some, BUSY, some_then_reset, some, rest)
    assert fetched(path, source) == CONTENT
    assert source.asked == [0, 3000, 3000, 6000, 9000]


def test_another_source_continues_in_the_middle_of_a_file(path: Path) -> None:
    first, second = Script("a", some), Script("b", some, rest)
    bench = Bench(path, first, second)
    assert bench.fetch() == CONTENT
    assert first.asked[:2] == [0, 3000] and second.asked == [3000, 6000]
    assert bench.status()["bytes_fetched"] == len(CONTENT)


@pytest.mark.parametrize(
    "answer",
    [ABSENT, raising(TokenRefused("a refused the token")), shorter],
    ids=["absent", "token refused", "shorter"],
)
def test_a_source_that_refuses_is_passed_over(path: Path, answer: Any) -> None:
    first, second = Script("a", answer), Script("b", rest)
    bench = Bench(path, first, second)
    assert bench.fetch() == CONTENT
    assert first.asked == second.asked == [0]
    assert len(bench.status()["warnings"]) == 1


def test_a_server_without_ranges_is_read_from_its_start(path: Path) -> None:
    path.write_bytes(CONTENT[:5500])
    bench = Bench(path, Script("a", from_the_start))
    assert bench.fetch() == CONTENT
    assert bench.status()["bytes_fetched"] == len(CONTENT) - 5500


def test_a_stream_that_begins_too_late_is_not_taken(path: Path) -> None:
    late = Script("a", lambda offset: rest(offset + 1), rest)
    assert fetched(path, late) == CONTENT


def test_a_damaged_partial_is_discarded_and_nobody_blamed(path: Path) -> None:
    path.write_bytes(b"\xff" * 5000)
    source = Script("a", rest, rest)
    bench = Bench(path, source)
    assert bench.fetch() == CONTENT
    assert source.asked == [5000, 0]
    assert bench.status()["bytes_done"] == len(CONTENT)
    assert bench.status()["warnings"] == []


def test_a_partial_longer_than_the_file_is_discarded(path: Path) -> None:
    path.write_bytes(CONTENT + b"x")
    source = Script("a", rest)
    assert fetched(path, source) == CONTENT
    assert source.asked == [0]


def test_a_whole_partial_asks_for_nothing(path: Path) -> None:
    path.write_bytes(CONTENT)
    source = Script("a")
    assert fetched(path, source) == CONTENT
    assert source.asked == []


def test_wrong_bytes_once_are_repaired_and_told(path: Path) -> None:
    bench = Bench(path, Script("a", wrong, rest))
    assert bench.fetch() == CONTENT
    (warning,) = bench.status()["warnings"]
    assert warning.startswith("a sent other bytes than those of the manifest for model.safetensors")


def test_wrong_bytes_always_name_file_and_hashes(path: Path) -> None:
    bench = Bench(path, Script("a", wrong, wrong, rest))
    with pytest.raises(ChecksumMismatch) as refused:
        bench.fetch()
    got = hashlib.sha256(b"\xff" * len(CONTENT)).hexdigest()
    for part in (ARTIFACT.path, ARTIFACT.sha256, got, "a sent"):
        assert part in str(refused.value)
    assert path.read_bytes() == b""
    assert bench.status()["bytes_done"] == 0


def test_a_source_of_wrong_bytes_is_left_for_another(path: Path) -> None:
    liar, honest = Script("a", wrong, wrong), Script("b", rest)
    assert fetched(path, liar, honest) == CONTENT
    assert (liar.asked, honest.asked) == ([0], [0])


def test_wrong_bytes_of_everybody_name_everybody(path: Path) -> None:
    with pytest.raises(ChecksumMismatch) as refused:
        fetched(path, Script("a", wrong, wrong), Script("b", wrong, wrong))
    assert "a sent other" in str(refused.value) and "b sent other" in str(refused.value)


def test_of_two_givers_nobody_is_blamed_until_one_has_given_all(path: Path) -> None:
    """An earlier transfer is the other one. The next attempt stays with its source, also where
    that is cut off and another one could continue."""
    path.write_bytes(CONTENT[:3000])
    parts = (some_wrong, BUSY, some_wrong, some_wrong, some_wrong)
    liar, honest = Script("a", wrong, *parts), Script("b", rest)
    bench = Bench(path, liar, honest)
    assert bench.fetch() == CONTENT
    assert liar.asked == [3000, 0, 3000, 3000, 6000, 9000]
    assert honest.asked == [0]
    (warning,) = bench.status()["warnings"]
    assert warning.startswith("a sent other bytes")


def test_what_the_only_source_does_not_have_is_not_asked_for_again(path: Path) -> None:
    source = Script("a", ABSENT, rest)
    with pytest.raises(Missing, match="404"):
        fetched(path, source)
    assert source.asked == [0]


def test_a_source_that_stays_away_ends_the_transfer(path: Path) -> None:
    with pytest.raises(SourceGone) as gone:
        fetched(path, Script("a", some))
    for part in ("a is gone: connection refused", "3.0 kB of 10.2 kB", "continues"):
        assert part in str(gone.value)
    assert path.read_bytes() == CONTENT[:3000]


def test_a_stop_ends_the_transfer_and_keeps_what_came(path: Path) -> None:
    def some_and_stop(offset: int) -> ByteStream:
        bench.stop.set()
        return some(offset)

    bench = Bench(path, Script("a", some, some_and_stop, rest))
    with pytest.raises(Stopped):
        bench.fetch()
    assert path.read_bytes() == CONTENT[:3000]


def test_a_disk_that_is_full_up_to_its_reserve_keeps_what_came(path: Path) -> None:
    path.write_bytes(CONTENT[:3000])
    with pytest.raises(DiskFull, match=r"full up to its reserve: .* must stay so"):
        Bench(path, Script("a", rest)).fetch(reserve_bytes=1 << 62)
    assert path.read_bytes() == CONTENT[:3000]


def test_only_the_wan_is_held_to_the_rate(path: Path) -> None:
    """At one byte a second the rest of the file would take hours."""
    assert Bench(path, Script("lan", some, rest, is_wan=False), rate=1).fetch() == CONTENT


def test_a_stop_ends_a_wait_for_the_rate(path: Path) -> None:
    def some_and_stop(offset: int) -> ByteStream:
        threading.Timer(0.01, bench.stop.set).start()
        return rest(offset)

    bench = Bench(path, Script("wan", some_and_stop), rate=1)
    with pytest.raises(Stopped, match="stopped; 1"):
        bench.fetch()


def test_a_new_list_of_sources_is_taken_in_the_middle_of_a_file(path: Path) -> None:
    def some_and_replace(offset: int) -> ByteStream:
        bench.pool.replace([Entry("http", "b")])
        return rest(offset)

    first, second = Script("a", some, some_and_replace), Script("b", rest)
    bench = Bench(path, first, later=(second,))
    assert bench.fetch() == CONTENT
    assert first.asked == [0, 3000] and second.asked == [4000]


def test_peers_see_everything_but_the_last_byte_before_it_is_proven(path: Path) -> None:
    bench = Bench(path, Script("a", wrong, rest))
    bench.fetch()
    assert max(bench.shelf.sizes) == len(CONTENT) - 1
    fallen = bench.shelf.sizes.index(0)
    assert bench.shelf.sizes[:fallen] == sorted(bench.shelf.sizes[:fallen])


def test_a_wrong_piece_is_fetched_again_from_another_source(path: Path) -> None:
    judged: list[int] = []

    def judge(artifact: Artifact, partial: Partial, source: Source) -> None:
        judged.append(len(partial.pieces))
        if source.name == "a" and partial.size > 3 * PIECE_BYTES:
            raise WrongPiece(2 * PIECE_BYTES, "a sent other bytes than gpu-1 holds")

    liar, honest = Script("a", rest), Script("b", rest)
    bench = Bench(path, liar, honest, judge=judge)
    assert bench.fetch() == CONTENT
    assert honest.asked == [2 * PIECE_BYTES]
    assert judged[:3] == [1, 2, 3]
    assert bench.status()["warnings"] == ["a sent other bytes than gpu-1 holds"]
    assert bench.status()["bytes_done"] == len(CONTENT)
    assert bench.pool.report()[0]["state"] == "refused"


def test_a_wrong_piece_of_two_givers_refuses_nobody(path: Path) -> None:
    tries: list[int] = []

    def judge(artifact: Artifact, partial: Partial, source: Source) -> None:
        if not tries:
            tries.append(partial.size)
            raise WrongPiece(0, "one of two", blames=False)

    source = Script("a", rest, rest)
    bench = Bench(path, source, judge=judge)
    assert bench.fetch() == CONTENT
    assert source.asked == [0, 0]
    assert bench.status()["warnings"] == []


class Taker:
    """Takes a range in order, and finds its first try wrong where it is told to."""

    def __init__(self, first: int, *, wrong_at: int | None = None) -> None:
        self.content = b""
        self._first = first
        self._wrong_at = wrong_at

    def write(self, content: memoryview) -> None:
        self.content += content
        if self._wrong_at is not None and self._first + len(self.content) > self._wrong_at:
            begin, self._wrong_at = self._wrong_at, None
            self.content = self.content[: begin - self._first]
            raise WrongPiece(begin, "other bytes than were proven")


def test_a_range_is_fetched_for_repair(path: Path) -> None:
    source = Script("a", some, BUSY, rest)
    bench, taker = Bench(path, source), Taker(1000)
    bench.fetcher.fetch_range(ARTIFACT, 1000, 9000, taker.write)
    assert taker.content == CONTENT[1000:9000]
    assert source.asked == [1000, 4000, 4000]
    assert bench.status()["bytes_fetched"] == 8000


def test_a_range_with_wrong_bytes_is_fetched_from_another_source(path: Path) -> None:
    first, second = Script("a", rest), Script("b", rest)
    bench, taker = Bench(path, first, second), Taker(0, wrong_at=4500)
    bench.fetcher.fetch_range(ARTIFACT, 0, 9000, taker.write)
    assert taker.content == CONTENT[:9000]
    assert second.asked == [4500]
    assert bench.status()["warnings"] == ["a: other bytes than were proven"]
    assert bench.status()["bytes_done"] == 9000
