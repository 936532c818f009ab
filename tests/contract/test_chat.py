"""The chat against an HTTP server that speaks the wire of our service, and through a real pty."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pexpect
import pytest

from qwen_deploy.chat.client import Endpoint
from qwen_deploy.chat.repl import once, run

pytestmark = pytest.mark.contract

MODEL = "Qwen/Qwen-Tiny"
HELLO = ("你好！", "我是\u2028通义", "千问。")
KEY = "sk-secret"
PROGRAM = (
    "import sys; from qwen_deploy.chat.client import Endpoint;"
    "from qwen_deploy.chat.repl import run;"
    f"sys.exit(run(Endpoint(sys.argv[1], {MODEL!r}, {KEY!r}),"
    " stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr))"
)
REFUSALS: dict[str, tuple[int, dict[str, str], object]] = {
    "400": (400, {}, {"error": {"message": "top_k is not for you", "param": "top_k"}}),
    "long": (400, {}, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
    "401": (401, {}, {"error": {"message": "unknown key", "type": "invalid_request_error"}}),
    "404": (404, {}, {"error": {"message": "no such model"}}),
    "429": (429, {"Retry-After": "3"}, {"error": {"message": "queue is full"}}),
    "500": (500, {}, "<h1>\nOops\n</h1>"),
    "503": (503, {"Retry-After": "7"}, {"error": {"message": "loading weights"}}),
    "ours": (503, {}, {"error": {"message": "the service is not ready: stopping"}}),
}


def chunk(text: str = "", reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


class Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers.get("Authorization"))
        question = request["messages"][-1]["content"]
        if question in REFUSALS:
            return self._refuse(*REFUSALS[question])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        if question == "reset":
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        self._answer(question)

    def _refuse(self, status: int, headers: dict[str, str], body: object) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, question: str) -> None:
        match question:
            case "silent":
                self._wait_until_left()
            case "slow":
                self._send(chunk("一二三"))
                self._wait_until_left()
            case "cut" | "reset":
                self._send(chunk("half"))
            case "event":
                self._send(chunk("half"), {"error": {"message": "out of memory"}})
            case "limit":
                self._send(chunk("much"), chunk(reason="length"), "[DONE]")
            case "nothing":
                self._send(chunk(reason="stop"), "[DONE]")
            case "你好":
                self._send(*map(chunk, HELLO), chunk(reason="stop"))
                self._send({"choices": [], "usage": {"completion_tokens": 9}}, "[DONE]")
            case _:
                self._send(chunk(f"<{question}>"), chunk(reason="stop"), "[DONE]")

    def _send(self, *events: object) -> None:
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            self.wfile.write(f"data: {data}\n\n".encode())

    def _wait_until_left(self) -> None:
        self.server.waiting.set()
        self.connection.recv(1)
        self.server.left.set()


class FakeServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.waiting = threading.Event()
        self.left = threading.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@dataclass
class Streams:
    stdout: io.StringIO = field(default_factory=io.StringIO)
    stderr: io.StringIO = field(default_factory=io.StringIO)


def converse(
    server: FakeServer, *lines: str | bytes, seed: int | None = None
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr for lines that come from no terminal."""
    endpoint = Endpoint(server.base_url, MODEL, KEY)
    raw = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    streams = Streams()
    code = run(
        endpoint,
        stdin=io.TextIOWrapper(io.BytesIO(raw)),
        stdout=streams.stdout,
        stderr=streams.stderr,
        seed=seed,
    )
    return code, streams.stdout.getvalue(), streams.stderr.getvalue()


def contents(request: dict[str, Any]) -> list[str]:
    return [message["content"] for message in request["messages"]]


def test_piped_lines_are_answered_on_stdout_with_the_history_sent_along(server: FakeServer) -> None:
    assert converse(server, "你好", "and?") == (0, "".join(HELLO) + "\n<and?>\n", "")
    assert [contents(request) for request in server.requests] == [
        ["你好"],
        ["你好", "".join(HELLO), "and?"],
    ]
    assert server.keys == [f"Bearer {KEY}"] * 2
    assert all(request["model"] == MODEL and request["stream"] for request in server.requests)


def test_seed_settings_and_system_prompt_are_really_sent(server: FakeServer) -> None:
    code, stdout, _ = converse(
        server,
        "a",
        ":seed 42",
        ":conf temperature=0.5 top_k=3",
        ':conf stop=["x"]',
        ":system S",
        "b",
        ":reset-conf",
        ":seed default",
        ":system default",
        ":clh",
        "c",
    )
    assert (code, stdout) == (0, "<a>\n<b>\n<c>\n")
    plain = {"model", "messages", "stream", "stream_options"}
    first, second, third = server.requests
    assert set(first) == set(third) == plain
    assert contents(second) == ["S", "a", "<a>", "b"]
    assert {key: second[key] for key in second.keys() - plain} == {
        "seed": 42,
        "temperature": 0.5,
        "top_k": 3,
        "stop": ["x"],
    }
    assert contents(third) == ["c"]


def test_the_seed_of_the_start_goes_with_every_question(server: FakeServer) -> None:
    converse(server, "a", "b", ":retry", seed=7)
    assert [request["seed"] for request in server.requests] == [7, 7, 7]
    assert contents(server.requests[2]) == ["a", "<a>", "b"]


def test_a_wrong_command_is_not_sent_and_fails_the_script(server: FakeServer) -> None:
    code, stdout, stderr = converse(server, ":hlep", "::hlep", "")
    assert (code, stdout) == (1, "<:hlep>\n")
    assert "error: unknown command `:hlep`\nhint: `:help` is the nearest command" in stderr
    assert len(server.requests) == 1


def test_bytes_that_are_not_utf8_are_not_sent_and_the_next_line_is_read(server: FakeServer) -> None:
    assert converse(server, b"\xff\xfe", "a") == (
        1,
        "<a>\n",
        "error: the line is not UTF-8, so it was not sent\n",
    )


def test_quit_ends_before_the_rest_of_the_input(server: FakeServer) -> None:
    assert converse(server, "a", ":q", "b")[:2] == (0, "<a>\n")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (
            "400",
            "error: the service refused the request: top_k is not for you\n"
            "hint: `:conf top_k=default` takes the setting back\n",
        ),
        (
            "long",
            "error: the service refused the request: too long\n"
            "hint: `:clear-history` makes room, `:undo` takes the last question back\n",
        ),
        ("401", "error: the service refused the API key: unknown key\n"),
        ("404", "error: the service has no `Qwen/Qwen-Tiny` at `URL`: no such model\n"),
        (
            "429",
            "error: the service is busy: queue is full\n"
            "hint: `:retry` asks again; wait 3 s before it\n",
        ),
        (
            "500",
            "error: the service answered 500: <h1> Oops </h1>\nhint: `:retry` asks again\n",
        ),
        (
            "503",
            "error: the service is not ready: loading weights\n"
            "hint: `:retry` asks again; wait 7 s before it\n",
        ),
        ("ours", "error: the service is not ready: stopping\nhint: `:retry` asks again\n"),
        ("nothing", "(the answer is empty)\n"),
    ],
)
def test_a_refusal_is_one_line_and_the_conversation_goes_on(
    server: FakeServer, question: str, expected: str
) -> None:
    code, stdout, stderr = converse(server, "a", question, "b")
    assert stdout == "<a>\n<b>\n"
    assert stderr == expected.replace("URL", f"{server.base_url}/chat/completions")
    assert code == (0 if question == "nothing" else 1)
    assert contents(server.requests[2]) == ["a", "<a>", "b"]


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ("cut", "error: the connection was lost in the middle of the answer"),
        ("reset", "error: the connection was lost: peer closed connection"),
        ("event", "error: the answer broke off: out of memory"),
    ],
)
def test_an_answer_that_breaks_off_keeps_what_came(
    server: FakeServer, question: str, error: str
) -> None:
    code, stdout, stderr = converse(server, question, ":history", "b")
    assert (code, stdout) == (1, "half\n<b>\n")
    assert stderr.startswith(error)
    assert "Qwen[1]: half (failed)" in stderr
    assert contents(server.requests[1]) == [question, "half", "b"]


def test_a_failed_retry_keeps_the_earlier_answer(server: FakeServer) -> None:
    code, _, stderr = converse(server, "a", "503", ":retry", ":undo", ":retry", "b")
    assert code == 1
    assert "the history is back to 1 turn\n" in stderr
    assert [contents(request) for request in server.requests[3:]] == [["a"], ["a", "<a>", "b"]]


def test_an_answer_cut_at_max_tokens_says_so(server: FakeServer) -> None:
    assert converse(server, "limit") == (0, "much\n", "(stopped at max_tokens)\n")


def test_a_service_that_is_gone_or_silent_is_an_error(server: FakeServer) -> None:
    streams = Streams()
    silent = Endpoint(server.base_url, MODEL, silence_seconds=0.05)
    assert once(silent, "silent", stdout=streams.stdout, stderr=streams.stderr) == 1
    assert streams.stderr.getvalue() == "error: nothing came from the service for 0.05 seconds\n"
    assert server.keys == [None]

    server.socket.close()
    streams = Streams()
    gone = Endpoint(server.base_url, MODEL)
    assert once(gone, "a", stdout=streams.stdout, stderr=streams.stderr) == 1
    assert streams.stderr.getvalue().startswith(f"error: `{server.base_url}` does not answer: ")


def test_the_proxies_of_the_environment_are_not_used(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert converse(server, "a") == (0, "<a>\n", "")


def test_once_prints_one_answer_and_nothing_else(server: FakeServer) -> None:
    streams = Streams()
    endpoint = Endpoint(server.base_url, MODEL, KEY)
    code = once(endpoint, "你好", stdout=streams.stdout, stderr=streams.stderr, seed=5)
    assert (code, streams.stdout.getvalue(), streams.stderr.getvalue()) == (
        0,
        "".join(HELLO) + "\n",
        "",
    )
    assert server.requests[0]["seed"] == 5
    assert once(endpoint, ":q", stdout=streams.stdout, stderr=streams.stderr) == 0
    assert once(endpoint, " \n", stdout=streams.stdout, stderr=streams.stderr) == 2
    assert len(server.requests) == 2


def test_ctrl_c_stops_a_script_with_130_and_closes_the_connection(server: FakeServer) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.base_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("slow\n你好\n".encode())
        process.stdin.flush()
        assert process.stdout.read(9).decode() == "一二三"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stdout.read() == b"\n"
        assert process.stderr.read() == b"(interrupted; what came is kept)\n"
    assert server.left.wait(10)


# The terminal library moves the cursor over the space that follows.
PROMPT = "User>"
Spawn = Callable[..., "pexpect.spawn[str]"]


@pytest.fixture
def spawn(server: FakeServer) -> Iterator[Spawn]:
    """The chat in a terminal of its own, which answers no question about its cursor."""
    children = []

    def start(**environ: str) -> pexpect.spawn[str]:
        child = pexpect.spawn(
            sys.executable,
            ["-c", PROGRAM, server.base_url],
            env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | environ,
            encoding="utf-8",
            timeout=10,
            dimensions=(24, 80),
        )
        child.delaybeforesend = None
        children.append(child)
        child.expect_exact(PROMPT)
        return child

    yield start
    for child in children:
        child.close(force=True)


def ask(child: pexpect.spawn[str], line: str, *expected: str) -> None:
    child.send(f"{line}\r")
    for text in expected:
        child.expect_exact(text)


def test_a_conversation_in_a_terminal(server: FakeServer, spawn: Spawn) -> None:
    child = spawn(NO_COLOR="")
    assert f"与 {MODEL} 对话" in child.before
    ask(child, "你好", "".join(HELLO), "\x1b[2m")
    child.expect(r"\d+\.\d\d s to the first token, [\d.]+ tokens/s, 9 tokens\x1b\[0m")
    ask(child, ":conf top_p=0.5", "top_p               0.5", PROMPT)
    ask(child, ":seed 11", "random seed: 11", PROMPT)
    ask(child, ":hlep", "error: unknown command `:hlep`", "hint: `:help`", PROMPT)
    ask(child, "", "the line is empty", PROMPT)
    ask(child, "slow", "一二三")
    child.sendintr()
    child.expect_exact("(interrupted; what came is kept)")
    child.expect_exact(PROMPT)
    assert server.left.wait(10)
    ask(child, ":history", " History (2) ", "User[1]: 你好", "Qwen[2]: 一二三 (interrupted)")
    child.expect_exact(PROMPT)
    ask(child, ":clear", "\x1b[2J", f"Chat with {MODEL}", PROMPT)
    ask(child, "503", "error: the service is not ready", "hint: `:retry` asks again", PROMPT)
    ask(child, "more", "<more>", PROMPT)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, "Traceback" in child.before) == (0, False)
    last = server.requests[-1]
    assert (last["top_p"], last["seed"]) == (0.5, 11)
    assert contents(last) == ["你好", "".join(HELLO), "slow", "一二三", "more"]


def test_ctrl_c_clears_the_line_and_twice_leaves(server: FakeServer, spawn: Spawn) -> None:
    child = spawn()
    child.send("half-a-question")
    child.expect_exact("half-a-question")
    child.send("\x03")
    child.expect_exact("Ctrl-C again, or Ctrl-D, leaves")
    child.expect_exact(PROMPT)
    child.send("\x03")
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, "Traceback" in child.before) == (0, False)
    assert server.requests == []


def test_ctrl_c_before_the_first_word_keeps_the_question_for_a_retry(
    server: FakeServer, spawn: Spawn
) -> None:
    child = spawn()
    ask(child, "silent")
    assert server.waiting.wait(10)
    child.sendintr()
    child.expect_exact("(interrupted before the first word)")
    child.expect_exact(PROMPT)
    server.waiting.clear()
    ask(child, ":retry")
    assert server.waiting.wait(10)
    assert contents(server.requests[-1]) == ["silent"]


def test_bytes_that_are_not_utf8_on_a_terminal_are_not_sent(
    server: FakeServer, spawn: Spawn
) -> None:
    child = spawn()
    os.write(child.child_fd, b"a\xffb\r")
    child.expect_exact("error: the line is not UTF-8")
    child.expect_exact(PROMPT)
    ask(child, "b", "<b>", PROMPT)
    assert len(server.requests) == 1


def test_tab_completes_a_command_and_arrow_up_brings_the_last_line(
    server: FakeServer, spawn: Spawn
) -> None:
    child = spawn(NO_COLOR="1")
    ask(child, ":reset\t", "temperature         default", PROMPT)
    ask(child, "again", "<again>")
    child.expect(r"\n\d+\.\d\d s to the first token\r\n")
    child.expect_exact(PROMPT)
    ask(child, "\x1b[A", "<again>", PROMPT)
    assert contents(server.requests[-1]) == ["again", "<again>", "again"]
