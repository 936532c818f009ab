"""Eight hosts behind one WAN link: the time until all hold proven weights, over what the links
allow at best; the same with a relay killed, and with a host whose own link is slow."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_deploy.agent import pack_agent
from tests.bench.links import PAYLOAD, Links, Place, linked
from tests.lab.shell import wait_until

WAN_MBIT, LAN_MBIT, SLOW_MBIT = 50.0, 200.0, 20.0
HOSTS = 8
SHARDS, SHARD_BYTES = 4, 50_000_000
PORT = 40_001
KILLED_AFTER, DEAD_SECONDS = 1 / 3, 8.0
DEADLINE_SECONDS = 300.0
TOKEN = "token-of-this-rollout"
SERVICE = Path(__file__).resolve().parents[2] / "service"


def measure() -> Iterator[tuple[str, float]]:
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        weights = Weights(Path(folder, "weights"))
        equal = [LAN_MBIT] * HOSTS
        with running(weights, Path(folder, "equal"), equal) as fleet:
            yield "fanout_n8_over_bound", fleet.await_all() / bound(weights)
            yield "fanout_n8_wan_over_size", fleet.links.wan.sent_bytes() / weights.size
        with running(weights, Path(folder, "killed"), equal) as fleet:
            fleet.kill_and_restart(fleet.agents[1])
            yield "fanout_n8_killed_over_bound", fleet.await_all() / bound(weights)
        slow = [LAN_MBIT, SLOW_MBIT, *[LAN_MBIT] * (HOSTS - 2)]
        with running(weights, Path(folder, "slow"), slow) as fleet:
            fleet.await_all()
            slowed, *others = sorted((agent.seconds for agent in fleet.agents), reverse=True)
            yield "fanout_n8_slow_others_over_bound", max(others) / bound(weights)
            yield "fanout_n8_slow_host_over_bound", slowed / bound(weights, SLOW_MBIT)


def bound(weights: Weights, mbit: float = min(WAN_MBIT, LAN_MBIT)) -> float:
    return weights.size * 8 / (PAYLOAD * mbit * 1e6)


class Weights:
    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        for number in range(SHARDS):
            name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
            directory.joinpath(name).write_bytes(os.urandom(SHARD_BYTES))
        directory.joinpath("config.json").write_text("{}\n")
        self.size = SHARDS * SHARD_BYTES + 3

    def manifest(self) -> dict[str, Any]:
        artifacts = []
        for path in sorted(self.directory.iterdir()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            artifacts.append({"path": path.name, "size": path.stat().st_size, "sha256": digest})
        return {"schema": 1, "model": "Qwen/Bench", "revision": "a" * 40, "artifacts": artifacts}


@dataclass
class Agent:
    name: str
    place: Place
    directory: Path
    program: Path
    seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    def order(self, manifest: dict[str, Any]) -> None:
        self.directory.mkdir(parents=True)
        limits = {"connections": 4, "retry_seconds": 60, "stall_seconds": 20, "reserve_bytes": 0}
        share = {"address": self.place.address, "port": PORT, "token": TOKEN, "idle_seconds": 600}
        document = {
            "schema": 1,
            "root": str(self.directory / "root"),
            "manifests": [manifest],
            "limits": limits,
            "share": share,
        }
        (self.directory / "order.json").write_text(json.dumps(document))
        self.read_from([])

    def read_from(self, sources: Sequence[dict[str, Any]]) -> None:
        authority = "gpu-1" if sources and sources[0]["kind"] == "peer" else None
        document = {"schema": 1, "authority": authority, "sources": list(sources)}
        beside = self.directory / "sources.json.new"
        beside.write_text(json.dumps(document))
        beside.replace(self.directory / "sources.json")

    @property
    def entry(self) -> dict[str, Any]:
        url = f"http://{self.place.address}:{PORT}"
        return {"kind": "peer", "name": self.name, "url": url, "token": TOKEN}

    def start(self) -> None:
        argv = (sys.executable, "-I", str(self.program), "pull", "--dir", str(self.directory))
        with open(self.directory / "output", "ab") as output:
            command = self.place.command(*argv)
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads((self.directory / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return status


@dataclass
class Fleet:
    links: Links
    agents: list[Agent]
    size: int
    began_at: float = 0.0

    def begin(self, hub: dict[str, Any]) -> None:
        """Eight programs do not start at once on the cores of one machine, so the clock starts
        when they are told where to read."""
        self._await(lambda: all(agent.status().get("share") for agent in self.agents))
        self.began_at = time.monotonic()
        for at, agent in enumerate(self.agents):
            agent.read_from([*(one.entry for one in reversed(self.agents[:at])), hub])

    def await_all(self) -> float:
        """Seconds until the last one has proven everything."""
        wait_until(self._are_done, DEADLINE_SECONDS, "every host is done", poll_seconds=0.05)
        return max(agent.seconds for agent in self.agents)

    def kill_and_restart(self, agent: Agent) -> None:
        wanted = KILLED_AFTER * self.size
        self._await(lambda: agent.status().get("bytes_done", 0) > wanted)
        agent.end()
        began = time.monotonic()
        self._await(lambda: time.monotonic() - began > DEAD_SECONDS)
        agent.start()

    def _await(self, condition: Callable[[], bool]) -> None:
        wait_until(condition, DEADLINE_SECONDS, "the fleet gets on", poll_seconds=0.05)

    def _are_done(self) -> bool:
        for agent in self.agents:
            if not agent.seconds and agent.status().get("phase") in ("done", "failed"):
                assert agent.status()["phase"] == "done", agent.status()
                agent.seconds = time.monotonic() - self.began_at
        return all(agent.seconds for agent in self.agents)


@contextmanager
def running(weights: Weights, directory: Path, hosts_mbit: Sequence[float]) -> Iterator[Fleet]:
    """Agents in a chain, from when they begin to read."""
    directory.mkdir()
    program = directory / "agent.pyz"
    program.write_bytes(pack_agent(SERVICE / "qwen_weights"))
    manifest = weights.manifest()
    with linked(WAN_MBIT, hosts_mbit) as links, ExitStack() as stack:
        server = (sys.executable, "-m", "tests.bench.origin", links.wan.address, weights.directory)
        origin = subprocess.Popen(links.wan.command(*map(str, server)), stdout=subprocess.PIPE)
        stack.callback(origin.wait)
        stack.callback(origin.kill)
        assert origin.stdout
        url = origin.stdout.readline().decode().strip()
        hub = {"kind": "http", "name": "hub", "url": f"{url}/{{path}}", "wan": True}
        agents: list[Agent] = []
        for number, place in enumerate(links.hosts, 1):
            agent = Agent(f"gpu-{number}", place, directory / str(number), program)
            agent.order(manifest)
            agents.append(agent)
            stack.callback(agent.end)
            agent.start()
        fleet = Fleet(links, agents, weights.size)
        fleet.begin(hub)
        yield fleet


def _memory() -> str | None:
    """Hosts have a disk each; the one of this machine would be shared by eight."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
