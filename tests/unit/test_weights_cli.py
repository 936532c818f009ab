"""What the commands about weights print and start, with hosts that only tell what lies on them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy import agent, remote, weights
from qwen_deploy.cli import pull
from qwen_deploy.cli.output import Mode, Output
from qwen_deploy.errors import Interrupted, Refused, Unreachable
from qwen_deploy.inventory import parse_host
from qwen_deploy.sources import HubUnreachable
from tests.fakes import FakeHost, FakeSession, wanted_of
from tests.model_folder import make_model
from tests.program import Printed, Program, running

NOWHERE = "http://127.0.0.1:9"
DEFAULT_NAME = "Qwen/Qwen2.5-7B-Instruct"
MODEL: dict[str, Any] = {
    "model": "Qwen/Tiny",
    "revision": "w-0123456789abcdef",
    "directory": "/var/lib/qwen-deploy/models/Qwen--Tiny/w-0123456789abcdef",
    "bytes": 2_000_000,
    "is_there": True,
    "is_whole": True,
    "damaged": None,
    "verified_at": "2026-11-22T16:00:00Z",
    "origin": {"source": "modelscope", "requested": None, "commit": None},
    "proof": "hub",
    "used_by": [],
}
UNFINISHED = {
    **{name: MODEL[name] for name in ("model", "revision", "origin")},
    "bytes_done": 16_000_000,
    "bytes_total": 50_300_000,
}
FETCHING: dict[str, Any] = {
    "phase": "fetching",
    "model": "Qwen/Tiny",
    "revision": "w-0123456789abcdef",
    "bytes_done": 500_000,
    "bytes_total": 2_000_000,
    "rate": 0,
    "eta_seconds": None,
    "source": "",
    "sources": [],
    "warnings": [],
}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    fake = FakeHost(wanted_of(), parse_host("root@gpu-1"))
    monkeypatch.setattr(remote, "connect", lambda host, settings: FakeSession(fake))
    monkeypatch.setattr(weights, "POLL_SECONDS", 0.01)
    return fake


@pytest.fixture
def program(
    tmp_path: Path,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Program:
    """Of somebody who reaches no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, NOWHERE)

    call = running(monkeypatch, capsys, "weights")
    return lambda *argv: call(*argv, "--host", "root@gpu-1")


def rows(printed: Printed) -> list[list[str]]:
    return [line.split() for line in printed.out.splitlines()[1:]]


def test_what_a_reboot_left_of_a_transfer_is_told_with_the_way_on(
    program: Program, host: FakeHost
) -> None:
    host.listing = {"unfinished": [UNFINISHED], "partial_bytes": 16_000_000}
    told = program("status")
    assert rows(told)[0][:5] == ["gpu-1", "unfinished", *list(UNFINISHED.values())[:2], "32%"]
    way = "qwen-deploy weights pull --host root@gpu-1 --model Qwen/Tiny\n"
    kept = f"16.0 MB of 50.3 MB of Qwen/Tiny {MODEL['revision']} are kept, to go on: {way}"
    assert told.err == f"gpu-1  weights   {kept}"
    assert f"gpu-1  partial   {kept}" in program("list").err
    (seen,) = program("status", "--output", "json").objects
    assert (seen["status"], seen["unfinished"]) == ({}, [UNFINISHED])


def test_a_transfer_that_waits_says_for_what(program: Program, host: FakeHost) -> None:
    source = {"name": "the operator's machine", "state": "paused", "error": "connection refused"}
    host.transfer = {**FETCHING, "sources": [source]}
    assert program("status").err == (
        "gpu-1  weights   nothing comes: the operator's machine: connection refused; "
        "it goes on with the same `weights pull`, where these weights lie\n"
    )
    host.transfer = {**FETCHING, "sources": [{**source, "state": "reading"}]}
    assert program("status").err == ""


def test_what_is_wrong_with_a_model_is_listed_with_the_way_out(
    program: Program, host: FakeHost
) -> None:
    gone = {**MODEL, "is_there": False, "is_whole": False, "used_by": ["r-1"], "proof": None}
    host.listing = {
        "models": [MODEL, {**MODEL, "damaged": []}, {**MODEL, "is_whole": False}, gone],
        "wheels_bytes": 249_400_000,
    }
    printed = program("list")
    assert [row[5] for row in rows(printed)] == ["hub", "damaged", "incomplete", "missing"]
    assert printed.err.splitlines()[-2:] == [
        f"gpu-1  weights   Qwen/Tiny {MODEL['revision']} is missing, and r-1 needs it: "
        "qwen-deploy weights pull --host root@gpu-1 --model Qwen/Tiny",
        "gpu-1  wheels    249.4 MB of Python packages from a bundle",
    ]


def test_weights_that_a_release_needs_and_nobody_has_fail_the_proof(
    program: Program, host: FakeHost
) -> None:
    host.listing = {"models": [{**MODEL, "is_there": False, "used_by": ["r-1"]}]}
    printed = program("verify")
    assert printed.code == 5
    assert rows(printed) == [["gpu-1", "Qwen/Tiny", MODEL["revision"], "2.0", "MB", "missing"]]
    assert f"{MODEL['directory']}: is gone, and r-1 needs it\n" in printed.err


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "as proven"),
        ({"quick": True}, "names and sizes as recorded"),
        ({"proof": "none"}, "as brought, proven by no hub"),
    ],
)
def test_a_verdict_says_what_was_looked_at(
    program: Program,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, Any],
    said: str,
) -> None:
    verdict = {**MODEL, "ok": True, "quick": False, "problems": [], **told}
    monkeypatch.setattr(agent, "verify", lambda session, *, quick: (verdict,))
    assert program("verify").out.rstrip().endswith(f"  {said}")


def test_what_nobody_has_named_or_proven_is_told_so(
    program: Program, host: FakeHost, tmp_path: Path
) -> None:
    make_model(tmp_path / "model")
    host.transfer = {**FETCHING, "phase": "done", "bytes_done": 2_000_000, "bytes_fetched": 1}
    printed = program("pull", "--weights", "./model")
    filed = f"nobody has named it, so that it is filed as {DEFAULT_NAME}: name it with --model"
    assert f"weights: {filed}\n" in printed.err
    assert "2.0 MB on the host, complete, not proven by any hub's checksums\n" in printed.err
    assert rows(printed)[0][:3] == ["gpu-1", "changed", DEFAULT_NAME]
    printed = program("pull", "--weights", "./model", "--output", "json")
    planned = next(one for one in printed.objects if one["event"] == "weights_plan")
    assert (planned["proof"], planned["from"]) == ("none", "this machine")
    assert filed in planned["notes"]
    assert printed.objects[-1]["proof"] == "none"
    named = program("pull", "--weights", "./model", "--model", "Qwen/Own")
    assert "filed as" not in named.err


def test_a_name_of_the_configuration_is_one(
    program: Program, host: FakeHost, tmp_path: Path
) -> None:
    make_model(tmp_path / "model")
    (tmp_path / "qwen-deploy.yml").write_text("model: {source: ./model, name: Qwen/Own}\n")
    host.transfer = {**FETCHING, "phase": "done", "bytes_done": 2_000_000, "bytes_fetched": 1}
    assert "filed as" not in program("pull").err


def test_who_leaves_a_transfer_that_reads_from_here_is_told_that_it_waits(
    program: Program, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "model")
    host.transfer = FETCHING
    presses(monkeypatch, after="start weights", of=host)
    printed = program("pull", "--weights", "./model")
    assert printed.code == 130
    assert (
        "gpu-1 reads from this machine, and waits for it: qwen-deploy weights pull" in printed.err
    )


@pytest.mark.parametrize("after", ["", "facts"])
def test_an_interruption_before_the_start_starts_nothing(
    program: Program,
    host: FakeHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: str,
) -> None:
    make_model(tmp_path / "model")
    presses(monkeypatch, after=after, of=host)
    printed = program("pull", "--weights", "./model")
    assert printed.code == 130
    assert "interrupted before anything was started" in printed.err
    assert "start weights" not in host.story


def presses(monkeypatch: pytest.MonkeyPatch, *, after: str, of: FakeHost) -> None:
    """Ctrl-C once the host was asked that."""
    from contextlib import nullcontext

    pressed = threading.Event()
    if not after:
        pressed.set()
    note = FakeHost.note

    def noted(host: FakeHost, what: str) -> None:
        note(host, what)
        if what == after:
            pressed.set()

    monkeypatch.setattr(FakeHost, "note", noted)
    monkeypatch.setattr(pull, "interruptible", lambda out: nullcontext(pressed.is_set))


def test_a_transfer_that_is_joined_says_how_to_change_it(
    program: Program, host: FakeHost, tmp_path: Path
) -> None:
    make_model(tmp_path / "model")
    host.is_receiving = True
    host.transfer = {**FETCHING, "phase": "done", "bytes_done": 2_000_000, "bytes_fetched": 1}
    told = program("pull", "--weights", "./model", "--limit-rate", "8M").err
    assert "it reads from the sources of this command now, but within its own limits" in told
    assert "`qwen-deploy weights cancel --host root@gpu-1`, then this command again" in told


@pytest.mark.parametrize("rate", ["20", "20Q", "0", "999"])
def test_a_rate_that_nobody_means_is_told_once(program: Program, rate: str) -> None:
    printed = program("pull", "--limit-rate", rate)
    assert printed.code == 2
    told = f"error: --limit-rate {rate}: should be bytes a second, at least 1k, like 500k, 20M"
    assert printed.err.startswith(told)
    assert printed.err.count("should be") == 1


def test_nothing_to_remove_is_said(program: Program, host: FakeHost, monkeypatch: Any) -> None:
    monkeypatch.setattr(agent, "prune", lambda session, *, dry_run: {"removed": [], "bytes": 0})
    assert program("prune").err == "nothing to remove\n"


def test_a_path_is_no_misspelled_hub(program: Program) -> None:
    assert "did you mean `modelscope`?" in program("pull", "--weights", "modelscop").err
    assert "did you mean" not in program("pull", "--weights", "./modelscope").err


def test_a_hub_that_does_not_answer_is_no_mistyped_command(program: Program) -> None:
    assert program("pull", "--model", "Qwen/Tiny").code == 4


def test_a_host_that_goes_down_is_unreachable(
    program: Program, host: FakeHost, tmp_path: Path
) -> None:
    make_model(tmp_path / "model")
    host.is_going_down = True
    printed = program("pull", "--weights", "./model")
    assert printed.code == 4
    assert "`gpu-1` is going down" in printed.err


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "RETRY_SECONDS", 0.0)


def lost(bytes_reached: int) -> pull.Lost:
    error = pull.Lost("gone", host="gpu-1")
    error.bytes_reached = bytes_reached
    return error


@pytest.mark.usefixtures("patience")
def test_a_lost_host_is_waited_for_whatever_hides_it_meanwhile() -> None:
    answers = iter([lost(1), Unreachable("no"), HubUnreachable("no"), Unreachable("no"), 0])
    assert pull.patiently(lambda: answer(next(answers)), Output(Mode.QUIET), lambda: False) == 0


def answer(one: object) -> int:
    if isinstance(one, Exception):
        raise one
    assert isinstance(one, int)
    return one


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("error", [Refused("no"), Interrupted("no")])
def test_what_no_waiting_helps_ends_it(error: Exception) -> None:
    answers = iter([lost(1), error])
    with pytest.raises(type(error)):
        pull.patiently(lambda: answer(next(answers)), Output(Mode.QUIET), lambda: False)


@pytest.mark.usefixtures("patience")
def test_a_host_that_gets_no_further_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "PATIENCE_SECONDS", 0.0)
    answers = iter([lost(1), lost(2), lost(2), 0])
    with pytest.raises(pull.Lost) as given_up:
        pull.patiently(lambda: answer(next(answers)), Output(Mode.QUIET), lambda: False)
    assert given_up.value.bytes_reached == 2
    assert list(answers) == [0]


def test_a_host_whose_transfer_was_stopped_by_nobody_is_lost(
    program: Program, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on its way down: systemd ends it politely, and the status says so."""
    make_model(tmp_path / "model")
    stopped = {"kind": "stopped", "message": "stopped", "exit_code": 130, "hint": None}
    host.transfer = {**FETCHING, "phase": "failed", "error": stopped}
    done = {**FETCHING, "phase": "done", "bytes_done": 2_000_000, "bytes_fetched": 1}

    def come_back(_: float) -> None:
        host.transfer = done

    monkeypatch.setattr(time, "sleep", come_back)
    printed = program("pull", "--weights", "./model")
    assert printed.code == 0
    assert "the transfer was stopped, as by a restart of the host; coming back" in printed.err
    assert host.story.count("start weights") == 2


def test_ctrl_c_before_anything_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    program = "from qwen_deploy.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
