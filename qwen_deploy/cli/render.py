"""Events to lines. Knows neither streams nor modes."""

from __future__ import annotations

import re

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
        case TransferProgress(host, "done", _, total, _, _):
            return _row(host, "weights", f"{megabytes(total)} on the host, proven")
        case ProbeTried(host, status):
            return _row(host, "ready", status) if verbose else None
        case Warned(host, message):
            return _row(host, "warning", message)
        case KeyCreated(host, key):
            return f"\n{host}: API key, shown this once: {key}\n"
    return None


def now(event: Event) -> str | None:
    """What is going on at this moment."""
    match event:
        case StageStarted(host, stage):
            return _row(host, stage, "...")
        case TaskStarted(host, stage, task):
            return _row(host, stage, task)
        case TransferProgress(host, phase, done, total, rate, eta):
            share = f"{done / total:.0%}" if total else phase
            left = f", {eta:.0f} s left" if eta is not None else ""
            text = f"{share} of {megabytes(total)}, {megabytes(int(rate))}/s{left}"
            return _row(host, "weights", text)
        case ProbeTried(host, status):
            return _row(host, "ready", status)
    return None


def result_row(finished: HostFinished) -> tuple[str, ...]:
    return (
        finished.host,
        finished.outcome,
        finished.release or "-",
        finished.previous or "-",
        str(finished.changed),
        f"{finished.seconds:.1f}",
    )


RESULT_HEADER = ("HOST", "OUTCOME", "RELEASE", "PREVIOUS", "CHANGED", "SECONDS")


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _row(host: str, stage: str, text: str, seconds: float | None = None) -> str:
    return f"{host}  {stage:<8}  {text}" + (f"  {seconds:.1f}s" if seconds is not None else "")
