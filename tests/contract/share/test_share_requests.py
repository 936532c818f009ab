from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest

from qwen_deploy.content import Content
from qwen_deploy.folder import inspect
from qwen_deploy.share import Share
from tests.model_folder import make_model, safetensors, shard_name

pytestmark = pytest.mark.contract

SHARD = shard_name(1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_model(tmp_path / "model", shard_bytes=100_000)
    (made / "生 词%.txt").write_text("names are percent-encoded")
    (made / "empty.txt").write_text("")
    return made


@pytest.fixture
def share(folder: Path, tmp_path: Path) -> Iterator[Share]:
    report = inspect(folder, model="Qwen/Tiny", cache_path=tmp_path / "hashes.json")
    with Share(report) as started:
        yield started


@pytest.fixture
def client(share: Share) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {share.token}"}
    with httpx.Client(base_url=share.url, headers=headers, trust_env=False) as client:
        yield client


def test_whole_files_are_served(client: httpx.Client, folder: Path, share: Share) -> None:
    for name in (SHARD, "生 词%.txt".replace("%", "%25"), "empty.txt", "config.json"):
        answer = client.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.content == (folder / name.replace("%25", "%")).read_bytes()
    assert share.served_bytes > 100_000


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-", 0, None),
        ("bytes=5-", 5, None),
        ("bytes=5-9", 5, 10),
        ("bytes=5-9999999", 5, None),
    ],
)
def test_ranges_are_served(
    client: httpx.Client, folder: Path, asked: str, first: int, end: int | None
) -> None:
    content = (folder / SHARD).read_bytes()
    answer = client.get(f"/{SHARD}", headers={"Range": asked})
    last = (end or len(content)) - 1
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(content)}"
    assert answer.content == content[first:end]


def test_a_range_beyond_the_end_is_refused(client: httpx.Client, folder: Path) -> None:
    size = (folder / SHARD).stat().st_size
    answer = client.get(f"/{SHARD}", headers={"Range": f"bytes={size}-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{size}"


def test_only_the_token_opens(share: Share) -> None:
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": share.token}):
        answer = httpx.get(f"{share.url}/{SHARD}", headers=headers, trust_env=False)
        assert answer.status_code == 401
    assert share.served_bytes == 0


@pytest.mark.parametrize("path", ["/", "/absent", "/..%2F..%2Fetc/passwd", "/%2Fetc%2Fpasswd"])
def test_only_the_artifacts_are_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_file_outside_the_manifest_is_not_served(client: httpx.Client, folder: Path) -> None:
    (folder / "secret.txt").write_text("x")
    assert client.get("/secret.txt").status_code == 404


def test_a_file_that_changed_is_refused(client: httpx.Client, folder: Path) -> None:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes())
    assert client.get(f"/{SHARD}").status_code == 409
    (folder / SHARD).unlink()
    assert client.get(f"/{SHARD}").status_code == 409


def test_the_end_of_the_share_ends_its_readers(folder: Path, tmp_path: Path) -> None:
    (folder / "large.safetensors").write_bytes(safetensors(30_000_000))
    report = inspect(folder, model="Qwen/Tiny", cache_path=tmp_path / "hashes.json")
    with ExitStack() as readers:
        with Share(report) as share:
            headers = {"Authorization": f"Bearer {share.token}"}
            url = f"{share.url}/large.safetensors"
            asked = httpx.stream("GET", url, headers=headers, trust_env=False)
            pieces = readers.enter_context(asked).iter_bytes(1000)
            next(pieces)
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)


class Sought:
    """A file whose place is not found until it should be."""

    size = 3

    def __init__(self) -> None:
        self.is_found = threading.Event()

    def contents(self) -> Mapping[str, Content]:
        return {"a": self}

    def open(self, offset: int) -> BinaryIO:
        assert self.is_found.wait(10)
        return io.BytesIO(b"abc"[offset:])


def test_a_reader_is_asked_to_wait_while_its_place_is_sought() -> None:
    sought = Sought()
    with Share(sought, notice_seconds=0.01) as share:
        reader = socket.create_connection(("127.0.0.1", share.port))
        with reader, reader.makefile("rwb", buffering=0) as asked:
            asked.write(f"GET /a HTTP/1.1\r\nAuthorization: Bearer {share.token}\r\n\r\n".encode())
            assert asked.readline() == b"HTTP/1.1 100 Continue\r\n"
            sought.is_found.set()
            answer = asked.read()
    assert b"HTTP/1.1 200 OK" in answer and answer.endswith(b"\r\n\r\nabc")
