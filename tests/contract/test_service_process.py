"""The service as a process: what it tells systemd, who waits, who is refused, how it ends."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixture_model import fixture_model, sharded_model
from tests.fixture_model.dialogues import ENDLESS, answer_to
from tests.running_service import DEADLINE_SECONDS, MODEL, RunningService

pytestmark = pytest.mark.contract

CHAT = "/v1/chat/completions"
SHARD = "model-00002-of-00002.safetensors"


def body(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


def endless(**fields: Any) -> dict[str, Any]:
    return body(ENDLESS.messages[0]["content"], temperature=0, **fields)


def answer_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def is_idle(service: RunningService) -> bool:
    return "0 running, 0 waiting" in service.wait_status("running")


def test_a_start_is_told_step_by_step_and_an_end_drains() -> None:
    with RunningService(fixture_model()) as service, service.client() as client:
        # HTTP answers before torch is imported.
        assert client.get("/health").json() == {"status": "ok"}
        early = client.get("/ready")
        assert (early.status_code, early.json()["status"]) == (503, "loading")
        refused = client.post(CHAT, json=body("你好"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "5"

        service.wait_ready()
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["release"]) == (200, "r-12345678")
        told = "\n".join(service.told())
        steps = [
            f"Loading {MODEL}: importing torch",
            f"Loading {MODEL}: weights",
            f"Loading {MODEL}: first completion",
            "READY=1",
        ]
        assert sorted(steps, key=told.index) == steps
        assert "EXTEND_TIMEOUT_USEC" in told
        assert client.get("/version").json()["device"] == "cpu"
        status = service.wait_status("running")
        assert f"Serving {MODEL} (r-12345678) on cpu: 0 running, 0 waiting, " in status

        ends_while_answering(service, client)


def ends_while_answering(service: RunningService, client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=endless(stream=True, max_tokens=600)) as stream:
        lines = stream.iter_lines()
        next(lines)
        service.terminate()
        service.eventually(lambda: any("STOPPING=1" in line for line in service.told()))
        with service.client() as late:
            refused = late.post(CHAT, json=body("你好"))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.headers["connection"] == "close"
        *_, last, done = [line for line in lines if line]
    assert done == "data: [DONE]"
    choice = json.loads(last.removeprefix("data: "))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert service.exit_code() == 0


def test_a_drain_that_takes_too_long_ends_in_an_error_event() -> None:
    with RunningService(fixture_model(), {"QWEN_DRAIN_SECONDS": "1"}) as service:
        client = service.wait_ready().client()
        with client, client.stream("POST", CHAT, json=endless(stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            service.terminate()
            *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert service.exit_code() == 0


def test_clients_wait_in_the_inherited_socket_while_the_process_changes() -> None:
    # systemd's part is played by the test: it keeps the listening socket.
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        with RunningService(fixture_model(), listener=listener) as first:
            with first.wait_ready().client() as client:
                assert answer_of(client.post(CHAT, json=body("你好"))) == answer_to("你好")
            url = first.url
            first.terminate()
            assert first.exit_code() == 0
        waiting = pool.submit(httpx.get, f"{url}/health", timeout=DEADLINE_SECONDS)
        with RunningService(fixture_model(), listener=listener) as second:
            assert waiting.result().json() == {"status": "ok"}
            second.terminate()
            assert second.exit_code() == 0


def test_the_watchdog_is_fed_by_an_engine_that_turns(open_service: RunningService) -> None:
    open_service.wait_status("WATCHDOG=1")


def test_requests_beyond_the_queue_are_told_to_come_back(open_service: RunningService) -> None:
    with open_service.client() as client, ThreadPoolExecutor(3) as pool:
        # Two run, one waits.
        busy = [pool.submit(client.post, CHAT, json=endless(max_tokens=300)) for _ in range(3)]
        open_service.wait_status("2 running, 1 waiting")
        refused = client.post(CHAT, json=body("你好"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200
        assert all(answer_of(response.result()).startswith("tick tick") for response in busy)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(open_service: RunningService, stream: bool) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(open_service.url).port)) as connection:
        content = json.dumps(endless(stream=stream)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        open_service.wait_status("1 running")
    open_service.eventually(lambda: is_idle(open_service))
    assert "client left" in open_service.log.splitlines()[-1]


def test_a_slow_reader_does_not_hold_up_the_others(open_service: RunningService) -> None:
    with open_service.client() as client:
        with client.stream("POST", CHAT, json=endless(stream=True, max_tokens=4000)) as slow:
            assert slow.status_code == 200
            # Nothing of the stream is read meanwhile.
            assert answer_of(client.post(CHAT, json=body("你好"))) == answer_to("你好")
        open_service.eventually(lambda: is_idle(open_service))


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut_short(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without("config.json"), "config.json is missing"),
        (without("tokenizer.json"), "tokenizer.json is missing"),
        (
            without("model-00002-of-00002.safetensors"),
            "model-00002-of-00002.safetensors is missing",
        ),
        (cut_short("model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors has"),
        (cut_short("tokenizer.json"), "tokenizer.json is no valid JSON"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_a_broken_checkpoint_is_named_and_ends_the_process(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    folder = sharded_model(tmp_path / "model")
    damage(folder)
    with RunningService(folder) as service:
        assert service.exit_code() == 1
        line = f"qwen_service: cannot load the model from {folder}: {reason}"
        assert line in service.log
        assert "Traceback" not in service.log
        assert any(line.partition(" ")[2] in message for message in service.told())


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    with RunningService(tmp_path, {"QWEN_MAX_BATCH": "many"}) as service:
        assert service.exit_code() == 1
        assert service.log == (
            "qwen_service: QWEN_MAX_BATCH should be a whole number from 1 up, not 'many'\n"
        )


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with RunningService(tmp_path, {"QWEN_LISTEN": address}) as service:
            assert service.exit_code() == 1
            assert f"cannot listen on {address}: Address already in use" in service.log
