"""Which relay a host reads, with real relays on loopback."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from qwen_weights.errors import WrongPiece
from qwen_weights.manifest import Artifact
from qwen_weights.relay.ancestor import Pace
from qwen_weights.relay.judge import Judge
from qwen_weights.relay.relays import Relays
from qwen_weights.relay.share import RelayServer, Share
from qwen_weights.relay.shelf import Shelf
from qwen_weights.sources import Interruption
from qwen_weights.sources.peer import PeerSource, PeerStream

pytestmark = pytest.mark.contract

DEADLINE_SECONDS = 20
CONTENT = bytes(range(256)) * 4096
ARTIFACT = Artifact("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
PIECE_BYTES = 100_000
# Everything happens at once, apart from what a test asks for.
QUICK = Pace(
    poll_seconds=0.02,
    dead_seconds=0.5,
    grace_seconds=0.5,
    window_seconds=0.2,
    patience_seconds=0.1,
    stall_seconds=0.3,
    retry_seconds=30,
    rest_seconds=0.6,
    margin_bytes=1000,
    margin_seconds=0,
    probe_bytes=50_000,
    probe_seconds=0.5,
)


@dataclass
class Peer:
    """A relay of this test, which has as much as it is told to say and to give."""

    name: str
    path: Path
    has: int = 0
    state: str = "fetching"
    port: int = 0
    hashes: Sequence[str] = ()
    shelf: Shelf = field(default_factory=lambda: Shelf([ARTIFACT]))
    stack: ExitStack = field(default_factory=ExitStack)

    def phase(self) -> str:
        return self.state

    def rate(self) -> float:
        return 0

    def pieces(self, sha256: str) -> tuple[int, Sequence[str]]:
        return PIECE_BYTES, self.hashes

    def start(self) -> PeerSource:
        self.path.write_bytes(CONTENT)
        with open(self.path, "rb") as file:
            self.shelf.grows(ARTIFACT.sha256, file.fileno(), self.has)
        share = Share("127.0.0.1", self.port, "token")
        server = self.stack.enter_context(RelayServer(share, self.shelf, self))
        self.port = server.port
        return PeerSource(self.name, f"http://127.0.0.1:{self.port}", "token")

    def reach(self, size: int) -> None:
        self.has = size
        self.shelf.reached(ARTIFACT.sha256, size)

    def stop(self) -> None:
        self.shelf.end()
        self.stack.close()
        self.shelf = Shelf([ARTIFACT])


class Host:
    """A host that reads one artifact from its relays, and what it was told."""

    def __init__(self, *sources: PeerSource, pace: Pace = QUICK) -> None:
        self.warnings: list[str] = []
        self.held = 0
        self.relays = Relays(
            lambda: {ARTIFACT.sha256: self.held}, len(CONTENT), warn=self.warnings.append, pace=pace
        )
        self.relays.replace(sources)
        self.sources = sources

    def picks(self) -> str | None:
        source = self.relays.pick(ARTIFACT, self.held)
        return source.name if source else None

    def open(self) -> PeerStream:
        source = self.relays.pick(ARTIFACT, self.held)
        assert source
        return source.open(ARTIFACT, self.held)


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in time"
        time.sleep(0.01)


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    """The nearest first."""
    made = [Peer(f"gpu-{number}", tmp_path / f"gpu-{number}") for number in (3, 2, 1)]
    yield made
    for peer in made:
        peer.stop()


@pytest.fixture
def hosting() -> Iterator[Callable[..., Host]]:
    with ExitStack() as stack:

        def make(*sources: PeerSource, pace: Pace = QUICK) -> Host:
            host = Host(*sources, pace=pace)
            stack.enter_context(host.relays)
            for source in sources:
                stack.callback(source.close)
            return host

        yield make


Hosting = Callable[..., Host]


def test_the_nearest_relay_is_read_also_before_it_has_anything(
    peers: list[Peer], hosting: Hosting
) -> None:
    peers[2].has = len(CONTENT)
    host = hosting(*(peer.start() for peer in peers))
    eventually(lambda: host.picks() == "gpu-3", "the nearest is picked")


def test_a_relay_that_is_behind_is_passed_over(peers: list[Peer], hosting: Hosting) -> None:
    peers[1].has = peers[2].has = 500_000
    host = hosting(*(peer.start() for peer in peers))
    host.held = 100_000
    eventually(lambda: host.picks() == "gpu-2", "the one ahead is picked")


def test_the_nearest_is_waited_for_where_none_is_ahead(peers: list[Peer], hosting: Hosting) -> None:
    host = hosting(*(peer.start() for peer in peers))
    host.held = 100_000
    eventually(lambda: host.picks() == "gpu-3", "the nearest is picked")


def test_a_dead_relay_is_passed_over_until_it_is_back(peers: list[Peer], hosting: Hosting) -> None:
    host = hosting(*(peer.start() for peer in peers))
    eventually(lambda: host.picks() == "gpu-3", "the nearest is picked")
    peers[0].stop()
    eventually(lambda: host.picks() == "gpu-2", "the next one is picked")
    peers[0].start()
    eventually(lambda: host.picks() == "gpu-3", "the nearest is picked again")


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_relay_whose_own_transfer_failed_counts_as_dead(
    peers: list[Peer], hosting: Hosting, state: str
) -> None:
    host = hosting(peers[0].start(), peers[1].start())
    eventually(lambda: host.picks() == "gpu-3", "the nearest is picked")
    peers[0].state = state
    eventually(lambda: host.picks() == "gpu-2", "the next one is picked")
    peers[1].state = state
    eventually(lambda: not host.relays.is_any_alive(), "nobody is waited for")
    assert host.picks() is None


def test_the_wan_is_left_alone_while_hosts_start(hosting: Hosting) -> None:
    silent = PeerSource("gpu-1", "http://127.0.0.1:1", "token")
    host = hosting(silent)
    assert host.picks() is None
    assert host.relays.is_any_alive()
    eventually(lambda: not host.relays.is_any_alive(), "nobody is waited for any more")


def test_a_relay_with_another_token_is_refused_and_named(
    peers: list[Peer], hosting: Hosting
) -> None:
    peers[0].start()
    host = hosting(PeerSource("gpu-3", f"http://127.0.0.1:{peers[0].port}", "wrong"))
    eventually(lambda: not host.relays.is_any_alive(), "it is refused")
    assert host.warnings[0] == "gpu-3 refused the token of this rollout: 401"


def test_a_relay_that_gave_wrong_bytes_is_not_read_again(
    peers: list[Peer], hosting: Hosting
) -> None:
    host = hosting(peers[0].start(), peers[1].start())
    eventually(lambda: host.picks() == "gpu-3", "the nearest is picked")
    host.relays.refuse(host.sources[0])
    eventually(lambda: host.picks() == "gpu-2", "the next one is picked")


def test_a_relay_that_hangs_up_again_and_again_is_not_waited_for(
    peers: list[Peer], hosting: Hosting
) -> None:
    host = hosting(peers[0].start())

    def fails() -> bool:
        source = host.relays.pick(ARTIFACT, 0)
        if source:
            host.relays.failed(source)
        return not host.relays.is_any_alive()

    eventually(fails, "it is given up")


def test_a_chain_that_stands_still_is_given_up_in_the_end(
    peers: list[Peer], hosting: Hosting
) -> None:
    host = hosting(peers[0].start(), pace=Pace(poll_seconds=0.02, retry_seconds=0.3))
    eventually(lambda: host.picks() == "gpu-3", "the nearest is picked")
    with closing(host.open()) as stream:
        assert stream.readinto(memoryview(bytearray(10))) == 0
    assert not host.relays.is_any_alive()
    assert host.picks() is None
    peers[0].reach(10)
    eventually(lambda: host.picks() == "gpu-3", "it is read again")


def test_new_sources_keep_what_is_known_of_the_old(peers: list[Peer], hosting: Hosting) -> None:
    near, far = peers[0].start(), peers[1].start()
    host = hosting(far)
    eventually(lambda: host.picks() == "gpu-2", "the only one is picked")
    host.relays.refuse(far)
    host.relays.replace([near, far])
    eventually(lambda: host.picks() == "gpu-3", "the new one is picked")
    host.relays.replace([far])
    assert host.picks() is None


class Follower:
    """Reads until told to stop, as the fetcher does, and counts where the bytes came from."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.given: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(DEADLINE_SECONDS)
        assert self.host.held == len(CONTENT)

    def _run(self) -> None:
        host = self.host
        deadline = time.monotonic() + DEADLINE_SECONDS
        while host.held < len(CONTENT) and time.monotonic() < deadline:
            source = host.relays.pick(ARTIFACT, host.held)
            if source is None:
                time.sleep(0.01)
                continue
            try:
                with closing(source.open(ARTIFACT, host.held)) as stream:
                    self._read(stream, source.name)
            except Interruption:
                pass
            host.relays.failed(source)

    def _read(self, stream: PeerStream, name: str) -> None:
        buffer = memoryview(bytearray(64 << 10))
        while count := stream.readinto(buffer):
            self.host.held += count
            self.given[name] = self.given.get(name, 0) + count


def test_a_relay_that_receives_slowly_is_left_for_one_that_does_not(
    peers: list[Peer], hosting: Hosting
) -> None:
    slow, quick = peers[0], peers[1]
    host = hosting(slow.start(), quick.start())
    eventually(lambda: host.picks() == "gpu-3", "the nearest is picked")
    follower = Follower(host)
    ended = threading.Event()

    def trickle() -> None:
        while not ended.wait(0.02):
            slow.reach(min(slow.has + 200, len(CONTENT)))
            quick.reach(min(quick.has + 20_000, len(CONTENT)))

    thread = threading.Thread(target=trickle)
    thread.start()
    follower.join()
    ended.set()
    thread.join()
    assert follower.given["gpu-2"] > 0.8 * len(CONTENT)
    assert set(host.warnings) == {"gpu-3: too slow, reading from gpu-2 instead"}


def test_a_stray_comes_back_to_the_nearest_relay(peers: list[Peer], hosting: Hosting) -> None:
    near, far = peers[0], peers[1]
    far.has = 300_000
    host = hosting(near.start(), far.start())
    host.held = 200_000
    eventually(lambda: host.picks() == "gpu-2", "the one ahead is picked")
    follower = Follower(host)
    eventually(lambda: host.held == 300_000, "all that is there is read")
    near.reach(400_000)
    eventually(lambda: host.held == 400_000, "the nearest is read")
    assert follower.given == {"gpu-2": 100_000, "gpu-3": 100_000}
    near.reach(len(CONTENT))
    follower.join()


@dataclass(frozen=True)
class Received:
    pieces: tuple[str, ...]
    piece_bytes: int = PIECE_BYTES


@pytest.fixture
def authority(peers: list[Peer]) -> PeerSource:
    peers[2].hashes = ("a", "b", "c")
    source = peers[2].start()
    source.standing()
    return source


def judged(authority: PeerSource, relay: PeerSource, *pieces: str, offset: int = 0) -> WrongPiece:
    with closing(relay.open(ARTIFACT, offset)) as stream:
        left = len(pieces) * PIECE_BYTES - offset
        while left:
            left -= stream.readinto(memoryview(bytearray(left)))
        with pytest.raises(WrongPiece) as caught:
            Judge(lambda: authority)(ARTIFACT, Received(pieces), relay)
    return caught.value


def test_a_wrong_piece_is_the_fault_of_whoever_gave_all_of_it(
    peers: list[Peer], authority: PeerSource
) -> None:
    peers[0].has = len(CONTENT)
    wrong = judged(authority, peers[0].start(), "a", "x")
    assert str(wrong) == (
        "gpu-3 sent other bytes than gpu-1 holds: model.safetensors bytes 100000-199999"
    )
    assert (wrong.first_byte, wrong.blames) == (PIECE_BYTES, True)


def test_nobody_is_to_blame_for_a_piece_of_two_relays(
    peers: list[Peer], authority: PeerSource
) -> None:
    peers[0].has = len(CONTENT)
    wrong = judged(authority, peers[0].start(), "a", "x", offset=PIECE_BYTES + 1)
    assert (wrong.first_byte, wrong.blames) == (PIECE_BYTES, False)


def test_a_relay_could_not_know_what_only_became_known_later(
    peers: list[Peer], authority: PeerSource
) -> None:
    peers[0].has = len(CONTENT)
    wrong = judged(authority, peers[0].start(), "x", "b")
    assert (wrong.first_byte, wrong.blames) == (0, False)


def test_without_a_word_of_the_authority_nothing_is_judged(
    peers: list[Peer], authority: PeerSource
) -> None:
    relay = peers[0].start()
    peers[2].stop()
    Judge(lambda: None)(ARTIFACT, Received(("x",)), relay)
    Judge(lambda: authority)(ARTIFACT, Received(("x",)), relay)
    Judge(lambda: authority)(ARTIFACT, Received(("x",), piece_bytes=7), relay)
