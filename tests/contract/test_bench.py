"""`qwen-deploy bench` and `chat --once` as programs, against a server that speaks the wire."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from qwen_deploy import tunnel
from qwen_deploy.cli import app as cli
from qwen_deploy.cli.output import Output
from qwen_deploy.load import figures
from qwen_deploy.load.request import Connection, Target
from qwen_deploy.load.run import Extent, measure
from tests.chat_server import HELLO, JSON, KEY, MODEL, ChatServer, running_chat_server
from tests.wire import refusing_port

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running_chat_server() as running:
        yield running


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    return path


@contextmanager
def started(*argv: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    options = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, **options}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'service'}"}
    command = [sys.executable, "-m", "qwen_deploy", *argv]
    with subprocess.Popen(command, text=True, env=environment, **options) as process:
        try:
            yield process
        finally:
            process.kill()


Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Exit code, stdout and stderr of a command line, with what a file on stdin brings."""

    def call(*argv: str, stdin: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(Output, "_current", None)
        with TemporaryFile("w+") if stdin is not None else open(os.devnull) as file:
            if stdin is not None:
                file.write(stdin)
                file.seek(0)
            monkeypatch.setattr(sys, "stdin", file)
            code = cli.run(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def target(server: ChatServer) -> Target:
    return Target(server.base_url, MODEL, KEY)


def asking(*questions: str) -> Iterator[dict[str, object]]:
    while True:
        for question in questions:
            yield {"messages": [{"role": "user", "content": question}]}


def load(
    target: Target, concurrency: int, extent: Extent, *questions: str
) -> tuple[figures.Level, Any]:
    round = measure(
        *(target, concurrency, extent, asking(*questions)), tell=lambda _: None, clock=lambda: 0.0
    )
    return figures.level(concurrency, round.samples), round


def test_answers_are_timed_and_errors_counted_by_kind(server: ChatServer) -> None:
    server.retry_after = "0"
    level, round = load(target(server), 4, Extent(20, None), "你好", "429", "event", "cut", "hard")
    assert (level.requests, level.answered, round.is_given_up) == (20, 8, False)
    assert level.errors == {
        "HTTP 429": 4,
        "the answer broke off: out of memory": 4,
        "the connection was lost in the middle of the answer": 4,
    }
    assert server.keys == [f"Bearer {KEY}"] * 20
    samples = [one for one in round.samples if one.error is None]
    assert {(one.tokens, one.pieces) for one in samples} == {(9, 3), (None, 3)}
    assert all(len(one.gaps) < 3 and all(gap > 0 for gap in one.gaps) for one in samples)
    assert all(one.asked_at <= one.first_at <= one.ended_at for one in samples)


def test_a_server_that_only_refuses_is_soon_left_alone(server: ChatServer) -> None:
    server.retry_after = "0"
    level, round = load(target(server), 2, Extent(1000, None), "429")
    assert round.is_given_up
    assert level.errors == {"HTTP 429": level.requests}
    assert 20 <= level.requests <= 22


def test_no_request_begins_after_the_time_is_over(server: ChatServer) -> None:
    level, _ = load(target(server), 2, Extent(None, 0.0), "a")
    assert (level.requests, server.requests) == (0, [])


def test_a_socket_reaches_what_a_port_does(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.create_server(str(path), family=socket.AF_UNIX) as listener:
        threading.Thread(target=_pass_on, args=(listener, server.server_address[1])).start()
        tunneled = Target("http://localhost/v1", MODEL, KEY, path)
        with closing(Connection(tunneled)) as connection:
            sample = connection.ask(next(asking("你好")))
    assert (sample.error, sample.tokens) == (None, 9)
    gone = Connection(Target("http://localhost/v1", MODEL, KEY, tmp_path / "gone"))
    assert gone.ask({}).error == "no connection"
    refused = Connection(Target(f"http://127.0.0.1:{refusing_port()}/v1", MODEL, KEY))
    assert refused.ask({}).error == "no connection"


def _pass_on(listener: socket.socket, port: int) -> None:
    client, _ = listener.accept()
    tunnel.join(client, socket.create_connection(("127.0.0.1", port)))


def test_bench_prints_a_table_tells_its_story_and_draws(
    server: ChatServer, program: Program, key_file: Path
) -> None:
    argv = ["bench", "--url", server.base_url, "--api-key-file", str(key_file)]
    code, out, err = program(*argv, "--concurrency", "1,3", "--requests", "6", "--plot")
    assert code == 0, err
    header, one, three, _, *drawn = out.splitlines()
    assert header.startswith("AT A TIME  REQUESTS  REQUESTS/S  TOKENS/S  FIRST TOKEN MS")
    assert one.split()[:2] == ["1", "6"] and three.split()[:2] == ["3", "6"]
    assert one.endswith(" -")
    said = err.splitlines()
    assert said[0] == f"asking {MODEL} at {server.base_url}"
    assert said[1].startswith("mix: 3 of 4 questions short")
    assert said[2].startswith("1 at a time: 6 of 6 answered in ")
    assert [line for line in drawn if line.endswith("-> (at a time)")]
    request = server.requests[-1]
    assert (request["model"], request["max_tokens"], request["temperature"]) == (MODEL, 128, 0)
    assert server.keys == [f"Bearer {KEY}"] * 13


def test_bench_in_json_is_one_object(server: ChatServer, program: Program) -> None:
    argv = ["bench", "--url", server.base_url, "--output", "json", "--model", "m"]
    code, out, err = program(*argv, "--concurrency", "2", "--requests", "3", "--seed", "5")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["schema"], told["event"], told["model"], told["seed"]) == (1, "bench", "m", 5)
    assert (told["way"], told["is_whole"]) == (server.base_url, True)
    (level,) = told["levels"]
    assert (level["concurrency"], level["requests"], level["answered"]) == (2, 3, 3)
    assert set(level["first_token"]) == {"p50", "p95", "p99"}


def test_ctrl_c_shows_what_was_measured_so_far(server: ChatServer) -> None:
    server.holds_after = 4
    argv = ["bench", "--url", server.base_url, "--output", "json"]
    with started(*argv, "--concurrency", "1,2", "--requests", "3") as process:
        assert server.waiting.wait(30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    measured, error = map(json.loads, out.splitlines())
    assert process.returncode == 130
    assert [level["answered"] for level in measured["levels"]] == [3]
    assert (measured["is_whole"], error["event"]) == (False, "error")
    assert "interrupted at 2 at a time" in err


@pytest.mark.parametrize(
    ("options", "code", "error"),
    [
        (["--requests", "0"], 2, "error: invalid value for '--requests'"),
        (["--direct"], 2, "error: --direct goes with --host; --url is direct already"),
        (["--host", "a"], 2, "error: --host and --url name two servers: give one of them"),
        (["--concurrency", "x"], 2, "error: --concurrency x: should be numbers from 1 to 1024"),
        (["--api-key-file", "/no/key"], 2, "error: --api-key-file /no/key: cannot be read"),
    ],
)
def test_wrong_options_are_told_before_anything_is_asked(
    server: ChatServer, program: Program, options: list[str], code: int, error: str
) -> None:
    answered, out, err = program("bench", "--url", server.base_url, *options)
    assert (answered, out, err.startswith(error)) == (code, "", True), err
    assert server.requests == []


@pytest.mark.parametrize(
    ("page", "code", "error"),
    [
        ((401, JSON, "{}"), 2, "refused the API key"),
        ((503, JSON, '{"error": {"message": "loading"}}'), 1, "answered 503: loading"),
        ((200, JSON, '{"data": []}'), 2, "names no model"),
        ((200, "text/html", "<html>"), 2, "names no model"),
    ],
)
def test_a_server_that_names_no_model_is_an_error(
    server: ChatServer, program: Program, page: tuple[int, str, str], code: int, error: str
) -> None:
    server.pages["/v1/models"] = page
    answered, out, err = program("bench", "--url", server.base_url)
    assert (answered, out) == (code, "")
    assert err.startswith(f"error: `{server.base_url}/models` {error}")


def test_once_takes_its_prompt_from_the_argument_a_pipe_or_both(
    server: ChatServer, program: Program
) -> None:
    argv = ["chat", "--url", server.base_url, "--once"]
    assert program(*argv, "你好") == (0, "".join(HELLO) + "\n", "")
    assert program(*argv, "-", stdin="from a pipe\n") == (0, "<from a pipe>\n", "")
    assert program(*argv, "Sum up:", stdin="a\nb\n") == (0, "<Sum up:\n\na\nb>\n", "")
    assert program(*argv, "alone", stdin="")[:2] == (0, "<alone>\n")
    for prompt, stdin in (("", None), ("-", "\n")):
        code, out, err = program(*argv, prompt, stdin=stdin)
        assert (code, out, err.splitlines()[0]) == (2, "", "error: the prompt is empty")


def test_once_reads_a_real_pipe(server: ChatServer) -> None:
    argv = ["chat", "--url", server.base_url, "--once", "Sum up:"]
    with started(*argv, stdin=subprocess.PIPE) as process:
        assert process.communicate("a\nb\n", timeout=30) == ("<Sum up:\n\na\nb>\n", "")
        assert process.returncode == 0


def test_once_sends_what_its_options_say(server: ChatServer, program: Program) -> None:
    argv = ["chat", "--url", server.base_url, "--once", "a", "--system", "S", "--seed", "4"]
    more = ["--temperature", "0", "--max-tokens", "7", "--no-think", "--output", "json"]
    code, out, _ = program(*argv, *more)
    assert (code, json.loads(out)["answer"]) == (0, "<a>")
    (request,) = server.requests
    assert request["messages"][0] == {"role": "system", "content": "S"}
    assert (request["seed"], request["temperature"], request["max_tokens"]) == (4, 0, 7)
    assert request["chat_template_kwargs"] == {"enable_thinking": False}
    for wrong in (["--temperature", "3"], ["--seed", str(2**64)], ["--max-tokens", "0"]):
        assert program("chat", "--url", server.base_url, "--once", "a", *wrong)[0] == 2
    assert program("chat", "--url", server.base_url, "--output", "json")[0] == 2
    assert len(server.requests) == 1


def test_a_reader_that_has_enough_ends_the_answer_without_a_traceback(server: ChatServer) -> None:
    with started("chat", "--url", server.base_url, "--once", "endless") as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(4) == "more"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 1
    assert server.left.wait(10)
