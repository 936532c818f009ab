from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_deploy.cli import render
from qwen_deploy.events import (
    Event,
    HostFinished,
    KeyCreated,
    ProbeTried,
    StageFinished,
    StageStarted,
    TaskDone,
    TaskStarted,
    TransferProgress,
    Warned,
)

H = "gpu-1"
HALF = TransferProgress(H, "fetching", "modelscope", 500_000_000, 1_000_000_000, 2e8, 102.5)
PLANNED = TransferProgress(H, "waiting", "", 0, 0, 0.0, None)
PROVEN = TransferProgress(H, "done", "", 15_200_000_000, 15_200_000_000, 0.0, None, "hub")
COMPLETE = replace(PROVEN, proof="none")

# Event, its line, its line when verbose, what is shown on the live line.
SHOWN: dict[str, tuple[Event, str | None, str | None, str | None]] = {
    "stage started": (StageStarted(H, "ready"), None, None, "gpu-1  ready     ..."),
    "stage finished": (
        StageFinished(H, "ready", 3.21),
        "gpu-1  ready     done  3.2s",
        "gpu-1  ready     done  3.2s",
        None,
    ),
    "stage that failed": (
        StageFinished(H, "converge", 3.21, "unreachable"),
        "gpu-1  converge  unreachable  3.2s",
        "gpu-1  converge  unreachable  3.2s",
        None,
    ),
    "task started": (
        TaskStarted(H, "runtime", "Copy uv"),
        None,
        None,
        "gpu-1  runtime   Copy uv",
    ),
    "task without a change": (
        TaskDone(H, "runtime", "Copy uv", "ok", 0.4),
        None,
        "gpu-1  runtime   Copy uv: ok  0.4s",
        None,
    ),
    "task with a change": (
        TaskDone(H, "runtime", "Copy uv", "changed", 0.44),
        "gpu-1  runtime   Copy uv: changed  0.4s",
        "gpu-1  runtime   Copy uv: changed  0.4s",
        None,
    ),
    "failed task": (
        TaskDone(H, "service", "Start the unit", "failed", 1.0),
        "gpu-1  service   Start the unit: failed  1.0s",
        "gpu-1  service   Start the unit: failed  1.0s",
        None,
    ),
    "half of the weights": (
        HALF,
        None,
        None,
        "gpu-1  weights   [##########----------]  50% of 1.0 GB  200.0 MB/s  01:42 left"
        "  from modelscope",
    ),
    "no weights yet": (
        PLANNED,
        None,
        None,
        "gpu-1  weights   [--------------------]   0% of 0.0 MB  waiting",
    ),
    "weights that nobody vouches for": (
        COMPLETE,
        "gpu-1  weights   15.2 GB on the host, complete, not proven by any hub's checksums",
        "gpu-1  weights   15.2 GB on the host, complete, not proven by any hub's checksums",
        "gpu-1  weights   [####################] 100% of 15.2 GB  done",
    ),
    "all weights": (
        PROVEN,
        "gpu-1  weights   15.2 GB on the host, proven",
        "gpu-1  weights   15.2 GB on the host, proven",
        "gpu-1  weights   [####################] 100% of 15.2 GB  done",
    ),
    "probe": (
        ProbeTried(H, "loading: 3 of 8"),
        None,
        "gpu-1  ready     loading: 3 of 8",
        "gpu-1  ready     loading: 3 of 8",
    ),
    "warning": (
        Warned(H, "no GPU"),
        "gpu-1  warning   no GPU",
        "gpu-1  warning   no GPU",
        None,
    ),
    "key": (
        KeyCreated(H, "sk-1"),
        "\ngpu-1: API key, shown this once: sk-1\n",
        "\ngpu-1: API key, shown this once: sk-1\n",
        None,
    ),
    "result": (HostFinished(H, "changed", "r-1", None, 3, 41.26), None, None, None),
}


@pytest.mark.parametrize(("event", "line", "verbose", "now"), SHOWN.values(), ids=SHOWN)
def test_an_event_is_one_line_of_one_host(
    event: Event, line: str | None, verbose: str | None, now: str | None
) -> None:
    assert render.line(event, verbose=False) == line
    assert render.line(event, verbose=True) == verbose
    assert render.now(event) == now


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (TaskDone(H, "a", "b", "ok", 0.0), "task_done"),
        (HALF, "transfer_progress"),
        (HostFinished(H, "changed", None, None, 0, 0.0), "host_finished"),
    ],
)
def test_an_event_has_its_name_in_json(event: Event, name: str) -> None:
    assert render.name(event) == name


def test_a_result_is_a_row_under_its_header() -> None:
    first = HostFinished(H, "changed", "r-1", None, 3, 41.26)
    other = HostFinished("gpu-2", "not tried", None, None, 0, 0.0)
    assert render.result_row(first) == ("gpu-1", "changed", "r-1", "-", "3", "41.3")
    assert render.result_row(other) == ("gpu-2", "not tried", "-", "-", "0", "0.0")
    assert len(render.RESULT_HEADER) == len(render.result_row(first))
