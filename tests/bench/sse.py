"""What a token costs between the engine and the network: many streams out of one process.

The service's own application and server run over an engine that computes nothing: one thread hands
a token to each stream, step by step. CPU time is that of the whole process, its engine included.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
from qwen_service.__main__ import bind, make_server
from qwen_service.app import create_app
from qwen_service.engine import Event, Finished, Generation, Piece, Started
from qwen_service.lifecycle.notify import Notifier
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.settings import load

from tests.fake_engine import FACTS, FakeEngine

STREAMS = 64
TOKENS = 500
# Slow enough that a token is never joined to the next one of its stream.
STEP_SECONDS = 0.02
WORD = " token"
CHUNK = b'{"content":" token"}'


class SteppingEngine(FakeEngine):
    """One token for each stream a step, once all streams are there."""

    def __init__(self, step_seconds: float) -> None:
        super().__init__()
        self._step_seconds = step_seconds
        self._streams: list[Callable[[Event], None]] = []

    def submit(self, generation: object, deliver: Callable[[Event], None]) -> None:
        assert isinstance(generation, Generation)
        deliver(Started(1))
        self._streams.append(deliver)
        if len(self._streams) == STREAMS:
            streams, self._streams = self._streams, []
            threading.Thread(target=self._run, args=(streams,), daemon=True).start()

    def _run(self, streams: list[Callable[[Event], None]]) -> None:
        due = time.monotonic()
        for _ in range(TOKENS):
            for deliver in streams:
                deliver(Piece(WORD))
            due += self._step_seconds
            time.sleep(max(0.0, due - time.monotonic()))
        for deliver in streams:
            deliver(Finished("stop", TOKENS))


def measure() -> Iterator[tuple[str, float]]:
    # An engine that is always ahead, so that tokens that have come together go out together.
    yield "sse_tokens_per_second_per_core", _tokens_per_cpu_second(0.0)
    # A write for every single token: what uvicorn and the kernel ask for it is most of the cost.
    yield "sse_tokens_per_second_per_core_one_by_one", _tokens_per_cpu_second(STEP_SECONDS)


def _tokens_per_cpu_second(step_seconds: float) -> float:
    argv = [sys.executable, "-m", "tests.bench.sse", str(step_seconds)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            process = psutil.Process(server.pid)
            asyncio.run(_read_all(port))
            before = process.cpu_times()
            seen = asyncio.run(_read_all(port))
            after = process.cpu_times()
        finally:
            server.terminate()
    assert seen == STREAMS * TOKENS, seen
    return seen / (after.user - before.user + after.system - before.system)


async def _read_all(port: int) -> int:
    return sum(await asyncio.gather(*(_read(port) for _ in range(STREAMS))))


async def _read(port: int) -> int:
    message = {"role": "user", "content": "Hi"}
    body = json.dumps({"model": "tiny", "messages": [message], "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    writer.write(f"{head}content-type: application/json\r\nconnection: close\r\n\r\n".encode())
    writer.write(body)
    seen, rest = 0, b""
    while data := await reader.read(1 << 16):
        rest += data
        seen += rest.count(CHUNK)
        rest = rest[-len(CHUNK) + 1 :]
    writer.close()
    return seen


def serve(step_seconds: float) -> None:
    settings = load({"QWEN_MODEL_DIR": "/models/tiny", "QWEN_AUTH": "none"})
    readiness = Readiness(Notifier(None), model=settings.model_name)
    readiness.facts = FACTS
    readiness.ready()
    app = create_app(settings, SteppingEngine(step_seconds), readiness)
    listener = bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    make_server(settings, app).run(sockets=[listener])


if __name__ == "__main__":
    serve(float(sys.argv[1]))
