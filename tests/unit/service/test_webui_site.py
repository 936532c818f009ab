"""Who gets into the chat page, and what it answers before gradio is there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qwen_service.app import create_app
from qwen_service.engine import ModelFacts
from qwen_service.lifecycle.notify import Notifier
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.middleware.auth import Keys
from qwen_service.settings import load
from qwen_service.webui.sessions import LASTS_SECONDS, MOST, Sessions
from qwen_service.webui.site import Site
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from tests.fake_engine import FakeEngine

SETTINGS = replace(load({"QWEN_MODEL_DIR": "/m", "QWEN_AUTH": "none"}), model_name="Qwen/<tiny>")
KEY = "sk-one"


def keys_of(folder: Path, *names: str) -> Keys:
    path = folder / "keys"
    lines = (f"{name} {hashlib.sha256(KEY.encode()).hexdigest()}\n" for name in names)
    path.write_text("".join(lines))
    return Keys(path)


def client_of(keys: Keys | None = None, *, kind: Any = None) -> TestClient:
    readiness = Readiness(Notifier(None), model="m")
    readiness.loading("weights")
    if kind:
        readiness.facts = ModelFacts(device="cpu", dtype="float32", context_tokens=1, kind=kind)
    rest = PlainTextResponse("the API")
    site = Site(rest, settings=SETTINGS, readiness=readiness, keys=keys)
    return TestClient(site, base_url="http://host:8000", follow_redirects=False)


def test_while_the_model_loads_the_page_says_so_and_tries_again() -> None:
    page = client_of().get("/", headers={"accept-language": "zh-CN"})
    assert page.status_code == 200
    assert 'http-equiv="refresh"' in page.text
    assert "正在加载" in page.text and "weights" in page.text
    assert "<h1>Qwen/&lt;tiny&gt;</h1>" in page.text
    assert client_of().get("/config").status_code == 503


def test_a_model_that_does_not_chat_has_no_page() -> None:
    assert "does not chat" in client_of(kind="embedding").get("/").text


@pytest.mark.parametrize("path", ["/v1/models", "/nothing", "/gradio_api/file=/etc/passwd"])
def test_all_other_paths_are_the_applications(path: str) -> None:
    assert client_of().get(path).text == "the API"


@pytest.mark.parametrize(("is_on", "status"), [(True, 200), (False, 404)])
def test_the_page_is_there_unless_it_is_turned_off(is_on: bool, status: int) -> None:
    readiness = Readiness(Notifier(None), model="m")
    app = create_app(replace(SETTINGS, web_ui=is_on), FakeEngine(), readiness)
    assert TestClient(app).get("/").status_code == status


def test_every_answer_forbids_what_comes_from_elsewhere() -> None:
    for path in ("/", "/ui/page.js", "/config"):
        policy = client_of().get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; script-src 'self';"), path


def test_a_key_opens_a_session_and_its_end_closes_it(tmp_path: Path) -> None:
    client = client_of(keys_of(tmp_path, "ann"))
    assert 'type="password"' in client.get("/").text
    assert client.get("/config").status_code == 401
    assert client.post("/login", data={"key": "sk-two"}).status_code == 401
    answer = client.post("/login", data={"key": f" {KEY} "})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("qwen-session-8000=")
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and KEY not in cookie
    assert "refresh" in client.get("/").text

    (tmp_path / "keys").write_text("")
    assert 'type="password"' in client.get("/").text


def test_logging_out_takes_a_post(tmp_path: Path) -> None:
    client = client_of(keys_of(tmp_path, "ann"))
    client.post("/login", data={"key": KEY})
    client.get("/logout")
    assert "refresh" in client.get("/").text
    client.post("/logout")
    assert 'type="password"' in client.get("/").text


def test_the_cookie_is_for_https_where_the_page_is(tmp_path: Path) -> None:
    client = client_of(keys_of(tmp_path, "ann"))
    answer = client.post("https://host/login", data={"key": KEY})
    assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"origin": "http://evil.example"}, b"key=x", 403),
        ({"origin": "null"}, b"key=x", 403),
        ({"origin": "http://host:8000"}, b"key=x", 401),
        ({}, b"key=" + b"x" * 5000, 413),
        ({"content-length": str(10**9)}, b"", 413),
        ({"content-length": "many"}, b"", 411),
    ],
)
def test_what_does_not_come_from_the_page_is_refused(
    tmp_path: Path, headers: dict[str, str], body: bytes, status: int
) -> None:
    client = client_of(keys_of(tmp_path, "ann"))
    assert client.post("/login", content=body, headers=headers).status_code == status
    assert client.put("/login").status_code == 405


def test_sessions_end_by_themselves_and_are_not_kept_without_end(tmp_path: Path) -> None:
    now = [0.0]
    sessions = Sessions(keys_of(tmp_path, "ann"), clock=lambda: now[0])
    assert sessions.open("sk-two") is None
    first = sessions.open(KEY)
    found = sessions.find(first or "")
    assert first and found and (found.name, found.token != KEY) == ("ann", True)
    assert sessions.find("made-up") is None
    for _ in range(MOST):
        last = sessions.open(KEY)
    assert sessions.find(first) is None
    assert last and sessions.find(last)
    now[0] = LASTS_SECONDS + 1
    assert sessions.find(last) is None
