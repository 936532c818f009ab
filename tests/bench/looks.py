"""How quickly the state of the service is told while 32 streams of the real model are answered."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx

from tests.fixture_model import fixture_model
from tests.fixture_model.dialogues import ENDLESS
from tests.running_service import MODEL, RunningService

STREAMS = 32
LOOKS = 400
PATHS = ("health", "ready", "metrics")
BETWEEN_SECONDS = 0.01
# In a process of its own, whose work does not count as the service's.
LOAD = """
import sys, threading, httpx
url, body, streams = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
def go():
    headers = {"content-type": "application/json"}
    with httpx.Client(timeout=None, headers=headers) as client:
        while True:
            with client.stream("POST", url, content=body) as stream:
                for _ in stream.iter_raw():
                    pass
for _ in range(streams):
    threading.Thread(target=go, daemon=True).start()
sys.stdin.read()
"""


def measure() -> Iterator[tuple[str, float]]:
    settings = {"QWEN_MAX_BATCH": str(STREAMS)}
    with RunningService(fixture_model(), settings) as service:
        service.wait_ready()
        # Its log is read no more once the load is on.
        url = service.url
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": ENDLESS.messages[0]["content"]}],
            "max_tokens": 1500,
            "stream": True,
        }
        arguments = (f"{url}/v1/chat/completions", json.dumps(body), str(STREAMS))
        argv = [sys.executable, "-c", LOAD, *arguments]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as load:
            try:
                service.wait_status(f"{STREAMS} running")
                for path in PATHS:
                    times = sorted(_looks(url, path))
                    yield f"{path}_p50_ms_under_load", times[len(times) // 2] * 1000
                    yield f"{path}_p99_ms_under_load", times[len(times) * 99 // 100] * 1000
            finally:
                load.kill()


def _looks(url: str, path: str) -> Iterator[float]:
    address = httpx.URL(url)
    connection = http.client.HTTPConnection(address.host, address.port or 80)
    for _ in range(LOOKS):
        time.sleep(BETWEEN_SECONDS)
        began = time.monotonic()
        connection.request("GET", f"/{path}")
        connection.getresponse().read()
        yield time.monotonic() - began
    connection.close()
