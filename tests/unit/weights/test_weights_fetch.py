"""One artifact from a source that fails on purpose."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qwen_weights.errors import Changed, ChecksumMismatch, Missing, SourceGone, Stopped
from qwen_weights.fetch import Fetcher
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.partial import Partial
from qwen_weights.progress import Progress
from qwen_weights.sources import ByteStream, Interruption

CONTENT = bytes(range(256)) * 40
ARTIFACT = Artifact("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
MANIFEST = Manifest("Qwen/Tiny", "a" * 40, (ARTIFACT,))


class Stream:
    def __init__(self, content: bytes, total: int | None, *, fails: bool = False) -> None:
        self.total = total
        self._content = content
        self._fails = fails

    def read(self, limit: int) -> bytes:
        taken, self._content = self._content[: min(limit, 1000)], self._content[1000:]
        if not taken and self._fails:
            raise Interruption("connection reset by peer")
        return taken

    def close(self) -> None:
        pass


class Script:
    """A source whose answers are written down; `asked` are the offsets it was asked for."""

    name = "http://source"

    def __init__(self, *answers: Callable[[int], ByteStream]) -> None:
        self._answers = iter(answers)
        self.asked: list[int] = []

    def open(self, path: str, offset: int) -> ByteStream:
        assert path == ARTIFACT.path
        self.asked.append(offset)
        answer = next(self._answers, None)
        if answer is None:
            raise Interruption("connection refused")
        return answer(offset)

    def close(self) -> None:
        pass


def rest(offset: int) -> ByteStream:
    return Stream(CONTENT[offset:], len(CONTENT))


def some(offset: int) -> ByteStream:
    return Stream(CONTENT[offset : offset + 3000], len(CONTENT))


def some_then_reset(offset: int) -> ByteStream:
    return Stream(CONTENT[offset : offset + 3000], len(CONTENT), fails=True)


def wrong(offset: int) -> ByteStream:
    return Stream(b"\xff" * (len(CONTENT) - offset), None)


def shorter(offset: int) -> ByteStream:
    return Stream(b"", len(CONTENT) - 1)


def absent(offset: int) -> ByteStream:
    raise Missing("http://source has no model.safetensors: 404 Not Found")


def busy(offset: int) -> ByteStream:
    raise Interruption("answered 503", retry_after=0.01)


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "x.part", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(MANIFEST, "http://source", tmp_path)


def fetch(
    source: Script, descriptor: int, progress: Progress, *, stop: threading.Event | None = None
) -> bytes:
    fetcher = Fetcher(source, progress, stop or threading.Event(), retry_seconds=0.2)
    fetcher.complete(ARTIFACT, Partial(descriptor))
    return os.pread(descriptor, 1 << 20, 0)


def test_what_lies_on_disk_is_not_asked_for_again(descriptor: int, progress: Progress) -> None:
    os.write(descriptor, CONTENT[:5000])
    source = Script(rest)
    assert fetch(source, descriptor, progress) == CONTENT
    assert source.asked == [5000]
    status = progress.snapshot()
    assert (status["bytes_done"], status["bytes_fetched"]) == (len(CONTENT), len(CONTENT) - 5000)


def test_a_connection_that_breaks_is_continued(descriptor: int, progress: Progress) -> None:
    source = Script(some, busy, some_then_reset, some, rest)
    assert fetch(source, descriptor, progress) == CONTENT
    assert source.asked == [0, 3000, 3000, 6000, 9000]


def test_a_damaged_partial_is_discarded_once(descriptor: int, progress: Progress) -> None:
    os.write(descriptor, b"\xff" * 5000)
    source = Script(rest, rest)
    assert fetch(source, descriptor, progress) == CONTENT
    assert source.asked == [5000, 0]
    assert progress.snapshot()["bytes_done"] == len(CONTENT)


def test_a_partial_longer_than_the_file_is_discarded(descriptor: int, progress: Progress) -> None:
    os.write(descriptor, CONTENT + b"x")
    source = Script(rest)
    assert fetch(source, descriptor, progress) == CONTENT
    assert source.asked == [0]


def test_a_whole_partial_asks_for_nothing(descriptor: int, progress: Progress) -> None:
    os.write(descriptor, CONTENT)
    source = Script()
    assert fetch(source, descriptor, progress) == CONTENT
    assert source.asked == []


def test_wrong_bytes_once_are_repaired(descriptor: int, progress: Progress) -> None:
    assert fetch(Script(wrong, rest), descriptor, progress) == CONTENT


def test_wrong_bytes_twice_name_file_and_hashes(descriptor: int, progress: Progress) -> None:
    with pytest.raises(ChecksumMismatch) as refused:
        fetch(Script(wrong, wrong, rest), descriptor, progress)
    got = hashlib.sha256(b"\xff" * len(CONTENT)).hexdigest()
    for part in (ARTIFACT.path, ARTIFACT.sha256, got, "http://source"):
        assert part in str(refused.value)
    assert os.fstat(descriptor).st_size == 0
    assert progress.snapshot()["bytes_done"] == 0


def test_a_file_of_another_size_is_a_changed_one(descriptor: int, progress: Progress) -> None:
    with pytest.raises(Changed, match=f"has {len(CONTENT) - 1} bytes, the manifest says"):
        fetch(Script(shorter), descriptor, progress)


def test_what_the_source_does_not_have_is_not_asked_for_again(
    descriptor: int, progress: Progress
) -> None:
    source = Script(absent, rest)
    with pytest.raises(Missing, match="404"):
        fetch(source, descriptor, progress)
    assert source.asked == [0]


def test_a_source_that_stays_away_ends_the_transfer(descriptor: int, progress: Progress) -> None:
    with pytest.raises(SourceGone) as gone:
        fetch(Script(some), descriptor, progress)
    for part in ("http://source is gone: connection refused", "3.0 kB of 10.2 kB", "continues"):
        assert part in str(gone.value)
    assert os.pread(descriptor, 1 << 20, 0) == CONTENT[:3000]


def test_a_stop_ends_the_transfer_and_keeps_what_came(descriptor: int, progress: Progress) -> None:
    stop = threading.Event()

    def some_and_stop(offset: int) -> ByteStream:
        stop.set()
        return some(offset)

    with pytest.raises(Stopped):
        fetch(Script(some, some_and_stop, rest), descriptor, progress, stop=stop)
    assert os.fstat(descriptor).st_size == 4000
