"""Is this very release ready on this host? The policy of asking again, and of giving up.

Knows neither Ansible nor what follows from the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen_deploy.facts import Facts

INTERVAL_SECONDS = 0.5
# A unit that says it is ready and cannot be reached will not be reached later.
SILENT_TRIES = 20
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Readiness:
    """`reason` is empty where the release is ready."""

    is_ready: bool
    reason: str
    facts: Facts


def wait_ready(
    inspect: Callable[[], Facts],
    release: str,
    *,
    deadline_seconds: float,
    is_canceled: Callable[[], bool],
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Readiness:
    """Asks until the release answers, its unit has failed, or the deadline has passed."""
    ends_at = clock() + deadline_seconds
    silent_tries = 0
    while True:
        facts = inspect()
        verdict = judge(facts, release)
        if verdict is not None:
            return Readiness(not verdict, verdict, facts)
        silent_tries = silent_tries + 1 if _is_silent(facts) else 0
        if silent_tries == SILENT_TRIES:
            return Readiness(False, f"its port does not answer: {_reason(facts)}", facts)
        tell(status(facts))
        if is_canceled():
            return Readiness(False, INTERRUPTED, facts)
        if clock() >= ends_at:
            reason = f"it was not ready within {deadline_seconds:.0f} s: {status(facts)}"
            return Readiness(False, reason, facts)
        pause(INTERVAL_SECONDS)


def _is_silent(facts: Facts) -> bool:
    return facts.unit_state == "active" and facts.answer is not None and not facts.answer.status


def judge(facts: Facts, release: str) -> str | None:
    """Empty for ready, a reason for failed, None for not yet."""
    unit = facts.unit
    has_restarted = unit.get("SubState") == "auto-restart" or unit.get("NRestarts") != "0"
    if facts.unit_state == "failed" or has_restarted:
        # Between two starts systemd has forgotten the result of the first.
        status = f"exit status {unit.get('ExecMainStatus', 'unknown')}"
        result = unit.get("Result", "unknown")
        return f"the unit failed ({status if result == 'success' else result})"
    answer = facts.answer
    if facts.unit_state != "active" or answer is None or answer.status != 200:
        return None
    if answer.release != release:
        return f"the service says it is {answer.release}, not {release}"
    if not answer.completion_ok:
        return f"no completion came back: {answer.completion_error}"
    return ""


def status(facts: Facts) -> str:
    """What the unit says of itself while it starts."""
    return facts.unit.get("StatusText") or _reason(facts) or f"the unit is {facts.unit_state}"


def _reason(facts: Facts) -> str:
    return facts.answer.reason if facts.answer else ""
