"""The operator dies, the host loses power, a disk fills: the next `up` ends well."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fixture_model.dialogues import answer_to
from tests.lab import Host, Lab, service
from tests.lab.controller import Controller, events_of

pytestmark = pytest.mark.lab

HELLO = "你好"
BUILD = "Build the virtual environment"
KEY = "sk-a-key-of-our-own-0123456789"
# In the order in which a fresh `up` comes by, so that each is reached from where the last one died.
POINTS = (
    ("stage_started", "converge"),
    ("task_started", "Create the directories"),
    ("task_started", BUILD),
    ("task_started", "Unpack the release"),
    ("task_started", "Make the release current"),
    ("task_started", "Start the unit"),
    ("stage_started", "ready"),
)


@pytest.fixture
def controller(lab: Lab, host: Host, tmp_path: Path) -> Controller:
    controller = Controller(lab, tmp_path / "operator")
    (controller.folder / "key.txt").write_text(KEY)
    controller.configure(host, service={"api_key_file": "./key.txt"})
    return controller


def is_at(point: tuple[str, str]) -> Callable[[dict[str, Any]], bool]:
    kind, name = point
    return lambda event: event["event"] == kind and name in (event.get("task"), event.get("stage"))


def _follow(process: subprocess.Popen[str], point: tuple[str, str]) -> None:
    seen = []
    for event in events_of(process):
        if is_at(point)(event):
            return
        seen.append(event)
    pytest.fail(f"{point} never came: {seen[-3:]}")


@contextmanager
def up_until(controller: Controller, point: tuple[str, str]) -> Iterator[subprocess.Popen[str]]:
    """An `up` that has come to this point and goes on."""
    process = controller.start("up", "--yes")
    try:
        _follow(process, point)
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_up_ends_well_wherever_the_operator_before_was_killed(
    controller: Controller, host: Host
) -> None:
    for point in POINTS:
        with up_until(controller, point) as process:
            process.kill()
    controller.run("up", "--yes")
    assert service.answer(host, KEY, HELLO) == answer_to(HELLO)
    assert not host.run("ls /opt/qwen-deploy/venvs | grep -E 'building|lock'", check=False).stdout


def test_up_ends_well_after_the_host_lost_power(controller: Controller, host: Host) -> None:
    with up_until(controller, ("task_started", BUILD)) as process:
        host.power_loss()
        host.boot()
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait(timeout=120) in (4, 5)
    controller.run("up", "--yes")
    assert service.answer(host, KEY, HELLO) == answer_to(HELLO)


def test_an_interrupted_up_says_what_the_host_serves(controller: Controller, host: Host) -> None:
    with up_until(controller, ("task_started", BUILD)) as process:
        process.terminate()
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(timeout=120) == 130
    assert f"{host.address} serves nothing" in rest
    assert service.current(host) == ""


def test_a_disk_that_fills_in_the_middle_is_told_and_costs_nothing(
    controller: Controller, host: Host
) -> None:
    host.run(["mkdir", "-p", "/opt/qwen-deploy"])
    with host.small_disk("/opt/qwen-deploy", 2300 << 20):
        with up_until(controller, ("task_started", BUILD)) as process:
            host.run("fallocate -l 1600M /opt/qwen-deploy/filler")
            assert process.stdout is not None
            rest = process.stdout.read()
            assert process.wait(timeout=300) == 5
        assert "No space left on device" in rest
        host.run("rm /opt/qwen-deploy/filler")
        controller.run("up", "--yes")
        assert service.answer(host, KEY, HELLO) == answer_to(HELLO)
        host.run("systemctl stop qwen.socket qwen.service")
