"""The service beside `transformers serve` of the same version and a serial server as the original
demo: requests a second for the same questions; how soon it is ready, and what it holds in memory.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from qwen_deploy.load import figures
from qwen_deploy.load.request import Target
from qwen_deploy.load.run import Extent
from qwen_deploy.load.run import measure as put_load
from tests.fixture_model import fixture_model
from tests.fixture_model.dialogues import TURNS
from tests.running_service import MODEL, RunningService
from tests.wire import refusing_port

ROUNDS = 3
MAX_TOKENS = 64
# How many at a time, and how many in all; a serial server would take minutes for more.
LEVELS = {1: 8, 8: 32, 32: 96}
SERIAL_LEVELS = {1: 4, 8: 16, 32: 32}
MANY = 10_000
START_SECONDS = 120
MIB = 1 << 20
QUESTIONS = tuple(
    str(turn.messages[0]["content"])
    for turn in TURNS
    if len(turn.messages) == 1 and not turn.tools and turn.answer
)


@dataclass(frozen=True)
class Server:
    target: Target
    pid: int
    ready_seconds: float


def measure() -> Iterator[tuple[str, float]]:
    with ExitStack() as stack:
        servers = {
            "serve": stack.enter_context(_ours()),
            "transformers_serve": stack.enter_context(_transformers_serve()),
            "serial": stack.enter_context(_serial()),
        }
        for name, server in servers.items():
            yield f"{name}_start_to_ready_seconds", server.ready_seconds
        for concurrency in LEVELS:
            yield from _side_by_side(servers, concurrency)
    yield from _memory()


def _side_by_side(servers: dict[str, Server], concurrency: int) -> Iterator[tuple[str, float]]:
    """In turn, so that whatever else the machine does falls on all of them alike."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    costs: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(ROUNDS):
        for name, server in servers.items():
            requests = (SERIAL_LEVELS if name == "serial" else LEVELS)[concurrency]
            before = _cpu_seconds(server.pid)
            rates[name].append(_rate(server.target, concurrency, requests))
            costs[name].append((_cpu_seconds(server.pid) - before) / requests)
    for name, values in rates.items():
        yield f"{name}_requests_per_second_{concurrency}", median(values)
        # What a busy machine does not change.
        yield f"{name}_cpu_ms_per_request_{concurrency}", 1000 * median(costs[name])
    ours = rates.pop("serve")
    for name, theirs in rates.items():
        ratios = (our / their for our, their in zip(ours, theirs, strict=True))
        yield f"serve_over_{name}_{concurrency}", median(ratios)


def _rate(target: Target, concurrency: int, requests: int, max_tokens: int = MAX_TOKENS) -> float:
    load = put_load(
        *(target, concurrency, Extent(requests, None), _payloads(target, max_tokens)),
        tell=lambda _: None,
        clock=time.monotonic,
    )
    level = figures.level(concurrency, load.samples)
    assert level.answered == requests, level.errors
    return level.requests_per_second


def _payloads(target: Target, max_tokens: int) -> Iterator[dict[str, object]]:
    for question in itertools.cycle(QUESTIONS):
        yield {
            "model": target.model,
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "temperature": 0,
        }


def _memory() -> Iterator[tuple[str, float]]:
    with _ours() as server:
        _rate(server.target, 32, 32)
        yield "memory_idle_mib", _resident_mib(server.pid)
        yield "serve_short_requests_per_second_32", _rate(server.target, 32, MANY, max_tokens=1)
        yield "memory_after_10000_mib", _resident_mib(server.pid)


def _resident_mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / MIB)


def _cpu_seconds(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


@contextmanager
def _ours() -> Iterator[Server]:
    started = time.monotonic()
    with RunningService(fixture_model()) as service:
        service.wait_ready()
        seconds = time.monotonic() - started
        yield Server(Target(f"{service.url}/v1", MODEL, "none"), service.process.pid, seconds)


@contextmanager
def _transformers_serve() -> Iterator[Server]:
    """With a bounded cache: its default takes most of the machine's memory (of 5.23)."""
    model, port = str(fixture_model()), refusing_port()
    yield from _other(
        [
            *(str(Path(sys.executable).with_name("transformers")), "serve", model),
            *("--continuous-batching", "--cb-block-size", "64", "--cb-num-blocks", "256"),
            *("--cb-max-batch-tokens", "512", "--device", "cpu", "--log-level", "warning"),
            *("--port", str(port)),
        ],
        Target(f"http://127.0.0.1:{port}/v1", model, "none"),
    )


@contextmanager
def _serial() -> Iterator[Server]:
    model, port = str(fixture_model()), refusing_port()
    yield from _other(
        [sys.executable, "-m", "tests.bench.serial_server", model, str(port)],
        Target(f"http://127.0.0.1:{port}/v1", model, "none"),
    )


def _other(argv: list[str], target: Target) -> Iterator[Server]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_until_it_answers(process, target)
            yield Server(target, process.pid, time.monotonic() - started)
        finally:
            process.kill()  # theirs may not end by itself (SERVICE.md, 2)


def _wait_until_it_answers(process: subprocess.Popen[bytes], target: Target) -> None:
    """An answer and not /health: theirs loads the model for the first request."""
    ends_at = time.monotonic() + START_SECONDS
    while True:
        try:
            with urlopen(target.base_url.removesuffix("v1") + "health"):
                break
        except (URLError, OSError):
            assert process.poll() is None and time.monotonic() < ends_at
            time.sleep(0.05)
    _rate(target, 1, 1)
