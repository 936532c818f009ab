"""The chat against an HTTP server that speaks the wire of our service, and through a real pty."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect
import pytest

from qwen_deploy.chat.client import Endpoint
from qwen_deploy.chat.once import once
from qwen_deploy.chat.repl import run
from qwen_deploy.chat.session import Session
from tests.chat_server import HELLO, KEY, MODEL, ChatServer, running_chat_server

pytestmark = pytest.mark.contract

PROGRAM = (
    "import sys, pathlib; from qwen_deploy.chat.client import Endpoint;"
    "from qwen_deploy.chat.repl import run; from qwen_deploy.chat.session import Session;"
    f"sys.exit(run(Endpoint(sys.argv[1], {MODEL!r}, {KEY!r}), Session(),"
    " stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr,"
    " history=pathlib.Path(sys.argv[2]) if sys.argv[2:] else None))"
)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running_chat_server() as running:
        yield running


@dataclass
class Streams:
    stdout: io.StringIO = field(default_factory=io.StringIO)
    stderr: io.StringIO = field(default_factory=io.StringIO)


def converse(
    server: ChatServer, *lines: str | bytes, seed: int | None = None
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr for lines that come from no terminal."""
    endpoint = Endpoint(server.base_url, MODEL, KEY)
    raw = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    streams = Streams()
    code = run(
        endpoint,
        Session(seed=seed),
        stdin=io.TextIOWrapper(io.BytesIO(raw)),
        stdout=streams.stdout,
        stderr=streams.stderr,
    )
    return code, streams.stdout.getvalue(), streams.stderr.getvalue()


def ask_once(endpoint: Endpoint, prompt: str, streams: Streams, **how: Any) -> int:
    session = Session(**{key: value for key, value in how.items() if key != "as_json"})
    return once(
        *(endpoint, prompt, session),
        stdout=streams.stdout,
        stderr=streams.stderr,
        as_json=how.get("as_json", False),
    )


def contents(request: dict[str, Any]) -> list[str]:
    return [message["content"] for message in request["messages"]]


def test_piped_lines_are_answered_on_stdout_with_the_history_sent_along(server: ChatServer) -> None:
    assert converse(server, "你好", "and?") == (0, "".join(HELLO) + "\n<and?>\n", "")
    assert [contents(request) for request in server.requests] == [
        ["你好"],
        ["你好", "".join(HELLO), "and?"],
    ]
    assert server.keys == [f"Bearer {KEY}"] * 2
    assert all(request["model"] == MODEL and request["stream"] for request in server.requests)


def test_seed_settings_and_system_prompt_are_really_sent(server: ChatServer) -> None:
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


def test_a_line_that_ends_with_a_backslash_goes_on_in_the_next(server: ChatServer) -> None:
    assert converse(server, "one\\", "two\\", "three", "four\\\\", "last\\")[0] == 0
    asked = [contents(request)[-1] for request in server.requests]
    assert asked == ["one\ntwo\nthree", "four\\\\", "last\\"]


def test_a_conversation_is_saved_and_gone_on_with_in_another(
    server: ChatServer, tmp_path: Path
) -> None:
    path = tmp_path / "my chat.json"
    first = (":system S", ":seed 3", ":conf top_k=4", ":think off", "a", "cut")
    assert f"saved 2 turns in {path}" in converse(server, *first, f":save {path}")[2]
    code, _, stderr = converse(server, "lost", f":load {path}", "b", ":undo", ":undo", ":undo")
    assert (code, f"loaded 2 turns from {path}" in stderr) == (0, True)
    assert stderr.endswith("the history is back to 0 turns\n")
    last = server.requests[-1]
    assert contents(last) == ["S", "a", "<a>", "cut", "half", "b"]
    assert (last["seed"], last["top_k"]) == (3, 4)
    assert last["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_saved_conversation_is_not_overwritten_unasked(
    server: ChatServer, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    code, _, stderr = converse(server, "a", f":save {path}", "b", f":save {path}")
    assert (code, stderr.splitlines()) == (
        1,
        [
            f"saved 1 turn in {path}",
            f"error: {path}: is there already",
            f"hint: :save! {path}",
        ],
    )
    assert converse(server, f":load {path}", "b", f":save! {path}", "/exit", "c")[0] == 0
    assert f"loaded 2 turns from {path}" in converse(server, f":load {path}")[2]


def test_what_a_model_thinks_stays_out_of_a_pipe_and_out_of_the_next_request(
    server: ChatServer,
) -> None:
    assert converse(server, "hard", "b") == (0, "42\n<b>\n", "")
    assert contents(server.requests[1]) == ["hard", "42", "b"]


def test_the_seed_of_the_start_goes_with_every_question(server: ChatServer) -> None:
    converse(server, "a", "b", ":retry", seed=7)
    assert [request["seed"] for request in server.requests] == [7, 7, 7]
    assert contents(server.requests[2]) == ["a", "<a>", "b"]


def test_a_wrong_command_is_not_sent_and_fails_the_script(server: ChatServer) -> None:
    code, stdout, stderr = converse(server, ":hlep", "::hlep", "")
    assert (code, stdout) == (1, "<:hlep>\n")
    assert "error: unknown command `:hlep`\nhint: `:help` is the nearest command" in stderr
    assert len(server.requests) == 1


def test_bytes_that_are_not_utf8_are_not_sent_and_the_next_line_is_read(server: ChatServer) -> None:
    assert converse(server, b"\xff\xfe", "a") == (
        1,
        "<a>\n",
        "error: the line is not UTF-8, so it was not sent\n",
    )


def test_quit_ends_before_the_rest_of_the_input(server: ChatServer) -> None:
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
    server: ChatServer, question: str, expected: str
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
    server: ChatServer, question: str, error: str
) -> None:
    code, stdout, stderr = converse(server, question, ":history", "b")
    assert (code, stdout) == (1, "half\n<b>\n")
    assert stderr.startswith(error)
    assert "Qwen[1]: half (failed)" in stderr
    assert contents(server.requests[1]) == [question, "half", "b"]


def test_a_failed_retry_keeps_the_earlier_answer(server: ChatServer) -> None:
    code, _, stderr = converse(server, "a", "503", ":retry", ":undo", ":retry", "b")
    assert code == 1
    assert "the history is back to 1 turn\n" in stderr
    assert [contents(request) for request in server.requests[3:]] == [["a"], ["a", "<a>", "b"]]


def test_an_answer_cut_at_max_tokens_says_so(server: ChatServer) -> None:
    assert converse(server, "limit") == (0, "much\n", "(stopped at max_tokens)\n")


def test_a_service_that_is_gone_or_silent_is_an_error(server: ChatServer) -> None:
    streams = Streams()
    silent = Endpoint(server.base_url, MODEL, silence_seconds=0.05)
    assert ask_once(silent, "silent", streams) == 1
    assert streams.stderr.getvalue() == "error: nothing came from the service for 0.05 seconds\n"
    assert server.keys == [None]

    server.socket.close()
    streams = Streams()
    gone = Endpoint(server.base_url, MODEL)
    assert ask_once(gone, "a", streams) == 1
    assert streams.stderr.getvalue().startswith(f"error: `{server.base_url}` does not answer: ")


def test_the_proxies_of_the_environment_are_not_used(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert converse(server, "a") == (0, "<a>\n", "")


def test_once_prints_one_answer_and_nothing_else(server: ChatServer) -> None:
    streams = Streams()
    endpoint = Endpoint(server.base_url, MODEL, KEY)
    code = ask_once(endpoint, "你好", streams, seed=5)
    assert (code, streams.stdout.getvalue(), streams.stderr.getvalue()) == (
        0,
        "".join(HELLO) + "\n",
        "",
    )
    assert server.requests[0]["seed"] == 5
    assert ask_once(endpoint, ":q", streams) == 0
    assert len(server.requests) == 2


def test_one_answer_as_json_is_one_object_whatever_happens(server: ChatServer) -> None:
    endpoint = Endpoint(server.base_url, MODEL, KEY)
    told = []
    for question, code in (("hard", 0), ("你好", 0), ("limit", 0), ("cut", 1), ("429", 1)):
        streams = Streams()
        assert ask_once(endpoint, question, streams, as_json=True) == code
        told.append(json.loads(streams.stdout.getvalue()))
    thought, hello, limited, cut, busy = told
    assert (thought["answer"], thought["reasoning"]) == ("42", "let me see")
    assert (hello["answer"], hello["finish_reason"]) == ("".join(HELLO), "stop")
    assert (hello["model"], hello["usage"]["completion_tokens"]) == (MODEL, 9)
    assert 0 <= hello["seconds"]["first_token"] <= hello["seconds"]["total"]
    assert limited["finish_reason"] == "length"
    assert (cut["answer"], cut["finish_reason"]) == ("half", "failed")
    assert busy["error"] == {
        "message": "the service is busy: queue is full",
        "hint": "ask again in 3 s",
    }


def test_a_script_is_not_told_the_commands_of_the_chat(server: ChatServer) -> None:
    streams = Streams()
    assert ask_once(Endpoint(server.base_url, MODEL, KEY), "500", streams) == 1
    assert streams.stderr.getvalue() == "error: the service answered 500: <h1> Oops </h1>\n"


def test_ctrl_c_stops_a_script_with_130_and_closes_the_connection(server: ChatServer) -> None:
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
def spawn(server: ChatServer) -> Iterator[Spawn]:
    """The chat in a terminal of its own, which answers no question about its cursor."""
    children = []

    def start(
        *, history: Path | None = None, columns: int = 80, **environ: str
    ) -> pexpect.spawn[str]:
        child = pexpect.spawn(
            sys.executable,
            ["-c", PROGRAM, server.base_url, *([str(history)] if history else [])],
            env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | environ,
            encoding="utf-8",
            timeout=60,
            dimensions=(24, columns),
        )
        child.delaybeforesend = None
        children.append(child)
        child.expect_exact(PROMPT)
        return child

    yield start
    for child in children:
        child.close(force=True)


def drawn(written: str) -> list[str]:
    """The lines that a terminal shows in the end, as far as an answer moves its cursor."""
    lines = [""]
    at = 0
    for text in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if text == "\n":
            at += 1
            lines += [""] if at == len(lines) else []
        elif text == "\x1b[1A":
            at -= 1
        elif text == "\x1b[2K":
            lines[at] = ""
        elif not text.startswith(("\x1b", "\r")):
            lines[at] += text
    return [line for line in lines if line.strip()]


def ask(child: pexpect.spawn[str], line: str, *expected: str) -> None:
    child.send(f"{line}\r")
    for text in expected:
        child.expect_exact(text)


def test_a_conversation_in_a_terminal(server: ChatServer, spawn: Spawn) -> None:
    child = spawn(NO_COLOR="")
    assert f"Chat with {MODEL}" in child.before
    ask(child, "你好", "".join(HELLO), "\x1b[2m")
    child.expect(r"\d+\.\d\d s to the first token, (?:[\d.]+ tokens/s, )?9 tokens\x1b\[0m")
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


def test_an_answer_is_drawn_as_markdown_and_can_be_left_as_it_is(
    server: ChatServer, spawn: Spawn
) -> None:
    child = spawn(NO_COLOR="1")
    ask(child, "pretty", "to the first token")
    shown = drawn(child.before)
    shown = shown[shown.index("Heading") :]
    at = shown.index("```python")
    assert shown[at : at + 3] == ["```python", "x = 1", "```"]
    assert [line.strip() for line in shown if "bold" in line or "code" in line] == [
        "• bold",
        "• code",
    ]
    assert shown[shown.index("床前") + 1] == "明月"
    assert not [line for line in shown[: shown.index("明月")] if line.endswith(" ")]
    ask(child, ":markdown off", "left as is", PROMPT)
    ask(child, ":regenerate", "# Heading\r\n\r\n- **bold**", PROMPT)


def test_thinking_is_shown_apart_and_dim(server: ChatServer, spawn: Spawn) -> None:
    child = spawn(NO_COLOR="")
    ask(child, "hard", "\x1b[2m(thinking)\r\nlet me\x1b[0m\x1b[2m see\x1b[0m")
    child.expect_exact("(end of thinking)")
    child.expect_exact("42")
    child.expect_exact(PROMPT)


def test_several_lines_are_one_question(server: ChatServer, spawn: Spawn) -> None:
    child = spawn()
    ask(child, "one\\\rtwo", "to the first token", PROMPT)
    ask(child, "three\x1b\rfour", "to the first token", PROMPT)
    ask(child, "\x1b[200~:five\n\n six\x1b[201~", "error: unknown command", PROMPT)
    ask(child, "\x1b[200~seven\r\n  eight\n\x1b[201~", "to the first token", PROMPT)
    asked = [contents(request)[-1] for request in server.requests]
    assert asked == ["one\ntwo", "three\nfour", "seven\n  eight"]


def test_what_is_typed_during_an_answer_is_the_next_line_and_does_not_disturb(
    server: ChatServer, spawn: Spawn
) -> None:
    child = spawn()
    ask(child, "held", "一二三")
    child.send("typed ahead\r")
    server.released.set()
    child.expect_exact("to the first token")
    assert "typed" not in child.before
    child.expect_exact("<typed ahead>")


def test_lines_come_back_in_the_next_conversation_and_nobody_else_can_read_them(
    server: ChatServer, spawn: Spawn, tmp_path: Path
) -> None:
    path = tmp_path / "state" / "history"
    for keys in ("first\r", "\x1b[A\r"):
        child = spawn(history=path)
        ask(child, keys.rstrip("\r"), "<first>", PROMPT)
        child.sendeof()
        child.expect(pexpect.EOF)
    assert [contents(request) for request in server.requests] == [["first"], ["first"]]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_history_that_cannot_be_kept_is_said_and_the_chat_goes_on(
    server: ChatServer, spawn: Spawn, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    child = spawn(history=tmp_path / "file" / "history")
    assert "questions are not kept for next time" in child.before
    ask(child, "a", "<a>", PROMPT)


def test_a_terminal_that_cannot_be_drawn_on_gets_plain_lines(
    server: ChatServer, spawn: Spawn
) -> None:
    child = spawn(TERM="dumb")
    assert "\x1b" not in child.before
    ask(child, "one\\\rpretty", PROMPT)
    ask(child, "pretty", "- **bold**", PROMPT)
    assert "\x1b" not in child.before
    child.sendintr()
    child.expect_exact("Ctrl-C again, or Ctrl-D, leaves")
    child.expect_exact(PROMPT)
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert contents(server.requests[0]) == ["one\npretty"]


def test_a_narrow_terminal_shows_everything(server: ChatServer, spawn: Spawn) -> None:
    child = spawn(columns=12, NO_COLOR="1")
    ask(child, "pretty", "x = 1", PROMPT)
    ask(child, ":history", " History (1) ", "============", PROMPT)
    ask(child, "b", "<b>", PROMPT)


def test_ctrl_c_clears_the_line_and_twice_leaves(server: ChatServer, spawn: Spawn) -> None:
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
    server: ChatServer, spawn: Spawn
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
    server: ChatServer, spawn: Spawn
) -> None:
    child = spawn()
    os.write(child.child_fd, b"a\xffb\r")
    child.expect_exact("error: the line is not UTF-8")
    child.expect_exact(PROMPT)
    ask(child, "b", "<b>", PROMPT)
    assert len(server.requests) == 1


def test_tab_completes_a_command_and_arrow_up_brings_the_last_line(
    server: ChatServer, spawn: Spawn
) -> None:
    child = spawn(NO_COLOR="1")
    ask(child, ":reset\t", "temperature         default", PROMPT)
    ask(child, "again", "<again>")
    child.expect(r"\n\d+\.\d\d s to the first token\r\n")
    child.expect_exact(PROMPT)
    ask(child, "\x1b[A", "<again>", PROMPT)
    assert contents(server.requests[-1]) == ["again", "<again>", "again"]
