"""Events to lines. Knows neither streams nor modes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
from qwen_deploy.sizes import megabytes

if TYPE_CHECKING:
    from qwen_deploy.supply import Route


def name(event: Event) -> str:
    """The class's name as JSON spells it: TaskDone -> task_done."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def line(event: Event, *, verbose: bool) -> str | None:
    """One line: one host and one fact. None where the event is not worth a line."""
    match event:
        case TaskDone(host, stage, task, outcome, seconds):
            is_shown = verbose or outcome in ("changed", "failed")
            return _row(host, stage, f"{task}: {outcome}", seconds) if is_shown else None
        case StageFinished(host, stage, seconds, summary):
            return _row(host, stage, summary, seconds)
        case TransferProgress(host, "done", _, _, total, _, _):
            return _row(host, "weights", f"{megabytes(total)} on the host, proven")
        case ProbeTried(host, status):
            return _row(host, "ready", status) if verbose else None
        case Warned(host, message):
            return _row(host, "warning", message)
        case KeyCreated(host, key):
            return f"\n{host}: API key, shown this once: {key}\n"
    return None


def reading(done: int, total: int) -> str:
    share = done / total if total else 1.0
    return f"reading the weights: {share:.0%} of {megabytes(total)}"


def ends(event: Event) -> bool:
    """Nothing goes on for this host after it, until another event says so."""
    is_over = isinstance(event, TransferProgress) and event.phase in ("done", "failed")
    return is_over or isinstance(event, HostFinished | StageFinished)


def now(event: Event) -> str | None:
    """What is going on at this moment."""
    match event:
        case StageStarted(host, stage):
            return _row(host, stage, "...")
        case TaskStarted(host, stage, task):
            return _row(host, stage, task)
        case TransferProgress():
            return _transfer(event)
        case ProbeTried(host, status):
            return _row(host, "ready", status)
    return None


def _transfer(event: TransferProgress) -> str:
    done, total = event.bytes_done, event.bytes_total
    share = done / total if total else 0.0
    filled = int(share * BAR_WIDTH)
    bar = f"[{'#' * filled}{'-' * (BAR_WIDTH - filled)}] {share:4.0%}"
    left = f"  {_clock(event.eta_seconds)} left" if event.eta_seconds is not None else ""
    rate = f"  {megabytes(int(event.bytes_per_second))}/s{left}"
    source = f"  from {event.source}" if event.source else ""
    moving = f"{rate}{source}" if event.phase == "fetching" else f"  {event.phase}"
    return _row(event.host, "weights", f"{bar} of {megabytes(total)}{moving}")


def way(missing_bytes: int, route: Route) -> str:
    """How a plan tells where weights will come from, and how quickly."""
    eta = _clock(route.eta_seconds(missing_bytes))
    rate = f", {megabytes(int(route.rate))}/s measured, about {eta}" if route.rate else ""
    return f"{route.text}{rate}"


def transfer_cells(status: Mapping[str, Any]) -> tuple[str, ...]:
    if not status:
        return ("none", *("-",) * 6)
    total = status["bytes_total"]
    share = f"{status['bytes_done'] / total:.0%} of {megabytes(total)}" if total else "-"
    is_fetching = status["phase"] == "fetching"
    is_stopped = (status.get("error") or {}).get("kind") == "stopped"
    return (
        "stopped" if is_stopped else status["phase"],
        status["model"],
        status["revision"],
        share,
        f"{megabytes(status['rate'])}/s" if is_fetching else "-",
        _clock(status["eta_seconds"]) if is_fetching else "-",
        status.get("source") or "-",
    )


def verdict_cells(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    count = len(verdict["problems"])
    size = megabytes(verdict["bytes"])
    said = "as proven" if verdict["ok"] else f"{count} damaged"
    return (verdict["model"], verdict["revision"], size, said)


def problem(verdict: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    ranges = [f"{first}-{end - 1}" for first, end in one["ranges"]]
    more = f" and {len(ranges) - MOST_RANGES} more" if len(ranges) > MOST_RANGES else ""
    where = f"; bytes {', '.join(ranges[:MOST_RANGES])}{more}" if ranges else ""
    return f"{verdict['directory']}/{one['path']}: {one['what']}{where}"


def model_cells(model: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        model["model"],
        model["revision"],
        megabytes(model["bytes"]),
        model.get("proof") or "-",
        model.get("verified_at") or "-",
        ", ".join(model["used_by"]) or "-",
    )


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    clock = f"{rest // 60:02}:{rest % 60:02}"
    return f"{hours}:{clock}" if hours else clock


def result_row(finished: HostFinished) -> tuple[str, ...]:
    return (
        finished.host,
        finished.outcome,
        finished.release or "-",
        finished.previous or "-",
        str(finished.changed),
        f"{finished.seconds:.1f}",
    )


BAR_WIDTH = 20
MOST_RANGES = 3
RESULT_HEADER = ("HOST", "OUTCOME", "RELEASE", "PREVIOUS", "CHANGED", "SECONDS")


def _row(host: str, stage: str, text: str, seconds: float | None = None) -> str:
    return f"{host}  {stage:<8}  {text}" + (f"  {seconds:.1f}s" if seconds is not None else "")
