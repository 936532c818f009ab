"""The gate before routes that do next to nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from qwen_service import operation
from qwen_service.lifecycle.notify import Notifier
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.middleware.auth import Key, Keys
from qwen_service.middleware.limits import RateLimits
from qwen_service.settings import Settings, load

from tests.fake_engine import FakeEngine

SETTINGS = load({"QWEN_MODEL_DIR": "/models/tiny", "QWEN_AUTH": "none"})
KEY = "sk-anna"
BEARER = {"authorization": f"Bearer {KEY}"}


def keys_file(folder: Path, *, more: str = "") -> Path:
    path = folder / "keys"
    path.write_text(f"anna {hashlib.sha256(KEY.encode()).hexdigest()}{more}\n")
    return path


class Service:
    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.readiness = Readiness(Notifier(None), model="tiny")
        self.readiness.ready()
        self.app = FastAPI()

        @self.app.post("/v1/echo")
        async def echo(request: Request) -> Response:
            meter = request.state.meter
            meter.accepted(3)
            meter.token(0, 0.0)
            meter.ended(2)
            return Response(await request.body())

        @self.app.get("/v1/things/{name}")
        async def thing(name: str) -> str:
            return name

        @self.app.get("/v1/stream")
        async def stream() -> Response:
            return StreamingResponse(iter(["data: x\n\n"]), media_type="text/event-stream")

        @self.app.get("/health")
        async def health() -> str:
            return "ok"

        keys = Keys(settings.keys_file) if settings.keys_file else None
        operation.install(self.app, settings, FakeEngine(), self.readiness, keys)

    def ask(self, method: str, url: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, url, **options)

        return asyncio.run(send())

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.ask("GET", url, **options)

    def metrics(self) -> dict[str, float]:
        lines = (line for line in self.get("/metrics").text.splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_key_is_asked_for_at_the_api_alone(tmp_path: Path) -> None:
    service = Service(replace(SETTINGS, keys_file=keys_file(tmp_path)))
    assert code(service.get("/v1/things/a")) == (401, "missing_api_key")
    wrong = service.get("/v1/things/a", headers={"authorization": "Bearer sk-x"})
    assert code(wrong) == (401, "invalid_api_key")
    assert service.get("/v1/things/a", headers=BEARER).json() == "a"
    assert service.get("/health").status_code == 200
    assert service.get("/metrics").status_code == 200


@pytest.mark.parametrize(("is_on", "status"), [(True, 200), (False, 401)])
def test_a_password_is_a_key_where_that_is_switched_on(
    tmp_path: Path, is_on: bool, status: int
) -> None:
    settings = replace(SETTINGS, keys_file=keys_file(tmp_path), basic_auth=is_on)
    encoded = base64.b64encode(f"user:{KEY}".encode()).decode()
    answer = Service(settings).get("/v1/things/a", headers={"authorization": f"Basic {encoded}"})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("choice", "without", "with_key"), [("open", 200, 200), ("key", 401, 200), ("off", 404, 404)]
)
def test_who_may_read_the_metrics_is_a_setting(
    tmp_path: Path, choice: str, without: int, with_key: int
) -> None:
    service = Service(replace(SETTINGS, keys_file=keys_file(tmp_path), metrics=choice))
    # Also while nothing else is answered.
    service.readiness.loading("weights")
    assert service.get("/metrics").status_code == without
    assert service.get("/metrics", headers=BEARER).status_code == with_key


def test_a_key_with_a_limit_is_told_when_to_come_back(tmp_path: Path) -> None:
    service = Service(replace(SETTINGS, keys_file=keys_file(tmp_path, more=" rpm=2")))
    answers = [service.get("/v1/things/a", headers=BEARER) for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert code(answers[2]) == (429, "rate_limit_exceeded")
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert "`anna` may make 2 requests a minute" in answers[2].text


def test_a_bucket_fills_evenly() -> None:
    now = 0.0
    limits = RateLimits(lambda: now)
    key = Key("anna", b"", requests_per_minute=4)
    assert [limits.take(key) for _ in range(5)] == [0, 0, 0, 0, 15]
    now = 14.0
    assert limits.take(key) == pytest.approx(1)
    now = 15.0
    assert limits.take(key) == 0
    assert limits.take(Key("bert", b"", requests_per_minute=4)) == 0
    now = 1000.0
    assert [limits.take(key) for _ in range(5)] == [0, 0, 0, 0, 15], "no more than a minute's"
    assert limits.take(replace(key, requests_per_minute=1)) == 0, "a new limit starts anew"
    assert limits.take(replace(key, requests_per_minute=None)) == 0


@pytest.mark.parametrize("state", ["loading", "stuck", "draining", "failed"])
def test_nothing_is_taken_on_while_the_service_is_not_ready(state: str) -> None:
    service = Service()
    {
        "loading": lambda: service.readiness.loading("weights"),
        "stuck": lambda: service.readiness.stuck("no step"),
        "draining": lambda: service.readiness.draining(1),
        "failed": lambda: service.readiness.failed("no memory"),
    }[state]()
    answer = service.get("/v1/things/a")
    assert code(answer) == (503, "not_ready")
    assert answer.headers["retry-after"] == "5"
    assert (answer.headers.get("connection") == "close") == (state == "draining")
    assert service.get("/health").status_code == 200
    assert service.metrics()[f'qwen_state{{qwen_state="{state}"}}'] == 1


def test_a_flood_of_headers_is_refused() -> None:
    headers = {f"x-{number}": "1" for number in range(200)}
    assert code(Service().get("/health", headers=headers)) == (431, "too_many_headers")


def test_a_body_whose_length_is_given_twice_is_refused() -> None:
    headers = {"content-length": "1", "transfer-encoding": "chunked"}
    answer = Service().ask("POST", "/v1/echo", headers=headers, content=b"x")
    assert code(answer) == (400, "bad_http")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("length", ["99999999", "9" * 5000])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(length: str) -> None:
    answer = Service().ask("POST", "/v1/echo", headers={"content-length": length}, content=b"x")
    assert code(answer) == (413, "request_too_large")


Message = MutableMapping[str, Any]


def post(app: FastAPI, receive: Callable[[], Awaitable[Message]]) -> list[Message]:
    """One request over bare ASGI; what was sent back."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/echo",
        "raw_path": b"/v1/echo",
        "query_string": b"",
        "headers": [(b"host", b"x")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("x", 80),
        "client": ("y", 1),
        "root_path": "",
    }
    asyncio.run(app(scope, receive, send))
    return sent


def test_a_body_that_never_comes_is_a_timeout(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(replace(SETTINGS, body_seconds=0.0))

    async def never() -> Message:
        return await asyncio.Future[Message]()

    with caplog.at_level("INFO", logger="qwen_service"):
        start, body = post(service.app, never)
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert (start["status"], headers["connection"]) == (408, "close")
    assert json.loads(body["body"])["error"]["code"] == "request_timeout"
    assert "status=408" in caplog.text
    assert service.metrics()[requests("/v1/echo", 408)] == 1


def test_a_body_that_came_in_time_may_be_answered_late() -> None:
    """Whoever waits for the client to leave, while an answer is made, waits for ever."""
    service = Service(replace(SETTINGS, body_seconds=0.0))
    parts = iter([{"type": "http.request", "body": b"x", "more_body": False}])
    seen: list[str] = []

    async def receive() -> Message:
        message = next(parts, None)
        seen.append("body" if message else "wait")
        return message or await asyncio.Future[Message]()

    start, *_ = post(service.app, receive)
    assert start["status"] == 200
    assert seen[0] == "body"


def requests(route: str, status: int, key: str = "-") -> str:
    return f'qwen_requests_total{{code="{status}",key="{key}",route="{route}"}}'


def test_requests_are_counted_by_template_code_and_key(tmp_path: Path) -> None:
    service = Service(replace(SETTINGS, keys_file=keys_file(tmp_path)))
    for name in ("a", "b", "c"):
        service.get(f"/v1/things/{name}", headers=BEARER)
    service.get("/v1/things/a")
    service.ask("POST", "/v1/echo", headers=BEARER)
    service.ask("POST", "/v1/echo", headers={"authorization": "Bearer sk-mallory"})
    for number in range(20):
        service.get(f"/v1/nowhere/{number}", headers=BEARER)
        service.get(f"/nowhere/{number}", headers={"authorization": f"Bearer sk-{number}"})
    counted = {name: value for name, value in service.metrics().items() if "requests_total" in name}
    assert counted == {
        requests("/v1/things/{name}", 200, "anna"): 3,
        # Refused before it found its route.
        requests("other", 401): 1,
        requests("/v1/echo", 200, "anna"): 1,
        requests("/v1/echo", 401): 1,
        requests("other", 404, "anna"): 20,
        requests("other", 404): 20,
    }


def test_tokens_and_times_are_counted_by_route_and_key(tmp_path: Path) -> None:
    service = Service(replace(SETTINGS, keys_file=keys_file(tmp_path)))
    service.ask("POST", "/v1/echo", headers=BEARER)
    told = service.metrics()
    labels = '{key="anna",route="/v1/echo"}'
    assert told[f"qwen_prompt_tokens_total{labels}"] == 3
    assert told[f"qwen_completion_tokens_total{labels}"] == 2
    assert told['qwen_time_to_first_token_seconds_count{route="/v1/echo"}'] == 1
    assert told['qwen_request_seconds_count{route="/v1/echo"}'] == 1


def test_an_answer_says_how_long_it_took_unless_it_streams() -> None:
    service = Service()
    assert service.get("/v1/things/a").headers["openai-processing-ms"].isdecimal()
    assert "openai-processing-ms" not in service.get("/v1/stream").headers
    assert "openai-processing-ms" not in service.get("/health").headers


def test_other_origins_are_let_in_only_where_they_are_named() -> None:
    origin = {"origin": "https://chat.example.com"}
    asks = {**origin, "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization"
    closed = Service()
    assert "access-control-allow-origin" not in closed.get("/v1/things/a", headers=origin).headers
    service = Service(replace(SETTINGS, cors_origins=(origin["origin"],), keys_file=Path("/no")))
    preflight = service.ask("OPTIONS", "/v1/echo", headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin["origin"]
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    refused = service.get("/v1/things/a", headers=origin)
    assert code(refused) == (401, "missing_api_key")
    assert refused.headers["access-control-allow-origin"] == origin["origin"]
    other = service.get("/v1/things/a", headers={"origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in other.headers


def test_a_request_is_one_line_of_fields(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    service = Service(replace(SETTINGS, keys_file=keys_file(tmp_path)))
    with caplog.at_level(logging.INFO, logger="qwen_service"):
        headers = {**BEARER, "x-request-id": "r-1"}
        service.ask("POST", "/v1/echo", headers=headers, content=b"what was said")
        service.get('/v1/a"b%0Ac\u2028', headers=BEARER)
        service.get("/health")
    first, second = [one.getMessage() for one in caplog.records if one.name == "qwen_service"]
    assert first.startswith(
        "request=POST path=/v1/echo status=200 id=r-1 key=anna prompt_tokens=3 completion_tokens=2 "
    )
    assert r'path="/v1/a\"b\nc\u2028" status=404' in second
    assert "said" not in caplog.text
    assert KEY not in caplog.text
