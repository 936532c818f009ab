"""The relay server with real connections on loopback, over files that grow as the test says."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.errors import Missing, TokenRefused, WrongPiece
from qwen_weights.manifest import Artifact
from qwen_weights.relay.share import RelayServer, Share
from qwen_weights.relay.shelf import Shelf
from qwen_weights.sources.peer import PeerSource, PeerStream

pytestmark = pytest.mark.contract

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HALF = len(CONTENT) // 2
ARTIFACT = Artifact("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
TOKEN = "correct horse"
DEADLINE_SECONDS = 20


@dataclass
class Account:
    hashes: tuple[str, ...] = ("ab" * 32,)

    def phase(self) -> str:
        return "fetching"

    def rate(self) -> float:
        return 12.0

    def pieces(self, sha256: str) -> tuple[int, Sequence[str]]:
        return 1024, self.hashes


@dataclass
class Growing:
    """A relay whose one file has as many bytes as the test has written."""

    path: Path
    shelf: Shelf = field(default_factory=lambda: Shelf([ARTIFACT]))
    size: int = 0

    def begin(self) -> None:
        self.path.touch()
        with open(self.path, "rb") as file:
            self.shelf.grows(ARTIFACT.sha256, file.fileno(), self.size)

    def grow(self, size: int) -> None:
        with open(self.path, "ab") as file:
            file.write(CONTENT[self.size : size])
        self.size = size
        self.shelf.reached(ARTIFACT.sha256, size)

    def cut(self, size: int) -> None:
        self.shelf.rewound(ARTIFACT.sha256, size)
        os.truncate(self.path, size)
        self.size = size


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    file = Growing(tmp_path / "partial")
    file.begin()
    return file


@contextmanager
def serving(shelf: Shelf, *, idle_seconds: float = 60, address: str = "127.0.0.1") -> Iterator[Any]:
    share = Share(address, 0, TOKEN, idle_seconds)
    with RelayServer(share, shelf, Account()) as server:
        try:
            yield server
        finally:
            shelf.end()


@pytest.fixture
def server(growing: Growing) -> Iterator[RelayServer]:
    with serving(growing.shelf) as server:
        yield server


def peer_of(server: RelayServer, *, token: str = TOKEN) -> PeerSource:
    return PeerSource("gpu-1", f"http://{server.address}:{server.port}", token)


def ask(server: RelayServer, target: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.address, server.port, timeout=DEADLINE_SECONDS)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named.setdefault("Authorization", f"Bearer {TOKEN}")
    with closing(connection):
        connection.request("GET", target, headers=named)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


def read(stream: PeerStream, count: int) -> bytes:
    """Fewer than `count` only where the stream ends."""
    content, buffer = b"", memoryview(bytearray(64 << 10))
    while len(content) < count:
        got = stream.readinto(buffer[: count - len(content)])
        if not got:
            break
        content += buffer[:got]
    return content


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """What joins the thread and returns its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(DEADLINE_SECONDS)
        assert results, "the thread has not ended"
        return results[0]

    return result


def test_a_file_is_followed_while_it_grows(growing: Growing, server: RelayServer) -> None:
    growing.grow(1000)
    with closing(peer_of(server).open(ARTIFACT, 0)) as stream:
        assert stream.total == len(CONTENT)
        assert read(stream, 1000) == CONTENT[:1000]
        rest = in_thread(lambda: read(stream, len(CONTENT)))
        growing.grow(HALF)
        growing.grow(len(CONTENT))
        assert rest() == CONTENT[1000:]
    assert server.served_bytes == len(CONTENT)


def test_a_reader_may_be_ahead_of_the_relay(growing: Growing, server: RelayServer) -> None:
    growing.grow(1000)
    with closing(peer_of(server).open(ARTIFACT, HALF)) as stream:
        rest = in_thread(lambda: read(stream, 10))
        growing.grow(len(CONTENT))
        assert rest() == CONTENT[HALF : HALF + 10]


def test_a_proven_file_goes_on_from_its_new_place(
    growing: Growing, server: RelayServer, tmp_path: Path
) -> None:
    growing.grow(HALF)
    with closing(peer_of(server).open(ARTIFACT, 0)) as stream:
        assert read(stream, HALF) == CONTENT[:HALF]
        placed = tmp_path / "final"
        placed.write_bytes(CONTENT)
        growing.path.unlink()
        growing.shelf.rests(ARTIFACT.sha256, placed)
        placed.rename(tmp_path / "elsewhere")
        assert read(stream, len(CONTENT)) == CONTENT[HALF:]


def test_ranges_are_those_that_were_asked_for(growing: Growing, server: RelayServer) -> None:
    growing.grow(len(CONTENT))
    blob = f"/blobs/{ARTIFACT.sha256}"
    assert ask(server, blob)[::2] == (200, CONTENT)
    status, headers, content = ask(server, blob, Range="bytes=10-19")
    assert (status, content) == (206, CONTENT[10:20])
    assert headers["Content-Range"] == f"bytes 10-19/{len(CONTENT)}"
    assert ask(server, blob, Range=f"bytes={len(CONTENT) - 1}-99999999")[2] == CONTENT[-1:]
    for wrong in (f"bytes={len(CONTENT)}-", "bytes=-5", "bytes=9-3", "bytes=0-1,4-5", "lines=1-"):
        assert ask(server, blob, Range=wrong)[0] == 416


def test_a_relay_tells_how_far_it_is(growing: Growing, server: RelayServer) -> None:
    growing.grow(1000)
    standing = peer_of(server).standing()
    assert (standing.phase, standing.rate) == ("fetching", 12.0)
    assert standing.blobs == {ARTIFACT.sha256: 1000}
    assert peer_of(server).pieces(ARTIFACT.sha256) == (1024, ("ab" * 32,))


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "ü"])
def test_without_the_token_of_the_rollout_nothing_is_told(server: RelayServer, token: str) -> None:
    for target in ("/have", f"/blobs/{ARTIFACT.sha256}", f"/pieces/{ARTIFACT.sha256}", "/x"):
        status, _, content = ask(server, target, Authorization=f"Bearer {token}")
        assert (status, json.loads(content)) == (401, {"error": "Unauthorized"})
    if token.isascii():
        with pytest.raises(TokenRefused, match="gpu-1 refused the token of this rollout"):
            peer_of(server, token=token).open(ARTIFACT, 0)


@pytest.mark.parametrize(
    "target",
    [
        f"/blobs/{'0' * 64}",
        f"/pieces/{'0' * 64}",
        f"/blobs/{ARTIFACT.sha256.upper()}",
        f"/blobs/{ARTIFACT.sha256}/",
        "/blobs/../../etc/passwd",
        "/etc/passwd",
        "/",
    ],
)
def test_only_contents_of_the_order_are_there(server: RelayServer, target: str) -> None:
    assert ask(server, target)[0] == 404


def test_a_content_of_another_order_is_missing(server: RelayServer) -> None:
    with pytest.raises(Missing, match="gpu-1 has no x: it belongs to another order"):
        peer_of(server).open(Artifact("x", 3, "0" * 64), 0)


def test_readers_end_when_the_transfer_does(growing: Growing, server: RelayServer) -> None:
    growing.grow(1000)
    with closing(peer_of(server).open(ARTIFACT, 0)) as stream:
        rest = in_thread(lambda: read(stream, len(CONTENT)))
        growing.shelf.end()
        assert rest() == CONTENT[:1000]


def test_whoever_read_what_was_taken_back_is_cut_off(growing: Growing, server: RelayServer) -> None:
    growing.grow(HALF)
    peer = peer_of(server)
    with closing(peer.open(ARTIFACT, 0)) as far, closing(peer.open(ARTIFACT, 0)) as near:
        assert read(far, HALF) == CONTENT[:HALF]
        rest = in_thread(lambda: read(far, len(CONTENT)))
        growing.cut(1000)
        assert rest() == b""
        assert read(near, 1000) == CONTENT[:1000]
        with closing(peer.open(ARTIFACT, 1000)) as again:
            growing.grow(HALF)
            assert read(again, HALF - 1000) == CONTENT[1000:HALF]


def test_whoever_has_what_was_taken_back_is_told_how_much_of_it_is_sound(
    growing: Growing, server: RelayServer
) -> None:
    growing.grow(HALF)
    peer = peer_of(server)
    with closing(peer.open(ARTIFACT, 0)) as stream:
        assert read(stream, HALF) == CONTENT[:HALF]
    growing.cut(1000)
    growing.grow(len(CONTENT))
    with pytest.raises(WrongPiece, match="gpu-1 took back what it gave") as told:
        peer.open(ARTIFACT, HALF)
    assert (told.value.first_byte, told.value.blames) == (1000, False)
    for reader in (peer, peer_of(server)):
        with closing(reader.open(ARTIFACT, 1000)) as stream:
            assert read(stream, len(CONTENT)) == CONTENT[1000:]


def test_a_slow_reader_holds_up_nobody(growing: Growing, server: RelayServer) -> None:
    growing.grow(len(CONTENT))
    with ExitStack() as opened:
        for _ in range(20):
            opened.enter_context(closing(peer_of(server).open(ARTIFACT, 0)))  # reads nothing
        with closing(peer_of(server).open(ARTIFACT, 0)) as stream:
            assert read(stream, len(CONTENT)) == CONTENT


def test_hundreds_of_readers_are_served_at_once(growing: Growing, server: RelayServer) -> None:
    growing.grow(10)
    with ExitStack() as opened:
        streams = [
            opened.enter_context(closing(peer_of(server).open(ARTIFACT, 0))) for _ in range(300)
        ]
        growing.grow(2000)
        assert all(read(stream, 2000) == CONTENT[:2000] for stream in streams)
        assert peer_of(server).standing().phase == "fetching"


def test_too_many_connections_are_hung_up_and_the_rest_served(growing: Growing) -> None:
    share = Share("127.0.0.1", 0, TOKEN)
    with (
        RelayServer(share, growing.shelf, Account(), most_connections=3) as server,
        ExitStack() as opened,
    ):
        stream = opened.enter_context(closing(peer_of(server).open(ARTIFACT, 0)))
        silent = [
            opened.enter_context(socket.create_connection((server.address, server.port)))
            for _ in range(3)
        ]
        silent[-1].settimeout(DEADLINE_SECONDS)
        assert silent[-1].recv(1) == b""
        growing.grow(2000)
        assert read(stream, 2000) == CONTENT[:2000]


def test_a_reader_that_goes_away_is_forgotten(growing: Growing, tmp_path: Path) -> None:
    """It waits for growth that never comes, so that only its connection can tell."""
    with serving(growing.shelf, idle_seconds=0.1) as server:
        peer_of(server).open(ARTIFACT, 0).close()
        idle = in_thread(lambda: server.wait_until_idle(threading.Event()))
        assert idle() is None


def test_sharing_goes_on_until_nobody_has_asked_for_a_while(growing: Growing) -> None:
    growing.grow(10)
    with serving(growing.shelf, idle_seconds=0.2) as server:
        with closing(peer_of(server).open(ARTIFACT, 0)) as stream:
            assert read(stream, 10) == CONTENT[:10]
            is_idle = threading.Event()

            def wait() -> bool:
                server.wait_until_idle(threading.Event())
                is_idle.set()
                return True

            idle = in_thread(wait)
            assert not is_idle.wait(0.4)
            growing.grow(len(CONTENT))
            read(stream, len(CONTENT))
        assert idle()


def test_a_stop_ends_the_waiting(growing: Growing) -> None:
    with serving(growing.shelf, idle_seconds=1000) as server:
        stop = threading.Event()
        idle = in_thread(lambda: server.wait_until_idle(stop))
        stop.set()
        assert idle() is None


def test_it_listens_on_its_one_address_only(growing: Growing) -> None:
    with serving(growing.shelf, address="127.0.0.7") as server:
        assert peer_of(server).standing().phase == "fetching"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


def test_an_address_of_another_host_is_refused_at_once(growing: Growing) -> None:
    with pytest.raises(OSError, match="Cannot assign requested address"):
        RelayServer(Share("192.0.2.1", 0, TOKEN), growing.shelf, Account())


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(Share("127.0.0.1", 0, TOKEN))
    assert TOKEN not in repr(PeerSource("gpu-1", "http://127.0.0.1:1", TOKEN))


def test_closing_a_peer_ends_its_streams(growing: Growing, server: RelayServer) -> None:
    peer = peer_of(server)
    with closing(peer.open(ARTIFACT, 0)) as stream:
        rest = in_thread(lambda: read(stream, 1))
        peer.close()
        assert rest() == b""
