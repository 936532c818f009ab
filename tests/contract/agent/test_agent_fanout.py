"""Several hosts' agents on loopback addresses, one WAN that counts what it sends, and relays that
die, lie, stall or are slow."""

from __future__ import annotations

import random
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.manifest import Artifact
from qwen_weights.relay.share import RelayServer, Share
from qwen_weights.relay.shelf import Shelf
from qwen_weights.store.pieces import PIECE_BYTES

from tests.fleet import (
    DEADLINE_SECONDS,
    TOKEN,
    Agent,
    Fleet,
    Origin,
    Program,
    eventually,
    manifest_of,
)

pytestmark = pytest.mark.contract

MIB = 1 << 20
RANDOM = random.Random(7)
CONTENT = {
    "a.safetensors": RANDOM.randbytes(2 * MIB + 17),
    "b.safetensors": RANDOM.randbytes(MIB),
    "config.json": b"{}\n",
    "tokens/empty.txt": b"",
}
LARGE = {"model.safetensors": RANDOM.randbytes(2 * PIECE_BYTES + 3 * MIB)}
SMALL = {"tokenizer.json": RANDOM.randbytes(100_000)}


class Liar:
    """A relay of this test that says it has everything, and gives other bytes of it."""

    name = "gpu-9"

    def __init__(self, content: dict[str, bytes], directory: Path, wrong_byte: int) -> None:
        (row,) = manifest_of(content)["artifacts"]
        artifact = Artifact(**row)
        lie = bytearray(content[artifact.path])
        lie[wrong_byte] ^= 1
        path = directory / "lie"
        path.write_bytes(lie)
        self.shelf = Shelf([artifact])
        self.shelf.rests(artifact.sha256, path)
        self.server = RelayServer(Share("127.0.0.9", 0, TOKEN), self.shelf, self)

    def phase(self) -> str:
        return "fetching"

    def rate(self) -> float:
        return 0

    def pieces(self, sha256: str) -> tuple[int, Sequence[str]]:
        return 1, ()

    @property
    def entry(self) -> dict[str, Any]:
        url = f"http://127.0.0.9:{self.server.port}"
        return {"kind": "peer", "name": self.name, "url": url, "token": TOKEN}


class Door(ThreadingHTTPServer):
    """Stands before a relay: lets little through at a time, or from some time on nothing."""

    daemon_threads = True

    def __init__(self, url: str, *, rate: float, give: float = float("inf")) -> None:
        super().__init__(("127.0.0.1", 0), _Pass)
        self.url = url
        self.rate = rate
        self.left = give
        self.closing = threading.Event()

    def entry(self, name: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.server_port}"
        return {"kind": "peer", "name": name, "url": url, "token": TOKEN}


class _Pass(BaseHTTPRequestHandler):
    server: Door

    def do_GET(self) -> None:
        door = self.server
        request = urllib.request.Request(door.url + self.path, headers=dict(self.headers))
        with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            while content := answer.read1(16 << 10):
                if self.path.startswith("/blobs/"):
                    door.left -= len(content)
                    pause = len(content) / door.rate if door.left > 0 else DEADLINE_SECONDS
                    if door.closing.wait(pause):
                        return
                self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(opened: ExitStack) -> Callable[[ThreadingHTTPServer], None]:
    def start(server: ThreadingHTTPServer) -> None:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        opened.callback(server.server_close)
        opened.callback(thread.join)
        opened.callback(server.shutdown)

    return start


@pytest.fixture
def fleet(
    opened: ExitStack, tmp_path: Path, serve: Callable[[ThreadingHTTPServer], None]
) -> Callable[..., Fleet]:
    def make(
        count: int,
        *,
        content: dict[str, bytes] = CONTENT,
        rate: float = 8 * MIB,
        kind: type[Agent] = Agent,
    ) -> Fleet:
        origin = Origin(content, rate)
        serve(origin)
        fleet = Fleet(origin, [kind(at, tmp_path / str(at)) for at in range(1, count + 1)])
        opened.callback(fleet.stop)
        return fleet

    return make


MakeFleet = Callable[..., Fleet]
Serve = Callable[[ThreadingHTTPServer], None]


def size(content: dict[str, bytes]) -> int:
    return sum(map(len, content.values()))


def test_eight_hosts_cost_the_wan_what_one_does(fleet: MakeFleet) -> None:
    hosts = fleet(8)
    hosts.start()
    hosts.await_all()
    assert hosts.origin.sent.total() == size(CONTENT)
    assert [agent.status()["warnings"] for agent in hosts.agents] == [[]] * 8
    assert [agent.status()["bytes_fetched"] for agent in hosts.agents] == [size(CONTENT)] * 8
    served = sum(agent.status()["served_bytes"] for agent in hosts.agents)
    assert served == 7 * size(CONTENT)


def test_a_killed_relay_is_passed_over_and_goes_on_where_it_was(fleet: MakeFleet) -> None:
    hosts = fleet(4, rate=2 * MIB, kind=Program)
    hosts.start()
    killed, child = hosts.agents[1:3]
    assert isinstance(killed, Program)
    eventually(lambda: child.status()["bytes_done"] > size(CONTENT) / 5, "the child has some")
    killed.end(signal.SIGKILL)
    eventually(lambda: child.received().get("gpu-1"), "the child reads from another")
    killed.start()
    hosts.await_all()
    assert hosts.origin.sent.total() == size(CONTENT)
    assert killed.status()["bytes_fetched"] < size(CONTENT)


def test_a_host_that_holds_everything_seeds(fleet: MakeFleet) -> None:
    hosts = fleet(3)
    first = hosts.agents[0]
    first.order(CONTENT)
    first.start()
    first.read_from([hosts.origin.entry])
    eventually(first.is_done, "the first one is done")
    first.stop()
    hosts.origin.sent.clear()
    hosts.start()
    hosts.await_all()
    assert not hosts.origin.sent
    assert first.status()["bytes_fetched"] == 0


def test_a_host_without_a_living_relay_reads_the_wan(fleet: MakeFleet) -> None:
    hosts = fleet(3, rate=2 * MIB)
    hosts.start()
    first, *others = hosts.agents
    eventually(lambda: others[1].status()["bytes_done"] > size(CONTENT) / 5, "all have some")
    first.stop()
    hosts.agents = others
    hosts.await_all()
    assert hosts.origin.sent.total() < 1.5 * size(CONTENT)
    assert others[0].received().keys() == {"gpu-1", "hub"}
    assert others[1].received().keys() == {"gpu-2"}


def test_a_relay_with_another_token_is_left_out(fleet: MakeFleet) -> None:
    hosts = fleet(2)
    hosts.begin()
    first, second = hosts.agents
    second.read_from([first.entry(token="another"), hosts.origin.entry])
    first.read_from([hosts.origin.entry])
    hosts.await_all()
    assert "gpu-1 refused the token of this rollout: 401" in second.status()["warnings"]


def test_a_relay_of_another_order_is_left_out(fleet: MakeFleet, tmp_path: Path) -> None:
    hosts = fleet(2)
    hosts.begin()
    other = Agent(5, tmp_path / "5")
    other.order({"else.bin": b"else"})
    other.start()
    eventually(other.has_share, "it shares")
    hosts.connect_one(0)
    hosts.connect_one(1, other.entry())
    hosts.await_all()
    other.stop()
    assert hosts.agents[1].received() == {"gpu-1": size(CONTENT)}
    assert "gpu-5 has no" in hosts.agents[1].status()["warnings"][0]


def behind_a_liar(
    hosts: Fleet, opened: ExitStack, directory: Path, wrong_byte: int
) -> tuple[Agent, Agent]:
    """The host that reads from a liar, and the one that reads from that host."""
    content = dict(hosts.origin.content)
    for agent in hosts.agents:  # nobody leaves the liar for another reason on a busy machine
        agent.pace = replace(agent.pace, dead_seconds=30, window_seconds=30, stall_seconds=30)
    hosts.begin()
    liar = Liar(content, directory, wrong_byte)
    opened.enter_context(liar.server)
    opened.callback(liar.shelf.end)
    hosts.connect_one(0)
    eventually(hosts.agents[0].is_done, "the authority knows every piece")
    hosts.connect_one(1, liar.entry)
    deceived, child = hosts.agents[1:3]
    child.read_from([deceived.entry(), liar.entry, hosts.agents[0].entry()], authority="gpu-1")
    hosts.await_all()
    assert state_of(child, "gpu-2") != "refused"
    return deceived, child


def state_of(agent: Agent, source: str) -> str:
    (state,) = (one["state"] for one in agent.status()["sources"] if one["name"] == source)
    return str(state)


def test_a_lying_relay_is_caught_at_its_first_wrong_piece(
    fleet: MakeFleet, opened: ExitStack, tmp_path: Path
) -> None:
    hosts = fleet(3, content=LARGE, rate=1000 * MIB)
    deceived, child = behind_a_liar(hosts, opened, tmp_path, PIECE_BYTES + MIB)
    assert state_of(deceived, "gpu-9") == "refused"
    lie = "gpu-9 sent other bytes than gpu-1 holds: model.safetensors bytes 16777216-33554431"
    assert deceived.status()["warnings"] == [lie]
    assert deceived.received()["gpu-9"] <= 2 * PIECE_BYTES + MIB
    assert deceived.status()["bytes_fetched"] <= size(LARGE) + PIECE_BYTES + MIB
    assert child.status()["bytes_fetched"] <= size(LARGE) + 5 * PIECE_BYTES
    assert hosts.origin.sent.total() == size(LARGE)


def test_a_lie_smaller_than_a_piece_is_caught_by_the_whole(
    fleet: MakeFleet, opened: ExitStack, tmp_path: Path
) -> None:
    hosts = fleet(3, content=SMALL)
    deceived, _ = behind_a_liar(hosts, opened, tmp_path, 70_000)
    assert state_of(deceived, "gpu-9") == "refused"
    assert "gpu-9 sent other bytes" in deceived.status()["warnings"][0]


def test_a_slow_relay_holds_up_itself_only(fleet: MakeFleet, serve: Serve) -> None:
    hosts = fleet(4, rate=2 * MIB)
    hosts.begin()
    first, slow, *others = hosts.agents
    door = Door(first.entry()["url"], rate=50_000)
    serve(door)
    hosts.connect()
    slow.read_from([door.entry("gpu-1")], authority="gpu-1")
    for agent in others:
        eventually(agent.is_done, f"{agent.name} is done")
    assert not slow.is_done()
    assert others[0].status()["warnings"] == ["gpu-2: too slow, reading from gpu-1 instead"]
    assert others[1].received()["gpu-3"] > 0.8 * size(CONTENT)
    door.rate = 1000 * MIB
    hosts.await_all()
    assert hosts.origin.sent.total() == size(CONTENT)


def test_a_relay_that_stalls_is_left(fleet: MakeFleet, serve: Serve) -> None:
    hosts = fleet(3)
    hosts.begin()
    first, middle, last = hosts.agents
    door = Door(middle.entry()["url"], rate=100 * MIB, give=300_000)
    serve(door)
    hosts.connect()
    last.read_from([door.entry("gpu-2"), first.entry()], authority="gpu-1")
    hosts.await_all()
    door.closing.set()
    assert last.received()["gpu-1"] > 0.8 * size(CONTENT)


@pytest.mark.parametrize("is_done", [False, True])
def test_an_agent_that_is_stopped_keeps_what_it_has(fleet: MakeFleet, is_done: bool) -> None:
    hosts = fleet(1, rate=8 * MIB if is_done else 2 * MIB, kind=Program)
    hosts.start()
    (agent,) = hosts.agents
    assert isinstance(agent, Program)
    if is_done:
        hosts.await_all()
        assert agent.end(signal.SIGTERM) == 0
    else:
        eventually(lambda: agent.status()["bytes_done"] > MIB, "it has some")
        assert agent.end(signal.SIGTERM) == 130
        agent.start()
        hosts.await_all()
        assert agent.status()["bytes_fetched"] < size(CONTENT) - MIB / 2
