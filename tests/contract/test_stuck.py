"""An engine whose inference thread hangs inside a real forward pass, idle and under load."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixture_model import fixture_model
from tests.fixture_model.dialogues import ENDLESS
from tests.hanging_service import DOOR, shut
from tests.running_service import MODEL, RunningService

pytestmark = pytest.mark.contract

CHAT = "/v1/chat/completions"
SAID = ENDLESS.messages[0]["content"]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("door") / "door"
    path.touch()
    return path


@pytest.fixture(scope="module")
def service(door: Path) -> Iterator[RunningService]:
    settings = {DOOR: str(door), "WATCHDOG_USEC": "8000000"}
    with RunningService(fixture_model(), settings, module="tests.hanging_service") as running:
        yield running.wait_ready()


def ready(client: httpx.Client) -> tuple[int, dict[str, Any]]:
    response = client.get("/ready")
    return response.status_code, response.json()


def until_stuck(service: RunningService, client: httpx.Client) -> str:
    def reason() -> str | None:
        status, told = ready(client)
        assert client.get("/health").status_code == 200
        return told["reason"] if status == 503 else None

    return str(service.eventually(reason))


def passed(client: httpx.Client) -> float:
    """Self-tests so far."""
    name = 'qwen_self_tests_total{outcome="passed"} '
    (line,) = [one for one in client.get("/metrics").text.splitlines() if one.startswith(name)]
    return float(line.removeprefix(name))


def alive_since(service: RunningService, seen: int) -> int:
    return sum("WATCHDOG=1" in message for message in service.told()[seen:])


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": SAID}], **fields}


def test_an_idle_engine_that_hangs_is_found_by_a_self_test(
    service: RunningService, door: Path
) -> None:
    with service.client() as client:
        # It knows by now how long a test takes here.
        service.eventually(lambda: passed(client) > 0)
        with shut(door):
            reason = until_stuck(service, client)
            assert re.match(
                "the (engine has made no step|self-test has had no answer) for ", reason
            )
            refused = client.post(CHAT, json=body())
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"]["code"] == "not_ready"
            assert 'qwen_state{qwen_state="stuck"} 1.0' in client.get("/metrics").text
            service.wait_status("Stuck: the engine has made no step")
            seen = len(service.told())
            # Told that it is stuck once more, and in between nothing that feeds the watchdog.
            service.wait_status("Stuck: the engine has made no step")
            assert alive_since(service, seen) == 0
        service.eventually(lambda: ready(client)[0] == 200)
        service.eventually(lambda: alive_since(service, seen))
        assert client.post(CHAT, json=body(max_tokens=3)).status_code == 200


def test_a_busy_engine_that_hangs_goes_on_where_it_was(service: RunningService, door: Path) -> None:
    with service.client() as client:
        ask = body(stream=True, max_tokens=300, temperature=0)
        with client.stream("POST", CHAT, json=ask) as stream:
            lines = (line for line in stream.iter_lines() if line)
            for _ in range(3):
                next(lines)
            with shut(door), service.client() as other:
                assert until_stuck(service, other).startswith("the engine has made no step for ")
            *_, last, done = lines
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert ready(client)[0] == 200


def test_a_self_test_is_in_nobodys_numbers(service: RunningService) -> None:
    def others(client: httpx.Client) -> list[str]:
        names = ("qwen_generated_tokens_total", "qwen_requests_running ", "qwen_requests_waiting ")
        lines = client.get("/metrics").text.splitlines()
        return [line for line in lines if line.startswith(names)]

    with service.client() as client:
        service.eventually(lambda: "running 0.0" in client.get("/metrics").text)
        before, tests = others(client), passed(client)
        service.eventually(lambda: passed(client) > tests)
        assert others(client) == before
