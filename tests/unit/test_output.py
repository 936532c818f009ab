from __future__ import annotations

import io
import json
import sys

import pytest

from qwen_deploy.cli.output import Mode, Output
from qwen_deploy.errors import NeedsAttention, RolloutFailed
from qwen_deploy.events import HostFinished, KeyCreated, StageFinished, StageStarted, TaskDone

FAILURE = RolloutFailed(
    "r-2 on `gpu-1` is not ready: the unit failed (exit-code)",
    host="gpu-1",
    hint="qwen-deploy logs --host gpu-1 -n 200",
    state="gpu-1 was rolled back and serves r-1",
    evidence=("loading", "torch.OutOfMemoryError: 显存不足"),
    origin="journal of qwen.service",
)
FAILURE_TEXT = """\
error: r-2 on `gpu-1` is not ready: the unit failed (exit-code)

    loading
    torch.OutOfMemoryError: 显存不足
    (journal of qwen.service)

gpu-1 was rolled back and serves r-1

hint: qwen-deploy logs --host gpu-1 -n 200
"""
Capture = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, typed: str = "") -> Terminal:
    """Standard error and standard input are a terminal, on which `typed` is typed."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


@pytest.mark.parametrize("mode", Mode)
def test_an_error_is_a_report_on_standard_error_in_every_mode(mode: Mode, capsys: Capture) -> None:
    Output(mode).error(FAILURE)
    assert capsys.readouterr().err == FAILURE_TEXT


def test_an_error_is_also_an_object_in_json(capsys: Capture) -> None:
    Output(Mode.JSON).error(FAILURE)
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "event": "error",
        "message": FAILURE.message,
        "host": "gpu-1",
        "state": FAILURE.state,
        "hint": FAILURE.hint,
        "evidence": list(FAILURE.evidence),
        "origin": FAILURE.origin,
        "exit_code": 1,
    }


def test_an_error_without_surroundings_is_one_line(capsys: Capture) -> None:
    Output(Mode.HUMAN).error(NeedsAttention("it broke"))
    assert capsys.readouterr().err == "error: it broke\n"


def test_an_error_is_colored_on_a_terminal_only_if_colors_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)
    Output(Mode.HUMAN).error(FAILURE)
    colored = terminal.getvalue()
    assert colored.startswith("\x1b[1;31merror:\x1b[0m r-2")
    monkeypatch.setenv("NO_COLOR", "1")
    Output(Mode.HUMAN).error(FAILURE)
    assert terminal.getvalue().removeprefix(colored) == FAILURE_TEXT


def test_events_are_lines_of_the_story(capsys: Capture) -> None:
    out = Output(Mode.HUMAN)
    out.event(StageStarted("gpu-1", "ready"))
    out.event(TaskDone("gpu-1", "host", "Copy", "ok", 0.1))
    out.event(StageFinished("gpu-1", "ready", 1.0))
    printed = capsys.readouterr()
    assert printed.err == "gpu-1  ready     done  1.0s\n"
    assert printed.out == ""


def test_events_are_objects_on_standard_output_in_json(capsys: Capture) -> None:
    out = Output(Mode.JSON)
    out.event(TaskDone("gpu-1", "host", "Copy", "ok", 0.1))
    out.note("a note")
    out.value({"event": "plan", "host": "主机"})
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        '{"schema": 1, "event": "task_done", "host": "gpu-1", "stage": "host", "task": "Copy", '
        '"outcome": "ok", "seconds": 0.1}',
        '{"schema": 1, "event": "plan", "host": "主机"}',
    ]


def test_the_quiet_mode_says_nothing_but_errors(capsys: Capture) -> None:
    out = Output(Mode.QUIET)
    out.event(HostFinished("gpu-1", "changed", "r-1", None, 3, 1.0))
    out.note("a note")
    out.value({"x": 1})
    out.table(("A",), [("b",)])
    assert capsys.readouterr() == ("", "")


def test_the_quiet_mode_prints_a_key_that_nobody_could_see_later(capsys: Capture) -> None:
    Output(Mode.QUIET).event(KeyCreated("gpu-1", "sk-1"))
    assert capsys.readouterr() == ("sk-1\n", "")


@pytest.mark.parametrize(
    ("mode", "out"), [(Mode.HUMAN, "一\n"), (Mode.QUIET, "一\n"), (Mode.JSON, "")]
)
def test_a_line_of_the_answer_is_no_json(mode: Mode, out: str, capsys: Capture) -> None:
    Output(mode).line("一")
    assert capsys.readouterr() == (out, "")


def test_a_table_is_aligned_by_columns_of_the_terminal(capsys: Capture) -> None:
    Output(Mode.HUMAN).table(
        ("HOST", "MODEL", "X"), [("主机一号", "通义", "1"), ("gpu-1", "Qwen", "")]
    )
    assert capsys.readouterr().out == (
        "HOST      MODEL  X\n"
        "主机一号  通义   1\n"
        "gpu-1     Qwen\n"
    )  # fmt: skip


def test_a_table_is_no_json(capsys: Capture) -> None:
    Output(Mode.JSON).table(("A",), [("b",)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("typed", "agreed"), [("y\n", True), ("YES\n", True), ("\n", False)])
def test_a_person_is_asked_once(monkeypatch: pytest.MonkeyPatch, typed: str, agreed: bool) -> None:
    terminal = on_terminal(monkeypatch, typed)
    assert Output(Mode.HUMAN).confirm("Change 1 of 1 hosts?") is agreed
    assert terminal.getvalue() == "Change 1 of 1 hosts? [y/N] "


@pytest.mark.parametrize("mode", [Mode.JSON, Mode.QUIET])
def test_a_program_that_reads_is_not_asked(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    terminal = on_terminal(monkeypatch, "y\n")
    assert not Output(mode).confirm("Change?")
    assert terminal.getvalue() == ""


def test_without_a_terminal_nobody_agrees(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert not Output(Mode.HUMAN).confirm("Change?")
    assert capsys.readouterr().err == ""


def test_the_live_line_is_erased_before_the_next_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)
    out = Output(Mode.HUMAN)
    out.event(StageStarted("gpu-1", "ready"))
    out.event(StageFinished("gpu-1", "ready", 1.0))
    out.close()
    written = terminal.getvalue()
    assert "gpu-1  ready     ..." in written
    assert "\x1b[2Kgpu-1  ready     done  1.0s\n" in written, "the live line is erased first"


def test_verbose_has_no_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    out = Output(Mode.HUMAN, verbose=True)
    out.event(StageStarted("gpu-1", "ready"))
    out.event(TaskDone("gpu-1", "host", "Copy", "ok", 0.1))
    assert terminal.getvalue() == "gpu-1  host      Copy: ok  0.1s\n"
