"""What happened, as frozen values that travel up. Knows nothing of where they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal[
    "changed", "unchanged", "refused", "unreachable", "rolled back", "needs attention", "not tried"
]
TaskOutcome = Literal["ok", "changed", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class StageStarted:
    host: str
    stage: str


@dataclass(frozen=True, slots=True)
class StageFinished:
    host: str
    stage: str
    seconds: float
    summary: str = "done"


@dataclass(frozen=True, slots=True)
class TaskStarted:
    host: str
    stage: str
    task: str


@dataclass(frozen=True, slots=True)
class TaskDone:
    host: str
    stage: str
    task: str
    outcome: TaskOutcome
    seconds: float


@dataclass(frozen=True, slots=True)
class TransferProgress:
    host: str
    phase: str
    source: str
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    eta_seconds: float | None
    proof: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeTried:
    host: str
    status: str


@dataclass(frozen=True, slots=True)
class Warned:
    host: str
    message: str


@dataclass(frozen=True, slots=True)
class KeyCreated:
    """An API key made in this run: shown to the operator once, never stored in clear."""

    host: str
    key: str


@dataclass(frozen=True, slots=True)
class HostFinished:
    host: str
    outcome: Outcome
    release: str | None
    previous: str | None
    changed: int
    seconds: float


Event = (
    StageStarted
    | StageFinished
    | TaskStarted
    | TaskDone
    | TransferProgress
    | ProbeTried
    | Warned
    | KeyCreated
    | HostFinished
)
