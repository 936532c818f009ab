from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_deploy import hashes
from qwen_deploy.hashes import FileChanged, Stamp

CONTENT = b"weights" * 300_000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Reads:
    """Says what was really read."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, done: int, total: int) -> None:
        assert done <= total
        self.bytes = done


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def stamp(path: Path) -> Stamp:
    return Stamp.of(path.stat())


def later() -> int:
    return time.time_ns() + 10_000_000_000


def ask(path: Path, cache_path: Path, now_ns: Callable[[], int] = later) -> tuple[str, int]:
    reads = Reads()
    found = hashes.sha256_of_all(
        {path: stamp(path)}, cache_path=cache_path, progress=reads, now_ns=now_ns
    )
    return found[path], reads.bytes


def test_an_unchanged_file_is_read_once(file: Path, tmp_path: Path) -> None:
    cache_path = tmp_path / "cache/hashes.json"
    assert ask(file, cache_path) == (SHA, len(CONTENT))
    assert ask(file, cache_path) == (SHA, 0)


def test_a_file_changed_within_its_size_and_time_is_read_again(file: Path, tmp_path: Path) -> None:
    cache_path = tmp_path / "hashes.json"
    ask(file, cache_path)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(CONTENT[::-1])
    os.utime(file, ns=times)
    assert ask(file, cache_path) == (hashlib.sha256(CONTENT[::-1]).hexdigest(), len(CONTENT))


def test_a_file_just_written_is_not_remembered(file: Path, tmp_path: Path) -> None:
    cache_path = tmp_path / "hashes.json"
    ask(file, cache_path, time.time_ns)
    assert ask(file, cache_path, time.time_ns) == (SHA, len(CONTENT))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schema": 2}',
        '{"schema": 1, "files": 3}',
        '{"schema": 1, "files": {"a": 1}}',
    ],
)
def test_a_damaged_cache_is_ignored(file: Path, tmp_path: Path, content: str) -> None:
    cache_path = tmp_path / "hashes.json"
    cache_path.write_text(content)
    assert ask(file, cache_path) == (SHA, len(CONTENT))


def test_a_cache_that_cannot_be_written_costs_time_only(file: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    assert ask(file, tmp_path / "occupied/hashes.json") == (SHA, len(CONTENT))


def test_two_writers_leave_a_cache_that_can_be_read(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from qwen_deploy import hashes;"
        "[hashes._save(Path(sys.argv[1]), {f'/{sys.argv[2]}/{n}': ([n], 'a' * 64)})"
        " for n in range(100)]"
    )
    path = tmp_path / "hashes.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in ("a", "b")
    ]
    assert [writer.wait(timeout=20) for writer in writers] == [0, 0]
    assert json.loads(path.read_text())["schema"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["hashes.json"]


def test_a_file_that_changes_while_it_is_read_is_noticed(file: Path, tmp_path: Path) -> None:
    before = stamp(file)
    file.write_bytes(CONTENT + b"more")
    with pytest.raises(FileChanged, match=r"model\.safetensors changed while it was read"):
        hashes.sha256_of_all({file: before}, cache_path=tmp_path / "hashes.json")
