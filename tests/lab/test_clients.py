"""A deployed host as those use it who never log in there: by the API, a browser, a terminal.

The module's tests share one host and run in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pexpect
import pytest
from openai.types.chat import ChatCompletionMessageToolCall
from pydantic import BaseModel

from tests.browser.chat_page import ChatPage
from tests.browser.chromium import chromium
from tests.fixture_model.dialogues import TURNS, WEATHER_TOOL, answer_to
from tests.lab import Host, Lab, service
from tests.lab.controller import PROGRAM, Controller

pytestmark = pytest.mark.lab

HELLO = "你好"
MODEL = "Qwen/Fixture"
DEADLINE_SECONDS = 60


@dataclass
class Deployed:
    host: Host
    controller: Controller
    key: str

    @property
    def client(self) -> openai.OpenAI:
        return service.client(self.host, self.key)

    def terminal(self, *arguments: str) -> pexpect.spawn[str]:
        return pexpect.spawn(
            str(PROGRAM),
            list(arguments),
            cwd=str(self.controller.folder),
            env={**self.controller.environment, "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1"},
            encoding="utf-8",
            timeout=DEADLINE_SECONDS,
        )


@pytest.fixture(scope="module")
def deployed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    (host,) = lab.pristine(1)
    controller = Controller(lab, tmp_path_factory.mktemp("operator"))
    controller.configure(host)
    events = controller.events("up", "--yes")
    key = next(str(event["key"]) for event in events if event["event"] == "key_created")
    yield Deployed(host, controller, key)


class Weather(BaseModel):
    city: str


def test_tools_are_called_and_schemas_kept(deployed: Deployed) -> None:
    turn = next(turn for turn in TURNS if turn.tools and turn.messages[-1]["role"] == "user")
    called = deployed.client.chat.completions.create(
        model=MODEL,
        messages=[dict(message) for message in turn.messages],  # type: ignore[misc]
        tools=[dict(WEATHER_TOOL)],  # type: ignore[list-item]
        temperature=0,
    )
    call = (called.choices[0].message.tool_calls or [None])[0]  # type: ignore[list-item]
    assert isinstance(call, ChatCompletionMessageToolCall)
    assert called.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    parsed = deployed.client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": HELLO}],
        response_format=Weather,
        temperature=0,
        max_tokens=200,
    )
    finished = parsed.choices[0].finish_reason == "stop"
    assert finished and isinstance(parsed.choices[0].message.parsed, Weather)


def test_streams_and_the_tutorials_model_name_work(deployed: Deployed) -> None:
    stream = deployed.client.chat.completions.create(
        model="Qwen",
        messages=[{"role": "user", "content": HELLO}],
        temperature=0,
        stream=True,
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer_to(HELLO)


def test_a_named_key_lives_from_its_creation_to_its_revocation(deployed: Deployed) -> None:
    process = service.unit(deployed.host)["MainPID"]
    key = deployed.controller.run("keys", "create", "anna", "--rpm", "60").stdout.strip()
    assert service.answer(deployed.host, key, HELLO) == answer_to(HELLO)
    assert key not in deployed.host.read("/etc/qwen-deploy/keys")
    assert "anna" in deployed.controller.run("keys", "list").stdout
    deployed.controller.run("keys", "revoke", "anna")
    with pytest.raises(openai.AuthenticationError):
        service.answer(deployed.host, key, HELLO)
    assert service.answer(deployed.host, deployed.key, HELLO) == answer_to(HELLO)
    assert service.unit(deployed.host)["MainPID"] == process


def test_keys_of_the_operator_outlive_the_next_up(deployed: Deployed) -> None:
    key = deployed.controller.run("keys", "create", "bert").stdout.strip()
    finished = deployed.controller.events("up", "--yes")[-1]
    assert finished["outcome"] == "unchanged"
    assert service.answer(deployed.host, key, HELLO) == answer_to(HELLO)


def test_measurements_are_told_without_a_key(deployed: Deployed) -> None:
    told = httpx.get(f"http://{deployed.host.address}:8000/metrics").text
    route = 'route="/v1/chat/completions"'
    counted = re.search(rf"^qwen_requests_total\{{.*{route}.*\}} (\S+)", told, re.M)
    assert counted and float(counted[1]) >= 1
    assert deployed.key not in told


def test_a_person_chats_in_a_browser(deployed: Deployed, tmp_path: Path) -> None:
    opened = deployed.terminal("open", "--no-browser")
    try:
        opened.expect(r"http://127\.0\.0\.1:\d+")
        url = str(opened.match[0])
        with chromium(tmp_path / "profile") as driver:
            driver.get(url)
            page = ChatPage(driver, url)
            page.log_in(deployed.key)
            page.wait_usable()
            page.ask(HELLO)
            page.wait_answers(answer_to(HELLO))
    finally:
        opened.sendintr()
        opened.expect(pexpect.EOF)
        opened.close()


def test_a_person_chats_in_a_terminal(deployed: Deployed, tmp_path: Path) -> None:
    chat = deployed.terminal("chat", "--temperature", "0")
    try:
        chat.expect_exact("User>")
        chat.send(f"{HELLO}\r")
        chat.expect_exact(answer_to(HELLO))
        chat.expect_exact("User>")
        chat.send(f":save {tmp_path}/kept.json\r")
        chat.expect_exact("User>")
        chat.send(":undo\r")
        chat.expect_exact("User>")
        chat.send(":exit\r")
        chat.expect(pexpect.EOF)
    finally:
        chat.close()
    assert chat.exitstatus == 0
    assert answer_to(HELLO) in json.loads((tmp_path / "kept.json").read_text())["turns"][0].values()


def test_a_script_gets_one_answer(deployed: Deployed) -> None:
    asked = ("chat", "--once", HELLO, "--temperature", "0")
    assert deployed.controller.run(*asked).stdout == f"{answer_to(HELLO)}\n"
    piped = deployed.controller.run("chat", "--once", "-", "--temperature", "0", stdin=HELLO)
    assert piped.stdout == f"{answer_to(HELLO)}\n"


def test_a_host_is_measured_under_load(deployed: Deployed) -> None:
    asked = ("bench", "--concurrency", "1,2", "--requests", "4", "--max-tokens", "16")
    measured = deployed.controller.events(*asked)[-1]
    assert [level["concurrency"] for level in measured["levels"]] == [1, 2]
    assert [(level["answered"], level["errors"]) for level in measured["levels"]] == [(4, {})] * 2
