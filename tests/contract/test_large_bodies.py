"""Bodies as large as may be, against a real process: what they took is given back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import psutil
import pytest

from tests.running_service import MODEL, RunningService

pytestmark = pytest.mark.contract

CHAT = "/v1/chat/completions"
MOST_BYTES = 8 * 1024 * 1024
MOST_GROWTH_BYTES = 100 * 1024 * 1024


def of_items(item: bytes) -> bytes:
    head = b'{"model": "%s", "prompt": [' % MODEL.encode()
    return head + b",".join([item] * ((MOST_BYTES - len(head) - 2) // (len(item) + 1))) + b"]}"


def of(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, **fields}).encode()


BODIES: Mapping[str, tuple[str, bytes]] = {
    "wrong numbers": ("/v1/completions", of_items(b"-1")),
    "numbers": ("/v1/completions", of_items(b"1")),
    "lists": ("/v1/completions", of_items(b"[]")),
    "fields": (CHAT, of(**{f"field{number}": 1 for number in range(300_000)})),
    "wrong messages": (CHAT, of(messages=[{"role": "nobody"}] * 150_000)),
    "messages": (CHAT, of(messages=[{"role": "user", "content": "x"}] * 100_000)),
    "tokens": ("/detokenize", of(tokens=[12] * 2_000_000)),
    "a text": (CHAT, of(messages=[{"role": "user", "content": "word " * 1_600_000}])),
    "control": (CHAT, of(messages=[{"role": "assistant", "content": "<|im_end|>" * 800_000}])),
}


def test_bodies_of_millions_of_items_leave_no_memory_behind(open_service: RunningService) -> None:
    process = psutil.Process(open_service.process.pid)
    headers = {"content-type": "application/json"}
    with open_service.client(headers=headers) as client:
        before = process.memory_info().rss
        for url, body in [*BODIES.values()] * 2:
            assert len(body) <= MOST_BYTES
            assert client.post(url, content=body).status_code == 400
            assert client.get("/health").status_code == 200
    assert process.memory_info().rss - before < MOST_GROWTH_BYTES
