"""Events to lines. Knows neither streams nor modes."""

from __future__ import annotations

import re
import shlex
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
    from qwen_deploy.inventory import Host
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
        case TransferProgress(host, "done", _, _, total, _, _, proof):
            return _row(host, "weights", f"{megabytes(total)} on the host, {proven(proof)}")
        case ProbeTried(host, status):
            return _row(host, "ready", status) if verbose else None
        case Warned(host, message):
            return _row(host, "warning", message)
        case KeyCreated(host, key):
            return f"\n{host}: API key, shown this once: {key}\n"
    return None


def proven(proof: str | None) -> str:
    return "complete, not proven by any hub's checksums" if proof == "none" else "proven"


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
    if not route.rate:
        return route.text
    eta = _clock(max(route.eta_seconds(missing_bytes) or 0.0, 1.0))
    speed = f"{megabytes(int(route.rate))}/s"
    told = f"at most {speed}" if route.is_limit else f"{speed} measured"
    return f"{route.text}, {told}, about {eta}"


def transfer_cells(status: Mapping[str, Any]) -> tuple[str, ...]:
    if not status:
        return ("none", *("-",) * 6)
    if status["phase"] == UNFINISHED:
        share = f"{status['bytes_done'] / status['bytes_total']:.0%}"
        size = megabytes(status["bytes_total"])
        return (UNFINISHED, status["model"], status["revision"], f"{share} of {size}", *"---")
    total = status["bytes_total"]
    share = f"{status['bytes_done'] / total:.0%} of {megabytes(total)}" if total else "-"
    is_fetching = status["phase"] == "fetching"
    is_stopped = (status.get("error") or {}).get("kind") in ("stopped", "down")
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
    return (verdict["model"], verdict["revision"], size, _said(verdict, count))


def _said(verdict: Mapping[str, Any], count: int) -> str:
    if not verdict.get("is_there", True):
        return "missing"
    if not verdict["ok"]:
        return f"{count} damaged"
    if verdict.get("quick"):
        return "names and sizes as recorded"
    return "as brought, proven by no hub" if verdict.get("proof") == "none" else "as proven"


def problem(verdict: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    ranges = [f"{first}-{end - 1}" for first, end in one["ranges"]]
    more = f" and {len(ranges) - MOST_RANGES} more" if len(ranges) > MOST_RANGES else ""
    where = f"; bytes {', '.join(ranges[:MOST_RANGES])}{more}" if ranges else ""
    place = f"{verdict['directory']}/{one['path']}".rstrip("/")
    return f"{place}: {one['what']}{where}"


def model_cells(model: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        model["model"],
        model["revision"],
        megabytes(model["bytes"]),
        _state(model) or model.get("proof") or "-",
        model.get("verified_at") or "-",
        ", ".join(model["used_by"]) or "-",
    )


def _state(model: Mapping[str, Any]) -> str | None:
    """What is wrong with it; nothing with most."""
    if not model.get("is_there", True):
        return "missing"
    if model.get("damaged") is not None:
        return "damaged"
    return None if model["is_whole"] else "incomplete"


def trouble(host: Host, model: Mapping[str, Any]) -> str | None:
    """The same as a sentence, with the way out."""
    state = _state(model)
    if state is None:
        return None
    needs = f", and {', '.join(model['used_by'])} needs it" if model["used_by"] else ""
    name = f"{model['model']} {model['revision']}"
    return f"{name} is {state}{needs}: qwen-deploy {going_on(host, model)}"


def going_on(host: Host, model: Mapping[str, Any]) -> str:
    """The command that brings what is missing of a revision."""
    origin = model.get("origin") or {}
    requested = origin.get("requested")
    words = ["weights", "pull", "--host", host.text, "--model", model["model"]]
    words += ["--revision", requested] if requested else []
    words += ["--weights", "..."] if origin.get("source") in ("folder", "archive") else []
    return shlex.join(words).replace("'...'", "...")


def waits_for(status: Mapping[str, Any]) -> str | None:
    """Why nothing comes at the moment: what the sources that pause have said."""
    sources = status.get("sources", [])
    is_under_way = status.get("phase") in ("waiting", "fetching")
    if not is_under_way or any(one["state"] == "reading" for one in sources):
        return None
    reasons = [f"{one['name']}: {one['error']}" for one in sources if one.get("error")]
    return "; ".join(reasons) or None


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
UNFINISHED = "unfinished"  # what `weights status` adds to the phases of the agent
MOST_RANGES = 3
RESULT_HEADER = ("HOST", "OUTCOME", "RELEASE", "PREVIOUS", "CHANGED", "SECONDS")


def _row(host: str, stage: str, text: str, seconds: float | None = None) -> str:
    return f"{host}  {stage:<8}  {text}" + (f"  {seconds:.1f}s" if seconds is not None else "")
