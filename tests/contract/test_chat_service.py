"""The terminal's commands against the real service with the fixture model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.fixture_model.dialogues import answer_to
from tests.running_service import MODEL, RunningService

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]
POEM = "背诵李白的《静夜思》。"
CODE = "Write a Python function that adds two numbers."
SECONDS = 60


@pytest.fixture
def argv(service: RunningService, api_key: str, tmp_path: Path) -> list[str]:
    key_file = tmp_path / "key"
    key_file.write_text(api_key)
    return ["--url", f"{service.url}/v1", "--api-key-file", str(key_file)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "LANG": "zh_CN.UTF-8",
        "LC_ALL": "",
        "NO_COLOR": "1",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'service'}",
        "TERM": "xterm",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


@pytest.fixture
def chat(argv: list[str], environment: dict[str, str]) -> Iterator[pexpect.spawn[str]]:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "qwen_deploy", "chat", *argv, "--temperature", "0"],
        env=environment,
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(24, 100),
    )
    child.delaybeforesend = None
    child.expect_exact("User>")
    yield child
    child.close(force=True)


def test_a_conversation_with_the_real_service(
    chat: pexpect.spawn[str], environment: dict[str, str], tmp_path: Path
) -> None:
    assert f"与 {MODEL} 对话" in chat.before
    chat.send(f"{POEM}\r")
    for line in answer_to(POEM).splitlines():
        chat.expect_exact(line)
    chat.expect(r"to the first token, (?:[\d.]+ tokens/s, )?\d+ tokens")
    saved = tmp_path / "chat.json"
    for line, expected in (
        (":clear-history", "cleared 1 turn"),
        (CODE, "return a + b"),
        (":regenerate", "return a + b"),
        (":think off", "thinking before the answer: off"),
        (f":save {saved}", "saved 1 turn"),
        (":undo", "the history is back to 1 turn"),
    ):
        chat.send(f"{line}\r")
        chat.expect_exact(expected)
        chat.expect_exact("User>")
    chat.sendeof()
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0
    turns = json.loads(saved.read_text())["turns"]
    assert [(one["question"], one["answer"]) for one in turns] == [(CODE, answer_to(CODE))]
    kept = Path(environment["XDG_STATE_HOME"], "qwen-deploy", "chat-history").read_text()
    assert f"+{POEM}\n" in kept


def test_scripts_get_the_exact_answer_and_its_usage(
    argv: list[str], environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "qwen_deploy", "chat", *argv, "--temperature", "0", "--once"]

    def run(*more: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more],
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS,
        )

    done = run("-", stdin=f"{POEM}\n")
    assert (done.returncode, done.stdout) == (0, f"{answer_to(POEM)}\n"), done.stderr
    told = json.loads(run(CODE, "--output", "json").stdout)
    assert (told["answer"], told["finish_reason"]) == (answer_to(CODE), "stop")
    assert told["usage"]["completion_tokens"] > 10 < told["usage"]["prompt_tokens"]


def test_load_on_the_real_service(argv: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "qwen_deploy", "bench", *argv, "--output", "json"),
            *("--concurrency", "1,4", "--requests", "4", "--max-tokens", "4"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS * 2,
    )
    assert done.returncode == 0, done.stderr
    levels = json.loads(done.stdout)["levels"]
    assert [(one["answered"], one["errors"]) for one in levels] == [(4, {}), (4, {})]
    assert all(0 < one["tokens"] <= 16 and not one["counts_pieces"] for one in levels)
