"""Hosts' agents on loopback addresses and the hub they share, for tests. Knows no test."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qwen_weights.errors import WeightsError
from qwen_weights.pull import order as orders
from qwen_weights.pull.command import Pulling
from qwen_weights.pull.progress import StatusFile
from qwen_weights.relay.ancestor import Pace

SERVICE = Path(__file__).resolve().parents[1] / "service"
TOKEN = "token-of-this-rollout"
DEADLINE_SECONDS = 60
# Everything happens at once.
PACE = Pace(
    poll_seconds=0.05,
    dead_seconds=1,
    grace_seconds=1.5,
    window_seconds=0.5,
    patience_seconds=0.3,
    stall_seconds=0.5,
    retry_seconds=20,
    rest_seconds=3,
    margin_bytes=200_000,
    margin_seconds=0,
    probe_bytes=100_000,
    probe_seconds=1,
)
_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")


class Origin(ThreadingHTTPServer):
    """The hub, behind a link of `rate` bytes a second that all hosts share."""

    daemon_threads = True

    def __init__(self, content: dict[str, bytes], rate: float) -> None:
        super().__init__(("127.0.0.1", 0), _Download)
        self.content = content
        self.rate = rate
        self.sent: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def spend(self, path: str, count: int) -> None:
        with self._lock:
            self.sent[path] += count
            self._free_at = max(self._free_at, time.monotonic()) + count / self.rate
            wait = self._free_at - time.monotonic()
        time.sleep(max(wait, 0))

    @property
    def entry(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.server_port}/{{path}}"
        return {"kind": "http", "name": "hub", "url": url, "wan": True}


class _Download(BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        path = self.path.removeprefix("/")
        content = self.server.content[path]
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        first = int(found[1]) if found else 0
        end = int(found[2]) + 1 if found and found[2] else len(content)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(end - first))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.end_headers()
        for at in range(first, end, 16 << 10):
            piece = content[at : min(at + (16 << 10), end)]
            self.server.spend(path, len(piece))
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def manifest_of(content: dict[str, bytes]) -> dict[str, Any]:
    artifacts = [
        {"path": path, "size": len(bytes_), "sha256": hashlib.sha256(bytes_).hexdigest()}
        for path, bytes_ in sorted(content.items())
    ]
    return {"schema": 1, "model": "Qwen/Tiny", "revision": "a" * 40, "artifacts": artifacts}


@dataclass
class Agent:
    """One host: its folders, its address, and the agent that runs in a thread."""

    number: int
    directory: Path
    pace: Pace = PACE
    pulling: Pulling | None = None
    thread: threading.Thread | None = None
    result: list[WeightsError | None] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"gpu-{self.number}"

    @property
    def address(self) -> str:
        return f"127.0.0.{10 + self.number}"

    def order(self, content: dict[str, bytes]) -> None:
        self.directory.mkdir(exist_ok=True)
        limits = {"connections": 2, "retry_seconds": 20, "stall_seconds": 5, "reserve_bytes": 0}
        document = {
            "schema": 1,
            "root": str(self.directory / "root"),
            "manifests": [manifest_of(content)],
            "limits": limits,
            "share": {"address": self.address, "port": 0, "token": TOKEN, "idle_seconds": 60},
        }
        (self.directory / "order.json").write_text(json.dumps(document))
        self.read_from([])

    def read_from(self, sources: list[dict[str, Any]], *, authority: str | None = None) -> None:
        document = {"schema": 1, "authority": authority, "sources": sources}
        beside = self.directory / "sources.json.new"
        beside.write_text(json.dumps(document))
        os.replace(beside, self.directory / "sources.json")

    def start(self) -> None:
        order = orders.read(self.directory)
        self.pulling = Pulling(order, self.directory, look_seconds=0.02, pace=self.pace)
        self.thread = threading.Thread(target=self._run, args=(self.pulling,))
        self.thread.start()

    def _run(self, pulling: Pulling) -> None:
        with StatusFile(self.directory / "status.json", pulling.progress):
            try:
                pulling.run()
            except WeightsError as error:
                self.result.append(error)

    def stop(self) -> None:
        if self.pulling and self.thread:
            self.pulling.stop()
            self.thread.join(DEADLINE_SECONDS)
            self.pulling = None

    def status(self) -> dict[str, Any]:
        return self.pulling.progress.snapshot() if self.pulling else {}

    def has_share(self) -> bool:
        return bool(self.status().get("share"))

    def entry(self, **changes: Any) -> dict[str, Any]:
        share = self.status()["share"]
        url = f"http://{share['address']}:{share['port']}"
        return {"kind": "peer", "name": self.name, "url": url, "token": TOKEN, **changes}

    def received(self) -> dict[str, int]:
        """Bytes by source."""
        sources = self.status()["sources"]
        return {source["name"]: source["bytes"] for source in sources if source["bytes"]}

    def is_done(self) -> bool:
        status = self.status()
        assert status.get("phase") != "failed", status
        return status.get("phase") == "done"

    def holds(self, content: dict[str, bytes]) -> bool:
        final = self.directory / "root" / "models" / "Qwen--Tiny" / ("a" * 40)
        return all((final / path).read_bytes() == bytes_ for path, bytes_ in content.items())


@dataclass
class Program(Agent):
    """The agent as hosts run it, which can be killed."""

    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.directory / "output", "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qwen_weights", "pull", "--dir", self.directory],
                env={**os.environ, "PYTHONPATH": str(SERVICE)},
                stdout=output,
                stderr=output,
            )

    def end(self, number: int) -> int:
        assert self.process
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_SECONDS)
        self.process = None
        return code

    def stop(self) -> None:
        if self.process:
            self.end(signal.SIGKILL)

    def status(self) -> dict[str, Any]:
        with suppress(FileNotFoundError):
            status: dict[str, Any] = json.loads((self.directory / "status.json").read_text())
            return status if self.process and status["pid"] == self.process.pid else {}
        return {}


class Fleet:
    """Hosts in a chain: each reads from those before it, the first one from the hub."""

    def __init__(self, origin: Origin, agents: Sequence[Agent]) -> None:
        self.origin = origin
        self.agents = agents

    def start(self) -> None:
        self.begin()
        self.connect()

    def begin(self) -> None:
        """Without a source yet, so that the ports are known before anything is read."""
        for agent in self.agents:
            agent.order(self.origin.content)
            agent.start()
        for agent in self.agents:
            eventually(agent.has_share, f"{agent.name} shares")

    def connect(self) -> None:
        for at in range(len(self.agents)):
            self.connect_one(at)

    def connect_one(self, at: int, *between: dict[str, Any]) -> None:
        """`between` are relays nearer than the host's own ancestors."""
        nearest_first = [other.entry() for other in reversed(self.agents[:at])]
        sources = [*between, *nearest_first, self.origin.entry]
        self.agents[at].read_from(sources, authority=self.agents[0].name if at else None)

    def await_all(self) -> None:
        for agent in self.agents:
            eventually(agent.is_done, f"{agent.name} is done")
        assert all(agent.holds(self.origin.content) for agent in self.agents)

    def stop(self) -> None:
        for agent in self.agents:
            agent.stop()


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in time"
        time.sleep(0.02)
