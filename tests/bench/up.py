"""A fresh `up` and its stages, an `up` with nothing to do, and the program's start."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tests.lab import Lab
from tests.lab.controller import PROGRAM, Controller

BUILD = "Build the virtual environment"
ROUNDS = 7


def measure() -> Iterator[tuple[str, float]]:
    with Lab(1) as lab, tempfile.TemporaryDirectory() as folder:
        controller = Controller(lab, Path(folder))
        controller.configure(*lab.hosts)
        started = time.monotonic()
        events = controller.events("up", "--yes")
        yield from _fresh(events, time.monotonic() - started)
        yield from _unchanged(lab, controller)


def _fresh(events: list[dict[str, Any]], total: float) -> Iterator[tuple[str, float]]:
    stages: Counter[str] = Counter()
    for event in events:
        if event["event"] == "task_done":
            stages[event["stage"]] += event["seconds"]
    tasks = {event["task"]: event["seconds"] for event in events if event["event"] == "task_done"}
    finished = {e["stage"]: e["seconds"] for e in events if e["event"] == "stage_finished"}
    ready = finished["ready"]
    yield "up_fresh_seconds", total
    # What is neither uv's work nor the model's loading.
    yield "up_fresh_own_seconds", total - tasks[BUILD] - ready
    yield "up_fresh_facts_seconds", total - finished["converge"] - ready
    for stage in ("host", "runtime", "model", "service"):
        yield f"up_fresh_{stage}_seconds", stages[stage]
    yield "up_fresh_venv_seconds", tasks[BUILD]
    yield "up_fresh_ready_seconds", ready


def _unchanged(lab: Lab, controller: Controller) -> Iterator[tuple[str, float]]:
    """Rounds in turn, so that whatever else the machine does falls on all of them alike."""
    (host,) = lab.hosts
    environment = controller.environment

    def ssh() -> None:
        subprocess.run(["ssh", f"root@{host.address}", "true"], env=environment, check=True)

    def program_help() -> None:
        subprocess.run([PROGRAM, "--help"], env=environment, check=True, capture_output=True)

    def up_again() -> None:
        assert "unchanged" in controller.run("up", "--yes").stdout

    actions = (program_help, ssh, up_again)
    times = [[_timed(action) for action in actions] for _ in range(ROUNDS)]
    start, trip, again = (median(column) for column in zip(*times, strict=True))
    yield "cli_help_seconds", start
    yield "ssh_round_trip_seconds", trip
    yield "up_unchanged_seconds", again
    yield "up_unchanged_over_ssh", (again - start) / trip


def _timed(action: Callable[[], None]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started
