"""What a kill costs, and what fetching and proving cost beside what others take for it, all from
one loopback hub."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hub import Hub
from tests.hub.agent import Agent, huggingface, manifest_of, until
from tests.hub.clients import Clients
from tests.hub.sample import REPO
from tests.model_folder import make_model

MIB = 1 << 20
KILLS, KILLS_OF_OTHERS = 20, 5
ROUNDS = 3
GIGABIT = 125_000_000
PLACE = Path("build/bench")
_PEAK = re.compile(r"VmHWM:\s*(\d+) kB")
SHA256SUM = 'find . -type f -print0 | xargs -0 -n 1 -P "$(nproc)" sha256sum'
Start = Callable[[Path], "subprocess.Popen[str]"]


def measure() -> Iterator[tuple[str, float]]:
    PLACE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        place = Path(folder).absolute()
        yield from _kills(make_model(place / "small", shards=4, shard_bytes=64 * MIB), place / "to")
        large = make_model(place / "large", shards=4, shard_bytes=250_000_000)
        yield from _fetches(large, place / "to")
        yield from _at_one_gigabit(large, place / "to")


def _kills(model: Path, to: Path) -> Iterator[tuple[str, float]]:
    """The worst of each one's: what the hub sent beyond the model."""
    total = _size(model)
    with Hub() as hub:
        hub.add(REPO, model)
        for name, start in _starts(hub, to).items():
            moments = random.Random(3)
            kills = KILLS_OF_OTHERS if name else KILLS
            worst = max(_sent(hub, start, to, moments.randrange(total)) for _ in range(kills))
            yield f"{name}refetch_after_kill_mib", (worst - total) / MIB


def _sent(hub: Hub, start: Start, to: Path, moment: int) -> int:
    before = hub.sent_bytes.total()
    client = start(to)
    until(lambda: hub.sent_bytes.total() - before >= moment, 60)
    client.kill()
    client.communicate()
    _seconds(start, to)
    shutil.rmtree(to)
    return hub.sent_bytes.total() - before


def _fetches(model: Path, to: Path) -> Iterator[tuple[str, float]]:
    """In turn, so that whatever else the machine does falls on all of them alike."""
    with Hub() as hub:
        hub.add(REPO, model)
        starts = _starts(hub, to) | _curls(hub)
        seconds: dict[str, list[float]] = {name: [] for name in starts}
        for _ in range(ROUNDS):
            for name, start in starts.items():
                os.sync()
                seconds[name].append(_seconds(start, to))
                shutil.rmtree(to)
    ours = min(seconds.pop(""))
    yield "fetch_mib_a_second", _size(model) / MIB / ours
    for name, taken in seconds.items():
        yield f"fetch_over_{name.rstrip('_')}", ours / min(taken)


def _at_one_gigabit(model: Path, to: Path) -> Iterator[tuple[str, float]]:
    with Hub(rate=GIGABIT) as hub:
        hub.add(REPO, model)
        started = time.monotonic()
        process = _starts(hub, to)[""](to)
        peak_kib = _peak_kib(process)
        _, status, used = os.wait4(process.pid, 0)
        taken = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        _, said = process.communicate()
        assert process.returncode == 0, said
    yield "fetch_1gbit_over_bound", taken / (_size(model) / GIGABIT)
    yield "fetch_1gbit_cpu_share", (used.ru_utime + used.ru_stime) / taken
    yield "fetch_1gbit_memory_mib", peak_kib / 1024
    yield "verify_over_sha256sum", _verify_over_sha256sum(to)


def _peak_kib(process: subprocess.Popen[str]) -> int:
    """While it runs: rusage would count what this program held when it forked."""
    peak = 0
    while match := _PEAK.search(Path(f"/proc/{process.pid}/status").read_text()):
        peak = int(match[1])
        time.sleep(0.02)
    return peak


def _verify_over_sha256sum(to: Path) -> float:
    (final,) = to.glob("root/models/*/*")
    starts: tuple[Start, ...] = (
        lambda to: Agent(to).start("verify", final),
        lambda _: _shell(f"cd {final} && {SHA256SUM}"),
    )
    rounds = [[_seconds(start, to) for start in starts] for _ in range(ROUNDS)]
    ours, theirs = (min(column) for column in zip(*rounds, strict=True))
    return float(ours / theirs)


def _starts(hub: Hub, to: Path) -> dict[str, Start]:
    """By the prefix of their figures; ours has none."""
    clients = Clients(hub, to.with_name("home"))
    commit = hub.repositories[REPO].head

    def ours(to: Path) -> subprocess.Popen[str]:
        agent = Agent(to)
        entry = huggingface(hub, commit)
        agent.order(manifest_of(commit), entry, retry_seconds=60, stall_seconds=20)
        return agent.start()

    return {
        "": ours,
        "hf_": lambda to: clients.hf(REPO, to),
        "modelscope_": lambda to: clients.modelscope(REPO, to),
    }


def _curls(hub: Hub) -> dict[str, Start]:
    """As quick as bytes can come, and with the proof that ours gives."""
    commit = hub.repositories[REPO].head
    url = f"{hub.endpoint}/{REPO}/resolve/{commit.id}/"
    files = " ".join(f"{url}{path} -o {path}" for path in commit.files)
    fetch = f"curl --silent --show-error --fail --location --parallel --parallel-max 4 {files}"

    def into(to: Path, command: str) -> subprocess.Popen[str]:
        return _shell(f"mkdir {to} && cd {to} && {command}")

    return {
        "curl_": lambda to: into(to, fetch),
        "curl_and_sha256sum_": lambda to: into(to, f"{fetch} && {SHA256SUM}"),
    }


def _shell(command: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(["sh", "-c", command], stdout=pipe, stderr=pipe, text=True)


def _seconds(start: Start, to: Path) -> float:
    started = time.monotonic()
    process = start(to)
    printed, said = process.communicate()
    taken = time.monotonic() - started
    assert process.returncode == 0, f"{printed}{said}"
    return taken


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
